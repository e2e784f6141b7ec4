"""The context that binds an object's seals to its pixels, computed alike when sealing and when opening."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from codec.bitplane import LevelTable, Words
from codec.pixelformat import PixelFormat
from stego.seal import Context
from stego.segmented import untouched
from worker.container import Carrier, CarrierMode

PASSTHROUGH_MODE = "passthrough"
MODES = {
    CarrierMode.BESIDE: "beside",
    CarrierMode.SEGMENTED: "segmented",
    CarrierMode.SEALED: "sealed-bitmap",
    CarrierMode.INITIAL: "initial-bits",
}


def frame_digest(words: Words, fmt: PixelFormat, levels: LevelTable, index: int, carrier: Carrier) -> bytes:
    """SHA-256 of what embedding leaves alone in frame `index`: equal for the stego and the exact frame."""
    if carrier.in_frame(index):
        return untouched(words, fmt, levels, carrier.start, carrier.nbits)
    return untouched(words, fmt, levels)


def coded_context(object_id: bytes, fmt: PixelFormat, carrier: Carrier, digests: Iterable[bytes]) -> Context:
    """Context of a coded object; `digests`: `frame_digest` of each frame in order."""
    kept = list(digests)
    bound = sha256(b"".join(kept)).digest()
    shape = (fmt.rows, fmt.columns, fmt.bits_stored, fmt.signed)
    return Context(object_id, *shape, len(kept), MODES[carrier.mode], bound)


def passthrough_context(object_id: bytes) -> Context:
    """Context of an object sealed whole: there are no pixels to bind to."""
    return Context(object_id, 0, 0, 0, False, 0, PASSTHROUGH_MODE, bytes(32))
