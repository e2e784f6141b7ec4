"""Memory while an archived object of several hundred MB is given back, by a process of its own.

    python -m tests.acceptance.big_archived [--mebibytes 300] [--forms coded passthrough]

A multi-frame of that size is coded, or sealed whole, and put into an archive in a folder. Then a second process
rebuilds it as the retrieve worker does. Prints that process's peak of resident memory (VmHWM), the peak of what of it
is no page of a file (RssAnon, sampled), and that before it began. Exits 1 if another file came back.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

from gateway.archive import FilesystemArchive, archive_key
from gateway.blobs import file_digest
from gateway.bootstrap import build
from gateway.jobs import MemoryQueue
from gateway.settings import Settings, use_numba_cache
from tests.acceptance.big_study import Watch, made
from worker.candidate import build_candidate, build_passthrough
from worker.identity import Provenance
from worker.restore import rebuild

FACTS = Provenance("2026-01-01T00:00:00+00:00", "test", "TEST", "tests")


def give_back(home: Path, form: str, key: str, digest: str) -> None:
    """In a process of its own: rebuild, and say the SHA-256 of what came out."""
    gateway = build(Settings(home=home), queue=MemoryQueue())
    whole = sha256()
    print("ready", flush=True)
    sys.stdin.readline()
    rebuild(FilesystemArchive(home / form).map(key, digest), gateway.keys, whole.update)
    print(whole.hexdigest(), flush=True)
    sys.stdin.readline()


def watched(home: Path, form: str, key: str, digest: str) -> tuple[str, int, int, int, float]:
    """(SHA-256 given back; MiB: resident, not of files, not of files before; seconds)."""
    command = [sys.executable, "-m", "tests.acceptance.big_archived", "--give-back", str(home), form, key, digest]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        watch = Watch({"it": process.pid})
        watch.start()
        time.sleep(0.5)
        before = max(watch.anonymous.values())
        start = time.monotonic()
        process.stdin.write("\n")
        process.stdin.flush()
        found, seconds = process.stdout.readline().strip(), time.monotonic() - start
        time.sleep(0.3)
        watch.over.set()
        watch.join()
        process.stdin.close()
    return found, max(watch.peak.values()) >> 20, max(watch.anonymous.values()) >> 20, before >> 20, seconds


def main() -> int:
    """0 if the received file came back each time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mebibytes", type=int, default=300)
    parser.add_argument("--forms", nargs="+", default=["coded", "passthrough"], choices=["coded", "passthrough"])
    parser.add_argument("--give-back", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    use_numba_cache()
    if args.give_back:
        give_back(Path(args.give_back[0]), *args.give_back[1:])
        return 0
    same = True
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        gateway = build(Settings(home=home), queue=MemoryQueue())
        size = args.mebibytes << 20
        path = made(home, size, size)[0]
        with path.open("rb") as file:
            received = file_digest(file)
        for form in args.forms:
            data = path.read_bytes()
            make = build_candidate if form == "coded" else build_passthrough
            candidate = make(data, FACTS, gateway.keys, *(("test",) if form == "passthrough" else ()))
            del data
            key, digest = archive_key(candidate.envelope_uid), sha256(candidate.envelope).hexdigest()
            FilesystemArchive(home / form).put(key, candidate.envelope, digest)
            found, peak, anonymous, before, seconds = watched(home, form, key, digest)
            print(
                f"{candidate.form:12} {path.stat().st_size >> 20} MiB, archived {candidate.size >> 20} MiB, given back "
                f"in {seconds:.1f} s: resident at most {peak} MiB, of it not of files {anonymous} MiB "
                f"({before} MiB before): {'the received file' if found == received else 'ANOTHER FILE'}",
                flush=True,
            )
            same = same and found == received
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
