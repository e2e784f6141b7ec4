"""The house rules that a machine can check (docs: rooms and arrows)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("gateway", "codec", "stego", "service", "worker", "palimpsest")

#: room -> rooms it may import at module level or inside functions; its own is always allowed
ARROWS = {
    "gateway": set(),
    "codec": set(),
    "stego": {"codec"},
    "service": {"gateway"},
    "worker": {"gateway", "codec", "stego"},
    "palimpsest": {"gateway", "service", "worker", "codec", "stego"},
}
#: what a pure or shared room must not see
FORBIDDEN = {
    "gateway": {"fastapi", "starlette", "uvicorn", "jinja2", "torch", "pydicom", "pynetdicom", "numpy", "numba"},
    "codec": {"pydicom", "pynetdicom", "celery", "fastapi", "pydantic", "pydantic_settings", "sqlalchemy"},
    "stego": {"pydicom", "pynetdicom", "celery", "fastapi", "pydantic", "pydantic_settings", "sqlalchemy"},
    "service": {"torch", "numba", "imagecodecs", "celery"},
}
#: training of the VAE, and of the networks on a CUDA device: the extra `learned`; nothing imports them unasked
NEEDS_TORCH = ("codec/train/torch_machine.py", "codec/train/vae.py")
#: library -> the only modules that may import it (prefixes of paths)
ONLY_IN = {
    "celery": ("gateway/jobs.py", "worker/app.py", "worker/tasks.py"),
    "kombu": ("gateway/jobs.py", "worker/app.py", "worker/tasks.py"),
    "pynetdicom": ("service/listener", "worker/forward.py", "worker/forward_commitment.py", "palimpsest/"),
    "torch": NEEDS_TORCH,
    "sqlalchemy": ("gateway/",),
    "alembic": ("gateway/",),
}
#: modules with an edge where anything may come in: the DIMSE handler, the Celery task, the FastAPI exception handler
BROAD_EXCEPT_EDGES = ("service/listener", "worker/tasks.py", "service/problems.py", "service/api.py", "service/edge.py")
BROAD = ("Exception", "BaseException")
MAX_LINES = 500
MAX_FUNCTION_LINES = 60
NO_ROOM = ("utils", "util", "helper", "helpers", "common", "manager", "misc")


def modules(*rooms: str) -> Iterator[tuple[str, ast.Module]]:
    for room in rooms or ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"), str(path))


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of imported modules; relative imports are left out, for they cannot leave a room."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_is_there(room: str) -> None:
    assert (ROOT / room / "__init__.py").is_file()


def test_arrows() -> None:
    wrong = [
        f"{path} imports {name}"
        for path, tree in modules()
        for name in imports(tree)
        if (top := name.split(".")[0]) in ROOMS and top != (room := path.split("/")[0]) and top not in ARROWS[room]
    ]
    assert wrong == []


def test_stego_sees_only_bit_planes_of_the_codec() -> None:
    allowed = ("codec.bitplane", "codec.pixelformat", "codec.errors")
    wrong = [
        f"{path} imports {name}"
        for path, tree in modules("stego")
        for name in imports(tree)
        if name.split(".")[0] == "codec" and name != "codec" and not name.startswith(allowed)
    ]
    assert wrong == []


def test_forbidden_libraries() -> None:
    wrong = [
        f"{path} imports {name}"
        for room, libraries in FORBIDDEN.items()
        for path, tree in modules(room)
        for name in imports(tree)
        if name.split(".")[0] in libraries
    ]
    assert wrong == []


def test_libraries_with_one_home() -> None:
    wrong = [
        f"{path} imports {name}"
        for path, tree in modules()
        for name in imports(tree)
        if (library := name.split(".")[0]) in ONLY_IN and not path.startswith(ONLY_IN[library] or ("-",))
    ]
    assert wrong == []


def test_settings_is_the_only_reader_of_the_environment() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path, tree in modules()
        if path != "gateway/settings.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv")
    ]
    assert wrong == []


def broad(handler: ast.ExceptHandler) -> bool:
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(name is None or (isinstance(name, ast.Name) and name.id in BROAD) for name in names)


def only_cleans_up(handler: ast.ExceptHandler) -> bool:
    """True if the handler ends by raising what it caught: nothing is swallowed."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_broad_excepts_only_at_the_three_edges() -> None:
    wrong = [
        f"{path}:{node.lineno}"
        for path, tree in modules()
        if not path.startswith(BROAD_EXCEPT_EDGES)
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and broad(node) and not only_cleans_up(node)
    ]
    assert wrong == []


def test_no_global_statement() -> None:
    wrong = [f"{path}:{n.lineno}" for path, tree in modules() for n in ast.walk(tree) if isinstance(n, ast.Global)]
    assert wrong == []


def test_size_of_modules_and_functions() -> None:
    wrong = []
    for path, tree in modules():
        lines = len((ROOT / path).read_text("utf-8").splitlines())
        if lines > MAX_LINES:
            wrong.append(f"{path}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    wrong.append(f"{path}:{node.lineno} {node.name}: {length} lines")
    assert wrong == []


def is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True for numba kernels: their types are those of the arrays they meet."""
    return any(word in ast.unparse(decorator) for decorator in node.decorator_list for word in ("jit", "kernel"))


def test_every_function_is_typed() -> None:
    wrong = [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns is None and not is_kernel(node)
    ]
    assert wrong == []


def test_no_module_without_a_room() -> None:
    wrong = [path for path, _ in modules() if any(word in NO_ROOM for word in Path(path).stem.split("_"))]
    assert wrong == []


IMPORT_PROBE = """
import importlib, sys, threading
ROOT, NAMES, BANNED = {root!r}, {names!r}, {banned!r}
EVENTS = ("socket.connect", "socket.bind", "subprocess.Popen", "sqlite3.connect", "os.mkdir", "os.remove", "os.rename")
found = []

def ours():
    # a library may do as it likes when imported: what counts is the nearest caller outside the standard library
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT) and "site-packages" not in name:
            return True
        if "site-packages" in name:
            return False
        frame = frame.f_back
    return False

def hook(event, args):
    writing = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if (writing or event in EVENTS) and ours():
        found.append((event, str(args[0])))

sys.dont_write_bytecode = True
sys.addaudithook(hook)
for name in NAMES:
    importlib.import_module(name)
assert not found, found
assert threading.active_count() == 1, threading.enumerate()
assert not BANNED & set(sys.modules), BANNED & set(sys.modules)
"""

BANNED = {
    "gateway": {"torch", "fastapi", "worker", "codec", "stego", "service", "numba", "pydicom", "pynetdicom"},
    "service": {"torch", "worker", "codec", "stego", "numba"},
    "codec": {"torch", "gateway", "pydicom", "celery"},
    "stego": {"torch", "gateway", "pydicom", "celery"},
    "worker": {"torch", "fastapi", "service"},
    "palimpsest": {"torch"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_import_does_no_io(room: str) -> None:
    names = [
        path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for path, _ in modules(room)
        if path not in NEEDS_TORCH
        if not path.endswith(("__main__.py", "migrations/env.py"))
    ]
    code = IMPORT_PROBE.format(root=str(ROOT), names=names, banned=BANNED[room])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_sweep_starts_without_what_codes_images() -> None:
    code = (
        "import sys, worker.sweep; print(*({'numpy', 'numba', 'imagecodecs', 'pydicom', 'codec'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr[-2000:]
