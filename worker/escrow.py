"""Decoder escrow: one folder from which archive objects open with Python and NumPy alone, whatever becomes of us.

What is copied is what runs here: the plain opener (worker/opener) and every module that it imports, found by reading
the imports; the format documents; all released weights; the conformance vectors. docs/escrow.md is its README.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import codec
from codec.weights import RELEASED, released_bytes
from gateway.errors import PolicyRefused, Unavailable

ROOMS: Final = ("codec", "stego", "worker")
ENTRIES: Final = ("worker.opener.command", "worker.opener.vectors")
DOCUMENTS: Final = ("bitstream.md", "global-path.md", "archive-object.md", "payload-format.md")
README: Final = "escrow.md"
VECTORS: Final = ("archive-object", "codec_v1", "codec_v2", "vae_v1")
SUMS: Final = "SHA256SUMS"
#: JPEG-LS frames are decoded by a module whose loops numba compiles; without numba they are plain Python
STAND_IN: Final = '''"""Stands in for numba where it is not installed: the loops run as plain Python."""

from __future__ import annotations


def njit(*arguments, **_):
    """The function as it is, with and without arguments of the decorator."""
    return arguments[0] if arguments and callable(arguments[0]) else lambda function: function
'''
_START: Final = '''"""{about}"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.dont_write_bytecode = True  # nothing is added to the folder
sys.path.insert(0, str(HERE / "python"))
sys.path.append(str(HERE / "python" / "stand-ins"))  # last: what is installed is used first

{rest}
'''
OPEN: Final = _START.format(
    about="Restore received files from archive objects: python3 open.py --help",
    rest='from worker.opener.command import main  # noqa: E402\n\nif __name__ == "__main__":\n    sys.exit(main())',
)
VERIFY: Final = _START.format(
    about="Compare every file of this folder with its digest, then run all vectors (--all: large ones, too).",
    rest='''from hashlib import sha256  # noqa: E402

from worker.opener.vectors import run  # noqa: E402


def compare() -> int:
    """Number of files that are missing or changed."""
    wrong = 0
    for line in (HERE / "SHA256SUMS").read_text("utf-8").splitlines():
        digest, name = line.split("  ", 1)
        path = HERE / name
        if not path.is_file() or sha256(path.read_bytes()).hexdigest() != digest:
            print(f"CHANGED         {name}")
            wrong += 1
    return wrong


if __name__ == "__main__":
    changed = compare()
    most = 1 << 62 if "--all" in sys.argv else 1 << 14
    sys.exit(1 if run(HERE / "vectors", most=most) or changed else 0)''',
)


@dataclass(frozen=True)
class Escrow:
    """What was written: number of files and their bytes, and the released weights among them."""

    files: int
    size: int
    weights: tuple[str, ...]


def write_escrow(out: Path) -> Escrow:
    """Write the folder. Raises PolicyRefused ``folder-exists``, Unavailable ``escrow-incomplete``."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PolicyRefused("folder-exists", f"{out} is there already and not empty: an escrow goes into a new folder")
    for name, data in contents():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    sums = "".join(f"{sha256(path.read_bytes()).hexdigest()}  {path.relative_to(out).as_posix()}\n" for path in files)
    (out / SUMS).write_text(sums, encoding="utf-8")
    return Escrow(len(files) + 1, sum(path.stat().st_size for path in files), tuple(each.file for each in RELEASED))


def contents() -> Iterator[tuple[str, bytes]]:
    """(name in the folder, bytes) of every file but the sums. Raises Unavailable ``escrow-incomplete``."""
    documents, vectors = _sources()
    yield "README.md", (documents / README).read_bytes()
    yield "open.py", OPEN.encode("utf-8")
    yield "verify.py", VERIFY.encode("utf-8")
    for name in DOCUMENTS:
        yield f"docs/{name}", (documents / name).read_bytes()
    root = _root()
    for path in modules(root):
        yield f"python/{path.relative_to(root).as_posix()}", path.read_bytes()
    yield "python/stand-ins/numba.py", STAND_IN.encode("utf-8")
    for entry in RELEASED:
        yield f"python/codec/models/{entry.file}", released_bytes(entry.sha256)
    for folder in VECTORS:
        for path in sorted((vectors / folder).glob("*")):
            if path.is_file():
                yield f"vectors/{folder}/{path.name}", path.read_bytes()


def _root() -> Path:
    return Path(codec.__file__).resolve().parent.parent


def _sources() -> tuple[Path, Path]:
    """Folders of the documents and of the vectors: of a source tree, or where the wheel puts them."""
    installed = Path(sysconfig.get_path("data"), "share", "palimpsest")
    for documents, vectors in (
        (_root() / "docs", _root() / "tests" / "golden"),
        (installed / "docs", installed / "golden"),
    ):
        if (documents / README).is_file() and (vectors / VECTORS[0]).is_dir():
            return documents, vectors
    raise Unavailable("escrow-incomplete", "this installation came without the documents and vectors of the escrow")


def modules(root: Path) -> list[Path]:
    """Every module of ours that the opener needs, packages' `__init__` included, sorted."""
    wanted, found = list(ENTRIES), set()
    while wanted:
        name = wanted.pop()
        path = _file_of(root, name)
        if path is None or path in found:
            continue
        found.add(path)
        wanted += imports(ast.parse(path.read_text("utf-8")))
        parts = name.split(".")
        wanted += [".".join(parts[:end]) for end in range(1, len(parts))]
    return sorted(found)


def _file_of(root: Path, name: str) -> Path | None:
    if name.split(".")[0] not in ROOMS:
        return None
    base = root.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def imports(tree: ast.AST) -> Iterator[str]:
    """Names that a module imports when it runs, those of its functions included; what only type checkers see is not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from imports(node)

