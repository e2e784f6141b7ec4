"""A received file as non-pixel bytes and pixel bytes, and the plan that puts it together again.

Parsing and saving by a DICOM library changes files (group lengths, padding, odd encodings), so nothing is ever saved:
a file is cut into typed spans, and restoring is concatenation. docs/archive-object.md gives the plan's bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from gateway.errors import IntegrityError, InvalidInstance, Unsupported
from gateway.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, read_meta
from worker.attributes import Data, DataSet, read_data_set, read_file_meta

PIXEL_DATA = 0x7FE00010
FLOAT_PIXELS = (0x7FE00008, 0x7FE00009)
EXTENDED_OFFSETS = frozenset({0x7FE00001, 0x7FE00002})
NATIVE = frozenset({IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE})
MAX_PLAN_STEPS = 64
MAX_INSERT = 1 << 12


class SpanKind(Enum):
    """What a span of the received file is."""

    NONPIXEL = "nonpixel"
    PIXELS = "pixels"


@dataclass(frozen=True)
class Span:
    """Bytes [start, end) of the received file."""

    kind: SpanKind
    start: int
    end: int


class Op(IntEnum):
    """One step of a plan: copy or skip bytes of the non-pixel stream, insert given bytes, or insert pixel bytes."""

    COPY = 0
    SKIP = 1
    INSERT = 2
    PIXELS = 3


@dataclass(frozen=True)
class Step:
    """`length` bytes; `data` only for INSERT."""

    op: Op
    length: int
    data: bytes = b""


@dataclass(frozen=True)
class ObjectSpans:
    """A received file that carries pixel data. `encapsulated`: PIXELS is a fragment sequence, not samples."""

    dataset: DataSet
    spans: tuple[Span, ...]
    encapsulated: bool

    @property
    def pixels(self) -> Span:
        """The one span of pixel bytes."""
        return next(span for span in self.spans if span.kind is SpanKind.PIXELS)

    def nonpixel(self) -> bytes:
        """All other bytes, in file order."""
        data = self.dataset.data
        return b"".join(bytes(data[s.start : s.end]) for s in self.spans if s.kind is SpanKind.NONPIXEL)


def read_object(data: Data) -> ObjectSpans:
    """Cut a Part 10 file. For native pixels the PIXELS span is the whole value; `cut_native` narrows it later.

    For encapsulated pixels it is the whole element, header included. Raises InvalidInstance when the file cannot be
    walked, Unsupported: ``no-pixels``, ``float-pixels``, ``deflated``, ``pixel-encoding``.
    """
    dataset = read_data_set(data)
    if any(tag in dataset.elements for tag in FLOAT_PIXELS):
        raise Unsupported("float-pixels", "float or double float pixel data")
    element = dataset.elements.get(PIXEL_DATA)
    if element is None:
        raise Unsupported("no-pixels", "the object holds no pixel data")
    native = dataset.syntax in NATIVE
    if element.undefined == native or PIXEL_DATA in dataset.repeated:
        raise Unsupported("pixel-encoding", "the pixel data element contradicts the transfer syntax")
    start = element.value_offset if native else element.offset
    return ObjectSpans(dataset, _around(start, element.end, len(data)), not native)


def cut_native(spans: ObjectSpans, length: int) -> ObjectSpans:
    """Narrow the PIXELS span to its first `length` bytes; what follows in the element is non-pixel."""
    start = spans.pixels.start
    return ObjectSpans(spans.dataset, _around(start, start + length, len(spans.dataset.data)), False)


def _around(start: int, end: int, size: int) -> tuple[Span, ...]:
    spans = (Span(SpanKind.NONPIXEL, 0, start), Span(SpanKind.PIXELS, start, end), Span(SpanKind.NONPIXEL, end, size))
    return tuple(span for span in spans if span.end > span.start)


def plan_native(spans: ObjectSpans) -> tuple[Step, ...]:
    """The plan that gives the received file back byte for byte."""
    ops = {SpanKind.NONPIXEL: Op.COPY, SpanKind.PIXELS: Op.PIXELS}
    return tuple(Step(ops[span.kind], span.end - span.start) for span in spans.spans)


def plan_decompressed(spans: ObjectSpans, pixel_bytes: int, word_bytes: int) -> tuple[Step, ...]:
    """The plan for losslessly compressed input: same non-pixel bytes, native pixels, Explicit VR Little Endian.

    Only the transfer syntax and the meta group length differ. Raises Unsupported ``too-large``, ``header``.
    """
    if pixel_bytes > 0xFFFFFFFE:
        raise Unsupported("too-large", "the native pixel data would not fit one element")
    offset, pixels = spans.dataset.offset, spans.pixels
    steps = _meta_steps(spans.dataset.data, offset)
    steps += [Step(Op.COPY, pixels.start - offset), *_native_element(pixel_bytes, word_bytes)]
    steps += [Step(Op.COPY, len(spans.dataset.data) - pixels.end)]
    return tuple(step for step in steps if step.length)


def is_decompressed_plan(steps: Sequence[Step], nonpixel: memoryview, pixel_bytes: int, word_bytes: int) -> bool:
    """Whether `plan_decompressed` could have made this plan for a file with these non-pixel bytes.

    Non-pixel bytes and pixels are signed, the file that compressed input restores to is not: any other plan, by who
    holds the data key, would make another header of them.
    """
    at = next((index for index, step in enumerate(steps) if step.op is Op.PIXELS), 0)
    try:
        offset = read_meta(nonpixel)[1]
        meta = [step for step in _meta_steps(nonpixel, offset) if step.length]
    except (InvalidInstance, Unsupported, KeyError):
        return False
    before = steps[at - 2].length if at - 2 >= len(meta) else 0
    ours = [*meta, Step(Op.COPY, before), *_native_element(pixel_bytes, word_bytes)]
    ours += [Step(Op.COPY, len(nonpixel) - offset - before)]
    return [step for step in ours if step.length] == list(steps)


def _native_element(pixel_bytes: int, word_bytes: int) -> list[Step]:
    padding = b"\0" * (pixel_bytes & 1)
    vr = b"OW" if word_bytes == 2 else b"OB"
    header = struct.pack("<HH2sHI", 0x7FE0, 0x0010, vr, 0, pixel_bytes + len(padding))
    return [Step(Op.INSERT, len(header), header), Step(Op.PIXELS, pixel_bytes), Step(Op.INSERT, len(padding), padding)]


def _meta_steps(data: Data, offset: int) -> list[Step]:
    meta = read_file_meta(data, offset)
    syntax, group = meta[0x00020010], meta.get(0x00020000)
    value = EXPLICIT_LE.encode("ascii") + b"\0"
    element = struct.pack("<HH2sH", 0x0002, 0x0010, b"UI", len(value)) + value
    steps, at = [], 0
    if group is not None:
        if group.length != 4 or group.offset > syntax.offset:
            raise Unsupported("header", "the file meta group length is not one number in front")
        change = len(element) - (syntax.end - syntax.offset)
        now = struct.unpack("<I", bytes(data[group.value_offset : group.end]))[0]
        if now + change != offset + change - group.end:
            raise Unsupported("header", "the file meta group length is wrong")
        steps += [Step(Op.COPY, group.value_offset), Step(Op.SKIP, 4)]
        steps += [Step(Op.INSERT, 4, struct.pack("<I", now + change))]
        at = group.end
    steps += [Step(Op.COPY, syntax.offset - at), Step(Op.SKIP, syntax.end - syntax.offset)]
    return [*steps, Step(Op.INSERT, len(element), element), Step(Op.COPY, offset - syntax.end)]


# --- the plan's bytes, and carrying it out ---


def pack_plan(steps: Sequence[Step]) -> bytes:
    """u16 count, then per step u8 op, u64 length, and the bytes of an INSERT; little endian."""
    out = [struct.pack("<H", len(steps))]
    out += [struct.pack("<BQ", step.op, step.length) + step.data for step in steps]
    return b"".join(out)


def unpack_plan(packed: bytes) -> tuple[tuple[Step, ...], int]:
    """Inverse of `pack_plan`: (steps, bytes consumed). Raises IntegrityError ``plan``."""
    try:
        count = struct.unpack_from("<H", packed)[0]
        steps, at = [], 2
        for _ in range(count):
            code, length = struct.unpack_from("<BQ", packed, at)
            at += 9
            data = packed[at : at + length] if code == Op.INSERT and length <= MAX_INSERT else b""
            steps.append(Step(Op(code), length, data))
            at += len(data)
    except (struct.error, ValueError) as error:
        raise IntegrityError("plan", "the splice plan cannot be read") from error
    broken = any(step.op is Op.INSERT and len(step.data) != step.length for step in steps)
    if broken or count > MAX_PLAN_STEPS:
        raise IntegrityError("plan", "the splice plan is broken")
    return tuple(steps), at


def carry_out(steps: Sequence[Step], nonpixel: memoryview, pixels: memoryview) -> bytes:
    """The restored file. Raises IntegrityError ``plan`` unless both streams are used up exactly."""
    return b"".join(carried(steps, nonpixel, [pixels]))


def carried(
    steps: Sequence[Step], nonpixel: memoryview, pixels: Iterable[bytes | memoryview]
) -> Iterator[bytes | memoryview]:
    """The restored file in pieces, taken from the pieces of its pixel stream as they come. Raises as `carry_out`."""
    at, left = 0, memoryview(b"")
    source = (piece for piece in pixels if len(piece))
    for step in steps:
        if step.op is Op.INSERT:
            yield step.data
        elif step.op is Op.PIXELS:
            missing = step.length
            while missing:
                left = left or memoryview(next(source, b""))
                if not left:
                    raise _asks_for_more()
                yield left[:missing]
                missing, left = missing - len(left[:missing]), left[missing:]
        else:
            if at + step.length > len(nonpixel):
                raise _asks_for_more()
            if step.op is Op.COPY:
                yield nonpixel[at : at + step.length]
            at += step.length
    if at != len(nonpixel) or left or next(source, b""):
        raise IntegrityError("plan", "the splice plan leaves bytes over")


def _asks_for_more() -> IntegrityError:
    return IntegrityError("plan", "the splice plan asks for more bytes than there are")
