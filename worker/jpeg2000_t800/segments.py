"""The parameters of marker segments (Annex A.5, A.6) as typed values, each checked when it is read."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.jpeg2000_t800.errors import J2kCorrupt, J2kUnsupported

__all__ = ["Coding", "Defaults", "Fields", "Header", "Progression", "Quantization", "Size", "read_segment", "read_size"]

MAX_COMPONENTS = 4  # DICOM has 1 or 3 (PS3.5 8.2.4); 4 leaves room for an alpha channel that a caller may refuse
MAX_DEPTH = 24  # bits of a sample; with the gain of the transforms it stays inside int32
SOP, EPH = 2, 4  # bits of Scod, table A.13
BYPASS, RESET, TERMINATE_ALL, CAUSAL, PREDICTABLE, SYMBOLS = 1, 2, 4, 8, 16, 32  # code-block style, table A.19
CODEC_STYLES = BYPASS | RESET | TERMINATE_ALL | CAUSAL | PREDICTABLE | SYMBOLS


class Fields:
    """A cursor over the bytes of one marker segment, big-endian."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def u(self, size: int) -> int:
        """The next unsigned integer of `size` bytes; J2kCorrupt when the segment is too short."""
        end = self._at + size
        if end > len(self._data):
            raise J2kCorrupt("segment-length", "a marker segment is too short for its fields")
        value = int.from_bytes(self._data[self._at : end], "big")
        self._at = end
        return value

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def done(self) -> None:
        if self.left:
            raise J2kCorrupt("segment-length", "a marker segment is longer than its fields")


