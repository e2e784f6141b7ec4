"""dev.py: when the environment is made again, and where pip comes from on a Python without one."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, path in {"ROOT": "", "VENV": ".venv", "PYTHON": ".venv/bin/python", "STAMP": ".venv/stamp"}.items():
        monkeypatch.setattr(module, name, tmp_path / path)
    (tmp_path / "pyproject.toml").write_text("one")
    return module


def test_the_environment_is_made_once_and_again_when_pyproject_changes(dev: ModuleType, monkeypatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(dev, "_run", ran.append)
    monkeypatch.setattr(dev, "_works", lambda command: True)
    dev.PYTHON.parent.mkdir(parents=True)
    dev.PYTHON.touch()
    for content, installs in (("one", 2), ("one", 2), ("two", 4), ("two", 4)):
        (dev.ROOT / "pyproject.toml").write_text(content)
        dev.setup()
        assert len(ran) == installs
    assert ran[0][-2:] == ["-e", f"{dev.ROOT}[test]"]
    assert ran[1][-2:] == ["--no-deps", dev.BARE]


def test_the_detectors_of_the_tests_are_those_of_the_extra(dev: ModuleType) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert dev.BARE in extras["bench"]


def test_pip_links_of_an_index_page_are_read_with_their_digest(dev: ModuleType) -> None:
    page = (
        f'<a href="../../packages/aa/pip-9.0.3-py3-none-any.whl#sha256={"a" * 64}">x</a>'
        f'<a href="https://files.example/pip-26.3-py3-none-any.whl#sha256={"b" * 64}" data-requires-python="x">x</a>'
        f'<a href="https://files.example/pip-27.0rc1-py3-none-any.whl#sha256={"c" * 64}">x</a>'
        f'<a href="https://files.example/pip-26.3.tar.gz#sha256={"d" * 64}">x</a>'
    )
    assert [found[2:] for found in re.findall(dev.PIP_LINK, page)] == [("9.0.3", "a" * 64), ("26.3", "b" * 64)]


def test_an_unknown_action_shows_the_help_and_fails() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "dev.py"), "dance"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "dev.py run" in done.stdout
