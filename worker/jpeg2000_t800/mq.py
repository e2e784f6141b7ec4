"""The MQ arithmetic decoder (Annex C) and the raw bits of the bypass mode (D.6), over one codeword segment.

A decoder is an int64 array (registers of figure C.13 plus the raw reader's), contexts are one uint8 each: the row of
the probability table times two, plus the more probable symbol. Every segment is followed by two bytes 0xFF in its
buffer, which is what a decoder reads past the end (C.3.4 feeds ones after a marker), so no read needs a bounds check:
the byte pointer never passes the first of them.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["A", "CONTEXTS", "REGISTERS", "decode", "raw_bit", "reset_contexts", "start", "start_raw"]

Registers = npt.NDArray[np.int64]
A, C, CT, BP = range(4)  # MQ: interval, code, shifts to the next byte, byte pointer
BYTE, LEFT, END = 1, 2, 4  # raw: last byte, bits left of it, end of the segment (BP is shared)
REGISTERS = 5
CONTEXTS = 19  # 0-8 zero coding, 9-13 sign, 14-16 refinement, 17 run, 18 uniform
RUN, UNIFORM = 17, 18

_STATES = np.array(  # Qe, next after MPS, next after LPS, switch: table C.2
    [
        (0x5601, 1, 1, 1), (0x3401, 2, 6, 0), (0x1801, 3, 9, 0), (0x0AC1, 4, 12, 0), (0x0521, 5, 29, 0),
        (0x0221, 38, 33, 0), (0x5601, 7, 6, 1), (0x5401, 8, 14, 0), (0x4801, 9, 14, 0), (0x3801, 10, 14, 0),
        (0x3001, 11, 17, 0), (0x2401, 12, 18, 0), (0x1C01, 13, 20, 0), (0x1601, 29, 21, 0), (0x5601, 15, 14, 1),
        (0x5401, 16, 14, 0), (0x5101, 17, 15, 0), (0x4801, 18, 16, 0), (0x3801, 19, 17, 0), (0x3401, 20, 18, 0),
        (0x3001, 21, 19, 0), (0x2801, 22, 19, 0), (0x2401, 23, 20, 0), (0x2201, 24, 21, 0), (0x1C01, 25, 22, 0),
        (0x1801, 26, 23, 0), (0x1601, 27, 24, 0), (0x1401, 28, 25, 0), (0x1201, 29, 26, 0), (0x1101, 30, 27, 0),
        (0x0AC1, 31, 28, 0), (0x09C1, 32, 29, 0), (0x08A1, 33, 30, 0), (0x0521, 34, 31, 0), (0x0441, 35, 32, 0),
        (0x02A1, 36, 33, 0), (0x0221, 37, 34, 0), (0x0141, 38, 35, 0), (0x0111, 39, 36, 0), (0x0085, 40, 37, 0),
        (0x0049, 41, 38, 0), (0x0025, 42, 39, 0), (0x0015, 43, 40, 0), (0x0009, 44, 41, 0), (0x0005, 45, 42, 0),
        (0x0001, 45, 43, 0), (0x5601, 46, 46, 0),
    ],
    dtype=np.int64,
)  # fmt: skip
# The same per context value (state * 2 + MPS), the switch already applied.
_MPS = np.tile(np.arange(2), 47)
QE = np.repeat(_STATES[:, 0], 2)
AFTER_MPS = (np.repeat(_STATES[:, 1], 2) * 2 + _MPS).astype(np.uint8)
AFTER_LPS = (np.repeat(_STATES[:, 2], 2) * 2 + (_MPS ^ np.repeat(_STATES[:, 3], 2))).astype(np.uint8)


@numba.njit(cache=True, nogil=True)
def reset_contexts(contexts: npt.NDArray[np.uint8]) -> None:
    """Initial states (table D.7)."""
    contexts[:] = 0
    contexts[0] = 4 << 1
    contexts[RUN] = 3 << 1
    contexts[UNIFORM] = 46 << 1


@numba.njit(cache=True, nogil=True)
def _byte_in(data: npt.NDArray[np.uint8], mq: Registers) -> None:
    """BYTEIN, figure C.19."""
    at = mq[BP]
    following = np.int64(data[at + 1])
    if data[at] == 0xFF:
        if following > 0x8F:
            mq[C] += 0xFF00
            mq[CT] = 8
        else:
            mq[BP] = at + 1
            mq[C] += following << 9
            mq[CT] = 7
    else:
        mq[BP] = at + 1
        mq[C] += following << 8
        mq[CT] = 8


@numba.njit(cache=True, nogil=True)
def start(data: npt.NDArray[np.uint8], mq: Registers, begin: int) -> None:
    """INITDEC, figure C.20."""
    mq[BP] = begin
    mq[C] = np.int64(data[begin]) << 16
    _byte_in(data, mq)
    mq[C] <<= 7
    mq[CT] -= 7
    mq[A] = 0x8000


@numba.njit(cache=True, nogil=True)
def decode(data: npt.NDArray[np.uint8], mq: Registers, contexts: npt.NDArray[np.uint8], context: int) -> int:
    """One decision, 0 or 1 (DECODE, figures C.15 to C.18)."""
    state = contexts[context]
    qe = QE[state]
    symbol = np.int64(state & 1)
    a, c = mq[A] - qe, mq[C]
    if (c >> 16) < qe:  # the lower sub-interval: less probable, unless the two have changed sides
        if a < qe:
            contexts[context] = AFTER_MPS[state]
        else:
            symbol ^= 1
            contexts[context] = AFTER_LPS[state]
        a = qe
    else:
        c -= qe << 16
        if a & 0x8000:
            mq[A], mq[C] = a, c
            return symbol
        if a < qe:
            symbol ^= 1
            contexts[context] = AFTER_LPS[state]
        else:
            contexts[context] = AFTER_MPS[state]
    mq[C] = c
    while a < 0x8000:  # RENORMD; a is never 0, since no Qe is and a >= 0x8000 - 0x5601 otherwise
        if mq[CT] == 0:
            _byte_in(data, mq)
        a <<= 1
        mq[C] <<= 1
        mq[CT] -= 1
    mq[A] = a
    return symbol


@numba.njit(cache=True, nogil=True)
def start_raw(mq: Registers, begin: int, end: int) -> None:
    """Begin a raw segment data[begin:end]."""
    mq[BP], mq[BYTE], mq[LEFT], mq[END] = begin, 0, 0, end


@numba.njit(cache=True, nogil=True)
def raw_bit(data: npt.NDArray[np.uint8], mq: Registers) -> int:
    """One raw bit; after a byte 0xFF the next one has seven (D.6). Past the end of the segment: ones."""
    if mq[LEFT] == 0:
        mq[LEFT] = 7 if mq[BYTE] == 0xFF else 8
        mq[BYTE] = 0xFF
        if mq[BP] < mq[END]:
            mq[BYTE] = data[mq[BP]]
            mq[BP] += 1
    mq[LEFT] -= 1
    return (mq[BYTE] >> mq[LEFT]) & 1
