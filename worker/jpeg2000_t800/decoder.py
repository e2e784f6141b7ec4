"""The whole way from bytes to samples, tile by tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from worker.jpeg2000_t800.boxes import codestream_of
from worker.jpeg2000_t800.codestream import Codestream, Tile, read_codestream
from worker.jpeg2000_t800.errors import J2kCorrupt, J2kUnsupported
from worker.jpeg2000_t800.geometry import Component, plan_tile, resolution_rectangle
from worker.jpeg2000_t800.order import packet_order
from worker.jpeg2000_t800.packets import CHUNK_BYTES, CHUNK_NEXT, HEAD, read_packets
from worker.jpeg2000_t800.segments import EPH, SOP
from worker.jpeg2000_t800.tier1 import BAD_SYMBOL, CUT, decode_blocks
from worker.jpeg2000_t800.wavelet import reconstruct, undo_component_transform

__all__ = ["Decoded", "decode_reversible"]

Ints = npt.NDArray[np.int32]
Table = npt.NDArray[np.int64]
MAX_TILE_LEVELS = 1 << 17  # tiles x components x resolutions; bounds the planning of a hostile codestream


@dataclass(frozen=True)
class Decoded:
    """samples: int32 (components, rows, columns), after the inverse component transform and level shift.

    bit_depths and signed: per component, as SIZ declares them. mct_used: some tile was coded with the RCT.
    """

    samples: Ints
    bit_depths: tuple[int, ...]
    signed: tuple[bool, ...]
    mct_used: bool


def _components(stream: Codestream, tile: Tile) -> list[Component]:
    count = len(stream.size.components)
    return [Component(stream.coding(tile, c), stream.quantization(tile, c)) for c in range(count)]


def _longest_block(state: Table, chunks: Table) -> int:
    """Bytes of the block that has most: the lists of chunks of all blocks are followed at once."""
    total = np.zeros(len(state), np.int64)
    at = state[:, HEAD].copy()
    while (alive := at >= 0).any():
        total[alive] += chunks[at[alive], CHUNK_BYTES]
        at[alive] = chunks[at[alive], CHUNK_NEXT]
    return int(total.max(initial=0))


def _decode_tile(stream: Codestream, index: int, samples: Ints) -> bool:
    """Decode one tile into its place in `samples`; whether the component transform was used."""
    tile, size = stream.tiles[index], stream.size
    defaults, components, area = stream.defaults(tile), _components(stream, tile), size.tile(index)
    data = np.frombuffer(b"".join(tile.parts), np.uint8)
    tables = plan_tile(area, components, len(data) // defaults.layers)
    changes = tile.header.progressions or stream.header.progressions
    order = packet_order(tables.precincts, defaults.layers, defaults.progression, changes)
    markers = defaults.markers
    state, chunks = read_packets(data, order, tables, sop=bool(markers & SOP), eph=bool(markers & EPH))
    x0, y0, x1, y1 = area
    planes = np.zeros((len(components), y1 - y0, x1 - x0), np.int32)
    status = decode_blocks(data, chunks, state, tables.blocks, tables.bands, _longest_block(state, chunks), planes)
    if status == BAD_SYMBOL:
        raise J2kCorrupt("segment-symbol", "a code-block's segmentation symbol is wrong")
    if status == CUT:
        raise J2kUnsupported("cut-bit-planes", "code-blocks end before their last bit-plane: the coding was lossy")
    for c, component in enumerate(components):
        levels = component.coding.levels
        rectangles = [resolution_rectangle(area, levels - r) for r in range(levels + 1)]
        reconstruct(planes[c], np.array(rectangles, np.int64))
    if defaults.transform:
        undo_component_transform(planes)
    samples[:, y0 - size.y0 : y1 - size.y0, x0 - size.x0 : x1 - size.x0] = planes
    return defaults.transform


def _shift_levels(plane: Ints, depth: int, signed: bool) -> None:
    """DC level shift (G.1.2), in place. No lossless coding leaves the range; otherwise decoders clip as they like."""
    half = 1 << (depth - 1)
    if int(plane.min()) < -half or int(plane.max()) >= half:
        raise J2kUnsupported("sample-range", "decoded samples leave their bit depth: lossy or damaged")
    if not signed:
        plane += half


def decode_reversible(codestream: bytes, *, max_pixels: int) -> Decoded:
    """Decode a reversibly coded JPEG 2000 codestream or JP2 file; at most `max_pixels` = rows x columns.

    J2kUnsupported: irreversible, subsampled, cut bit-planes, part 2 or 15, packed headers, a region, too large.
    J2kCorrupt: truncated or inconsistent. Nothing else is raised for any bytes.
    """
    stream = read_codestream(codestream_of(codestream), max_pixels=max_pixels)
    size = stream.size
    levels = sum(stream.coding(tile, c).levels + 1 for tile in stream.tiles for c in range(len(size.components)))
    if levels > MAX_TILE_LEVELS:
        raise J2kUnsupported("too-many-tiles", "more tiles and resolutions than this decoder takes")
    samples = np.zeros((len(size.components), size.y1 - size.y0, size.x1 - size.x0), np.int32)
    transforms = [_decode_tile(stream, index, samples) for index in range(len(stream.tiles))]
    for plane, (depth, signed) in zip(samples, size.components, strict=True):
        _shift_levels(plane, depth, signed)
    depths, signs = zip(*size.components, strict=True)
    return Decoded(samples, depths, signs, any(transforms))
