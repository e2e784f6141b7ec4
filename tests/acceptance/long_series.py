"""How much memory a long series takes: one object of many frames, and as many slices in groups. Prints peak memory.

    python -m tests.acceptance.long_series [--slices 300] [--side 512] [--profile default] [--coder jpegls]

Each step runs in a process of its own: taking in and archiving (encoder and prover are two processes), and giving back.
Beside the resident set, which counts pages of mapped files too, stands what is the process's own. Pixels are generated:
smooth structures that move from slice to slice, with noise; nothing is learned from their sizes. --coder leaves all
other coders out: the passes over the frames are the same, and it is quick.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from codec.frame import ALL_CODERS, EncodedFrame, encode_frame
from gateway.accept import accept_instance
from gateway.bootstrap import Gateway, build
from gateway.jobs import MemoryQueue
from gateway.settings import Settings
from tests.object_makers import image
from worker import framechain
from worker.grouping import process_series
from worker.restore import rebuild
from worker.verify import Verifier

MIB = 1 << 20
POLICY = 'version = 1\n\n[[archive]]\nname = "slices"\nmodality = "CT"\ngroup = "series"\n'


def slices(count: int, side: int) -> Iterator[NDArray[np.uint16]]:
    """Slices of a moving ellipsoid in noise, 12 bit."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    for number in range(count):
        z = number / count - 0.5
        body = 1000.0 * (x**2 + 1.5 * y**2 + 0.3 * z**2 < 0.16) + 300 * np.sin(9 * x + 5 * z) * np.cos(7 * y)
        yield np.clip(body + 1000 + rng.normal(0, 12, (side, side)), 0, 4095).astype(np.uint16)


def open_gateway(home: Path, profile: str) -> Gateway:
    return build(Settings(home=home, watermark_bytes=0, codec_profile=profile), queue=MemoryQueue())  # type: ignore[arg-type]


def take_in(gw: Gateway, count: int, side: int, *, together: bool) -> list[int]:
    """One multi-frame object, or slices of one series; ids."""
    if together:
        files = iter([image(list(slices(count, side)), stored=12)])
    else:
        files = (
            image(
                [words], stored=12, SOPInstanceUID=generate_uid(), InstanceNumber=number + 1,
                ImagePositionPatient=[0, 0, float(number)], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            )
            for number, words in enumerate(slices(count, side))
        )  # fmt: skip
    ids = []
    for data in files:
        incoming = gw.spool.incoming()
        incoming.write_bytes(data)
        ids.append(accept_instance(gw, incoming, source="stow", calling_ae="LONG").row.id)
    return ids


class Peak:
    """The most memory that this process had: resident (bytes), and its own part of it, looked at now and then."""

    def __init__(self) -> None:
        self.own = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def resident(self) -> int:
        """VmHWM of proc(5)."""
        return status_of("self")["VmHWM"]

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            self.own = max(self.own, status_of("self")["RssAnon"])


def status_of(process: str) -> dict[str, int]:
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.endswith(" kB")}


def only(coder: str) -> Callable[..., EncodedFrame]:
    def encode(*arguments: Any, **options: Any) -> EncodedFrame:
        return encode_frame(*arguments, **{**options, "coders": (coder,)})

    return encode


def archive(home: Path, profile: str, coder: str, ids: list[int]) -> dict[str, int | float]:
    """Process of its own: archive what was taken in."""
    if coder:
        framechain.encode_frame = only(coder)
    gw = open_gateway(home, profile)
    started = time.monotonic()
    with Verifier(gw.settings.keys_dir, timeout=3600.0, settings=gw.settings) as verifier, Peak() as peak:
        before = status_of("self")["VmRSS"]
        for each in ids:
            process_series(gw, verifier, each, "long-1")
        prover = status_of(str(verifier.pid))["VmHWM"]
    rows = [gw.index.get(each) for each in ids]
    found = {
        "before": before, "resident": peak.resident, "own": peak.own, "prover": prover,
        "seconds": time.monotonic() - started, "objects": len({row.archive_key for row in rows}),
        "bytes": sum(row.archived_size or 0 for row in rows), "coded": sum(row.form == "CODED" for row in rows),
        "grouped": sum(row.member is not None for row in rows),
    }  # fmt: skip
    gw.close()
    return found


def give_back(home: Path, profile: str, _: str, ids: list[int]) -> dict[str, int | float]:
    """Process of its own: the received files out of the archive, every digest compared, nothing kept."""
    gw = open_gateway(home, profile)
    started, exact = time.monotonic(), 0
    with Peak() as peak:
        before = status_of("self")["VmRSS"]
        for each in ids:
            row = gw.index.get(each)
            envelope = gw.archive.get(str(row.archive_key), str(row.archive_digest))
            found = rebuild(envelope, gw.keys, lambda _: None, member=row.member)
            exact += found.sha256 == row.digest
    done = {
        "before": before, "resident": peak.resident, "own": peak.own, "seconds": time.monotonic() - started,
        "exact": exact,
    }  # fmt: skip
    gw.close()
    return done


STEPS = {"archive": archive, "give_back": give_back}


def in_a_process(step: str, home: Path, profile: str, coder: str, ids: list[int]) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.acceptance.long_series", "--step", step, "--home", str(home)]
    command += ["--profile", profile, "--coder", coder, "--ids", json.dumps(ids)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(kind: str, count: int, side: int, profile: str, coder: str) -> None:
    with tempfile.TemporaryDirectory(prefix="long-series-") as folder:
        home = Path(folder)
        (home / "policy.toml").write_text(POLICY, encoding="utf-8")
        gw = open_gateway(home, profile)
        ids = take_in(gw, count, side, together=kind == "frames")
        received = sum(gw.index.get(each).size for each in ids)
        gw.close()
        made = in_a_process("archive", home, profile, coder, ids)
        back = in_a_process("give_back", home, profile, coder, ids)
    print(f"{count} {kind} of {side} x {side}: {received / MIB:.0f} MiB received, {made['bytes'] / MIB:.0f} MiB in "
          f"{made['objects']:.0f} objects ({made['grouped']:.0f} of {len(ids)} instances in groups)")  # fmt: skip
    for name, found in (("archiving", made), ("giving back", back)):
        print(f"  {name}: peak {found['resident'] / MIB:.0f} MiB resident, {found['own'] / MIB:.0f} MiB its own "
              f"({found['before'] / MIB:.0f} MiB before), {found['seconds']:.0f} s")  # fmt: skip
    print(f"  proving: peak {made['prover'] / MIB:.0f} MiB resident; {back['exact']:.0f} of {len(ids)} files exact")
    if back["exact"] != len(ids):
        raise SystemExit("not every file came back")


def main() -> None:
    """Both kinds, or one step of one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--profile", default="default", choices=("fast", "default", "max"))
    parser.add_argument("--coder", default="", choices=("", *ALL_CODERS))
    parser.add_argument("--step", choices=tuple(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ids", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step](options.home, options.profile, options.coder, options.ids)))
        return
    for kind in ("frames", "slices"):
        report(kind, options.slices, options.side, options.profile, options.coder)


if __name__ == "__main__":
    main()