@dataclass(frozen=True)
class Size:
    """SIZ (A.5.1): image area, tile grid on the reference grid, and (bit depth, signed) per component."""

    x0: int
    y0: int
    x1: int
    y1: int
    tile_x0: int
    tile_y0: int
    tile_width: int
    tile_height: int
    components: tuple[tuple[int, bool], ...]

    @property
    def tiles_across(self) -> int:
        return -(-(self.x1 - self.tile_x0) // self.tile_width)

    @property
    def tiles_down(self) -> int:
        return -(-(self.y1 - self.tile_y0) // self.tile_height)

    def tile(self, index: int) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of a tile on the reference grid (B.3); also its samples, since nothing is subsampled."""
        down, across = divmod(index, self.tiles_across)
        left, top = self.tile_x0 + across * self.tile_width, self.tile_y0 + down * self.tile_height
        right, bottom = left + self.tile_width, top + self.tile_height
        return max(left, self.x0), max(top, self.y0), min(right, self.x1), min(bottom, self.y1)


@dataclass(frozen=True)
class Coding:
    """The component part of COD and COC (A.6.1, A.6.2). precincts: (PPx, PPy) per resolution level, lowest first."""

    levels: int
    block_width: int  # exponent xcb
    block_height: int  # exponent ycb
    style: int
    precincts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Defaults:
    """COD (A.6.1): what holds for all components of the image or tile."""

    markers: int  # SOP | EPH
    progression: int
    layers: int
    transform: bool
    coding: Coding


@dataclass(frozen=True)
class Quantization:
    """QCD and QCC without quantization (A.6.4): guard bits and the exponent of each sub-band, LL first."""

    guard: int
    exponents: tuple[int, ...]


@dataclass(frozen=True)
class Progression:
    """One change of POC (A.6.6): bounds are [first, end)."""

    first_resolution: int
    first_component: int
    end_layer: int
    end_resolution: int
    end_component: int
    order: int


@dataclass
class Header:
    """What a main header or the tile-part headers of one tile set; the tile's win, then COC over COD (A.6)."""

    defaults: Defaults | None = None
    codings: dict[int, Coding] = field(default_factory=dict)
    quantization: Quantization | None = None
    quantizations: dict[int, Quantization] = field(default_factory=dict)
    progressions: list[Progression] = field(default_factory=list)


def read_size(f: Fields) -> Size:
    """SIZ; J2kUnsupported for extensions, subsampling, too many components or bits, J2kCorrupt for an illegal grid."""
    if f.u(2) & 0xC000:
        raise J2kUnsupported("capabilities", "the codestream needs another part of ISO/IEC 15444 than part 1")
    x1, y1, x0, y0 = (f.u(4) for _ in range(4))
    width, height, left, top = (f.u(4) for _ in range(4))
    count = f.u(2)
    if count == 0 or x0 >= x1 or y0 >= y1 or width == 0 or height == 0:
        raise J2kCorrupt("size", "an empty image or tile")
    if left > x0 or top > y0 or left + width <= x0 or top + height <= y0:
        raise J2kCorrupt("tile-grid", "the first tile does not hold the first sample")
    if count > MAX_COMPONENTS:
        raise J2kUnsupported("components", "more components than an image in DICOM has")
    components = []
    for _ in range(count):
        depth, across, down = f.u(1), f.u(1), f.u(1)
        if (across, down) != (1, 1):
            raise J2kUnsupported("subsampling", "a component is subsampled")
        if (depth & 0x7F) >= MAX_DEPTH:
            raise J2kUnsupported("bit-depth", "more bits in a sample than this decoder can hold")
        components.append(((depth & 0x7F) + 1, depth >= 0x80))
    f.done()
    return Size(x0, y0, x1, y1, left, top, width, height, tuple(components))


def _read_coding(f: Fields, own_precincts: bool) -> Coding:
    levels, width, height, style, wavelet = f.u(1), f.u(1) + 2, f.u(1) + 2, f.u(1), f.u(1)
    if style & ~CODEC_STYLES:
        raise J2kUnsupported("block-style", "a code-block style outside part 1")
    if wavelet != 1:
        raise J2kUnsupported("irreversible", "the 9-7 transform or one outside part 1")
    if levels > 32 or width > 10 or height > 10 or width + height > 12:
        raise J2kCorrupt("coding-style", "decomposition levels or code-block size out of range")
    precincts = [(15, 15)] * (levels + 1)
    if own_precincts:
        precincts = [(size & 15, size >> 4) for size in (f.u(1) for _ in range(levels + 1))]
        if any(0 in size for size in precincts[1:]):
            raise J2kCorrupt("precinct-size", "a precinct of size 1 above the lowest resolution")
    f.done()
    return Coding(levels, width, height, style, tuple(precincts))


def _read_cod(f: Fields, header: Header, components: int) -> None:
    style, order, layers, transform = f.u(1), f.u(1), f.u(2), f.u(1)
    if style & ~7 or transform > 1:
        raise J2kUnsupported("coding-style", "a coding style or component transform outside part 1")
    if order > 4 or layers == 0 or header.defaults is not None:
        raise J2kCorrupt("coding-style", "an unknown progression, no layer, or a second COD")
    if transform and components < 3:
        raise J2kCorrupt("component-transform", "a component transform needs three components")
    header.defaults = Defaults(style & (SOP | EPH), order, layers, bool(transform), _read_coding(f, bool(style & 1)))


def _read_coc(f: Fields, header: Header, components: int) -> None:
    component, style = _component(f, components), f.u(1)
    if style > 1:
        raise J2kUnsupported("coding-style", "a component coding style outside part 1")
    if component in header.codings:
        raise J2kCorrupt("coding-style", "a second COC for a component")
    header.codings[component] = _read_coding(f, bool(style))


def _component(f: Fields, components: int) -> int:
    component = f.u(1)  # one byte: Csiz < 257 here
    if component >= components:
        raise J2kCorrupt("component-index", "a marker segment for a component that does not exist")
    return component


def _read_quantization(f: Fields) -> Quantization:
    style = f.u(1)
    if style & 31:
        raise J2kUnsupported("quantized", "coefficients are quantized")
    return Quantization(style >> 5, tuple(f.u(1) >> 3 for _ in range(f.left)))


def _read_qcd(f: Fields, header: Header, components: int) -> None:
    if header.quantization is not None:
        raise J2kCorrupt("quantization", "a second QCD")
    header.quantization = _read_quantization(f)


def _read_qcc(f: Fields, header: Header, components: int) -> None:
    component = _component(f, components)
    if component in header.quantizations:
        raise J2kCorrupt("quantization", "a second QCC for a component")
    header.quantizations[component] = _read_quantization(f)


def _read_poc(f: Fields, header: Header, components: int) -> None:
    if f.left == 0 or f.left % 7:
        raise J2kCorrupt("progression", "POC is not a whole number of changes")
    while f.left:
        change = Progression(f.u(1), f.u(1), f.u(2), f.u(1), f.u(1) or 256, f.u(1))
        if change.order > 4 or len(header.progressions) >= 4096:
            raise J2kCorrupt("progression", "an unknown progression order, or too many changes")
        header.progressions.append(change)


READERS = {
    0xFF52: _read_cod,
    0xFF53: _read_coc,
    0xFF5C: _read_qcd,
    0xFF5D: _read_qcc,
    0xFF5F: _read_poc,
}


def read_segment(marker: int, data: bytes, header: Header, components: int) -> bool:
    """Put a parameter segment into `header`; False when `marker` is none. J2kCorrupt, J2kUnsupported."""
    reader = READERS.get(marker)
    if reader is None:
        return False
    reader(Fields(data), header, components)
    return True
