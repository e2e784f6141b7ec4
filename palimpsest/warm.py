"""Compile every kernel that a worker needs into NUMBA_CACHE_DIR: `python -m palimpsest.warm`.

Tiny frames of each kind, a chain and a stack go through the codec, and small sample files through the whole way of an
object (decoders of compressed input, codec, carrier, seal, and back), with a key ring that is thrown away. With a warm
cache: seconds.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from codec.bitsback import BitsBack
from codec.frame import decode_frame, encode_frame
from codec.groupstack import Shape, decode_stack, encode_stack
from codec.pixelformat import PixelFormat
from codec.weights import load
from gateway.keys import KeyRing
from palimpsest.samples import packaged_files
from worker.candidate import build_candidate
from worker.identity import Provenance
from worker.restore import restore

SIZE = 48
KINDS = ((8, 8, False, 1), (16, 12, False, 1), (16, 16, True, 1), (8, 8, False, 3))
OBJECTS = (
    "CT_small.dcm", "SC_rgb_small_odd.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_gdcm.dcm",
    "MR_small_jp2klossless.dcm",
)  # fmt: skip


def warm_frames() -> None:
    """Encode and decode one small frame per pixel format. Raises what the codec raises: then it is broken."""
    ramp = np.add.outer(np.arange(SIZE), np.arange(SIZE))
    for allocated, stored, signed, samples in KINDS:
        words = (ramp * 5 % (1 << stored)).astype(np.uint8 if allocated == 8 else np.uint16)
        if samples == 3:
            words = np.repeat(words[:, :, None], 3, axis=2)
        fmt = PixelFormat(SIZE, SIZE, samples, allocated, stored, stored - 1, signed)
        encoded = encode_frame(np.ascontiguousarray(words), fmt)
        if not np.array_equal(decode_frame(encoded.blob).words, words):
            raise AssertionError("the codec does not give a frame back")


def warm_chain() -> None:
    """Frames that go on from the one before, and a stack of global parts (the VAE's kernels). Raises as warm_frames."""
    fmt, random = PixelFormat(SIZE, SIZE, 1, 16, 12, 11, False), np.random.default_rng(1)
    ramp = np.add.outer(np.arange(SIZE), np.arange(SIZE)) * 5
    previous, memory = None, None
    for _ in range(3):
        words = (ramp + random.integers(0, 32, ramp.shape)).astype(np.uint16)
        encoded = encode_frame(words, fmt, previous=previous, memory=memory)
        if not np.array_equal(decode_frame(encoded.blob, previous=previous, memory=memory).words, words):
            raise AssertionError("the codec does not give a frame of a chain back")
        previous, memory = words, encoded.memory
    plane, side = (ramp // 64).astype(np.int32), Shape(SIZE, SIZE, int(ramp.max()) // 64)
    stack = encode_stack([plane], [side], load("vae"), BitsBack, seed=1)
    if not np.array_equal(decode_stack(stack.data, [side], BitsBack)[0][0], plane):
        raise AssertionError("the codec does not give a stack back")


def warm_objects() -> None:
    """Take small sample files all the way and back; prints what became of each."""
    files = packaged_files()
    facts = Provenance(datetime.now(UTC).isoformat(), "dimse", "WARM_UP", "warm-up")
    with tempfile.TemporaryDirectory(prefix="palimpsest-warm-") as folder:
        ring = KeyRing.load_or_create(Path(folder, "keys"))
        for name in OBJECTS:
            if name in files:
                candidate = build_candidate(files[name].read_bytes(), facts, ring)
                restored = restore(candidate.envelope, ring)
                print(name, candidate.form, candidate.coder or candidate.reason, f"exact={restored.exact}", flush=True)


if __name__ == "__main__":
    warm_frames()
    warm_chain()
    warm_objects()
