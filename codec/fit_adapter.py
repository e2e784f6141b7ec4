"""The encoder's fit of an adapter to an image or a series: gradient descent on the coded law, with a bound on time.

Whatever is fitted competes by code length with its own bytes counted, as the kernel counts it with the head learning:
the head takes over part of what a code could say. How many steps a fit makes follows from the seconds asked for and the
sizes of the images at nominal speeds (codec.fit_pace), not from the clock: the same fit gives the same bytes. NumPy and
the kernels; nothing that decodes imports it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from codec.adapter import FRAME, MATRICES, VOLUME, Adapter, candidates, entry_of, materialise, parse
from codec.bitplane import Words
from codec.fit_pace import BATCH, Pace
from codec.frame import LEARNING_RATES
from codec.learneddecode import Setting, framed
from codec.learnedfit import fit_plane
from codec.learnedplan import CLASS_CHOICES
from codec.network import Network
from codec.pixelformat import PixelFormat
from codec.train.gradient import (
    Facts,
    Floats,
    Layers,
    Pass,
    Sizes,
    backward,
    backward_modulation,
    by_basis,
    facts_of,
    flat,
    forward,
    mixture_bits,
)
from codec.train.lowrank import Adam, added, by_factors, first_factors, packed
from codec.train.samples import MOST_SAMPLES, Shot, blank_network, middle, planes_of
from codec.wave import count_tile, features_tile
from codec.weights import UnknownWeights, Weights, current

log = logging.getLogger(__name__)
FIT_SAMPLES: Final = 20_000  # of an image
SERIES_SAMPLES: Final = 60_000  # of several
JUDGED_SAMPLES: Final = 1 << 17  # that a candidate's cost is counted on, of an image
SERIES_JUDGED: Final = 1 << 19  # of several
CENTRE_SAMPLES: Final = 4096  # that the best centre is chosen by
RATE, DELTA_RATE = 2.0, 2.0  # of Adam, in the integers' units
#: coded bytes from which on low-rank deltas are tried, and their rank: they gain 1 to 4 % and cost 390 bytes a rank
RANKS: Final = ((600_000, 4), (200_000, 2), (25_000, 1))

Frame = tuple[Words, PixelFormat, Words | None]  # words, their format, the frame before
Plane = NDArray[np.int32]


@dataclass(frozen=True)
class FitResult:
    """What a fit found: an adapter, b'' when none is estimated to pay; whether the clock cut the fit."""

    adapter: bytes
    cut: bool = False


NOTHING: Final = FitResult(b"")


@dataclass(frozen=True)
class Evidence:
    """Samples of what is adapted to: inputs float32 [N, I]; counts float32[N], how many samples each stands for."""

    x: Floats
    facts: Facts
    counts: Floats

    def take(self, places: Any) -> Evidence:
        """Some of the samples."""
        return Evidence(self.x[places], self.facts.take(places), self.counts[places])


@dataclass(frozen=True)
class Judged:
    """Rows of a plane that a candidate's cost is counted on: samples, the frame before around them, all but the
    network, and how many samples of the plane each stands for."""

    samples: Plane
    previous: Plane | None
    setting: Setting
    share: float

    def bits(self, network: Network) -> float:
        """What the plane takes under a network."""
        setting = replace(self.setting, network=network)
        return self.share * count_tile(self.samples, int(self.samples[0, 0]), None, self.previous, setting)


def fit(
    frames: Sequence[Frame],
    *,
    profile: str,
    prior: tuple[str, str, str],
    seconds: float,
    threads: int = 1,
    stands_for: int = 0,
) -> FitResult:
    """An adapter for frames that are coded with a profile's weights; an empty one when none is estimated to pay.

    `frames`: all with their previous frame, or the fit is for frames coded without. `prior`: Modality,
    BodyPartExamined, Manufacturer's Model Name, '' unknown. `seconds`: the most that it may take; what it does in them
    is fixed beforehand. `threads` is BLAS's own affair and only kept for callers that count. `stands_for`: of how many
    frames these are a sample (0: of none but themselves).
    """
    started = time.monotonic()
    try:
        weights = current(profile)
    except UnknownWeights:
        return NOTHING
    previous = VOLUME in weights.networks and all(frame[2] is not None for frame in frames)
    name = VOLUME if previous else FRAME
    if not frames or f"{name}.basis" not in weights.arrays:
        return NOTHING
    inputs = weights.array(f"{name}.w1").shape[1]
    evidence, judged = gather(frames, inputs, previous, LEARNING_RATES[profile][0])
    if evidence is None:
        return NOTHING
    times = max(1.0, stands_for / len(frames))
    judged = tuple(replace(one, share=one.share * times) for one in judged)
    matrices = sum(weights.array(f"{name}.{matrix}").size for matrix in MATRICES)
    seen, counted = sum(min(one[0].size, MOST_SAMPLES) for one in frames), sum(one.samples.size for one in judged)
    pace = Pace.of(seconds, started, seen, counted, matrices)
    found = _Fit(weights, previous, evidence, judged, pace).run(prior)
    if pace.cut:
        log.warning("a fit was cut by the clock after %.1f s: another one may give other bytes", seconds)
    return FitResult(found, pace.cut)


def gather(
    frames: Sequence[Frame], inputs: int, previous: bool, rate: int
) -> tuple[Evidence | None, tuple[Judged, ...]]:
    """Samples of all frames to learn from (None when nothing in them is coded), and parts of them to judge by.

    `rate`: at which the head learns.
    """
    many = len(frames) > 1
    wanted = max(1000, SERIES_SAMPLES // len(frames) if many else FIT_SAMPLES)
    judged_size = SERIES_JUDGED // len(frames) if many else JUDGED_SAMPLES
    parts: list[tuple[NDArray[np.int16], Plane, Floats]] = []
    judged: list[Judged] = []
    for words, fmt, before in frames:
        for plane, highest, earlier in planes_of(Shot("", "", "", words, fmt, before if previous else None)):
            if highest < 1:
                continue
            seen = np.ascontiguousarray(middle(plane))
            around = None if earlier is None else framed(np.ascontiguousarray(middle(earlier)), 0, highest)
            choices, precision = next((c, p) for limit, c, p in CLASS_CHOICES if plane.size <= limit)
            predictors = fit_plane(seen, around, *choices[-1], precision)
            setting = Setting(highest, highest.bit_length(), 0, predictors, blank_network(inputs), 1, rate)
            stride = max(1, seen.size // wanted)
            x, facts = features_tile(seen, int(seen[0, 0]), None, around, setting, inputs, stride)
            top = np.full((len(facts), 1), highest, np.int32)
            counts = np.full(len(x), plane.size / max(1, len(x)), np.float32)
            parts.append((x, np.concatenate([facts[:, :5], top], axis=1), counts))
            judged.append(_judged(plane, seen, around, setting, judged_size))
    if not parts:
        return None, ()
    x, table, counts = (np.concatenate([part[place] for part in parts]) for place in range(3))
    return Evidence(x.astype(np.float32), facts_of(table), counts), tuple(judged)


def _judged(plane: Plane, seen: Plane, around: Plane | None, setting: Setting, size: int) -> Judged:
    """Whole rows from the middle of a plane, about `size` samples."""
    rows, columns = seen.shape
    height = min(rows, max(1, size // columns))
    first = (rows - height) // 2
    part = seen[first : first + height]
    before = None if around is None else np.ascontiguousarray(around[first : first + height + 2])
    return Judged(part, before, setting, plane.size / part.size)


@dataclass(frozen=True)
class _Start:
    """What a code is fitted on: layers, a first code, and the entry of the bank that the layers hold."""

    layers: Layers
    code: Floats
    entry: int | None


class _Fit:
    """One network's adapter for one set of samples."""

    def __init__(
        self, weights: Weights, previous: bool, evidence: Evidence, judged: Sequence[Judged], pace: Pace
    ) -> None:
        self._weights, self._previous, self._pace = weights, previous, pace
        self._learned, self._judged = evidence, judged
        name = VOLUME if previous else FRAME
        arrays = weights.layers(name) | {"basis": weights.array(f"{name}.basis")}
        self._layers = Layers(**{part: array.astype(np.float32) for part, array in arrays.items()})
        self._sizes = Sizes(
            self._layers.w1.shape[1], self._layers.w1.shape[0], self._layers.w2.shape[0],
            self._layers.w3.shape[0] // 3, self._layers.basis.shape[0],
        )  # fmt: skip
        self._rng = np.random.default_rng(1)

    def run(self, prior: tuple[str, str, str]) -> bytes:
        """The adapter with the least bits, its own counted."""
        tried = {b"": self._cost(b"")}
        start = _Start(self._layers, np.zeros(self._sizes.codes, np.float32), None)
        known = self._best_known(prior)
        if known:
            tried[known] = self._cost(known)
            if tried[known] < tried[b""]:
                start = self._start(known)
        code = start.code
        if self._pace.code:
            code = self._fit_code(start)
            short = Adapter(self._previous, None, np.rint(code).astype(np.int8), entry=start.entry).pack()
            tried[short] = self._cost(short)
        rank = next((rank for size, rank in RANKS if tried[b""] >= 8 * size), 0)
        if rank and self._pace.deltas and not self._pace.late():
            long = self._fit_deltas(code, rank).pack()
            tried[long] = self._cost(long)
        return min(tried, key=lambda adapter: tried[adapter])

    def _cost(self, adapter: bytes) -> float:
        """Estimated bits of everything under an adapter, its bytes among them."""
        network = materialise(self._weights, adapter, self._previous)
        return sum(one.bits(network) for one in self._judged) + 8 * (len(adapter) + 1 if adapter else 0)

    def _start(self, known: bytes) -> _Start:
        """What an adapter out of the weight file makes of the network, for a fit to go on from."""
        name, parsed = VOLUME if self._previous else FRAME, parse(known, self._weights)
        if parsed.entry is None:
            code = self._weights.array(f"{name}.centres")[parsed.centre or 0]
            return _Start(self._layers, code.astype(np.float32), None)
        own, factors = entry_of(self._weights, name, parsed.entry)
        whole = [part.astype(np.float32) for pair in factors for part in pair]
        return _Start(added(self._layers, whole), own.astype(np.float32), parsed.entry)

    def _best_known(self, prior: tuple[str, str, str]) -> bytes:
        """The adapter out of the weight file that codes some samples shortest, b'' when there is none."""
        some = self._learned.take(self._rng.integers(0, len(self._learned.x), CENTRE_SAMPLES))
        best, least = b"", np.inf
        for adapter in candidates(self._weights, prior, self._previous):
            start = self._start(adapter)
            done = forward(start.layers, some.x[None], start.code[None], self._sizes)
            bits = float((mixture_bits(flat(done.outputs), some.facts)[0] * some.counts).sum())
            if bits < least:
                best, least = adapter, bits
        return best

    def _slope(self, layers: Layers, code: Floats) -> tuple[Pass, Floats]:
        """A forward pass over some samples under a code [1, codes], and the gradient by its outputs."""
        chance = self._rng.integers(0, len(self._learned.x), BATCH)
        part = self._learned.take(chance)
        done = forward(layers, part.x[None], code, self._sizes)
        slope = mixture_bits(flat(done.outputs), part.facts)[1]
        slope *= (part.counts / np.float32(part.counts.sum()))[:, None]
        return done, slope[None]

    def _fit_code(self, start: _Start) -> Floats:
        """The code (1/32) that codes the samples shortest, from a first one."""
        adam = Adam([start.code.copy()], RATE)
        for step in range(self._pace.code):
            if self._pace.late():
                break
            code = adam.values[0]
            done, slope = self._slope(start.layers, np.rint(code)[None])
            mixed = by_basis(backward_modulation(start.layers, done, slope)[0], self._sizes)
            adam.step([(mixed @ self._layers.basis.T)[0]], step / self._pace.code)
        return adam.values[0]

    def _fit_deltas(self, code: Floats, rank: int) -> Adapter:
        """A code and low-rank deltas of all weights, together."""
        adam = Adam([code.copy(), *first_factors(self._layers, rank, self._rng)], DELTA_RATE)
        for step in range(self._pace.deltas):
            if self._pace.late():
                break
            own, *factors = adam.whole()
            layers = added(self._layers, factors)
            done, slope = self._slope(layers, own[None])
            gradient, by_code = backward(layers, done, own[None], slope, self._sizes)
            adam.step([by_code[0], *by_factors(gradient, factors)], step / self._pace.deltas)
        own, *factors = adam.whole()
        return Adapter(self._previous, None, own.astype(np.int8), packed(factors))
