"""The local path: every sample given all of G (numba kernel). docs/bitstream.md, section 5."""

from __future__ import annotations

from typing import Any

import numpy as np

from codec.mixture import CENTRES, COMPONENTS, SPIKES, WIDTHS, code_sample, fresh_shares, mark_sample, survey_sample
from codec.prediction import (
    bias_context,
    blend,
    flatness,
    fresh_contexts,
    learn,
    log16,
    pad_row,
    predict,
    scale_contexts,
)
from codec.rans import FAILED, kernel
from codec.tables import INVERSE_SCALE, PAD, SCALE_HIGHEST, SCALE_LOWEST, SCALE_OFFSETS, TOP

BIAS_WINDOW, BIAS_PRIOR = 128, 8


@kernel
def code_local(io: Any, words: Any, starts: Any, freqs: Any, cost: Any, buf: Any, upper: Any, highest: Any, k: Any,
               raw: Any, thresholds: Any, taps: Any, gains: Any) -> None:  # fmt: skip
    """Code a tile in raster order, given G.

    `buf` int32[rows + TOP, columns + 2 PAD]: the tile inside its padding; its first TOP rows and the left padding of
    its first row hold the anchor. While decoding the samples are written into it. `upper` int32[rows, columns] is G.
    `taps` int32[sets, 35]. With gains.size > 0 nothing is coded: the survey is summed into `gains`.
    """
    rows, columns = upper.shape
    sums = np.zeros(taps.shape[0], np.int64)
    for row in range(taps.shape[0]):
        sums[row] = taps[row].sum()
    errors = np.zeros((3, columns + 2 * PAD, 16), np.int32)
    signed = np.zeros((2, columns + 2 * PAD), np.int64)
    guess, near, logs = np.zeros(16, np.int64), np.zeros(16, np.int64), np.zeros(16, np.int64)
    centre, inverse = np.zeros(CENTRES + SPIKES, np.int64), np.zeros(WIDTHS, np.int64)
    mass, context = np.zeros(COMPONENTS, np.int64), np.zeros(5, np.int64)
    state, shares, bias = fresh_contexts(), fresh_shares(), np.zeros((2048, 2), np.int64)
    for row in range(rows):
        y = row + TOP
        e0, e1, e2 = errors[row % 3], errors[(row + 2) % 3], errors[(row + 1) % 3]
        s0, s1 = signed[row % 2], signed[(row + 1) % 2]
        for column in range(columns):
            p = column + PAD
            activity = predict(buf, y, p, highest, thresholds, taps, sums, guess)
            mean = blend(e0, e1, e2, p, guess, near, logs)
            scale_contexts(near, guess, mean, activity, s0[p - 1], s1[p], context)
            cell = bias[bias_context(buf, y, p, mean, guess[13], s0[p - 1], s1[p], context[4])]
            centre[0] = min(max(mean + cell[0] // (cell[1] + BIAS_PRIOR), 0), highest << 6)
            centre[1], centre[2], centre[3], centre[4] = guess[13], mean, guess[0], guess[1]
            centre[5], centre[6] = guess[3], np.int64(buf[y - 1, p - 1]) << 6
            logsum = np.int64(0)
            for table in range(3):
                logsum += log16(state[table, context[table], 0])
            q: Any = min(max(logsum // 6 - 28, SCALE_LOWEST), SCALE_HIGHEST)
            for s in range(WIDTHS):
                inverse[s] = INVERSE_SCALE[q + SCALE_OFFSETS[s]]
            share = shares[((q >> 3) * 8 + context[3]) * 3 + flatness(buf, y, p)]
            level = np.int64(buf[y, p])
            if gains.size:
                survey_sample(level, highest, k, centre, inverse, share, gains)
            else:
                low = np.int64(upper[row, column]) << k
                high = min(low + (1 << k) - 1, highest)
                level = code_sample(
                    io, words, starts, freqs, cost, level, low, high, raw, centre, inverse, share,
                    (np.int64(1) << (q >> 3)),
                )  # fmt: skip
                buf[y, p] = level
            mark_sample(level, e0[p], guess, mean, centre, inverse, share, mass)
            s0[p] = (level << 6) - mean
            learn(state, context, abs((level << 6) - centre[0]) * 8)
            cell[0] += s0[p]
            cell[1] += 1
            if cell[1] >= BIAS_WINDOW:
                cell[0] >>= 1
                cell[1] >>= 1
        if io[FAILED]:
            return
        pad_row(buf, y, columns, e0, e2)
