"""The learned coder's choices: predictors, adapter, split k, raw planes, tiles, states. By estimated code length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from codec.dual import over_tiles
from codec.learneddecode import Plane, Setting
from codec.learnedfit import Fitting, no_predictors
from codec.learnedformat import WAVE_ROWS
from codec.memory import Memory, PlaneMemory
from codec.network import Network
from codec.plan import count_global
from codec.wave import count_tile, survey_tile

SURVEY_SAMPLES = 1 << 14
RAW_CHOICES = 4
RAW_LOSS = 0.0002  # share of the code length that leaving planes unmodelled may cost
SPLIT_CHOICES = 5  # values of k that are looked at
SPLIT_WORSE, SPLIT_CLOSE = 0.02, 0.01  # shares of the code length at which to stop looking, and to look closer
STATE_LOSS = 0.0004  # share of a tile's bytes that its states may cost
STATE_BYTES = 4
RATE = 7  # at which the head learns: what codes shortest with weights that were trained for it
SET_BITS = (9.0, 7.5, 6.2, 5.0, 4.0)  # about what a coefficient takes, by precision
PARALLEL_TILE, LARGE_TILE = 1 << 19, 1 << 20  # the largest tile that stands alone, and the largest beside others
# samples up to -> (numbers of activity classes and of directions to try), precision; measured on CT, MR and PET
CLASS_CHOICES = (
    (1 << 12, ((0, 1), (1, 1)), 3),
    (1 << 14, ((2, 1),), 3),
    ((1 << 17) - 1, ((4, 1),), 3),
    (1 << 18, ((6, 1),), 3),
    (1 << 62, ((5, 1), (5, 3)), 3),
)


@dataclass(frozen=True)
class Effort:
    """What the encoder looks for.

    `fitted`: least-squares predictors. `split`: bits of G; None: whatever codes the plane shortest. `rates`: of the
    head's learning, the one that codes the plane shortest is used, the first in estimates. `alone`: samples up to which
    a plane is one tile. `states`: how many times STATE_LOSS a tile's states may cost; more of them decode faster.
    `threads` changes nothing but time.
    """

    fitted: bool = True
    split: int | None = None
    rates: tuple[int, ...] = (RATE,)
    alone: int = PARALLEL_TILE
    states: float = 1.0
    threads: int = 1


@dataclass(frozen=True)
class Part:
    """Rows of a plane that stand for it in estimates, int32; `previous`: the frame before around them, or None.

    `head`: what the head begins with, or None: the network's.
    """

    samples: Plane
    previous: Plane | None
    head: Plane | None = None


@dataclass(frozen=True)
class Subject:
    """One plane to be coded: samples int32 0..highest, the previous frame around it (see learneddecode.framed).

    `memory`: what it goes on from, or None.
    """

    samples: Plane
    low: int
    highest: int
    previous: Plane | None
    memory: PlaneMemory | None = None

    def parts(self) -> list[Part]:
        """Up to four blocks of whole rows, about SURVEY_SAMPLES in all."""
        rows, columns = self.samples.shape
        if self.samples.size <= SURVEY_SAMPLES * 3 // 2:
            return [Part(self.samples, self.previous, self._head(0))]
        blocks = min(4, max(1, SURVEY_SAMPLES // (WAVE_ROWS * columns)))
        height = max(1, SURVEY_SAMPLES // (blocks * columns * WAVE_ROWS)) * WAVE_ROWS
        height = min(height, rows)
        firsts = [max(0, (2 * j + 1) * rows // (2 * blocks) - height // 2) for j in range(blocks)]
        return [
            Part(
                np.ascontiguousarray(self.samples[first : first + height]),
                None if self.previous is None else np.ascontiguousarray(self.previous[first : first + height + 2]),
                self._head(first),
            )
            for first in firsts
        ]

    def _head(self, row: int) -> Plane | None:
        return None if self.memory is None else self.memory.head(row)


@dataclass(frozen=True)
class Choice:
    """How a plane is coded: its setting, the taps' precision, rows of a tile, and the estimated length in bits."""

    setting: Setting
    precision: int
    tile_rows: int
    bits: float


