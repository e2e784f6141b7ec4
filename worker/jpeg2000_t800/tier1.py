"""Code-blocks (Annex D): from coding passes to signed coefficients.

Each sample of a block has one int32 of flags inside a frame of one sample, which stays insignificant. When a sample
becomes significant it tells its eight neighbours; so a context is a table look-up in the sample's own flags. With
vertically causal contexts a sample of a stripe's first row does not tell the row above (D.7).
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from worker.jpeg2000_t800 import mq as coder
from worker.jpeg2000_t800.contexts import (
    E_MINUS,
    MINUS,
    N_MINUS,
    NE,
    NW,
    REFINED,
    S_MINUS,
    SE,
    SIGN_CONTEXTS,
    SIGNIFICANT,
    SW,
    VISITED,
    W_MINUS,
    ZERO_CONTEXTS,
    E,
    N,
    S,
    W,
)
from worker.jpeg2000_t800.geometry import (
    B_COMPONENT,
    B_ORIENTATION,
    B_PLANES,
    B_STYLE,
    C_BAND,
    C_HEIGHT,
    C_WIDTH,
    C_X,
    C_Y,
)
from worker.jpeg2000_t800.mq import RUN, UNIFORM
from worker.jpeg2000_t800.packets import (
    CHUNK_BYTES,
    CHUNK_NEXT,
    CHUNK_OFFSET,
    CHUNK_PASSES,
    FIRST_RAW_PASS,
    HEAD,
    PASSES,
    ZEROS,
    segment_end,
)

__all__ = ["BAD_SYMBOL", "CUT", "OK", "decode_blocks"]

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]
Table = npt.NDArray[np.int64]
NEIGHBOURS = 0xFF
REFINE_FIRST = 14  # context
_BYPASS, _RESET, _TERMINATE_ALL, _CAUSAL, _SYMBOLS = 1, 2, 4, 8, 32
OK, BAD_SYMBOL, CUT = range(3)


@numba.njit(cache=True, nogil=True)
def _mark(flags: Ints, i: int, stride: int, minus: int, tell_above: bool) -> None:
    """Sample i is significant with this sign: write it down there and in its neighbours."""
    flags[i] |= SIGNIFICANT | (MINUS if minus else 0)
    flags[i - 1] |= E | (E_MINUS if minus else 0)
    flags[i + 1] |= W | (W_MINUS if minus else 0)
    flags[i + stride] |= N | (N_MINUS if minus else 0)
    flags[i + stride - 1] |= NE
    flags[i + stride + 1] |= NW
    if tell_above:
        flags[i - stride] |= S | (S_MINUS if minus else 0)
        flags[i - stride - 1] |= SE
        flags[i - stride + 1] |= SW


@numba.njit(cache=True, nogil=True)
def _sign(data: Bytes, mq: Table, contexts: Bytes, flag: int) -> int:
    """A sign bit, 1 for minus (D.3.2)."""
    entry = np.int64(SIGN_CONTEXTS[(flag >> 4) & 0xFF])
    return coder.decode(data, mq, contexts, entry >> 1) ^ (entry & 1)


@numba.njit(cache=True, nogil=True)
def _significance_pass(
    data: Bytes, mq: Table, contexts: Bytes, flags: Ints, values: Ints, width: int, height: int,
    one: int, zero_contexts: Bytes, causal: bool, raw: bool,
) -> None:  # fmt: skip
    """D.3.1, in raw bits when `raw`; `one` is the bit-plane's value."""
    stride = width + 2
    for top in range(0, height, 4):
        rows = min(4, height - top)
        for x in range(width):
            i = (top + 1) * stride + x + 1
            for row in range(rows):
                flag = flags[i]
                if (flag & SIGNIFICANT) == 0 and (flag & NEIGHBOURS) != 0:
                    if raw:
                        bit = coder.raw_bit(data, mq)
                    else:
                        bit = coder.decode(data, mq, contexts, zero_contexts[flag & NEIGHBOURS])
                    if bit:
                        minus = coder.raw_bit(data, mq) if raw else _sign(data, mq, contexts, flag)
                        _mark(flags, i, stride, minus, row > 0 or not causal)
                        values[i] = one
                    flags[i] |= VISITED
                i += stride


