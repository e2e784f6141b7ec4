"""Plain decoder of the dual coder: NumPy and Python integers, no kernels, no speed. Part of the format.

It follows docs/bitstream.md step by step and shares with the fast decoder only the layout of the bytes and the tables.
The fast decoder must give the same words for every stream.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from codec.dualformat import RADIUS, TileJob, Words
from codec.errors import CorruptBitstream
from codec.tables import (
    FIRST_ERROR,
    FIRST_SHARES,
    INVERSE_SCALE,
    LOG2,
    LOGISTIC,
    SCALE_OFFSETS,
    TAPS,
    WEIGHT,
)

LOG2_LIST, LOGISTIC_LIST, WEIGHT_LIST = LOG2.tolist(), LOGISTIC.tolist(), WEIGHT.tolist()
ERROR_WEIGHTS = (
    (0, -1, 2), (-1, 0, 2), (-1, -1, 1), (-1, 1, 1), (0, -2, 1), (-2, 0, 1), (-2, 1, 1), (-2, -1, 1), (-1, 2, 1),
    (-1, -2, 1),
)  # fmt: skip


class DualReference:
    """See codec.dualformat.Engine."""

    def taps(self, words: Words, sets: int) -> NDArray[np.int32]:
        """Coefficients of the least-squares predictors."""
        return read_taps(words, sets, RADIUS)

    def tiles(self, job: TileJob) -> NDArray[np.int32]:
        """All tiles, one after another."""
        out = np.empty(job.shape, np.int32)
        for first, rows, anchor, words in job.tiles:
            stream = Stream(words)
            upper = decode_global(stream, rows, job.shape[1], job.highest >> job.plan.k)
            tile = _Tile(job, rows, anchor)
            for row in range(rows):
                for column in range(job.shape[1]):
                    tile.sample(stream, row, column, upper[row][column])
                tile.end_row(row)
            stream.close()
            out[first : first + rows] = [line[8:-8] for line in tile.lines[4:]]
        return out


def read_taps(words: Words, sets: int, radius: NDArray[np.int64]) -> NDArray[np.int32]:
    """Coefficients of least-squares predictors, int32[sets, taps]; `radius` gives each tap's distance class."""
    stream = Stream(words)
    out = np.zeros((sets, radius.size), np.int32)
    for row in range(sets):
        for tap in range(radius.size):
            name = ("tap", int(radius[tap]), row > 0)
            size = 8 * stream.number(name)
            low = 1
            for _ in range(3):
                low = 2 * low + stream.bit((*name, "low", low))
            size += low - 8
            if size and stream.bit((*name, "sign")):
                size = -size
            value = (int(out[0, tap]) if row else 0) + size
            out[row, tap] = min(max(value, -32767), 32767)
    stream.close()
    return out


class Stream:
    """A rANS stream and its adaptive binary decisions."""

    def __init__(self, words: Words) -> None:
        self.words = [int(word) for word in words]
        if len(self.words) < 2:
            raise CorruptBitstream("stream without a state")
        self.state = self.words[0] << 32 | self.words[1]
        self.next = 2
        if not 1 << 31 <= self.state < 1 << 63:
            raise CorruptBitstream("impossible state")
        self.model: dict[object, list[int]] = defaultdict(lambda: [32768, 32768, 0])

    def target(self) -> int:
        """The slot, 0..2^28 - 1, that the next symbol's interval holds."""
        return self.state & (1 << 28) - 1

    def remove(self, start: int, freq: int) -> None:
        """Take the symbol [start, start + freq) off the state."""
        self.state = freq * (self.state >> 28) + self.target() - start
        if self.state < 1 << 31:
            if self.next == len(self.words):
                raise CorruptBitstream("stream too short")
            self.state = self.state << 32 | self.words[self.next]
            self.next += 1

    def bit(self, context: object) -> int:
        """One adaptive decision."""
        cell = self.model[context]
        one = min(max((cell[0] + cell[1]) >> 1, 32), 65504) << 12
        bit = int(self.target() < one)
        self.remove(0 if bit else one, one if bit else (1 << 28) - one)
        cell[0] += (65535 * bit - cell[0]) >> 4
        cell[1] += (65535 * bit - cell[1]) // (cell[2] + 2)
        cell[2] = min(cell[2] + 1, 126)
        return bit

    def number(self, context: object) -> int:
        """Twelve unary decisions, then Elias gamma."""
        for step in range(12):
            if not self.bit((context, "unary", step)):
                return step
        width = 0
        while self.bit((context, "width", width)):
            width += 1
            if width == 20:
                raise CorruptBitstream("number too long")
        rest = 1
        for step in range(width):
            rest = 2 * rest + self.bit((context, "digit", width - 1 - step))
        return rest + 11

    def close(self) -> None:
        """Check that the stream ends here."""
        if self.next != len(self.words) or self.state != 1 << 31:
            raise CorruptBitstream("stream does not end where it should")


