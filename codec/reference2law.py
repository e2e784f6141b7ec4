"""The law of a sample in the learned coder, plainly: Python integers, no kernels, no speed. Part of the format.

One function or method for each paragraph of docs/bitstream.md, part 2, sections 3 and 4. Values are exact integers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from codec.learneddecode import PREVIOUS_TAPS, Setting
from codec.reference2learn import MIDDLE, Cells, Contexts, Head, Seen
from codec.tables import LOGISTIC, TAPS

LANES, SKEW = 16, 5
ERROR_CAP, NEAR_CAP, DISTANCE_CAP = 1 << 20, 1 << 23, 1 << 22
INPUT_LIMIT = 1023
SCALES, SCALE_BIAS = 400, -8
LOGISTIC_LIST = [int(entry) for entry in LOGISTIC]
INVERSE = [math.floor(float(1 << 26) / math.pow(2.0, q / 16) + 0.5) for q in range(SCALES)]
NEAR_PLACES = (
    (0, -1, 2), (-1, 0, 2), (-1, -1, 1), (-1, 1, 1), (0, -2, 1), (-2, 0, 1), (-2, 1, 1), (-2, -1, 1), (-1, 2, 1),
    (-1, -2, 1),
)  # fmt: skip
SEEN = tuple((0, column) for column in (-1, -2, -3)) + tuple(
    (row, column) for row, reach in ((-1, 3), (-2, 3), (-3, 2), (-4, 1)) for column in range(-reach, reach + 1)
)
SIGNED_PLACES = ((0, -1), (-1, 0), (-1, -1), (-1, 1), (0, -2), (-2, 0))


Array = NDArray[np.int32]


def log256(number: int) -> int:
    """L: the piecewise linear base-2 logarithm in 1/256, of 1 <= number < 2^24."""
    exponent = number.bit_length() - 1
    return (exponent << 8) + ((number << 8 >> exponent) - 256)


def long_log256(number: int) -> int:
    """L of 1 <= number < 2^32."""
    return log256(number) if number < 1 << 24 else log256(number >> 8) + 2048


def half_octaves(number: int) -> int:
    """log2 in halves, at most 31."""
    return min(log256(min(number, NEAR_CAP)) >> 7, 31)


def falling(distance: int) -> int:
    """E: 2^16 * 2^(-distance / 256), piecewise linear; 0 from 17 octaves on."""
    octaves = distance >> 8
    return 0 if octaves > 16 else ((1 << 17) - ((distance & 255) << 8)) >> (octaves + 1)


def clamp(number: int, low: int, high: int) -> int:
    """The number nearest to `number` in low..high."""
    return min(max(number, low), high)


def wrap(number: int) -> int:
    """The 32-bit two's complement number that is congruent mod 2^32."""
    return (number + (1 << 31)) % (1 << 32) - (1 << 31)


def coding_steps(rows: int, columns: int) -> Iterator[list[tuple[int, int]]]:
    """The (row, column) of a tile's samples step by step, within a step in the order in which they are coded."""
    period = max(columns + 9, 80)
    steps: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row in range(rows):
        start = row // LANES * period + SKEW * (row % LANES)
        for column in range(columns):
            steps[start + column].append((row, column))
    for step in sorted(steps):
        yield sorted(steps[step], key=lambda place: place[0] % LANES)


def table_place(offset: int, inverse: int) -> int:
    """Where offset / scale lies in the logistic table, in 1/256 entry."""
    return clamp((offset * inverse >> 13) + MIDDLE, 0, 2 * MIDDLE)


def logistic(place: int) -> int:
    """2^26 times the logistic function, piecewise linear between table entries."""
    entry = place >> 8
    step = LOGISTIC_LIST[entry + 1] - LOGISTIC_LIST[entry]
    return LOGISTIC_LIST[entry] + (step * (place & 255) >> 8)


