"""An object's coded frames in their order, each perhaps coded with the one before it as context.

Every RUN frames one needs no other: so reading one frame decodes at most RUN - 1 others, and damage reaches no
further. The RUN frames from there on may have left their global parts to one stack (codec.group). What is context is
always the words as coded, the sealed record inside: decoding needs no key. Coding and decoding hold a few frames,
never all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import LevelTable, Words
from codec.bitsback import BitsBack
from codec.blob import Frame
from codec.errors import CorruptBitstream, MissingContext
from codec.frame import EncodedFrame, encode_frame
from codec.group import EncodedGroup, GroupReport
from codec.groupread import MAX_FRAMES, open_with
from codec.groupstack import Opener
from codec.memory import Memory
from codec.pixelformat import PixelFormat
from gateway.errors import IntegrityError

RUN = MAX_FRAMES  # frames from one independent frame to the next, at most
Uppers = Sequence[NDArray[np.int32]]


class Decode(Protocol):
    """A frame decoder: `codec.frame.decode_frame` or the reference decoder."""

    def __call__(
        self,
        blob: bytes,
        *,
        previous: Words | None = None,
        memory: Memory | None = None,
        shared: bytes | None = None,
        upper: Uppers | None = None,
    ) -> Frame: ...


class RunStacks:
    """The stacks of an object's runs of frames; the last one opened is kept: the next frame will want it, too."""

    def __init__(
        self, blobs: Sequence[memoryview], stacks: Sequence[memoryview] = (), opener: Opener = BitsBack
    ) -> None:
        """stacks: one a run, empty where it has none; () where no run has. opener: codec.plainstack's, or the fast."""
        self._blobs, self._stacks, self._opener = blobs, stacks, opener
        self._run, self._uppers, self._initial = -1, list[list[NDArray[np.int32]]](), b""

    def upper(self, index: int) -> Uppers | None:
        """Planes of the global part of a frame that left it to its run's stack. Raises CorruptBitstream."""
        return (self._opened(index // RUN)[index % RUN] or None) if self._stacks else None

    def initial(self, run: int) -> bytes:
        """The bits that a run's stack begins with, in whole bytes. Raises CorruptBitstream."""
        if not 0 <= run < len(self._stacks):
            raise CorruptBitstream("there is no such stack")
        self._opened(run)
        return self._initial

    def _opened(self, run: int) -> list[list[NDArray[np.int32]]]:
        if self._run != run:
            blobs = [bytes(self._blobs[at]) for at in range(run * RUN, min(len(self._blobs), (run + 1) * RUN))]
            self._run = -1
            self._uppers, self._initial = open_with(self._opener, blobs, bytes(self._stacks[run]))
            self._run = run
        return self._uppers


class FrameChain:
    """Decodes the frames of an object, or of a group; one after another each of them once."""

    def __init__(
        self, blobs: Sequence[memoryview], decode: Decode, shared: bytes | None = None, stacks: RunStacks | None = None
    ) -> None:
        self._blobs, self._decode, self._shared = blobs, decode, shared
        self._stacks = stacks or RunStacks(blobs)
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

    def initial(self, run: int) -> bytes:
        """The bits that the stack of run `run` (from 0) begins with. Raises IntegrityError ``bitstream-damaged``."""
        try:
            return self._stacks.initial(run)
        except CorruptBitstream as error:
            raise IntegrityError("bitstream-damaged", "a stack cannot be decoded") from error

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
        words, memory = (before.words, before.memory) if before is not None and index % RUN else (None, None)
        upper = self._stacks.upper(index)
        blob = bytes(self._blobs[index])
        return self._decode(blob, previous=words, memory=memory, shared=self._shared, upper=upper)


@dataclass(frozen=True)
class Before:
    """The frame before: its words, and what it left to go on from, where that is known."""

    words: Words | None = None
    memory: Memory | None = None


@dataclass
class ChainCoder:
    """Codes the frames of an object, or of a group's objects, in their order.

    profile: of the codec. tried: the codec's coders to try, None: those of the profile. shared: the adapter that stands
    beside the frames. adapters: those that may ride in blobs.
    blobs, coders: of what was coded, by frame. uppers: bytes of global parts in these blobs, by frame. uses_shared:
    whether any blob needs the adapter. stacks: by run, empty where it has none; reports: of the runs that were tried.
    """

    threads: int = 1
    profile: str = "default"
    tried: tuple[str, ...] | None = None
    shared: bytes | None = None
    adapters: tuple[bytes, ...] = ()
    blobs: list[bytes] = field(default_factory=list)
    coders: list[str] = field(default_factory=list)
    uppers: list[int] = field(default_factory=list)
    uses_shared: bool = False
    stacks: dict[int, bytes] = field(default_factory=dict)
    reports: list[GroupReport] = field(default_factory=list)
    _last: tuple[Before, PixelFormat] | None = field(default=None, repr=False)

    def context(self, fmt: PixelFormat) -> Before | None:
        """What the next frame may be coded with: the last one as coded, if it has the same format."""
        if self._last is None or len(self.blobs) % RUN == 0 or self._last[1] != fmt:
            return None
        return self._last[0]

    def context_ahead(self, frame: Callable[[int], Words], index: int, fmt: PixelFormat) -> Before | None:
        """The same for frame `index` of the object that comes next, whose frames before `index` are coded exactly.

        What the frame before will leave beside its words is known for the first one only.
        """
        if index == 0:
            return self.context(fmt)
        return Before(frame(index - 1)) if (len(self.blobs) + index) % RUN else None

    def encode(
        self,
        words: Words,
        fmt: PixelFormat,
        context: Before | None,
        *,
        levels: LevelTable | None = None,
        coders: Sequence[str] | None = None,
        prove: bool = True,
    ) -> EncodedFrame:
        """Code a frame with that context. Raises as `encode_frame`."""
        before = context or Before()
        return encode_frame(
            words, fmt, levels=levels, profile=self.profile, previous=before.words, memory=before.memory,
            shared=self.shared, adapters=self.adapters, coders=coders or self.tried,
            threads=self.threads, prove=prove,
        )  # fmt: skip

    def add(self, coded: EncodedFrame, words: Words, fmt: PixelFormat) -> None:
        """The next frame is `coded`; decoding it gives `words`."""
        self.blobs.append(coded.blob)
        self.coders.append(coded.coder)
        self.uppers.append(upper_bytes(coded))
        self.uses_shared = self.uses_shared or bool(coded.details.get("shared"))
        self._last = (Before(words, coded.memory), fmt)

    @property
    def runs(self) -> int:
        """Number of runs so far, the last one perhaps not full."""
        return -(-len(self.blobs) // RUN)

    def run(self, number: int) -> slice:
        """The frames of a run."""
        return slice(number * RUN, (number + 1) * RUN)

    def put_stack(self, number: int, group: EncodedGroup) -> None:
        """A whole run as `codec.group.stack_group` leaves it."""
        self.blobs[self.run(number)] = group.blobs
        self.reports.append(group.report)
        if group.stack:
            self.stacks[number] = group.stack

    def packed_stacks(self) -> list[bytes]:
        """One a run, for the section STACK; [] where no run has one."""
        return [self.stacks.get(number, b"") for number in range(self.runs)] if self.stacks else []


def upper_bytes(coded: EncodedFrame) -> int:
    """Bytes of a frame's global part that a stack could take."""
    if coded.coder != "learned":
        return 0
    return sum(size for name, size in coded.details.items() if name.startswith("global"))
