"""Peak memory of coding one large frame: `python -m tests.acceptance.big_frame [--profile default] [--rows 5000 ...]`.

A generated 5000 x 7000 frame of 16 bits (a mammogram's size and texture) is encoded, proof by decoding included, and
decoded, each in a process of its own; printed are peak resident memory (getrusage), seconds and bytes. Exit 1 above
2 GiB, or when a word differs. Takes minutes; not part of `make test`.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from codec.bitplane import Words
from codec.pixelformat import PixelFormat
from codec.weights import RELEASED, add
from tests.unit.codec_networks import weight_file

LIMIT = 2 << 30


def frame(rows: int, columns: int, bits: int) -> Words:
    """Smooth shapes with noise that grows with the signal, made row by row: the maker needs little memory itself."""
    rng = np.random.default_rng(1)
    top = (1 << bits) - 1
    out = np.empty((rows, columns), np.uint16)
    across = np.linspace(-1, 1, columns)
    for row in range(rows):
        down = 2 * row / rows - 1
        signal = 0.8 * np.exp(-2.5 * (across**2 + down**2)) + 0.03 * np.sin(37 * across + 11 * down) + 0.06
        noisy = signal * top + rng.normal(0, 1, columns) * np.sqrt(np.maximum(signal, 0) * top) * 0.7
        out[row] = np.clip(noisy, 0, top)
    return out


def peak() -> int:
    """Bytes of resident memory at most, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def encode(folder: Path, fmt: PixelFormat, profile: str, threads: int) -> None:
    """Code the frame in `folder`; says how much was taken."""
    from codec.frame import encode_frame

    words = np.load(folder / "frame.npy", mmap_mode="r")
    before, began = peak(), time.monotonic()
    coded = encode_frame(np.asarray(words), fmt, profile=profile, threads=threads)
    took = time.monotonic() - began
    (folder / "blob").write_bytes(coded.blob)
    bits = 8 * len(coded.blob) / words.size
    print(f"encode  {peak() / 2**20:7.0f} MiB peak ({before / 2**20:.0f} before)  {took:7.1f} s  "
          f"{words.size / took / 1e6:6.2f} MP/s  {coded.coder} {bits:.3f} bits a sample", flush=True)  # fmt: skip
    if peak() > LIMIT:
        sys.exit(1)


def decode(folder: Path, threads: int) -> None:
    """Decode the blob in `folder` and compare."""
    from codec.frame import decode_frame

    blob, began = (folder / "blob").read_bytes(), time.monotonic()
    words = decode_frame(blob, threads=threads).words
    took = time.monotonic() - began
    highest = peak()
    print(f"decode  {highest / 2**20:7.0f} MiB peak  {took:7.1f} s  {words.size / took / 1e6:6.2f} MP/s", flush=True)
    if not np.array_equal(words, np.load(folder / "frame.npy", mmap_mode="r")) or highest > LIMIT:
        sys.exit(1)


def main() -> int:
    """Exit status 0 if both stayed under the limit and every word came back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--columns", type=int, default=7000)
    parser.add_argument("--bits", type=int, default=16)
    parser.add_argument("--profile", default="default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--step", choices=("all", "encode", "decode"), default="all")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if not RELEASED and asked.step != "all":
        add(weight_file())  # untrained, for a tree without released weights: memory and time are the same
    fmt = PixelFormat(asked.rows, asked.columns, 1, 16, asked.bits, asked.bits - 1, False)
    if asked.step == "encode":
        encode(asked.folder, fmt, asked.profile, asked.threads)
        return 0
    if asked.step == "decode":
        decode(asked.folder, asked.threads)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "frame.npy"), frame(asked.rows, asked.columns, asked.bits))
        for step in ("encode", "decode"):
            again = [sys.executable, "-m", "tests.acceptance.big_frame", "--step", step, "--folder", folder]
            for name in ("rows", "columns", "bits", "profile", "threads"):
                again += [f"--{name}", str(getattr(asked, name))]
            if subprocess.run(again).returncode:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