def hidden_layer(w: Array, b: Array, g: Array, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Activations of a hidden layer."""
    sums = b.astype(np.int64) + w.astype(np.int64) @ values
    return np.asarray(np.clip(((sums >> 3) * g) >> 9, 0, INPUT_LIMIT), np.int64)


@dataclass(frozen=True)
class Mixture:
    """The law of one sample: weights, centres (1/64 level) and inverse scales of its logistics."""

    weights: list[int]
    centres: list[int]
    inverses: list[int]

    def below(self, level: int) -> int:
        """C: mixture mass below a level."""
        return sum(w * mass for w, mass in zip(self.weights, self.masses(64 * level - 32), strict=True)) >> 17

    def masses(self, edge: int) -> list[int]:
        """2^26 times each logistic below an edge (1/64 level)."""
        return [logistic(place) for place in self.places(edge)]

    def places(self, edge: int) -> list[int]:
        """Where an edge (1/64 level) lies in the table of each logistic."""
        pairs = zip(self.centres, self.inverses, strict=True)
        return [table_place(edge - centre, inverse) for centre, inverse in pairs]


@dataclass(frozen=True)
class Slots:
    """The intervals of the symbols first..last of one sample in 0..2^28, by its law truncated to them."""

    law: Mixture
    first: int
    last: int
    raw: int
    scale: int

    def start(self, symbol: int) -> int:
        """Where the interval of a symbol begins; 2^28 for last + 1."""
        if symbol > self.last:
            return 1 << 28
        base = self.law.below(self.first << self.raw)
        return (self.law.below(symbol << self.raw) - base + symbol - self.first) * self.scale >> 24

    def find(self, slot: int) -> int:
        """The symbol whose interval holds a slot."""
        low, high = self.first, self.last + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.start(middle) <= slot else (low, middle)
        return low

    @staticmethod
    def of(law: Mixture, first: int, last: int, raw: int) -> Slots:
        """The intervals under a law."""
        span = law.below(last + 1 << raw) - law.below(first << raw) + last - first + 1
        return Slots(law, first, last, raw, (1 << 52) // span)


@dataclass(frozen=True)
class Shape:
    """What a tile is coded with. `upper`: its G; `previous`: int32[rows + 2, columns + 2] or None, as in a Job.

    `head`: what its last layer begins with; None: the network's.
    """

    rows: int
    columns: int
    setting: Setting
    upper: list[list[int]]
    previous: NDArray[np.int32] | None
    head: NDArray[np.int32] | None = None

    @property
    def split(self) -> bool:
        """Whether there is a G."""
        return self.setting.highest >> self.setting.k > 0

    def upper_at(self, row: int, column: int) -> int:
        """G, beyond the tile's edges as at the edge."""
        return self.upper[clamp(row, 0, self.rows - 1)][clamp(column, 0, self.columns - 1)]

    def previous_at(self, row: int, column: int) -> int:
        """The previous frame's sample."""
        return 0 if self.previous is None else int(self.previous[row + 1, column + 1])


@dataclass
class Tile:
    """A tile being coded: the samples so far and the errors that they left."""

    shape: Shape
    anchor: int
    samples: list[list[int]] = field(default_factory=list)
    errors: list[list[list[int]]] = field(default_factory=list)  # 15 absolute ones and the blend's signed one
    here: tuple[int, int] = (0, 0)
    guesses: list[int] = field(default_factory=list)
    activity: int = 0
    mean: int = 0
    near: list[int] = field(default_factory=list)
    logs: list[int] = field(default_factory=list)
    contexts: Contexts = field(default_factory=Contexts)
    cells: Cells = field(default_factory=Cells)
    hidden: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.head = Head(self.shape.setting.network, self.shape.setting.rate, self.shape.head)
        self.samples = [[0] * self.shape.columns for _ in range(self.shape.rows)]
        self.errors = [[[0] * 16 for _ in range(self.shape.columns)] for _ in range(self.shape.rows)]

    # neighbours

    def place(self, row: int, column: int) -> tuple[int, int] | None:
        """Which sample stands for a neighbour at (row, column), inside or outside the tile; None: there is none yet.

        Above the first row lie copies of it, for itself of its last sample so far; left of a row lies the first sample
        of the row above, right of it its last one.
        """
        y, x = self.here
        if row < 0 or (column < 0 and row == 0):
            known = x - 1 if y == 0 else self.shape.columns - 1
            return (0, clamp(column, 0, known)) if known >= 0 else None
        return (row - 1, 0) if column < 0 else (row, min(column, self.shape.columns - 1))

    def sample_at(self, row: int, column: int) -> int:
        """A sample or its padding."""
        place = self.place(row, column)
        return self.anchor if place is None else self.samples[place[0]][place[1]]

    def errors_at(self, row: int, column: int) -> list[int]:
        """The errors that a sample left, or their padding."""
        place = self.place(row, column)
        return [0] * 16 if place is None else self.errors[place[0]][place[1]]

    # 4.1 predictions

    def predict(self, y: int, x: int) -> list[int]:
        """The 14 predictions, 1/64 level."""
        w, n, nw, ne = (self.sample_at(y + dy, x + dx) for dy, dx in ((0, -1), (-1, 0), (-1, -1), (-1, 1)))
        ww, nn, nne = (self.sample_at(y + dy, x + dx) for dy, dx in ((0, -2), (-2, 0), (-2, 1)))
        med = min(w, n) if nw >= max(w, n) else max(w, n) if nw <= min(w, n) else w + n - nw
        out = [
            64 * w, 64 * n, 64 * (w + n - nw), 64 * ne, 64 * (w + ne - n), 64 * (2 * w - ww), 64 * (2 * n - nn),
            32 * (w + n) + 16 * (ne - nw), 64 * med, 32 * (w + ne), 16 * (3 * (w + n) - 2 * nw), 64 * (n + ne - nne),
        ]  # fmt: skip
        activity = abs(w - nw) + abs(n - nw) + abs(n - ne) + abs(w - ww) + abs(n - nn)
        self.activity = activity
        out += self.least_squares(y, x, w + n, activity) or [out[7], out[8]]
        return [clamp(guess, 0, 64 * self.shape.setting.highest) for guess in out]

    def least_squares(self, y: int, x: int, pair: int, activity: int) -> list[int]:
        """Predictions by set 0 and by the set of the activity's class; none without sets."""
        predictors = self.shape.setting.predictors
        sets = predictors.taps.shape[0]
        if sets == 0:
            return []
        around = [self.sample_at(y + dy, x + dx) for dy, dx in TAPS]
        if self.shape.previous is not None:
            around += [self.shape.previous_at(y + dy, x + dx) for dy, dx in PREVIOUS_TAPS]
        own = 0
        if sets > 1:
            directions = (sets - 1) // (predictors.thresholds.size + 1)
            own = 1 + sum(activity > int(threshold) for threshold in predictors.thresholds) * directions
            own += self.direction(y, x) if directions > 1 else 0
        out = []
        for chosen in (0, own):
            dot = sum(int(c) * (2 * v - pair) for c, v in zip(predictors.taps[chosen], around, strict=True))
            out.append(wrap((pair << 5) + (wrap(dot) >> 5)))
        return out

    def direction(self, y: int, x: int) -> int:
        """0 where samples change less from row to row than along the row, 2 where they change more, else 1."""
        w, n, nw = self.sample_at(y, x - 1), self.sample_at(y - 1, x), self.sample_at(y - 1, x - 1)
        down = abs(w - nw) + abs(n - self.sample_at(y - 2, x))
        across = abs(n - nw) + abs(w - self.sample_at(y, x - 2))
        return 0 if 2 * down < across else 1 if down <= 2 * across else 2

    # 4.2 errors and blend

    def blend(self, y: int, x: int) -> int:
        """The prediction weighted by local errors; notes the local errors and their logarithms."""
        places = [(self.errors_at(y + dy, x + dx), times) for dy, dx, times in NEAR_PLACES]
        self.near = [min(sum(times * errors[i] for errors, times in places), NEAR_CAP) for i in range(15)]
        self.logs = [log256(near + 96) for near in self.near]
        least = min(self.logs[:14])
        weights = [falling(4 * (log - least)) for log in self.logs[:14]]
        total = sum(weights)
        return (sum(w * p for w, p in zip(weights, self.guesses, strict=True)) + (total >> 1)) // total

    # 4.3 and 4.4 inputs

    def inputs(self, y: int, x: int) -> list[int]:
        """The network's inputs, 1/64 octave."""
        out = [self.slog(64 * self.sample_at(y + dy, x + dx) - self.mean) for dy, dx in SEEN]
        out += [self.slog(guess - self.mean) for guess in self.guesses]
        out += [self.slog(self.errors_at(y + dy, x + dx)[15]) for dy, dx in SIGNED_PLACES]
        out += [clamp((log - self.logs[14]) >> 2, -INPUT_LIMIT, INPUT_LIMIT) for log in self.logs[:14]]
        out.append(clamp((self.scale()[1] >> 2) - 512, -INPUT_LIMIT, INPUT_LIMIT))
        out += [self.slog(self.mean) >> 1, self.slog(64 * self.shape.setting.highest - self.mean) >> 1]
        out += [*self.context_inputs(y, x), 0]
        out += self.upper_inputs(y, x) if self.shape.split else [0] * 6
        return out if self.shape.previous is None else out + self.previous_inputs(y, x)

    def context_inputs(self, y: int, x: int) -> list[int]:
        """What the adaptive contexts say; notes the sample's cells."""
        w, n = self.errors_at(y, x - 1)[15], self.errors_at(y - 1, x)[15]
        p, mean = self.guesses, self.mean
        energy = clamp((self.logs[14] - 1536) >> 7, 0, 31)
        spread = half_octaves(((abs(p[13] - mean) + abs(p[8] - mean) + abs(p[12] - mean)) >> 2) + 1)
        gradient = half_octaves(8 * min(self.activity, 1 << 20) + 1)
        recent = half_octaves(abs(w) + abs(n) + 8)
        signs = (w > 0, n > 0, *(p[i] > mean for i in (13, 1, 0, 3, 6)))
        texture = sum(sign << bit for bit, sign in enumerate(signs))
        self.cells = Cells(
            (32 * energy + spread, 32 * energy + gradient, 32 * spread + recent), texture * 16 + (energy >> 1)
        )
        level = self.scale()[1]
        out = []
        for total, count in self.contexts.scales_at(self.cells):
            out.append(clamp((long_log256(total + 1) - log256(count) - level) >> 1, -INPUT_LIMIT, INPUT_LIMIT))
        total, count = self.contexts.bias_at(self.cells)
        bias = 2 * self.slog(total // (count + 8))
        return [*out, clamp(bias, -INPUT_LIMIT, INPUT_LIMIT), min(256, log256(count + 1) >> 2)]

    def slog(self, d: int) -> int:
        """How far d is from 0 measured by the blend's local scale, 1/64 octave, with its sign."""
        scale, level = self.scale()
        size = min((log256(min(abs(d), DISTANCE_CAP) + scale) - level) >> 2, INPUT_LIMIT)
        return size if d >= 0 else -size

    def upper_inputs(self, y: int, x: int) -> list[int]:
        """What G gives: its interval's ends, and the middles of four intervals of samples to come."""
        k, shape = self.shape.setting.k, self.shape
        low = shape.upper_at(y, x) << k
        high = min(low + (1 << k) - 1, shape.setting.highest)
        middles = [
            (shape.upper_at(y + dy, x + dx) << 6 + k) + (32 << k) for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1))
        ]
        return [self.slog(place - self.mean) for place in (64 * low - 32, 64 * high + 32, *middles)]

    def previous_inputs(self, y: int, x: int) -> list[int]:
        """What the previous frame gives: its 3 x 3, how four neighbours changed, two predictions from both frames."""
        shape = self.shape
        out = [self.slog(64 * shape.previous_at(y + dy, x + dx) - self.mean) for dy, dx in PREVIOUS_TAPS]
        w, n, nw, ne = (
            self.sample_at(y + dy, x + dx) - shape.previous_at(y + dy, x + dx)
            for dy, dx in ((0, -1), (-1, 0), (-1, -1), (-1, 1))
        )
        out += [self.slog(64 * change) for change in (w, n, nw, ne)]
        far = 64 * shape.previous_at(y, x) - self.mean
        return [*out, self.slog(far + 32 * (w + n)), self.slog(far + 64 * (w + n - nw))]

    def scale(self) -> tuple[int, int]:
        """The blend's local scale (1/64 level) and its logarithm."""
        scale = (self.near[14] * 85 >> 10) + 16
        return scale, log256(scale)

    # 4.5 network

    def run(self, inputs: list[int]) -> list[int]:
        """The outputs of the last layer; notes its inputs."""
        net = self.shape.setting.network
        values = np.zeros(net.inputs, np.int64)
        values[: len(inputs)] = inputs[: net.inputs]
        first = hidden_layer(net.w1, net.b1, net.g1, values)
        self.hidden = np.concatenate((first, hidden_layer(net.w2, net.b2, net.g2, first)))
        return self.head.outputs(self.hidden)

    def mixture(self, outputs: list[int]) -> Mixture:
        """The law from the network's outputs: weights u, offsets o and log scales t."""
        parts = len(outputs) // 3
        u, o, t = outputs[:parts], outputs[parts : 2 * parts], outputs[2 * parts : 3 * parts]
        scale, level = self.scale()
        size = min(scale, 1 << 20)
        weights = [falling(max(0, (max(u) - one) >> 4)) + 1 for one in u]
        centres = [self.mean + (clamp(one >> 5, -INPUT_LIMIT, INPUT_LIMIT) * size >> 7) for one in o]
        centres = [clamp(centre, 0, 64 * self.shape.setting.highest) for centre in centres]
        places = [clamp((level >> 4) + (one >> 8) + SCALE_BIAS, 0, SCALES - 1) for one in t]
        return Mixture(weights, centres, [INVERSE[place] for place in places])

    # 4.6 the sample

    def law(self, y: int, x: int) -> Mixture:
        """The law of the sample at (y, x), from what was coded before it."""
        self.here = (y, x)
        self.guesses = self.predict(y, x)
        self.mean = self.blend(y, x)
        return self.mixture(self.run(self.inputs(y, x)))

    def slots(self, y: int, x: int) -> Slots:
        """The intervals of the sample's symbols inside G's interval."""
        k, raw = self.shape.setting.k, self.shape.setting.raw
        low = self.shape.upper[y][x] << k
        first, last = low >> raw, min(low + (1 << k) - 1, self.shape.setting.highest) >> raw
        return Slots.of(self.law(y, x), first, last, raw)

    # 4.2, 4.4 and 4.7 learning

    def keep(self, y: int, x: int, sample: int, law: Mixture) -> None:
        """Store the sample, the errors that it leaves, and what is to be learnt from it at the end of the step."""
        self.samples[y][x] = sample
        exact = 64 * sample
        errors = [min(abs(exact - guess), ERROR_CAP) for guess in (*self.guesses, self.mean)]
        self.errors[y][x] = [*errors, exact - self.mean]
        self.seen.append(Seen(self.cells, exact - self.mean, exact, law, self.hidden))

    def end_step(self) -> None:
        """Learn from the samples of a step."""
        self.contexts.learn(self.seen)
        self.head.learn(self.seen)
        self.seen = []