def decode_global(stream: Stream, rows: int, columns: int, highest: int) -> list[list[int]]:
    """The plane G of a tile."""
    plane = [[0] * columns for _ in range(rows)]
    if highest == 0:
        return plane
    for y in range(rows):
        for x in range(columns):
            n = plane[y - 1][x] if y else (plane[y][x - 1] if x else 0)
            w = plane[y][x - 1] if x else n
            nw = plane[y - 1][x - 1] if y and x else n
            ne = plane[y - 1][x + 1] if y and x + 1 < columns else n
            ww = plane[y][x - 2] if x > 1 else w
            nn = plane[y - 2][x] if y > 1 else n
            guess = _med(w, n, nw)
            value = guess
            if stream.bit(("same", w == n, n == nw, n == ne, w == ww, n == nn, ne == guess, abs(w - n) > 1)):
                up = guess == 0
                if 0 < guess < highest:
                    up = bool(stream.bit(("sign", np.sign(ne - guess), np.sign(w - guess), np.sign(n - guess))))
                size = 1 + stream.number(("size", min(abs(w - n), 2)))
                value = guess + size if up else guess - size
            if not 0 <= value <= highest:
                raise CorruptBitstream("global part out of range")
            plane[y][x] = value
    return plane


def _med(w: int, n: int, nw: int) -> int:
    if nw >= max(w, n):
        return min(w, n)
    return max(w, n) if nw <= min(w, n) else w + n - nw


def _log16(number: int) -> int:
    if number < 1 << 12:
        return int(LOG2_LIST[number])
    if number < 1 << 20:
        return int(LOG2_LIST[number >> 8]) + 128
    return int(LOG2_LIST[min(number >> 16, 4095)]) + 256


def _half_octaves(number: int) -> int:
    return min(_log16(number) >> 3, 31)


def _logistic(offset: int, inverse: int) -> int:
    place = (offset * inverse >> 13) + 18 * 32 * 256
    entry = place >> 8
    if place <= 0:
        return 0
    if entry >= 2 * 18 * 32:
        return int(LOGISTIC_LIST[2 * 18 * 32])
    step = LOGISTIC_LIST[entry + 1] - LOGISTIC_LIST[entry]
    return int(LOGISTIC_LIST[entry] + (step * (place & 255) >> 8))


