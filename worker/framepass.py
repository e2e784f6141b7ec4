"""One pass over the frames of a coded archive object: decoding, the digests that bind the seals, and the carrier.

Nothing here needs a key but `record`. What a reader without a key can find wrong is an IntegrityError with a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256

from codec.bitplane import Words
from codec.bitsback import BitsBack
from codec.blob import Frame
from codec.groupstack import Opener
from gateway.errors import IntegrityError
from stego.errors import CarrierError
from stego.seal import Context, derive, open_record
from stego.segmented import exact, extract
from worker import container as box
from worker.container import CarrierMode, SectionType
from worker.framechain import RUN, Decode, FrameChain, RunStacks
from worker.objectcontext import coded_context, frame_digest
from worker.pixels import MAX_NATIVE_BYTES, frame_bytes, little_endian

Sections = Mapping[SectionType, memoryview]


class FramePass:
    """Gathers the digests on the way through the frames; for one way only.

    carrier, image: the parsed sections. fmt: of every frame. count: of frames.
    """

    def __init__(
        self, sections: Sections, decode: Decode, chain: FrameChain | None = None, opener: Opener = BitsBack
    ) -> None:
        """decode, opener: of frames and of stacks. chain: the group's decoder, if several members are read one after
        another (`chain_of`).

        Raises IntegrityError ``container-damaged``, ``bitstream-damaged``.
        """
        self._chain = chain or chain_of(sections, decode, opener)
        self._first, self.count = 0, len(self._chain)
        if SectionType.SPAN in sections:
            self._first, self.count = box.unpack_span(sections[SectionType.SPAN], len(self._chain))
        self.carrier = box.unpack_carrier(section(sections, SectionType.CARRIER))
        self.image = box.unpack_image(section(sections, SectionType.IMAGE))
        self._beside = bytes(sections.get(SectionType.RECORD, b""))
        self._initial = b""
        self._kept: Frame | None = None
        self._digests: list[bytes] = []
        self._check_carrier()
        self.fmt = self._frame(0).fmt
        if frame_bytes(self.fmt) * self.count > MAX_NATIVE_BYTES:
            raise IntegrityError("bitstream-damaged", "more pixels than an object may hold")

    def _check_carrier(self) -> None:
        carrier, last = self.carrier, self._first + self.count - 1
        if carrier.mode is CarrierMode.INITIAL and not self._first // RUN <= carrier.frame <= last // RUN:
            raise IntegrityError("container-damaged", "the carrier names a stack of other frames")
        if carrier.mode in (CarrierMode.SEGMENTED, CarrierMode.SEALED) and carrier.frame >= self.count:
            raise IntegrityError("container-damaged", "the carrier names a frame that is not there")

    def clear_frames(self) -> Iterator[Words]:
        """What a reader without a key gets: exact words, or those with the record inside if the bitmap is sealed.

        At the end their digest is compared with the one in clear. Raises IntegrityError, also ``pixel-mismatch``.
        """
        shown = sha256()
        for index in range(self.count):
            frame = self._frame(index)
            words = frame.words
            self._take_initial(index)
            with _carrier_fits():
                self._digests.append(frame_digest(frame.words, frame.fmt, frame.levels, index, self.carrier))
            if self.carrier.in_frame(index):
                self._kept = frame
                if self.carrier.mode is CarrierMode.SEGMENTED:
                    words = self.flipped(self.carrier.bitmap)
            shown.update(little_endian(words))
            yield words
        _same_pixels(shown.digest(), self.image.pixel_sha256)

    def _take_initial(self, index: int) -> None:
        """The record's bytes out of the stack, while the stack of frame `index` is open."""
        carrier = self.carrier
        if carrier.mode is not CarrierMode.INITIAL or self._initial or (self._first + index) // RUN != carrier.frame:
            return
        start, end = carrier.start // 8, (carrier.start + carrier.nbits) // 8
        self._initial = self._chain.initial(carrier.frame)[start:end]
        if len(self._initial) != end - start:
            raise IntegrityError("container-damaged", "the carrier names bits that its stack does not hold")

    def exact_frames(self, bitmap: bytes, pixel_sha256: bytes) -> Iterator[Words]:
        """The exact words by an opened bitmap; their digest is compared at the end. Raises as `clear_frames`."""
        found = sha256()
        for index, words in enumerate(self.clear_frames()):
            shown = self.flipped(bitmap) if self.carrier.in_frame(index) else words
            found.update(little_endian(shown))
            yield shown
        _same_pixels(found.digest(), pixel_sha256)

    def stego_frames(self) -> Iterator[Words]:
        """The words as coded."""
        return (self._frame(index).words for index in range(self.count))

    # --- after the frames have passed ---

    def flipped(self, bitmap: bytes) -> Words:
        """The carrying frame, flipped back by `bitmap`. Raises IntegrityError."""
        if self._kept is None:
            raise IntegrityError("bitstream-damaged", "no frame carries anything")
        frame, carrier = self._kept, self.carrier
        with _carrier_fits():
            return exact(frame.words, frame.fmt, frame.levels, bitmap, carrier.start, carrier.nbits)

    def context(self, object_id: bytes) -> Context:
        """The context as the decoded frames show it."""
        return coded_context(object_id, self.fmt, self.carrier, self._digests)

    def record(self, context: Context, key: bytes) -> bytes:
        """The packed record, out of the image, from beside it, or out of a stack. Raises SealError, IntegrityError."""
        sealed = self._initial + self._beside
        if self._kept is not None:
            frame, where = self._kept, (self.carrier.start, self.carrier.nbits)
            stego_key, salt = derive(key, context, "pos/v1"), context.object_id
            with _carrier_fits():
                sealed = extract(frame.words, frame.fmt, frame.levels, *where, stego_key=stego_key, salt=salt)
        return open_record(sealed, data_key=key, context=context)

    def _frame(self, index: int) -> Frame:
        frame = self._chain.frame(self._first + index)
        if index and frame.fmt != self.fmt:
            raise IntegrityError("bitstream-damaged", "frames of different formats")
        return frame


def chain_of(sections: Sections, decode: Decode, opener: Opener = BitsBack) -> FrameChain:
    """The decoder of an object's or a group's frames. Raises IntegrityError ``container-damaged``."""
    blobs = box.unpack_frames(section(sections, SectionType.FRAMES))
    shared = bytes(sections[SectionType.ADAPTER]) if SectionType.ADAPTER in sections else None
    if SectionType.STACK not in sections:
        return FrameChain(blobs, decode, shared)
    stacks = box.unpack_stacks(sections[SectionType.STACK], -(-len(blobs) // RUN))
    return FrameChain(blobs, decode, shared, RunStacks(blobs, stacks, opener))


def section(sections: Sections, kind: SectionType) -> memoryview:
    """A section that must be there. Raises IntegrityError."""
    if kind not in sections:
        raise IntegrityError("container-damaged", "a section is missing")
    return sections[kind]


@contextmanager
def _carrier_fits() -> Iterator[None]:
    """A carrier description that the decoded frame contradicts is damage like any other."""
    try:
        yield
    except CarrierError as error:
        raise IntegrityError("bitstream-damaged", "the carrier does not fit the frame") from error


def _same_pixels(found: bytes, recorded: bytes) -> None:
    if found != recorded:
        raise IntegrityError("pixel-mismatch", "the pixels are not those of the digest beside them")
