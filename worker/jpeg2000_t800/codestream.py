"""The syntax of a codestream (Annex A): main header, tile-parts in any order, end. No sample is touched here."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.jpeg2000_t800.errors import J2kCorrupt, J2kUnsupported
from worker.jpeg2000_t800.segments import Coding, Defaults, Fields, Header, Quantization, Size, read_segment, read_size

__all__ = ["Codestream", "Tile", "read_codestream"]

SOC, SIZ, SOT, SOD, EOC = 0xFF4F, 0xFF51, 0xFF90, 0xFF93, 0xFFD9
COD, COC, QCD, QCC = 0xFF52, 0xFF53, 0xFF5C, 0xFF5D
TLM, PLM, PLT, CRG, COM = 0xFF55, 0xFF57, 0xFF58, 0xFF63, 0xFF64
#: CAP, PPM, PPT and RGN.
REFUSED = {0xFF50: "capabilities", 0xFF60: "packed-headers", 0xFF61: "packed-headers", 0xFF5E: "region-of-interest"}
#: Pointers and remarks: they say nothing that the decoded samples depend on.
SKIPPED = {TLM, PLM, PLT, CRG, COM}
FIRST_PART_ONLY = {COD, COC, QCD, QCC}  # table A.2
MAX_TILES = 16384  # far above any DICOM frame; bounds the work per tile for a hostile file


@dataclass
class Tile:
    """One tile: its own header values and its packets, the tile-parts' bytes one after another."""

    header: Header = field(default_factory=Header)
    parts: list[bytes] = field(default_factory=list)


@dataclass
class Codestream:
    """A whole codestream; `tiles` has every tile of the grid, in raster order."""

    size: Size
    header: Header
    tiles: list[Tile]

    def defaults(self, tile: Tile) -> Defaults:
        chosen = tile.header.defaults or self.header.defaults
        if chosen is None:
            raise J2kCorrupt("no-coding-style", "the main header has no COD")
        return chosen

    def coding(self, tile: Tile, component: int) -> Coding:
        """Tile COC, tile COD, main COC, main COD: the first there is (A.6.2)."""
        if component in tile.header.codings:
            return tile.header.codings[component]
        if tile.header.defaults is None and component in self.header.codings:
            return self.header.codings[component]
        return self.defaults(tile).coding

    def quantization(self, tile: Tile, component: int) -> Quantization:
        """Tile QCC, tile QCD, main QCC, main QCD: the first there is (A.6.5)."""
        for header in (tile.header, self.header):
            chosen = header.quantizations.get(component, header.quantization)
            if chosen is not None:
                return chosen
        raise J2kCorrupt("no-quantization", "the main header has no QCD")


class _Reader:
    """A cursor over the markers of a codestream."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def marker(self) -> int:
        if self.at + 2 > len(self.data):
            raise J2kCorrupt("truncated", "the codestream ends where a marker is due")
        value = int.from_bytes(self.data[self.at : self.at + 2], "big")
        self.at += 2
        return value

    def segment(self) -> bytes:
        """The parameters after a marker, without their length."""
        length = int.from_bytes(self.data[self.at : self.at + 2], "big")
        end = self.at + length
        if length < 2 or end > len(self.data) or self.at + 2 > len(self.data):
            raise J2kCorrupt("truncated", "the codestream ends inside a marker segment")
        start, self.at = self.at + 2, end
        return self.data[start:end]

    def take(self, end: int) -> bytes:
        start, self.at = self.at, end
        return self.data[start:end]


def _read_parameter(marker: int, reader: _Reader, header: Header, components: int) -> None:
    if marker in REFUSED:
        raise J2kUnsupported(REFUSED[marker], "a marker segment that this decoder refuses")
    if not 0xFF50 <= marker <= 0xFF6F:
        raise J2kCorrupt("marker", "a marker out of place")
    data = reader.segment()
    if marker not in SKIPPED and not read_segment(marker, data, header, components):
        raise J2kUnsupported("marker", "a marker segment outside part 1")


def _read_main_header(reader: _Reader, max_pixels: int) -> tuple[Size, Header]:
    """SOC, SIZ first, then parameters up to the first SOT (A.4, A.5)."""
    if reader.marker() != SOC or reader.marker() != SIZ:
        raise J2kCorrupt("no-codestream", "the data do not begin with SOC and SIZ")
    size, header = read_size(Fields(reader.segment())), Header()
    if (size.x1 - size.x0) * (size.y1 - size.y0) > max_pixels:
        raise J2kUnsupported("too-large", "more pixels than the caller allows")
    if size.tiles_across * size.tiles_down > MAX_TILES:
        raise J2kUnsupported("too-many-tiles", "more tiles than this decoder takes")
    while (marker := reader.marker()) != SOT:
        _read_parameter(marker, reader, header, len(size.components))
    return size, header


def _read_tile_part(reader: _Reader, size: Size, tiles: list[Tile]) -> None:
    """One tile-part, its SOT marker already read (A.4.2): header, then packets up to Psot or, when 0, up to EOC."""
    start, f = reader.at - 2, Fields(reader.segment())
    index, length, part, _ = f.u(2), f.u(4), f.u(1), f.u(1)  # how many parts: often wrong, and the packets tell
    f.done()
    if index >= len(tiles):
        raise J2kCorrupt("tile-index", "a tile-part of a tile that does not exist")
    end = start + length if length else reader.data.rfind(b"\xff\xd9")
    tile = tiles[index]
    if part != len(tile.parts):
        raise J2kCorrupt("tile-part", "tile-parts of a tile out of order")
    while (marker := reader.marker()) != SOD:
        if marker in FIRST_PART_ONLY and part:
            raise J2kCorrupt("marker", "coding parameters after the first tile-part")
        _read_parameter(marker, reader, tile.header, len(size.components))
    if not reader.at <= end <= len(reader.data):
        raise J2kCorrupt("truncated", "a tile-part is longer than the codestream or shorter than its header")
    tile.parts.append(reader.take(end))


def read_codestream(data: bytes, *, max_pixels: int) -> Codestream:
    """Parse all markers. J2kCorrupt unless every tile is there and the end of the codestream; J2kUnsupported."""
    reader = _Reader(data)
    size, header = _read_main_header(reader, max_pixels)
    tiles = [Tile() for _ in range(size.tiles_across * size.tiles_down)]
    while True:
        _read_tile_part(reader, size, tiles)
        marker = reader.marker()
        if marker == EOC:
            break
        if marker != SOT:
            raise J2kCorrupt("marker", "neither a tile-part nor the end where one is due")
    if any(not tile.parts for tile in tiles):
        raise J2kCorrupt("truncated", "a tile is missing")
    return Codestream(size, header, tiles)