@numba.njit(cache=True, nogil=True)
def _refinement_pass(
    data: Bytes, mq: Table, contexts: Bytes, flags: Ints, values: Ints, width: int, height: int, one: int, raw: bool
) -> None:
    """D.3.3, in raw bits when `raw`."""
    stride = width + 2
    for top in range(0, height, 4):
        rows = min(4, height - top)
        for x in range(width):
            i = (top + 1) * stride + x + 1
            for _ in range(rows):
                flag = flags[i]
                if (flag & (SIGNIFICANT | VISITED)) == SIGNIFICANT:
                    if raw:
                        bit = coder.raw_bit(data, mq)
                    else:
                        context = REFINE_FIRST + (2 if flag & REFINED else 1 if flag & NEIGHBOURS else 0)
                        bit = coder.decode(data, mq, contexts, context)
                    if bit:
                        values[i] |= one
                    flags[i] = flag | REFINED
                i += stride


@numba.njit(cache=True, nogil=True)
def _run_length(data: Bytes, mq: Table, contexts: Bytes) -> int:
    """Rows of a quiet column before its first significant sample, 4 when there is none (D.3.4)."""
    if coder.decode(data, mq, contexts, RUN) == 0:
        return 4
    first = coder.decode(data, mq, contexts, UNIFORM)
    return first * 2 + coder.decode(data, mq, contexts, UNIFORM)


@numba.njit(cache=True, nogil=True)
def _cleanup_pass(
    data: Bytes, mq: Table, contexts: Bytes, flags: Ints, values: Ints, width: int, height: int,
    one: int, zero_contexts: Bytes, causal: bool,
) -> None:  # fmt: skip
    """D.3.4; ends a bit-plane, so nothing is left visited."""
    stride = width + 2
    busy = SIGNIFICANT | VISITED | NEIGHBOURS
    for top in range(0, height, 4):
        rows = min(4, height - top)
        for x in range(width):
            i = (top + 1) * stride + x + 1
            begin, known = 0, False
            if rows == 4 and (flags[i] | flags[i + stride] | flags[i + 2 * stride] | flags[i + 3 * stride]) & busy == 0:
                begin = _run_length(data, mq, contexts)
                known = True
            i += begin * stride
            for row in range(begin, rows):
                flag = flags[i]
                if (flag & (SIGNIFICANT | VISITED)) == 0:
                    if known or coder.decode(data, mq, contexts, zero_contexts[flag & NEIGHBOURS]):
                        _mark(flags, i, stride, _sign(data, mq, contexts, flag), row > 0 or not causal)
                        values[i] = one
                    known = False
                flags[i] &= ~VISITED
                i += stride


@numba.njit(cache=True, nogil=True)
def _gather(data: Bytes, chunks: Table, head: int, buffer: Bytes, done: int, end: int) -> tuple[int, int, int]:
    """One codeword segment into `buffer`, two bytes 0xFF after it: (next chunk, bytes, the pass after its last)."""
    size = 0
    while head >= 0 and done < end:
        length, offset = chunks[head, CHUNK_BYTES], chunks[head, CHUNK_OFFSET]
        for k in range(length):
            buffer[size + k] = data[offset + k]
        size += length
        done += chunks[head, CHUNK_PASSES]
        head = chunks[head, CHUNK_NEXT]
    buffer[size], buffer[size + 1] = 0xFF, 0xFF
    return head, size, done


