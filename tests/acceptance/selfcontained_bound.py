"""Distortion and time of the self-contained carrier beside the bound, on a folder of images.

    python -m tests.acceptance.selfcontained_bound IMAGE... [--rates .02 .05 .1 .15 .25] [--no-bound] [--repeat N]

For each image and rate: MSE of the recursive carrier and of plain prediction-error expansion, the bound of the same
image over the samples that a carrier may change (stego.bound: rhombus errors in eight contexts; as counted, and
smoothed where a class has too few samples to know its histogram), and CPU time of embedding (which includes its own
extraction) and of extracting, the least of N. Every message comes back and every image is restored, or the run ends
with an error.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pydicom
from numpy.typing import NDArray

from stego import bound
from stego.carriers import ground, segment
from stego.cover import Cover
from stego.errors import CarrierError
from stego.selfcontained import capacity, embed, extract

Result = TypeVar("Result")
KEYS = {"stego_key": bytes(range(32)), "salt": bytes(32)}


def cover_of(path: Path) -> Cover:
    dataset = pydicom.dcmread(path)
    values = np.ascontiguousarray(dataset.pixel_array.astype(np.int32))
    bits, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    padding = (int(dataset.PixelPaddingValue),) if "PixelPaddingValue" in dataset else ()
    return Cover(values if values.ndim == 2 else values[0], low, high, padding)


def changeable(cover: Cover) -> NDArray[np.bool_]:
    """The samples that the image's own rules let change: no constant area, no air, padding or barred value. The
    reserved lattice counts: that it carries nothing is this carrier's own loss."""
    land = ground(cover, None)
    legal = {int(v): segment(int(v), land.bars)[0] <= segment(int(v), land.bars)[1] for v in np.unique(cover.values)}
    known = np.array(sorted(legal))
    free = np.array([legal[v] for v in known.tolist()])[np.searchsorted(known, cover.values)]
    mask = np.zeros_like(free)
    mask[:, 1:] |= land.mask[:, :-1]
    mask[:, :-1] |= land.mask[:, 1:]
    return np.asarray(free & (mask | land.mask))


def measured(cover: Cover, message: bytes, method: str, repeat: int = 1) -> tuple[str, float, float, float]:
    """(MSE and largest change, MSE, embedding ms, extracting ms)."""
    try:
        out, embedding = least_time(repeat, lambda: embed(cover, message, method=method, **KEYS))
    except CarrierError as error:
        return error.reason, float("nan"), 0.0, 0.0
    carrier = Cover(out.values, cover.low, cover.high, cover.barred)
    (got, values), extracting = least_time(repeat, lambda: extract(carrier, **KEYS))
    if got != message or not np.array_equal(values, cover.values):
        raise SystemExit("not restored")
    return f"{out.mse:.4f} ({out.max_change})", out.mse, embedding, extracting


def least_time(repeat: int, act: Callable[[], Result]) -> tuple[Result, float]:
    """(what `act` gives, the least CPU time of `repeat` runs in ms)."""
    times = []
    for _ in range(repeat):
        started = time.process_time()
        result = act()
        times.append(1000 * (time.process_time() - started))
    return result, min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.02, 0.05, 0.1, 0.15, 0.25])
    parser.add_argument("--no-bound", action="store_true")
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    print("| image | bpp | plain PEE: MSE (most) | ours: MSE (most) | bound | ratio | smoothed | ratio | ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    for path in options.images:
        cover = cover_of(path)
        embed(cover, b"warm", **KEYS)  # the compiler's time is nobody's figure
        embed(cover, b"warm", method="plain_pee", **KEYS)
        counts = bound.rhombus_histograms(cover.values, changeable(cover))
        for rate in options.rates:
            message = os.urandom(int(rate * cover.values.size / 8))
            plain = measured(cover, message, "plain_pee")[0]
            ours, mse, embedding, extracting = measured(cover, message, "recursive", options.repeat)
            cells = [path.name, f"{rate:g}", plain, ours]
            for histograms in () if options.no_bound else (counts, bound.smoothed(counts)):
                least = bound.at_rate(histograms, cover.values.size, rate).mse
                cells += [f"{least:.4f}", f"{mse / least:.2f}"]
            print("|", " | ".join([*cells, f"{embedding:.0f} / {extracting:.0f}"]), "|", flush=True)
        print(f"| {path.name} | at most {capacity(cover) / cover.values.size:.3f} at a change of 1 |", flush=True)


if __name__ == "__main__":
    main()
