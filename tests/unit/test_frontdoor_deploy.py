"""Dockerfile, docker-compose.yml, Makefile and the CI script against the code: every command named there exists."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gateway.settings import Settings, load_settings
from gateway.settings_access import SECRETS
from gateway.transport import check_backends, check_http
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


def names_of_settings() -> set[str]:
    fields = {f"PALIMPSEST_{name.upper()}" for name in Settings.model_fields} | {"REDIS_URL", "DATABASE_URL"}
    return fields | {f"PALIMPSEST_{name.upper()}_FILE" for name in SECRETS}


def env_file(profile: str) -> dict[str, str]:
    text = (ROOT / f"deploy/compose/{profile}.env").read_text("utf-8")
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def test_compose_sets_only_settings_that_exist() -> None:
    for service in OURS.values():
        assert set(service["environment"]) | set(env_file("demo")) | set(env_file("production")) <= names_of_settings()
        assert service["env_file"] == ["deploy/compose/${PALIMPSEST_PROFILE:-demo}.env"]


def test_compose_waits_for_what_each_process_needs() -> None:
    for name, service in OURS.items():
        if name != "migrate":
            assert service["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert set(COMPOSE["volumes"]) == {"home", "local", "postgres"}


def test_compose_has_the_profiles_and_gives_our_containers_no_rights() -> None:
    backends = {name: service["profiles"] for name, service in COMPOSE["services"].items() if name not in OURS}
    assert backends == {
        "valkey": ["demo"], "postgres": ["demo"], "valkey-tls": ["production"], "postgres-tls": ["production"],
    }  # fmt: skip
    for name, service in OURS.items():
        assert service["profiles"] == (["gpu"] if name == "worker-gpu" else ["demo", "production"])
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"] and "privileged" not in service
        assert all("127.0.0.1" in port for port in service.get("ports", ()))  # published on purpose only
    for service in COMPOSE["services"].values():
        assert "@" in service["image"] or re.search(r":\d+\.\d+", service["image"]) or "build" in service


@pytest.mark.parametrize("name", ["valkey-tls", "postgres-tls"])
def test_a_backend_gets_the_files_that_it_reads_and_no_other(name: str, tmp_path: Path) -> None:
    service = COMPOSE["services"][name]
    read = set(re.findall(r"/run/secrets/([\w.]+)", json.dumps(service)))
    assert read == set(service["secrets"]) and "backends" not in json.dumps(service)
    command = [str(ROOT / "deploy/compose/make-secrets"), str(tmp_path / "made"), "box.example"]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    for each in service["secrets"]:
        assert COMPOSE["secrets"][each]["file"].endswith(f"/backends/{each}")
        assert (tmp_path / "made/backends" / each).is_file()


def test_what_make_secrets_makes_is_what_the_production_profile_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "secrets"
    command = [str(ROOT / "deploy/compose/make-secrets"), str(folder), "box.example"]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    assert folder.stat().st_mode & 0o077 == 0, "closed to everybody else"
    for name, value in env_file("production").items():
        monkeypatch.setenv(name, value.replace("/run/secrets", str(folder / "app")))
    monkeypatch.setenv("PALIMPSEST_PROFILE", "production")
    monkeypatch.setenv("PALIMPSEST_HTTP_HOST", "0.0.0.0")
    settings = load_settings()
    check_backends(settings)
    check_http(settings)
    assert settings.redis_password == (folder / "backends/redis_password").read_text().strip() != ""
    assert (folder / "backends/database_password").read_text().strip() in str(settings.database_url)
    assert settings.listens_tls and not settings.listens_plain
    assert not list(folder.rglob("ca.key")) and not (folder / "app/database.key").exists()
    again = subprocess.run(command, check=False, capture_output=True, timeout=240)
    assert again.returncode and b"nothing is overwritten" in again.stderr


@pytest.mark.peers
@pytest.mark.parametrize("profile", ["demo", "production"])
def test_compose_itself_takes_the_file(profile: str) -> None:
    program = shutil.which("docker-compose")
    if program is None:
        if os.environ.get("PALIMPSEST_REQUIRE_PEERS"):
            pytest.fail("no docker-compose: apt-get install docker-compose")
        pytest.skip("no docker-compose")
    done = subprocess.run(
        [program, "--profile", profile, "--profile", "gpu", "config"], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PALIMPSEST_PROFILE": profile}, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert services["api"]["environment"]["REDIS_URL"] == env_file(profile)["REDIS_URL"]


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    program = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([program, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_image_is_run_as_nobody_in_particular_and_says_how_it_is() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    named = {match[1]: stage for stage in stages if (match := re.search(r" AS ([\w-]+)$", stage.split("\n")[0]))}
    assert "\nUSER 10001:10001\n" in named["base"] and DOCKERFILE.count("\nUSER ") == 1
    for target in ("service", "worker", "worker-gpu"):
        assert named[target].startswith("base AS ")
        parse(json.loads(re.search(r"HEALTHCHECK .* CMD (\[.*\])", named[target])[1])[1:])  # type: ignore[index]
    assert re.search(r"^ARG BASE=\S+:\d+\.\d+\.\d+", DOCKERFILE, re.MULTILINE)


def test_what_the_images_install_is_pinned_within_the_bounds() -> None:
    lines = (ROOT / "deploy/constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = re.search(r'extra == "\(([a-z|]+)\)"', DOCKERFILE)
    assert extras is not None and {"vault", "aws", "tracing", "flower"} == set(extras[1].split("|"))
    also = [line for extra in extras[1].split("|") for line in project["optional-dependencies"][extra]]
    for line in (*project["dependencies"], *also):
        needed = Requirement(line)
        assert needed.specifier.contains(pins[canonicalize_name(needed.name)]), f"run .ci/constraints.py: {line}"


def test_dockerfile_copies_every_package_and_its_default_commands_exist() -> None:
    copied = set(re.findall(r"^COPY (\w+) (?:\w+)$", DOCKERFILE, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert copied == {name.split(".")[0] for name in project["tool"]["setuptools"]["packages"]}
    commands = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        parse(yaml.safe_load(command))


def test_the_service_image_leaves_out_libraries_that_are_really_dependencies() -> None:
    match = re.search(r"\^\(([a-z|-]+)\)", DOCKERFILE[DOCKERFILE.index("extra ==/d") :])
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
        capture_output=True, text=True, cwd=ROOT, timeout=240, check=False,
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
        capture_output=True, text=True, cwd=ROOT, timeout=240, check=True, env=outside,
    )  # fmt: skip
    assert done.stdout.strip().endswith(f"dev.py run {expected}".strip())


def test_dev_py_needs_the_standard_library_only() -> None:
    imported = re.findall(r"^import ([\w]+)|^from ([\w]+)", (ROOT / "dev.py").read_text("utf-8"), re.MULTILINE)
    assert {a or b for a, b in imported} <= set(sys.stdlib_module_names)


def test_ci_script_is_valid_shell_and_runs_what_the_readme_says() -> None:
    script = ROOT / ".ci/run"
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=240)
    text = script.read_text("utf-8")
    for step in ("make test", "make run ONCE=1", "mypy", "ruff check", "PALIMPSEST_REQUIRE_PEERS=1"):
        assert step in text