def tile_height(rows: int, columns: int, alone: int) -> int:
    """Rows of a tile: one tile up to `alone` samples, then as many as are needed, an even number for two threads."""
    size = rows * columns
    tiles = 1 if size <= alone else 2 * -(-size // (2 * LARGE_TILE))
    height = -(-rows // tiles)
    return min(rows, -(-height // WAVE_ROWS) * WAVE_ROWS)


def goes_on(subjects: Sequence[Subject], memory: Memory, network: Network, previous: bool, effort: Effort) -> bool:
    """Whether a frame of these planes may go on from a memory."""

    def fits(subject: Subject) -> bool:
        known, (rows, columns) = subject.memory, subject.samples.shape
        if known is None or known.tile_rows != tile_height(rows, columns, effort.alone):
            return False
        sizes = [head.shape for head in known.heads]
        return sizes == [network.w3.shape] * -(-rows // known.tile_rows)

    same = memory.volume == previous and len(memory.planes) == len(subjects)
    return same and all(fits(subject) for subject in subjects if subject.highest)


def choose_states(bits: float, tiles: int, loss: float) -> int:
    """How many rANS states a tile has room for, when a plane takes about so many bits, a share of which it may lose."""
    states = 1
    while states < 16 and 2 * states * STATE_BYTES * 8 * tiles <= loss * bits:
        states *= 2
    return states


def survey(parts: Sequence[Part], setting: Setting, threads: int) -> float:
    """Bits of the parts' samples given G."""

    def count(part: Part) -> float:
        upper = part.samples >> setting.k if setting.highest >> setting.k else None
        return count_tile(part.samples, int(part.samples[0, 0]), upper, part.previous, setting, part.head)

    return sum(over_tiles(count, parts, threads))


def choose_predictors(subject: Subject, network: Network, effort: Effort) -> tuple[Setting, int]:
    """Least-squares predictors with the least estimated code length, in an unsplit setting; and their precision."""
    samples = subject.samples.size
    bits = subject.highest.bit_length()
    if subject.memory is not None:
        return Setting(subject.highest, bits, 0, subject.memory.predictors, network, 1, effort.rates[0]), 0
    choices, precision = next((c, p) for limit, c, p in CLASS_CHOICES if samples <= limit)
    fits: dict[int, Fitting] = {}
    settings = []
    for classes, directions in choices if effort.fitted else ((0, 1),):
        if classes and classes not in fits:
            fits[classes] = Fitting.of(subject.samples, subject.previous, classes)
        predictors = no_predictors(subject.previous is not None)
        if classes:
            predictors = fits[classes].predictors(directions, precision)
        settings.append(Setting(subject.highest, bits, 0, predictors, network, 1, effort.rates[0]))
    if len(settings) == 1:
        return settings[0], precision
    parts = subject.parts()
    share = samples / sum(part.samples.size for part in parts)
    costs = [
        survey(parts, one, effort.threads) * share + one.predictors.taps.size * SET_BITS[precision] for one in settings
    ]
    return settings[int(np.argmin(costs))], precision


def choose_network(
    subjects: Sequence[Subject], settings: Sequence[Setting], networks: Sequence[tuple[int, Network]], threads: int
) -> int:
    """Which of (bytes that it costs, network) codes all planes of the frame shortest."""
    if len(networks) == 1:
        return 0
    costs = np.array([8.0 * size for size, _ in networks])
    for subject, setting in zip(subjects, settings, strict=True):
        parts = subject.parts()
        share = subject.samples.size / sum(part.samples.size for part in parts)
        for place, (_, network) in enumerate(networks):
            costs[place] += survey(parts, replace(setting, network=network), threads) * share
    return int(np.argmin(costs))


def choose_split(subject: Subject, setting: Setting, effort: Effort) -> tuple[Setting, float]:
    """k and raw planes of a plane with the least estimated code length, and that in bits.

    `setting` is unsplit. One pass over the parts says what each k would save of the samples; only a k that comes close
    is tried in earnest, with G known to the network.
    """
    parts = subject.parts()
    share = subject.samples.size / sum(part.samples.size for part in parts)
    if effort.split is not None:
        fixed = replace(setting, k=max(1, setting.k - effort.split))
        return fixed, (survey(parts, fixed, effort.threads) + _upper_bits(parts, fixed)) * share
    surveys = over_tiles(
        lambda part: survey_tile(part.samples, int(part.samples[0, 0]), part.previous, setting, part.head),
        parts,
        effort.threads,
    )
    gains, some = np.sum(surveys, axis=0), np.sum(surveys[::2], axis=0)
    whole, bits = float(gains[32]), subject.highest.bit_length()
    rough: dict[int, float] = {}  # share of the code length that a split costs, on half of the parts
    for k in range(bits - 1, max(0, bits - 1 - SPLIT_CHOICES), -1):
        upper = _upper_bits(parts[::2], replace(setting, k=k))
        rough[k] = (upper - float(some[k])) / max(float(some[32]), 1.0)
        if rough[k] > min(rough.values()) + SPLIT_WORSE:
            break
    best, least = setting, whole
    k = min(rough, key=lambda k: rough[k], default=bits)
    if k < bits and rough[k] < SPLIT_CLOSE:
        tried = replace(setting, k=k)
        cost = _upper_bits(parts, tried) + survey(parts, tried, effort.threads)
        best, least = (tried, cost) if cost < whole else (setting, whole)
    costs = gains[32 : 32 + min(RAW_CHOICES, bits)]
    raw = max(r for r in range(len(costs)) if r <= best.k and costs[r] <= whole * (1 + RAW_LOSS))
    return replace(best, raw=raw), least * share


def _upper_bits(parts: Sequence[Part], setting: Setting) -> float:
    """Bits of the parts' G."""
    top = setting.highest >> setting.k
    return sum(count_global(part.samples >> setting.k, top)[0] for part in parts) if top else 0.0


def choose_rate(subject: Subject, setting: Setting, effort: Effort) -> Setting:
    """The rate of the head's learning that codes the whole plane shortest."""
    tried = [replace(setting, rate=rate) for rate in effort.rates]
    if len(tried) == 1:
        return tried[0]
    if subject.memory is not None:
        return setting  # a head that knows the images learns at the first rate
    whole = [Part(subject.samples, subject.previous)]  # it learns all the way down: parts would say little
    costs = over_tiles(lambda one: survey(whole, one, 1), tried, effort.threads)
    return tried[int(np.argmin(costs))]


@dataclass(frozen=True)
class FramePlan:
    """How a frame is coded: which network, how each plane that is not flat; about how many bits that takes."""

    network: int
    choices: tuple[Choice, ...]
    bits: float


def choose(subjects: Sequence[Subject], networks: Sequence[tuple[int, Network]], effort: Effort) -> FramePlan:
    """Choose for the planes of a frame, none of them flat. `networks`: (bytes to name it, network), plain one first."""
    found = [choose_predictors(subject, networks[0][1], effort) for subject in subjects]
    place = choose_network(subjects, [setting for setting, _ in found], networks, effort.threads)
    bytes_named, network = networks[place]
    choices = []
    for subject, (setting, precision) in zip(subjects, found, strict=True):
        best, bits = choose_split(subject, replace(setting, network=network), effort)
        best = choose_rate(subject, best, effort)
        if subject.memory is None:
            bits += setting.predictors.taps.size * SET_BITS[precision]
        rows, columns = subject.samples.shape
        choices.append(Choice(best, precision, tile_height(rows, columns, effort.alone), bits))
    tiles = max((-(-subjects[0].samples.shape[0] // choice.tile_rows) for choice in choices), default=1)
    states = choose_states(min((choice.bits for choice in choices), default=0.0), tiles, STATE_LOSS * effort.states)
    total = 8.0 * bytes_named + sum(choice.bits for choice in choices)
    settled = tuple(replace(choice, setting=replace(choice.setting, states=states)) for choice in choices)
    return FramePlan(place, settled, total)
