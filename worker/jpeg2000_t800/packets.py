"""Packets (B.9, B.10): which code-blocks get which bytes and coding passes, read by one compiled loop over a tile.

A header is a bit stream with a zero bit stuffed after each byte 0xFF. What it says of a code-block arrives in layers;
the bytes of a code-block are kept as a linked list of chunks, each inside one codeword segment.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from worker.jpeg2000_t800.errors import J2kCorrupt, J2kUnsupported
from worker.jpeg2000_t800.geometry import (
    ACROSS,
    B_PLANES,
    B_STYLE,
    BAND,
    DOWN,
    FIRST_BLOCK,
    FIRST_NODE,
    FIRST_PART,
    PARTS,
    TileTables,
)

__all__ = ["read_packets", "segment_end"]

Table = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]
Status = tuple[int, int, Table]
# columns of the block state
PASSES, ZEROS, LBLOCK, HEAD, TAIL = range(5)
# columns of the chunk table
CHUNK_OFFSET, CHUNK_BYTES, CHUNK_PASSES, CHUNK_NEXT = range(4)
# bit reader
AT, BYTE, LEFT, END, BROKEN = range(5)
# tag trees, two per part with the same shape
INCLUSION, ZERO_PLANES = 0, 1
MAX_ZEROS = 64  # no sub-band has as many bit-planes (E-2)
MAX_LBLOCK = 32
FIRST_RAW_PASS = 10  # table D.9: four bit-planes come before the bypass
_BYPASS, _TERMINATE_ALL = 1, 4
MAX_CHUNKS = 1 << 23
OK, TRUNCATED, BAD_BLOCK, BAD_SOP, BAD_EPH, BAD_STUFFING, TOO_MANY = range(7)
REASONS = {
    TRUNCATED: ("truncated", "a tile ends inside a packet"),
    BAD_BLOCK: ("packet-header", "a packet header says the impossible of a code-block"),
    BAD_SOP: ("packet-marker", "a start-of-packet marker out of sequence"),
    BAD_EPH: ("packet-marker", "an end-of-packet-header marker is missing"),
    BAD_STUFFING: ("packet-header", "a stuffed bit is not zero"),
}


@numba.njit(cache=True, nogil=True)
def segment_end(done: int, style: int) -> int:
    """The pass after the last of the codeword segment that pass `done` belongs to (table D.9)."""
    if style & _TERMINATE_ALL:
        return done + 1
    if style & _BYPASS:
        if done < FIRST_RAW_PASS:
            return FIRST_RAW_PASS
        return done + 2 if (done - FIRST_RAW_PASS) % 3 == 0 else done + 1
    return 1 << 20


@numba.njit(cache=True, nogil=True)
def _bit(data: Bytes, reader: Table) -> int:
    if reader[LEFT] == 0:
        if reader[AT] >= reader[END]:
            reader[BROKEN] = TRUNCATED
            return 0
        reader[LEFT] = 7 if reader[BYTE] == 0xFF else 8
        if reader[BYTE] == 0xFF and data[reader[AT]] > 0x7F:
            reader[BROKEN] = BAD_STUFFING
        reader[BYTE] = data[reader[AT]]
        reader[AT] += 1
    reader[LEFT] -= 1
    return (reader[BYTE] >> reader[LEFT]) & 1


@numba.njit(cache=True, nogil=True)
def _bits(data: Bytes, reader: Table, count: int) -> int:
    value = 0
    for _ in range(count):
        value = (value << 1) | _bit(data, reader)
    return value


@numba.njit(cache=True, nogil=True)
def _tag_tree(data: Bytes, reader: Table, low: Ints, known: Flags, where: Table) -> int:
    """The value of a leaf, or `limit` if it is at least that (B.10.2). where: node, width, height, x, y, limit."""
    first, x, y, limit = where[0], where[3], where[4], where[5]
    top = 0
    while ((where[1] - 1) >> top) > 0 or ((where[2] - 1) >> top) > 0:
        top += 1
    bound = 0
    for level in range(top, -1, -1):
        node, width, height = first, where[1], where[2]
        for _ in range(level):
            node += width * height
            width, height = (width + 1) >> 1, (height + 1) >> 1
        node += (y >> level) * width + (x >> level)
        bound = max(bound, low[node])
        while bound < limit and not known[node]:
            if _bit(data, reader):
                known[node] = True
            else:
                bound += 1
        low[node] = bound
    return bound if known[node] else limit


@numba.njit(cache=True, nogil=True)
def _pass_count(data: Bytes, reader: Table) -> int:
    """Number of new coding passes (table B.4)."""
    if _bit(data, reader) == 0:
        return 1
    if _bit(data, reader) == 0:
        return 2
    more = _bits(data, reader, 2)
    if more < 3:
        return 3 + more
    more = _bits(data, reader, 5)
    if more < 31:
        return 6 + more
    return 37 + _bits(data, reader, 7)


@numba.njit(cache=True, nogil=True)
def _lengths(data: Bytes, reader: Table, block: int, style: int, state: Table, count: int, chunks: Table) -> Status:
    """Passes and chunk lengths of an included block (B.10.6, B.10.7); the chunks are linked, offsets come later."""
    new = _pass_count(data, reader)
    while _bit(data, reader):
        state[block, LBLOCK] += 1
        if state[block, LBLOCK] > MAX_LBLOCK:
            return BAD_BLOCK, count, chunks
    while new > 0:
        take = min(new, segment_end(state[block, PASSES], style) - state[block, PASSES])
        width = state[block, LBLOCK]
        while (take >> (width - state[block, LBLOCK] + 1)) > 0:
            width += 1
        if count == MAX_CHUNKS:
            return TOO_MANY, count, chunks
        if count == chunks.shape[0]:
            grown = np.empty((2 * count, 4), np.int64)
            grown[:count] = chunks
            chunks = grown
        chunks[count, CHUNK_BYTES] = _bits(data, reader, width)
        chunks[count, CHUNK_PASSES], chunks[count, CHUNK_NEXT] = take, -1
        if state[block, HEAD] < 0:
            state[block, HEAD] = count
        else:
            chunks[state[block, TAIL], CHUNK_NEXT] = count
        state[block, TAIL] = count
        state[block, PASSES] += take
        new -= take
        count += 1
    return OK, count, chunks


@numba.njit(cache=True, nogil=True)
def _read_part(
    data: Bytes, reader: Table, part: Table, layer: int, band: Table, state: Table,
    low: Ints, known: Flags, count: int, chunks: Table,
) -> Status:  # fmt: skip
    """The header bits of one sub-band of a precinct (B.10.8)."""
    where = np.empty(6, np.int64)
    where[0], where[1], where[2] = part[FIRST_NODE], part[ACROSS], part[DOWN]
    for index in range(part[ACROSS] * part[DOWN]):
        block = part[FIRST_BLOCK] + index
        where[4], where[3] = index // part[ACROSS], index % part[ACROSS]
        if state[block, PASSES] > 0:
            if _bit(data, reader) == 0:
                continue
        else:
            where[5] = layer + 1
            if _tag_tree(data, reader, low[INCLUSION], known[INCLUSION], where) > layer:
                continue
            where[5] = MAX_ZEROS
            state[block, ZEROS] = _tag_tree(data, reader, low[ZERO_PLANES], known[ZERO_PLANES], where)
        status, count, chunks = _lengths(data, reader, block, band[B_STYLE], state, count, chunks)
        if status == OK and state[block, PASSES] > 3 * (band[B_PLANES] - state[block, ZEROS]) - 2:
            status = BAD_BLOCK
        if reader[BROKEN] != OK:
            status = reader[BROKEN]
        if status != OK:
            return status, count, chunks
    return OK, count, chunks


@numba.njit(cache=True, nogil=True)
def _header_end(data: Bytes, reader: Table, eph: bool) -> int:
    """Byte alignment after a header (B.10.1) and its end marker (A.8.2)."""
    if reader[BYTE] == 0xFF:  # the byte after it holds nothing but the stuffed bit
        reader[AT] += 1
    if eph:
        at = reader[AT]
        if at + 2 > reader[END] or data[at] != 0xFF or data[at + 1] != 0x92:
            return BAD_EPH
        reader[AT] = at + 2
    return OK if reader[AT] <= reader[END] else TRUNCATED


@numba.njit(cache=True, nogil=True)
def _packet_start(data: Bytes, reader: Table, number: int, sop: bool) -> int:
    """Reset the bit reader and step over a start-of-packet marker, which may be there when `sop` (A.8.1)."""
    reader[BYTE], reader[LEFT] = 0, 0
    at = reader[AT]
    if sop and at + 6 <= reader[END] and data[at] == 0xFF and data[at + 1] == 0x91:
        if data[at + 2] != 0 or data[at + 3] != 4:
            return BAD_SOP
        if data[at + 4] != (number >> 8) & 0xFF or data[at + 5] != number & 0xFF:
            return BAD_SOP
        reader[AT] = at + 6
    return OK


@numba.njit(cache=True, nogil=True)
def _read_all(
    data: Bytes, order: Table, precincts: Table, parts: Table, bands: Table, state: Table,
    low: Ints, known: Flags, sop: bool, eph: bool,
) -> tuple[int, int, Table]:  # fmt: skip
    """Every packet of a tile: (status, bytes read, chunks)."""
    chunks = np.empty((1024, 4), np.int64)
    count = 0
    reader = np.zeros(5, np.int64)
    reader[END] = data.shape[0]
    for number in range(order.shape[0]):
        status = _packet_start(data, reader, number, sop)
        first = count
        if status == OK and _bit(data, reader):
            row = precincts[order[number, 0]]
            for p in range(row[FIRST_PART], row[FIRST_PART] + row[PARTS]):
                status, count, chunks = _read_part(
                    data, reader, parts[p], order[number, 1], bands[parts[p, BAND]], state, low, known, count, chunks
                )
                if status != OK:
                    return status, reader[AT], chunks
        if status == OK:
            status = _header_end(data, reader, eph)
        if reader[BROKEN] != OK:
            status = reader[BROKEN]
        if status != OK:
            return status, reader[AT], chunks
        for chunk in range(first, count):
            chunks[chunk, CHUNK_OFFSET] = reader[AT]
            reader[AT] += chunks[chunk, CHUNK_BYTES]
            if reader[AT] > reader[END]:
                return TRUNCATED, reader[AT], chunks
    return OK, reader[AT], chunks


def read_packets(data: Bytes, order: Table, tables: TileTables, *, sop: bool, eph: bool) -> tuple[Table, Table]:
    """Read a tile's packets in `order`: (block state, chunks), int64 tables with the columns named above.

    A block's chunks begin at `HEAD` (-1: never included). J2kCorrupt when the bytes end early or are left over.
    """
    state = np.zeros((len(tables.blocks), 5), np.int64)
    state[:, LBLOCK], state[:, HEAD] = 3, -1
    low, known = np.zeros((2, tables.nodes), np.int32), np.zeros((2, tables.nodes), np.bool_)
    status, at, chunks = _read_all(
        data, order, tables.precincts, tables.parts, tables.bands, state, low, known, sop, eph
    )
    if status == TOO_MANY:
        raise J2kUnsupported("too-many-segments", "more codeword segments in a tile than this decoder takes")
    if status != OK:
        raise J2kCorrupt(*REASONS[status])
    if at != len(data):
        raise J2kCorrupt("left-over", "a tile has bytes after its last packet")
    return state, chunks
