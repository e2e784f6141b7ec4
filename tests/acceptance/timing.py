"""Does the time that an opener takes tell how near a forgery came? (After dudect: Reparaz, Balasch, Verbauwhede 2017.)

    python -m tests.acceptance.timing [--samples N]

Two classes of refused input are opened in random order: what is compared in constant time differs in its first byte, or
in its last. If the comparison stopped early, the second class would take longer. Welch's t over the times, the slowest
cropped at several percentiles as in dudect. |t| above 4.5 is suspicious: then more samples are drawn, up to four times,
because one run on a loaded machine proves nothing. Exits 1 if one stays above, or if the leaking control does not.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import random
import sys
import time
from collections.abc import Callable
from statistics import fmean, variance

from stego import seal
from stego.capsule import open_capsule, seal_capsule
from stego.errors import SealError

SUSPICIOUS = 4.5
CROPS = (0.25, 0.5, 0.75, 0.9)
ROUNDS = 4

KEY = bytes(range(32))
CONTEXT = seal.Context(bytes(16), 512, 512, 12, False, 1, "segmented", bytes(32))
Opener = Callable[[bytes], object]


def targets() -> dict[str, tuple[bytes, slice, Opener]]:
    """Name -> (sealed bytes, where the compared tag stands, opener)."""
    side = seal.seal_side(b"x" * 64, data_key=KEY, context=CONTEXT, label="nonpixel")
    wrap = seal.wrap_key(KEY, kek=KEY, kek_id="kek-1")
    commitment = 2 + len("kek-1") + seal.WRAP_SALT_BYTES
    capsule = seal_capsule(bytes(512), object_id=bytes(16), wrap=wrap, stego_key=KEY, salt=bytes(32))
    return {
        "commitment of a seal": (
            side,
            slice(0, seal.COMMIT_BYTES),
            lambda data: seal.open_side(data, data_key=KEY, context=CONTEXT, label="nonpixel"),
        ),
        "tag of a seal": (
            side,
            slice(len(side) - seal.TAG_BYTES, len(side)),
            lambda data: seal.open_side(data, data_key=KEY, context=CONTEXT, label="nonpixel"),
        ),
        "commitment of a wrap": (
            wrap,
            slice(commitment, commitment + seal.COMMIT_BYTES),
            lambda data: seal.unwrap_key(data, find_kek=lambda _: KEY),
        ),
        "control: bytes compared one by one": (side, slice(0, 32), lambda data: _leaky(data, side)),
        "tag of a capsule": (capsule, slice(0, 32), lambda data: open_capsule(data, stego_key=KEY, salt=bytes(32))),
    }


def _leaky(data: bytes, right: bytes) -> None:
    """What an early exit looks like: the test must see this one."""
    for a, b in zip(data[:32], right[:32], strict=True):
        if a != b:
            raise SealError


def measure(sealed: bytes, where: slice, opener: Opener, samples: int, rng: random.Random) -> list[list[int]]:
    """Nanoseconds of each refusal, by class: differing in the first byte, in the last."""
    first, last = bytearray(sealed), bytearray(sealed)
    first[where.start] ^= 0x55
    last[where.stop - 1] ^= 0x55
    inputs = (bytes(first), bytes(last))
    times: list[list[int]] = [[], []]
    gc.disable()
    for _ in range(samples):
        which = rng.getrandbits(1)
        data = inputs[which]
        started = time.perf_counter_ns()
        try:
            opener(data)
        except SealError:
            times[which].append(time.perf_counter_ns() - started)
    gc.enable()
    if sum(map(len, times)) != samples:
        raise AssertionError("a forgery opened")
    return times


def welch(times: list[list[int]]) -> float:
    """The largest |t| over the crops."""
    pooled = sorted(times[0] + times[1])
    found = 0.0
    for crop in CROPS:
        limit = pooled[int(crop * (len(pooled) - 1))]
        a, b = ([each for each in part if each <= limit] for part in times)
        if min(len(a), len(b)) > 100:
            spread = math.sqrt(variance(a) / len(a) + variance(b) / len(b))
            found = max(found, abs(fmean(a) - fmean(b)) / spread if spread else 0.0)
    return found


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    samples = parser.parse_args().samples
    rng, bad = random.Random(os.urandom(8)), 0
    for name, target in targets().items():
        control = name.startswith("control")
        seen: list[float] = []
        while len(seen) < ROUNDS and (not seen or (seen[-1] >= SUSPICIOUS and not control)):
            seen.append(welch(measure(*target, samples, rng)))
        leaks = seen[-1] >= SUSPICIOUS
        bad += leaks != control
        print(f"{name:<36} |t| {' '.join(f'{t:7.2f}' for t in seen)}   {'leaks' if leaks else 'even'}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
