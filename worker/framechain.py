"""An object's coded frames in their order, each perhaps coded with the one before it as context.

Every RUN frames one needs no other: so reading one frame decodes at most RUN - 1 others, and damage reaches no
further. What is context is always the words as coded, the sealed record inside: decoding needs no key. Coding and
decoding hold a few frames, never all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from codec.bitplane import LevelTable, Words
from codec.blob import Frame
from codec.errors import CorruptBitstream, MissingContext
from codec.frame import EncodedFrame, encode_frame
from codec.pixelformat import PixelFormat
from gateway.errors import IntegrityError

RUN = 16  # frames from one independent frame to the next, at most


class Decode(Protocol):
    """A frame decoder: `codec.frame.decode_frame` or the reference decoder."""

    def __call__(self, blob: bytes, *, previous: Words | None = None, shared: bytes | None = None) -> Frame: ...


class FrameChain:
    """Decodes the frames of an object, or of a group; one after another each of them once."""

    def __init__(self, blobs: Sequence[memoryview], decode: Decode, shared: bytes | None = None) -> None:
        self._blobs, self._decode, self._shared = blobs, decode, shared
        self._at = -1
        self._frame: Frame | None = None

    def __len__(self) -> int:
        return len(self._blobs)

    def frame(self, index: int) -> Frame:
        """Frame `index` (from 0). Raises IntegrityError ``bitstream-damaged``."""
        if self._at != index or self._frame is None:
            try:
                self._frame = self._reach(index)
            except CorruptBitstream as error:
                raise IntegrityError("bitstream-damaged", "a frame cannot be decoded") from error
            self._at = index
        return self._frame

    def _reach(self, index: int) -> Frame:
        """Go back to the nearest frame that can be decoded now, and from there on to `index`."""
        at = index
        while True:
            try:
                frame = self._decoded(at, self._frame if self._at == at - 1 else None)
                break
            except MissingContext:
                if at % RUN == 0 or self._at == at - 1:
                    raise
                at -= 1
        for following in range(at + 1, index + 1):
            frame = self._decoded(following, frame)
        return frame

    def _decoded(self, index: int, before: Frame | None) -> Frame:
        previous = before.words if before is not None and index % RUN else None
        return self._decode(bytes(self._blobs[index]), previous=previous, shared=self._shared)


@dataclass
class ChainCoder:
    """Codes the frames of an object, or of a group's objects, in their order.

    profile: of the codec. shared: the adapter that stands beside the frames. adapters: those that may ride in blobs.
    blobs, coders: of what was coded, by frame. uses_shared: whether any blob needs the adapter.
    """

    threads: int = 1
    profile: str = "default"
    shared: bytes | None = None
    adapters: tuple[bytes, ...] = ()
    blobs: list[bytes] = field(default_factory=list)
    coders: list[str] = field(default_factory=list)
    uses_shared: bool = False
    _last: tuple[Words, PixelFormat] | None = field(default=None, repr=False)

    def context(self, fmt: PixelFormat) -> Words | None:
        """What the next frame may be coded with: the words of the last one as coded, if it has the same format."""
        if self._last is None or len(self.blobs) % RUN == 0 or self._last[1] != fmt:
            return None
        return self._last[0]

    def context_ahead(self, frame: Callable[[int], Words], index: int, fmt: PixelFormat) -> Words | None:
        """The same for frame `index` of the object that comes next, whose frames before `index` are coded exactly."""
        if index == 0:
            return self.context(fmt)
        return frame(index - 1) if (len(self.blobs) + index) % RUN else None

    def encode(
        self,
        words: Words,
        fmt: PixelFormat,
        context: Words | None,
        *,
        levels: LevelTable | None = None,
        coders: Sequence[str] | None = None,
        prove: bool = True,
    ) -> EncodedFrame:
        """Code a frame with that context. Raises as `encode_frame`."""
        return encode_frame(
            words, fmt, levels=levels, profile=self.profile, previous=context, shared=self.shared,
            adapters=self.adapters, coders=coders, threads=self.threads, prove=prove,
        )  # fmt: skip

    def add(self, coded: EncodedFrame, words: Words, fmt: PixelFormat) -> None:
        """The next frame is `coded`; decoding it gives `words`."""
        self.blobs.append(coded.blob)
        self.coders.append(coded.coder)
        self.uses_shared = self.uses_shared or bool(coded.details.get("shared"))
        self._last = (words, fmt)