@dataclass
class _Law:
    """The mixture of one sample: centres and scales, spikes, and the weights of all (changed by `learn`)."""

    centres: list[int]
    inverses: list[int]
    spikes: list[int]
    shares: list[int]

    def parts(self, edge: int) -> list[int]:
        """Mass of every component below `edge` (1/64 level), of 2^26."""
        out = [_logistic(edge - centre, inverse) for centre in self.centres for inverse in self.inverses]
        return out + [(edge > spike) << 26 for spike in self.spikes]

    def below(self, level: int) -> int:
        """Mixture mass below a level."""
        return sum(s * p for s, p in zip(self.shares, self.parts(64 * level - 32), strict=True)) >> 16

    def learn(self, level: int) -> None:
        """Move the weights towards what each component gave to `level`."""
        pairs = zip(self.shares, self.parts(64 * level - 32), self.parts(64 * level + 32), strict=True)
        masses = [share * (above - below) for share, below, above in pairs]
        rough = (sum(masses) >> 16) + 1
        if rough > 16:
            reciprocal = (1 << 46) // rough
            for j, mass in enumerate(masses):
                part = (mass >> 16) * reciprocal >> 30
                self.shares[j] = max(self.shares[j] + (part - self.shares[j] >> 3), 32)


def _first_shares() -> list[int]:
    return [int(share) for _ in range(3) for share in FIRST_SHARES] + [200] * 4