@numba.njit(cache=True, nogil=True)
def _is_settled(flags: Ints, size: int, plane: int, done: int) -> bool:
    """Whether the passes given settle every value; `plane` is the first one without its cleanup pass, `done` counts.

    A zero is reconstructed as zero, but what the missing bits of any other value are is the decoder's choice (E.1.1.2).
    """
    kind = (done + 2) % 3  # of the first pass missing
    if plane < 0 or (plane == 0 and kind == 2):  # at most the last cleanup is missing, which refines nothing
        return True
    settled = VISITED if plane == 0 and kind == 1 else 0
    open_values = 0
    for i in range(size):
        open_values += flags[i] & (SIGNIFICANT | settled) == SIGNIFICANT
    return open_values == 0


@numba.njit(cache=True, nogil=True)
def _decode_block(
    data: Bytes, chunks: Table, state: Table, band: Table, size: tuple[int, int],
    buffer: Bytes, flags: Ints, values: Ints, mq: Table, contexts: Bytes,
) -> int:  # fmt: skip
    """All passes of one block into flags (signs) and values (magnitudes), both with a frame of one sample."""
    width, height = size
    style, zero_contexts = band[B_STYLE], ZERO_CONTEXTS[band[B_ORIENTATION]]
    causal = (style & _CAUSAL) != 0
    plane = band[B_PLANES] - state[ZEROS] - 1
    coder.reset_contexts(contexts)
    done, head = 0, state[HEAD]
    while head >= 0:
        head, length, end = _gather(data, chunks, head, buffer, done, segment_end(done, style))
        raw = (style & _BYPASS) != 0 and done >= FIRST_RAW_PASS and (done - FIRST_RAW_PASS) % 3 < 2
        if raw:
            coder.start_raw(mq, 0, length)
        else:
            coder.start(buffer, mq, 0)
        while done < end:
            one = 1 << plane
            kind = (done + 2) % 3
            if kind == 0:
                _significance_pass(buffer, mq, contexts, flags, values, width, height, one, zero_contexts, causal, raw)
            elif kind == 1:
                _refinement_pass(buffer, mq, contexts, flags, values, width, height, one, raw)
            else:
                _cleanup_pass(buffer, mq, contexts, flags, values, width, height, one, zero_contexts, causal)
                plane -= 1
                if style & _SYMBOLS:
                    symbol = 0
                    for _ in range(4):
                        symbol = symbol * 2 + coder.decode(buffer, mq, contexts, UNIFORM)
                    if symbol != 0b1010:
                        return BAD_SYMBOL
            if style & _RESET:
                coder.reset_contexts(contexts)
            done += 1
    return OK if _is_settled(flags, (width + 2) * (height + 2), plane, done) else CUT


@numba.njit(cache=True, nogil=True)
def decode_blocks(
    data: Bytes, chunks: Table, state: Table, blocks: Table, bands: Table, longest: int, pyramids: Ints
) -> int:
    """Decode every included block of a tile into pyramids (components, rows, columns): OK, BAD_SYMBOL or CUT.

    `longest`: bytes of the largest block.
    """
    buffer = np.empty(longest + 2, np.uint8)
    flags, values = np.empty(1026 * 6 + 66 * 66, np.int32), np.empty(1026 * 6 + 66 * 66, np.int32)
    mq, contexts = np.zeros(coder.REGISTERS, np.int64), np.zeros(coder.CONTEXTS, np.uint8)
    for b in range(blocks.shape[0]):
        if state[b, PASSES] == 0:
            continue
        width, height = blocks[b, C_WIDTH], blocks[b, C_HEIGHT]
        band, stride = bands[blocks[b, C_BAND]], width + 2
        flags[: stride * (height + 2)] = 0
        values[: stride * (height + 2)] = 0
        status = _decode_block(data, chunks, state[b], band, (width, height), buffer, flags, values, mq, contexts)
        if status != OK:
            return status
        target = pyramids[band[B_COMPONENT]]
        for y in range(height):
            for x in range(width):
                i = (y + 1) * stride + x + 1
                target[blocks[b, C_Y] + y, blocks[b, C_X] + x] = -values[i] if flags[i] & MINUS else values[i]
    return OK
