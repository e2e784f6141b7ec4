"""Write deploy/constraints.txt: the exact versions, in this environment, of all that the images install.

    .venv/bin/python .ci/constraints.py [--check]

--check: only say whether the file names all of them, within the bounds of pyproject.toml. Versions that no environment
here has (CUDA's libraries on a machine without them) are left to the bounds.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "deploy" / "constraints.txt"
EXTRAS = ("vault", "aws", "gpu", "tracing", "flower")
BUILD = ("build", "setuptools", "wheel")


def closure() -> dict[str, str]:
    """Name -> version of the project's dependencies and of theirs."""
    found: dict[str, str] = {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted_by_us = [*project["dependencies"], *BUILD]
    for extra in EXTRAS:
        wanted_by_us += project["optional-dependencies"].get(extra, [])
    waiting = [(needed, tuple(needed.extras)) for needed in map(Requirement, wanted_by_us)]
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
