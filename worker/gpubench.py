"""How fast a CUDA device codes tiles, and whether their bytes are the CPU kernels': `python -m worker.gpubench`.

Timed are encode and decode of whole batches as `codec.gpu.Device` does them, from arrays in this process's memory to
arrays there: packing, transfers and kernels. Choosing how a frame is coded (least squares, adapters, split) is CPU work
and not in these figures; it is reported on its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codec.bitplane import Words
from codec.frame import encode_frame
from codec.gpu import Device, NoDevice, open_device, using
from codec.gpu_jobs import DecodeJob, EncodeJob, Processor
from codec.pixelformat import PixelFormat
from worker.bench_inputs import Choice, list_inputs, open_input

BATCHES = (1, 16, 64, 256)  # and all at once
COMPARED = 16  # tiles whose words are compared with the CPU kernels'
SIDE, SLICES = 512, 300


@dataclass(frozen=True)
class Speed:
    """One batch size: tiles in a launch, samples in all, megasamples a second."""

    batch: int
    tiles: int
    samples: int
    encode_mp_s: float
    decode_mp_s: float


@dataclass(frozen=True)
class Report:
    """plan_mp_s: choosing on this machine's CPU, one thread; exact: words and samples as the CPU kernels have them."""

    device: str
    what: str
    profile: str
    plan_mp_s: float
    exact: bool
    speeds: tuple[Speed, ...]


class Recorder:
    """Notes the tiles that a frame's coder asks for, and has them done by the processor."""

    def __init__(self) -> None:
        self.jobs: list[EncodeJob] = []
        self.words: list[Any] = []

    def encode(self, jobs: Sequence[EncodeJob]) -> list[Any]:
        """See codec.gpu.Device."""
        words = Processor().encode(jobs)
        self.jobs += jobs
        self.words += words
        return words

    def decode(self, jobs: Sequence[DecodeJob]) -> list[Any]:
        """See codec.gpu.Device."""
        return list(Processor().decode(jobs))


def synthetic(slices: int = SLICES, side: int = SIDE, seed: int = 1) -> Iterator[tuple[Words, PixelFormat]]:
    """A volume like a CT's: a body of ellipses in air, smooth structure, noise, 12 bits in 16; the same each time."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    noise = rng.normal(0, 12, (side * 2, side * 2))
    for number in range(slices):
        z = 2 * number / max(slices - 1, 1) - 1
        body = ((x / 0.8) ** 2 + (y / 0.6) ** 2 + (z / 1.3) ** 2) < 1
        lung = (((np.abs(x) - 0.35) / 0.25) ** 2 + (y / 0.4) ** 2 + (z / 0.9) ** 2) < 1
        bone = ((x / 0.1) ** 2 + ((y - 0.35) / 0.1) ** 2) < 1
        level = np.where(body, 1050 + 40 * np.sin(9 * x + 3 * z) * np.cos(7 * y), 24.0)
        level = np.where(body & lung, 200 + 60 * np.sin(31 * x) * np.sin(29 * y + 9 * z), level)
        level = np.where(body & bone, 1700 + 200 * np.cos(40 * y), level)
        down, right = (int(v) for v in rng.integers(0, side, 2))
        grain = noise[down : down + side, right : right + side] * np.where(body, 1.0, 0.3)
        yield np.clip(level + grain, 0, 4095).astype(np.uint16), PixelFormat(side, side, 1, 16, 12, 11, False)


def from_folder(folder: Path) -> Iterator[tuple[Words, PixelFormat]]:
    """Every frame of every file below a folder that can be read."""
    for each in list_inputs([folder], Choice(), {}):
        with open_input(each, Choice()) as opened:
            for number in range(opened.frames):
                yield opened.frame(number), opened.fmt


def measure(frames: Iterator[tuple[Words, PixelFormat]], device: Device, what: str, profile: str,
            batches: Sequence[int] = BATCHES) -> Report:  # fmt: skip
    """Plan all frames here, then code and decode their tiles on `device` in batches of several sizes."""
    recorder, started = Recorder(), time.perf_counter()
    with using(recorder):
        for words, fmt in frames:
            encode_frame(words, fmt, profile=profile, coders=("learned",), prove=False)
    seconds = time.perf_counter() - started
    jobs, samples = recorder.jobs, sum(job.tile.size for job in recorder.jobs)
    back = [
        DecodeJob(
            (job.tile.shape[0], job.tile.shape[1]), words, job.anchor, job.upper, job.previous, job.setting, job.head
        )
        for job, words in zip(jobs, recorder.words, strict=True)
    ]
    exact = _same(device.encode(jobs[:COMPARED]), recorder.words[:COMPARED])  # also warms the device up
    speeds = []
    for batch in sorted({min(size, len(jobs)) for size in (*batches, len(jobs))} - {0}):
        most = min(len(jobs), max(batch, min(64, 4 * batch)))  # small batches need not do everything
        coded, encode_s = _timed(device.encode, jobs[:most], batch)
        decoded, decode_s = _timed(device.decode, back[:most], batch)
        tiles = [None if each is None else each.samples for each in decoded]
        exact = exact and _same(coded, recorder.words[:most]) and _same(tiles, [job.tile for job in jobs[:most]])
        done = sum(job.tile.size for job in jobs[:most])
        speeds.append(Speed(batch, most, done, done / encode_s / 1e6, done / decode_s / 1e6))
    return Report(str(device), what, profile, samples / seconds / 1e6, exact, tuple(speeds))


def _same(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    return len(found) == len(wanted) and all(map(np.array_equal, found, wanted))


def _timed(work: Callable[[Sequence[Any]], list[Any]], jobs: Sequence[Any], batch: int) -> tuple[list[Any], float]:
    started, out = time.perf_counter(), []
    for first in range(0, len(jobs), batch):
        out += work(jobs[first : first + batch])
    return out, time.perf_counter() - started


def format_report(report: Report) -> str:
    """For people."""
    lines = [f"{report.device}, {report.what}, profile {report.profile}: {'exact' if report.exact else 'NOT EXACT'}"]
    lines.append(f"planning and coding on one CPU thread: {report.plan_mp_s:.2f} MP/s")
    lines += [f"{'batch':>6} {'tiles':>6} {'encode MP/s':>12} {'decode MP/s':>12}"]
    lines += [f"{s.batch:>6} {s.tiles:>6} {s.encode_mp_s:>12.1f} {s.decode_mp_s:>12.1f}" for s in report.speeds]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 where there is no device or a byte differs."""
    parser = argparse.ArgumentParser(prog="python -m worker.gpubench", description="Speed of the GPU path.")
    parser.add_argument("--device", type=int, default=0, help="CUDA device number")
    parser.add_argument("--slices", type=int, default=SLICES, help="of the synthetic volume (0: none)")
    parser.add_argument("--folder", type=Path, help="files to be measured as well")
    parser.add_argument("--profile", default="default", choices=("fast", "default", "max"))
    parser.add_argument("--json", type=Path, help="the figures, as JSON")
    arguments = parser.parse_args(argv)
    try:
        device = open_device(arguments.device)
    except NoDevice as error:
        print(error, file=sys.stderr)
        return 1
    reports = []
    if arguments.slices:
        what = f"synthetic CT, {arguments.slices} slices of {SIDE} x {SIDE}"
        reports.append(measure(synthetic(arguments.slices), device, what, arguments.profile))
    if arguments.folder:
        reports.append(measure(from_folder(arguments.folder), device, str(arguments.folder), arguments.profile))
    for report in reports:
        print(format_report(report))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(report) for report in reports], indent=1), encoding="utf-8")
    return 0 if all(report.exact for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
