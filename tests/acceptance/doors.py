"""Every file of a folder into a real gateway by one door, and back: accepted and restored, or refused by name.

    python -m tests.acceptance.doors stow FOLDER        one STOW-RS request a file, odd and broken files too
    python -m tests.acceptance.doors cstore FOLDER      `palimpsest send`: what a DICOM sender can send

Starts a gateway on a throw-away home, samples the memory of its processes, and exits 1 if something accepted was not
archived and given back equal, or if a process went above --memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from hashlib import sha256
from pathlib import Path

import httpx
import psutil

from gateway.bootstrap import build
from gateway.settings import load_settings
from gateway.tokens import Role, mint_token
from palimpsest.client import FetchError, Route, WebClient
from palimpsest.compare import compare
from tests.running import ROOT, free_port

BOUNDARY = "acceptance-boundary"
DONE = {"ARCHIVED", "RELEASED"}
PATIENCE_SECONDS = 1800.0


class Memory(threading.Thread):
    """The largest resident size of any process below `root`, bytes, sampled ten times a second."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root, self.peak, self.where = root, 0, ""

    def run(self) -> None:
        """Until the root is gone."""
        while psutil.pid_exists(self._root):
            try:
                for process in psutil.Process(self._root).children(recursive=True):
                    size = process.memory_info().rss
                    if size > self.peak:
                        self.peak, self.where = size, " ".join(process.cmdline()[1:4])
            except psutil.Error:
                pass  # ended between two looks
            time.sleep(0.1)


def stow(folder: Path, base: str, service: str) -> int:
    """Store, wait, fetch by digest, compare; prints what was refused and counts. Returns the number of failures."""
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    waiting: dict[str, Path] = {}
    http = httpx.Client(base_url=base, headers={"Authorization": f"Bearer {service}"}, timeout=120, trust_env=False)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        body = head + data + f"\r\n--{BOUNDARY}--\r\n".encode()
        answer = http.post("/dicomweb/studies", content=body, headers={"Content-Type": kind})
        if answer.status_code == 200:
            waiting[sha256(data).hexdigest()] = path
            counts["accepted"] += 1
            continue
        failed = answer.json().get("0008119A", {}).get("Value", [{}])[0]
        reason = failed.get("00091001", {}).get("Value", [f"http-{answer.status_code}"])[0]
        counts["refused"] += 1
        reasons[reason] += 1
        print(f"refused   {path.name}: {reason} ({answer.status_code})")
    return _follow(http, WebClient(base, service), waiting, counts, reasons)


def _follow(
    http: httpx.Client, web: WebClient, waiting: dict[str, Path], counts: Counter[str], reasons: Counter[str]
) -> int:
    failures = 0
    deadline = time.monotonic() + PATIENCE_SECONDS
    forms: Counter[str] = Counter()
    for digest, path in waiting.items():
        rows = []
        while time.monotonic() < deadline:
            rows = http.get("/api/instances", params={"digest": digest}).json()["instances"]
            if not rows or rows[0]["state"] in DONE:
                break
            time.sleep(0.3)
        if not rows:
            counts["had already, under another file meta"] += 1  # same UID and data set: idempotent Success
            continue
        forms[f"{rows[0]['form']} {rows[0].get('reason') or ''}".strip()] += 1
        try:
            with web.fetch_one(Route.digest(digest)) as back:
                verdict = compare(path, back)
            problem = "" if verdict.equal else verdict.difference
        except FetchError as error:
            problem = error.reason
        counts["restored" if not problem else "FAILED"] += 1
        failures += bool(problem)
        if problem:
            print(f"FAILED    {path.name}: {problem}")
    print(json.dumps({"doors": counts, "refused by": reasons, "as": forms}, indent=1))
    return failures


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("door", choices=("stow", "cstore"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", type=int, default=2 << 30, help="bytes a process may have (default 2 GiB)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="palimpsest-doors-") as home:
        ports = {f"PALIMPSEST_{name}_PORT": str(free_port()) for name in ("DICOM", "HTTP", "DEMO_DESTINATION")}
        env = os.environ | ports | {"PALIMPSEST_HOME": home, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "palimpsest"]
        gateway = subprocess.Popen([*command, "run", "--no-samples"], env=env, stdout=subprocess.PIPE, text=True)
        assert gateway.stdout is not None
        for line in gateway.stdout:
            if line.startswith("running"):
                break
        threading.Thread(target=gateway.stdout.read, daemon=True).start()
        memory = Memory(gateway.pid)
        memory.start()
        try:
            if arguments.door == "cstore":
                sender = [*command, "send", "-q", str(arguments.folder)]
                failed = subprocess.run(sender, env=env, check=False).returncode
            else:
                token = mint_token(build(load_settings(home=Path(home))), Role.SERVICE, "acceptance", 3600)
                failed = stow(arguments.folder, f"http://127.0.0.1:{ports['PALIMPSEST_HTTP_PORT']}", token)
        finally:
            gateway.terminate()
            gateway.wait()
    print(f"largest process: {memory.peak / (1 << 20):.0f} MiB ({memory.where})")
    return int(bool(failed) or memory.peak > arguments.memory)


if __name__ == "__main__":
    sys.exit(main())
