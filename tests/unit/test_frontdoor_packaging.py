"""pyproject.toml against the tree: what is shipped, what is bounded, what the console script starts."""

import importlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
ROOMS = ("codec", "gateway", "palimpsest", "service", "stego", "worker")


def dependencies() -> list[str]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    return [*PROJECT["project"]["dependencies"], *(line for extra in extras for line in extra)]


def test_every_package_of_the_tree_is_listed_and_no_other() -> None:
    tree = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == tree


def test_every_data_file_of_a_package_is_shipped() -> None:
    shipped = PROJECT["tool"]["setuptools"]["package-data"]
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and path.suffix not in {".py", ".pyc"} and "__pycache__" not in path.parts:
                relative = path.relative_to(ROOT / room)
                assert any(relative.match(pattern) for pattern in shipped.get(room, [])), str(relative)


@pytest.mark.parametrize("line", dependencies())
def test_every_dependency_has_a_lower_and_an_upper_bound(line: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_.-]+(\[[a-z0-9]+\])?>=[0-9.]+,<[0-9.]+", line), line


def test_torch_is_only_in_the_learned_extra_and_bounded_as_measured() -> None:
    assert "torch>=2.6,<2.14" in PROJECT["project"]["optional-dependencies"]["learned"]
    assert not [line for line in PROJECT["project"]["dependencies"] if line.startswith("torch")]


def test_the_console_script_names_a_callable() -> None:
    module, name = PROJECT["project"]["scripts"]["palimpsest"].split(":")
    assert callable(getattr(importlib.import_module(module), name))
