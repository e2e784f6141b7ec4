"""Dockerfile, docker-compose.yml, Makefile and the CI script against the code: every command named there exists."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from gateway.settings import Settings
from palimpsest.cli import app

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}


def parse(arguments: list[str]) -> None:
    """Parse a command line as `palimpsest` would, without running it; raises click.UsageError."""
    root = typer.main.get_command(app)
    with root.make_context("palimpsest", list(arguments), resilient_parsing=False) as context:
        name, command, rest = root.resolve_command(context, list(arguments))  # type: ignore[attr-defined]
        assert command is not None, name
        command.make_context(name, rest, parent=context).close()


@pytest.mark.parametrize("name", sorted(OURS))
def test_compose_commands_are_commands_of_the_command_line(name: str) -> None:
    parse(OURS[name]["command"])


def test_compose_runs_every_process_of_a_gateway() -> None:
    commands = {service["command"][0] for service in OURS.values()}
    queues = {q for s in OURS.values() for q in _option(s["command"], "--queues").split(",") if q}
    assert commands == {"migrate", "listen", "serve", "work", "sweep"}
    assert queues == {"index", "encode", "forward", "retrieve", "gpu"}
    assert OURS["worker-gpu"]["profiles"] == ["gpu"]  # only where it was asked for


def _option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1] if name in command else ""


def test_compose_builds_targets_that_the_dockerfile_has() -> None:
    targets = set(re.findall(r"^FROM \S+ AS ([\w-]+)", DOCKERFILE, re.MULTILINE))
    assert {service["build"]["target"] for service in OURS.values()} <= targets


def test_compose_sets_only_settings_that_exist() -> None:
    names = {f"PALIMPSEST_{name.upper()}" for name in Settings.model_fields} | {"REDIS_URL", "DATABASE_URL"}
    for service in OURS.values():
        assert set(service["environment"]) <= names


def test_compose_waits_for_what_each_process_needs() -> None:
    for name, service in OURS.items():
        if name != "migrate":
            assert service["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert set(COMPOSE["volumes"]) == {"home", "postgres", "valkey"}


def test_dockerfile_copies_every_package_and_its_default_commands_exist() -> None:
    copied = set(re.findall(r"^COPY (\w+) (?:\w+)$", DOCKERFILE, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert copied == {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    commands = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        parse(yaml.safe_load(command))


def test_the_service_image_leaves_out_libraries_that_are_really_dependencies() -> None:
    match = re.search(r"\^\(([a-z|-]+)\)", DOCKERFILE)
    assert match is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {re.split(r"[\[>=]", line)[0].lower() for line in project["dependencies"]}
    assert set(match.group(1).split("|")) <= names


def test_the_service_imports_nothing_that_its_image_leaves_out() -> None:
    """With the codec's libraries made unimportable, listener, API and command line still load."""
    blocked = ("numba", "imagecodecs", "gdcm", "zstandard", "PIL", "torch", "transformers")
    code = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import palimpsest.cli, service.listener, service.api\n"
        "print(sorted(m for m in ('worker', 'codec', 'stego') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_make_targets_call_what_dev_py_has() -> None:
    actions = set(re.findall(r"\$\(PYTHON\) dev\.py (\w+)", (ROOT / "Makefile").read_text("utf-8")))
    assert actions == {"setup", "run", "test"}
    known = set(re.findall(r'action == "(\w+)"', (ROOT / "dev.py").read_text("utf-8")))
    assert actions <= known


@pytest.mark.parametrize(("once", "expected"), [("1", "--once"), ("", ""), ("0", "")])
def test_make_run_passes_once_on(once: str, expected: str) -> None:
    # Inside `make test` a second make would inherit the first one's arguments.
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "ARGS"))}
    done = subprocess.run(
        ["make", "-n", "run", f"ONCE={once}"],
        capture_output=True, text=True, cwd=ROOT, timeout=20, check=True, env=outside,
    )  # fmt: skip
    assert done.stdout.strip().endswith(f"dev.py run {expected}".strip())


def test_dev_py_needs_the_standard_library_only() -> None:
    imported = re.findall(r"^import ([\w]+)|^from ([\w]+)", (ROOT / "dev.py").read_text("utf-8"), re.MULTILINE)
    assert {a or b for a, b in imported} <= set(sys.stdlib_module_names)


def test_ci_script_is_valid_shell_and_runs_what_the_readme_says() -> None:
    script = ROOT / ".ci/run"
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=20)
    text = script.read_text("utf-8")
    for step in ("make test", "make run ONCE=1", "mypy", "ruff check", "PALIMPSEST_REQUIRE_PEERS=1"):
        assert step in text
