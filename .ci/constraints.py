"""Write deploy/constraints.txt: the exact versions, in this environment, of all that the images install.

    .venv/bin/python .ci/constraints.py [--check]

--check: only say whether the file names all of them, within the bounds of pyproject.toml. Versions that no environment
here has (CUDA's libraries on a machine without them) are left to the bounds.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILE = Path(__file__).resolve().parent.parent / "deploy" / "constraints.txt"
EXTRAS = ("vault", "aws", "gpu", "tracing")
BUILD = ("build", "setuptools", "wheel")


def closure() -> dict[str, str]:
    """Name -> version of the project's dependencies and of theirs."""
    found: dict[str, str] = {}
    waiting = [(Requirement("palimpsest"), EXTRAS), *((Requirement(name), ()) for name in BUILD)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted, extras = waiting.pop()
        name = canonicalize_name(wanted.name)
        try:
            made = distribution(name)
        except PackageNotFoundError:
            continue
        found[name] = made.version
        for line in made.requires or ():
            needed = Requirement(line)
            applies = any(needed.marker.evaluate({"extra": e}) for e in ("", *extras)) if needed.marker else True
            key = (str(needed), ",".join(extras))
            if applies and key not in seen:
                seen.add(key)
                waiting.append((needed, tuple(needed.extras)))
    found.pop("palimpsest")
    return dict(sorted(found.items()))


def main() -> None:
    """Write, or with --check compare."""
    text = "# Made by .ci/constraints.py: what the images of the Dockerfile install.\n"
    text += "".join(f"{name}=={version}\n" for name, version in closure().items())
    if "--check" in sys.argv:
        known = {line.partition("==")[0] for line in FILE.read_text("utf-8").splitlines()}
        if missing := sorted(set(closure()) - known):
            sys.exit(f"deploy/constraints.txt lacks {', '.join(missing)}: run .ci/constraints.py")
        return
    FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
