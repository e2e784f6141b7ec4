"""The bank: low-rank deltas and codes by anatomical prior, learned on top of a trained network and held to a proof.

A key is Modality, Modality and body part, or both and the scanner's model. An entry of a key with images of several
sources must gain on every source that was left out while it was learned, on average; one whose images are all of one
source can only speak for that scanner, and must gain on images of it that were left out. What gains less is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from codec.adapter import Factors
from codec.train.gradient import Floats, Layers, Pass, Sizes, backward, facts_of, flat, forward, mixture_bits
from codec.train.lowrank import Adam, added, by_factors, first_factors, packed
from codec.train.trainer import FLOOR_BITS, PROCESSOR, Sampled, chances, head_step, mean_bits
from codec.weights import BANK

RANK: Final = 2
STEPS: Final = 240
GROUPS, SAMPLES = 16, 128  # images of a step, and samples of each
RATE: Final = 1.0
FORGET: Final = 0.02  # see trainer.Plan
LEAST_IMAGES: Final = 8  # of a key
THIN: Final = 3  # of so many samples one is counted
LEAST_GAIN: Final = 0.0005  # share of the bits that an entry must save where it never learned
HALVES: Final = 2  # parts that images of one source are left out by

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Entry:
    """One entry: its key, int8 code and factors of w1, w2, w3; how many images and sources it learned from, and the
    share of their bits that images it did not learn from gained."""

    key: Key
    code: NDArray[np.int8]
    factors: tuple[Factors, ...]
    images: int
    sources: int
    gain: float


def keys_of(images: Sequence[Sampled]) -> dict[Key, list[int]]:
    """Places of the images by every key that has enough of them."""
    found: dict[Key, list[int]] = {}
    for place, image in enumerate(images):
        parts = [*image.kind.split("|"), "", ""][:3]
        for depth in range(3):
            if parts[depth]:
                key = tuple(part if number <= depth else "" for number, part in enumerate(parts))
                found.setdefault((key[0], key[1], key[2]), []).append(place)
    return {key: places for key, places in sorted(found.items()) if len(places) >= LEAST_IMAGES}


def learn_bank(
    layers: Layers, images: Sequence[Sampled], sizes: Sizes, head: float, seed: int, tell: Callable[[str], None]
) -> list[Entry]:
    """Entries that hold what they promise, in the order of their keys. `layers`: the trained network, whole numbers.

    `images`: as they are, not changed; `head`: rate at which their last layers learn (0: they do not).
    """
    lesson = _Lesson(layers, images, sizes, head)
    kept = []
    for key, places in keys_of(images).items():
        sources = sorted({images[place].source for place in places})
        if len(sources) == 1 and not key[2]:
            continue  # what one scanner shows says nothing about a Modality
        folds = _folds(places, [images[place].source for place in places])
        gains = []
        for out in folds:
            found = lesson.learn([place for place in places if place not in out], seed)
            gains.append(float(np.mean([lesson.gain(found, place) for place in sorted(out)])))
        gain = float(np.mean(gains))
        tell(
            f"bank {' | '.join(part or '-' for part in key)}: {len(places)} images, {len(sources)} sources: {gain:.3%}"
        )
        if gain >= LEAST_GAIN:
            own, *factors = lesson.learn(places, seed)
            kept.append(Entry(key, own.astype(np.int8), packed(factors), len(places), len(sources), gain))
    return kept


def _folds(places: Sequence[int], sources: Sequence[str]) -> list[frozenset[int]]:
    """What is left out, fold by fold: one source after another, or the halves of a single one."""
    names = sorted(set(sources))
    if len(names) > 1:
        return [frozenset(place for place, own in zip(places, sources, strict=True) if own == name) for name in names]
    cut = [round(len(places) * half / HALVES) for half in range(HALVES + 1)]
    return [frozenset(places[first:last]) for first, last in zip(cut[:-1], cut[1:], strict=True)]


class _Lesson:
    """A network that entries are learned for, and all images."""

    def __init__(self, layers: Layers, images: Sequence[Sampled], sizes: Sizes, head: float) -> None:
        self._layers, self._images, self._sizes, self._head = layers, images, sizes, head
        self._none = np.zeros(sizes.codes, np.float32)
        self._counted = [replace(image, x=image.x[::THIN], facts=image.facts[::THIN]) for image in images]
        self._plain = [self._bits(layers, self._none, place) for place in range(len(images))]

    def _bits(self, layers: Layers, code: Floats, place: int) -> float:
        return mean_bits(layers, self._counted[place], code, self._sizes, PROCESSOR, self._head)

    def gain(self, values: Sequence[Floats], place: int) -> float:
        """The share of an image's bits that an entry (whole numbers: code, factors) saves."""
        code, *factors = values
        return 1 - self._bits(added(self._layers, factors), code, place) / self._plain[place]

    def learn(self, places: Sequence[int], seed: int) -> list[Floats]:
        """An entry out of images: whole numbers, its code and its factors."""
        rng = np.random.default_rng(seed)
        own = [self._images[place] for place in places]
        chance, heads = chances(own), np.zeros((len(own), *self._layers.w3.shape), np.float32)
        adam = Adam([self._none.copy(), *first_factors(self._layers, RANK, rng)], RATE)
        for step in range(STEPS):
            chosen = rng.choice(len(own), GROUPS, p=chance)
            heads[chosen[rng.random(GROUPS) < FORGET]] = 0
            code, *factors = adam.whole()
            layers = added(self._layers, factors)
            headed = replace(layers, w3=layers.w3[None] + np.floor(heads[chosen]))
            done, slope, learned = self._pass(headed, [places[number] for number in chosen], code, rng)
            np.add.at(heads, chosen, learned * np.float32(self._head))
            gradient, by_code = backward(headed, done, _rows(code), slope, self._sizes)
            adam.step([by_code.sum(0), *by_factors(gradient, factors)], step / STEPS)
        return adam.whole()

    def _pass(
        self, layers: Layers, places: Sequence[int], code: Floats, rng: np.random.Generator
    ) -> tuple[Pass, Floats, Floats]:
        """A pass over some samples of images, the gradient of their loss by the outputs, what last layers learn."""
        x, facts = [], []
        for image in (self._images[place] for place in places):
            at = rng.integers(0, len(image.x), SAMPLES)
            x.append(image.x[at, : self._sizes.inputs])
            facts.append(image.facts[at])
        done = forward(layers, np.stack(x).astype(np.float32), _rows(code), self._sizes)
        slope = mixture_bits(flat(done.outputs), facts_of(np.concatenate(facts)))[1].reshape(GROUPS, SAMPLES, -1)
        learned = head_step(slope, done.hidden, np)
        share = np.array([1 / (self._plain[place] + FLOOR_BITS) for place in places], np.float32)
        slope *= share[:, None, None] / np.float32(GROUPS * SAMPLES)
        return done, slope, learned


def _rows(code: Floats) -> Floats:
    return np.repeat(code[None], GROUPS, axis=0)


def bank_arrays(name: str, entries: Sequence[Entry]) -> dict[str, NDArray[Any]]:
    """A network's bank as arrays of a weight file; none without entries."""
    if not entries:
        return {}
    rows = [[entry.code, *(part for pair in entry.factors for part in pair)] for entry in entries]
    return {f"{name}.{part}": np.stack(column) for part, column in zip(BANK, zip(*rows, strict=True), strict=True)}


def bank_facts(entries: Mapping[str, Sequence[Entry]]) -> dict[str, Any]:
    """Keys and what the model card says, by network, for the weight file's facts."""
    return {
        "bank": {name: [list(entry.key) for entry in every] for name, every in entries.items()},
        "bank_gains": {
            name: [[entry.images, entry.sources, round(entry.gain, 5)] for entry in every]
            for name, every in entries.items()
        },
    }
