#!/usr/bin/env python3
"""Set-up for machines with nothing but Python 3.11+: `python3 dev.py run|test|setup`. Standard library only.

Makes `.venv` beside this file when it is missing or when pyproject.toml changed, then runs the command inside it.
The Makefile calls this file too, so that there is one way to make the environment.

    python3 dev.py run [--once ...]     everything: broker, listener, API, workers, sweep (see `palimpsest run --help`)
    python3 dev.py test [pytest args]   the whole test suite
    python3 dev.py setup                only make the environment
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".palimpsest-stamp"
# Detectors that the payload bench is tested with. Their package asks for torch (gigabytes), which is never imported.
BARE = "sealwatch>=2025.9,<2027"
INDEX = "https://pypi.org/simple/"
PIP_LINK = r'href="([^"]*/(pip-([0-9.]+)-py3-none-any\.whl)#sha256=([0-9a-f]{64}))"'


def wanted_stamp() -> str:
    """What the environment must have been made from: the content of pyproject.toml and this Python's version."""
    content = (ROOT / "pyproject.toml").read_bytes()
    return f"{hashlib.sha256(content).hexdigest()} {sys.version_info.major}.{sys.version_info.minor}"


def setup() -> None:
    """Make `.venv` and install the project with its test tools, unless the stamp says that it is done."""
    if sys.version_info < (3, 11):  # noqa: UP036 - run by whatever python3 the machine has
        sys.exit(f"Palimpsest needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    wanted = wanted_stamp()
    if STAMP.is_file() and STAMP.read_text() == wanted and PYTHON.exists():
        return
    print("setting up .venv (once; about two minutes) ...", flush=True)
    if not PYTHON.exists() or not _works([str(PYTHON), "-m", "pip", "--version"]):
        _make_venv()
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "-e", f"{ROOT}[test]"])
    _run([*pip, "--no-deps", BARE])
    STAMP.write_text(wanted)


def _make_venv() -> None:
    """A virtual environment with pip, also where Debian's python3-venv (ensurepip) is not installed."""
    if VENV.exists():
        shutil.rmtree(VENV)
    if _works([sys.executable, "-c", "import ensurepip"]):
        _run([sys.executable, "-m", "venv", str(VENV)])
        return
    _run([sys.executable, "-m", "venv", "--without-pip", str(VENV)])
    wheel = _fetch_pip_wheel(VENV)
    _run([str(PYTHON), f"{wheel}/pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)])
    wheel.unlink()


def _fetch_pip_wheel(folder: Path) -> Path:
    """The newest pip wheel from the package index (PIP_INDEX_URL or PyPI; PEP 503), its SHA-256 checked."""
    page = os.environ.get("PIP_INDEX_URL", INDEX).rstrip("/") + "/pip/"
    try:
        with urllib.request.urlopen(page, timeout=60) as answer:
            links = re.findall(PIP_LINK, answer.read().decode())
        link, name, _, digest = max(links, key=lambda found: [int(part) for part in found[2].split(".") if part])
        with urllib.request.urlopen(urllib.parse.urljoin(page, link), timeout=60) as answer:
            content = answer.read()
    except (OSError, ValueError) as error:  # ValueError: no link, or no text
        sys.exit(f"this Python has no pip, and none was fetched ({error}): apt-get install python3-venv, retry.")
    if hashlib.sha256(content).hexdigest() != digest:
        sys.exit("the fetched pip wheel does not have the digest that the index names; nothing was installed.")
    path = folder / name
    path.write_bytes(content)
    return path


def _works(command: list[str]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


def _run(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"failed ({done.returncode}): {' '.join(command)}")


def _become(command: list[str]) -> None:
    """Replace this process, so that Ctrl-C and signals reach the real one."""
    os.chdir(ROOT)
    os.execv(command[0], command)


def main(arguments: list[str]) -> None:
    """Entry point; `arguments` without the program's name."""
    action, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if action == "setup":
        setup()
    elif action == "run":
        setup()
        _become([str(PYTHON), "-m", "palimpsest", "run", *rest])
    elif action == "test":
        setup()
        _become([str(PYTHON), "-m", "pytest", *rest])
    else:
        print(__doc__)
        sys.exit(0 if action in {"help", "-h", "--help"} else 2)


if __name__ == "__main__":
    main(sys.argv[1:])