@dataclass
class _Tile:
    """A tile being decoded, with all its adaptive state."""

    job: TileJob
    rows: int
    anchor: int
    lines: list[list[int]] = field(default_factory=list)
    errors: list[list[list[int]]] = field(default_factory=list)
    signed: list[list[int]] = field(default_factory=list)
    scales: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    shares: dict[int, list[int]] = field(default_factory=lambda: defaultdict(_first_shares))
    bias: dict[object, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def __post_init__(self) -> None:
        width = self.job.shape[1] + 16
        self.lines = [[self.anchor] * width for _ in range(self.rows + 4)]
        self.errors = [[[0] * 16 for _ in range(width)] for _ in range(self.rows + 2)]
        self.signed = [[0] * width for _ in range(self.rows + 1)]

    def sample(self, stream: Stream, row: int, column: int, upper: int) -> None:
        """Decode one sample and learn from it."""
        p, top = column + 8, 64 * self.job.highest
        line, above, above2 = self.lines[row + 4], self.lines[row + 3], self.lines[row + 2]
        w, n, nw, ne, ww, nn = line[p - 1], above[p], above[p - 1], above[p + 1], line[p - 2], above2[p]
        activity = abs(w - nw) + abs(n - nw) + abs(n - ne) + abs(w - ww) + abs(n - nn)
        guesses = [min(max(guess, 0), top) for guess in self.predictions(row, p, activity)]
        near = [
            sum(weight * self.errors[row + 2 + dy][p + dx][i] for dy, dx, weight in ERROR_WEIGHTS) for i in range(16)
        ]
        logs = [_log16(near[i] + 24) for i in range(14)]
        weights = [WEIGHT_LIST[min(log - min(logs), 65)] for log in logs]
        total = sum(weights)
        mean = (sum(a * b for a, b in zip(weights, guesses, strict=True)) + (total >> 1)) // total
        west, north = self.signed[row + 1][p - 1], self.signed[row][p]

        energy, spread = _half_octaves(near[14] + 4), sum(abs(guesses[i] - mean) for i in (13, 8, 12))
        spread = _half_octaves((spread >> 2) + 1)
        recent = _half_octaves(abs(west) + abs(north) + 8)
        places = (energy * 32 + spread, energy * 32 + _half_octaves(8 * activity + 1), spread * 32 + recent)
        cells = [self.scales.setdefault((t, c), [int(FIRST_ERROR[c >> 5]), 0]) for t, c in enumerate(places)]
        q = min(max(sum(_log16(cell[0]) for cell in cells) // 6 - 28, 16), 160)
        signs = (west > 0, north > 0, guesses[13] > mean, 64 * n > mean, 64 * w > mean, 64 * ne > mean)
        bias = self.bias[(*signs, 64 * (2 * n - nn) > mean, energy >> 1)]
        final = min(max(mean + bias[0] // (bias[1] + 8), 0), top)
        better = min(max((_log16(near[15] + 4) - _log16(near[13] + 4) + 8) >> 2, 0), 7)
        flat = 0 if w != n else (2 if n == nw == ne else 1)
        law = _Law(
            [final, guesses[13], mean],
            [int(INVERSE_SCALE[q + offset]) for offset in SCALE_OFFSETS],
            [guesses[0], guesses[1], guesses[3], 64 * nw],
            self.shares[((q >> 3) * 8 + better) * 3 + flat],
        )
        level = self.pick(stream, law, upper)
        line[p] = level
        exact = 64 * level
        errors = [min(abs(exact - guess) >> 2, 1 << 20) for guess in [*guesses, mean, final]]
        self.errors[row + 2][p] = errors
        law.learn(level)
        self.signed[row + 1][p] = exact - mean
        for cell in cells:
            cell[1] = min(cell[1] + 1, 60)
            cell[0] += (8 * abs(exact - final) - cell[0]) // (cell[1] + 3)
        bias[0] += exact - mean
        bias[1] += 1
        if bias[1] >= 128:
            bias[0] >>= 1
            bias[1] >>= 1

    def predictions(self, row: int, p: int, activity: int) -> list[int]:
        """The 14 predictions in 1/64 level, not yet clamped."""
        line, above, above2 = self.lines[row + 4], self.lines[row + 3], self.lines[row + 2]
        w, n, nw, ne, ww = line[p - 1], above[p], above[p - 1], above[p + 1], line[p - 2]
        nn, nne = above2[p], above2[p + 1]
        out = [64 * w, 64 * n, 64 * (w + n - nw), 64 * ne, 64 * (w + ne - n), 64 * (2 * w - ww), 64 * (2 * n - nn)]
        out += [32 * (w + n) + 16 * (ne - nw), 64 * _med(w, n, nw), 32 * (w + ne), 16 * (3 * (w + n) - 2 * nw)]
        out.append(64 * (n + ne - nne))
        taps, thresholds = self.job.plan.predictors.taps, self.job.plan.predictors.thresholds
        sets = taps.shape[0]
        if sets == 0:
            return [*out, out[7], out[8]]
        own = 1 + int((activity > thresholds).sum()) if sets > 1 else 0
        around = [self.lines[row + 4 + dy][p + dx] for dy, dx in TAPS]
        for chosen in (0, own):
            row_taps = [int(tap) for tap in taps[chosen]]
            dot = sum(a * b for a, b in zip(around, row_taps, strict=True))
            out.append(((w + n) * (1024 - sum(row_taps)) + 2 * dot) >> 5)
        return out

    def pick(self, stream: Stream, law: _Law, upper: int) -> int:
        """Decode the sample's symbol by the law truncated to G's interval, then its raw bits."""
        k, raw = self.job.plan.k, self.job.plan.raw
        low = upper << k
        first, last = low >> raw, min(low + (1 << k) - 1, self.job.highest) >> raw
        symbol = first
        if last > first:
            base = law.below(first << raw)
            span = law.below(last + 1 << raw) - base + last - first + 1
            scale = (1 << 61) // span

            def start(s: int) -> int:
                return 1 << 28 if s > last else (law.below(s << raw) - base + s - first) * scale >> 33

            target, high = stream.target(), last + 1
            while high - symbol > 1:
                middle = (symbol + high) // 2
                if start(middle) <= target:
                    symbol = middle
                else:
                    high = middle
            stream.remove(start(symbol), start(symbol + 1) - start(symbol))
        if raw == 0:
            return symbol
        rest = stream.target() >> 28 - raw
        stream.remove(rest << 28 - raw, 1 << 28 - raw)
        return symbol << raw | rest

    def end_row(self, row: int) -> None:
        """Fill the padding right of the row and left of the next one."""
        line, width = self.lines[row + 4], self.job.shape[1]
        for d in range(8):
            line[8 + width + d] = line[7 + width]
            if row + 1 < self.rows:
                self.lines[row + 5][d] = line[8]
                self.errors[row + 3][d] = self.errors[row + 2][8]
            self.errors[row + 2][8 + width + d] = self.errors[row + 2][7 + width]
