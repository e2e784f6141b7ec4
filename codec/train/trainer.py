"""Training of one network of a weight file: Adam on the coded law itself, resumable, the same result every time.

By NumPy or torch (codec.train.machine): same draws, same steps, same checkpoints. Sums in another order and other
exponentials make them differ in the last bits of float32.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from codec.train.gradient import (
    CODE_UNIT,
    GAIN_UNIT,
    HIGHEST_GAIN,
    SUM_UNIT,
    WEIGHT_UNIT,
    Facts,
    Floats,
    Layers,
    Sizes,
    backward,
    facts_of,
    flat,
    forward,
    mixture_bits,
)
from codec.train.machine import Machine, Processor

FLOOR_BITS: Final = 0.15  # added to an image's bits per sample before its loss is divided by them
HIGHEST_BIAS: Final = (1 << 17) - 1
UNITS: Final = {
    "w1": WEIGHT_UNIT, "b1": SUM_UNIT, "g1": GAIN_UNIT, "w2": WEIGHT_UNIT, "b2": SUM_UNIT, "g2": GAIN_UNIT,
    "w3": WEIGHT_UNIT, "b3": SUM_UNIT, "basis": 64.0,
}  # fmt: skip
HEAD_SAMPLES: Final = 128  # after which the last layer of an image held out learns
HEAD_LIMIT: Final = 8191 / (1 << 24)  # of the gradient that it learns by
BOUNDS: Final = {"w1": 127, "w2": 127, "w3": 127, "basis": 127, "g1": HIGHEST_GAIN, "g2": HIGHEST_GAIN}

Parameters = dict[str, Floats]


@dataclass(frozen=True)
class Sampled:
    """Samples of one plane: inputs int16[N, I], facts int32[N, 6] (see facts_of); what it is and where it is from."""

    name: str
    source: str
    kind: str  # of the anatomical prior: Modality, body part, model
    x: NDArray[np.int16]
    facts: NDArray[np.int32]


@dataclass(frozen=True)
class Plan:
    """How a network is trained. A step sees `groups` images, `samples` of each."""

    sizes: Sizes
    steps: int = 6000
    groups: int = 64
    samples: int = 128
    rate: float = 3e-3
    dropout: float = 0.4  # of codes, so that the network without one is good
    decay: float = 1e-4  # of codes
    head: float = 0.0  # rate at which images' own last layers learn, in that of the law at R = 8; 0: they have none
    forget: float = 0.005  # share of an image's visits at which its last layer begins anew
    seed: int = 1
    check: int = 500  # steps between checks on the sources held out
    patience: int = 8  # checks without a better one at which training stops
    save: float = 30.0  # seconds between checkpoints


@dataclass
class State:
    """All that a step changes; a checkpoint holds exactly this."""

    step: int
    values: Parameters
    first: Parameters  # Adam's moments
    second: Parameters
    bits: Floats  # running mean of every image's bits per sample, 0 where none was seen
    heads: Floats  # what every image's last layer has learned beside the common one (1/64), [images, outputs, hidden]
    best: Parameters
    best_bits: float
    best_step: int
    curve: list[tuple[int, float, float]] = field(default_factory=list)  # step, training bits, held-out bits
    seconds: float = 0.0  # spent, interrupted runs included


def first_values(plan: Plan, images: int, rng: np.random.Generator) -> Parameters:
    """Parameters before the first step, in real units; `code` [images, codes] among them."""
    i, h1, h2, k, codes = plan.sizes

    def normal(deviation: float, *shape: int) -> Floats:
        return (rng.standard_normal(shape) * deviation).astype(np.float32)

    outputs = np.zeros(3 * k, np.float32)
    outputs[2 * k :] = np.linspace(-1.5, 1.0, k)
    ones = {"g1": np.ones(h1, np.float32), "g2": np.ones(h2, np.float32)}
    return {
        "w1": normal((2 / i) ** 0.5, h1, i), "b1": np.zeros(h1, np.float32),
        "w2": normal((2 / h1) ** 0.5, h2, h1), "b2": np.zeros(h2, np.float32),
        "w3": normal(0.02, 3 * k, h1 + h2), "b3": outputs,
        "basis": normal(0.02, codes, plan.sizes.modulated), "code": normal(0.1, images, codes), **ones,
    }  # fmt: skip


def rounded(values: Parameters, lib: Any = np) -> Layers:
    """Whole numbers of a network's parameters."""

    def whole(name: str) -> Floats:
        scaled = lib.round(values[name] * UNITS[name])
        most = BOUNDS.get(name, HIGHEST_BIAS)
        bounded: Floats = lib.clip(scaled, 0 if name[0] == "g" else -most, most)
        return bounded

    return Layers(**{part.name: whole(part.name) for part in fields(Layers)})


def rounded_codes(codes: Floats, lib: Any = np) -> Floats:
    """Codes in 1/32."""
    whole: Floats = lib.clip(lib.round(codes * CODE_UNIT), -127, 127)
    return whole


PROCESSOR: Final = Processor()


def mean_bits(
    layers: Layers, image: Sampled, code: Floats, sizes: Sizes, on: Machine = PROCESSOR, head: float = 0.0
) -> float:
    """Bits per sample of all of an image's samples under a code [codes] (1/32); layers and code lie on `on`.

    head: rate at which the last layer learns on the way, see Plan.
    """
    lib, total, count = on.lib, 0.0, len(image.x)
    own, step = layers.w3, HEAD_SAMPLES if head else count
    for first in range(0, count, step):
        x = on.put(image.x[None, first : first + step, : sizes.inputs].astype(np.float32))
        done = forward(replace(layers, w3=lib.floor(own)), x, code[None], sizes, lib)
        bits, slope = mixture_bits(flat(done.outputs), facts_on(on, image.facts[first : first + step]), lib)
        total += float(bits.sum())
        if head:
            own = own + head_step(slope[None], done.hidden, lib)[0] * head
    return total / count


def head_step(slope: Floats, hidden: Floats, lib: Any) -> Floats:
    """What a last layer (1/64) learns of samples at R = 8: [G, outputs, hidden], of the gradients of their bits by the
    outputs [G, S, outputs] and the hidden values [G, S, hidden].

    The law adds 2^24 times the gradient, at most HEAD_LIMIT, times the hidden value, to 2^(16 + R) times the weight.
    Its gradients of offsets and widths leave out the ratio of component and scale, which is near 1.
    """
    learned: Floats = lib.swapaxes(lib.clip(slope, -HEAD_LIMIT, HEAD_LIMIT), 1, 2) @ hidden * -1.0
    return learned


def flat_rows(array: Floats) -> Floats:
    """[G, everything else]."""
    return array.reshape(array.shape[0], -1)


def facts_on(machine: Machine, table: NDArray[np.int32]) -> Facts:
    """As facts_of, on a machine."""
    found = facts_of(table)
    return Facts(*(machine.put(getattr(found, part.name)) for part in fields(Facts)))


class Trainer:
    """Trains one network on images; `held` are the images of the sources that it never learns from."""

    def __init__(
        self,
        plan: Plan,
        images: Sequence[Sampled],
        held: Sequence[Sampled],
        start: Parameters | None = None,
        on: Machine = PROCESSOR,
    ) -> None:
        self._plan, self._images, self._held, self._on = plan, images, held, on
        self._rng = np.random.default_rng(plan.seed)
        values = first_values(plan, len(images), self._rng)
        values |= start or {}
        first, second = ({name: np.zeros_like(value) for name, value in values.items()} for _ in range(2))
        zero = np.zeros(len(images), np.float32)
        heads = np.zeros((len(images) if plan.head else 0, *values["w3"].shape), np.float32)
        self.state = self._there(State(0, values, first, second, zero, heads, values, np.inf, 0))
        self._counts = np.array([len(image.x) for image in images])
        self._starts = np.concatenate([[0], np.cumsum(self._counts)[:-1]])
        self._x = on.put(np.concatenate([image.x[:, : plan.sizes.inputs] for image in images]))
        self._facts = facts_on(on, np.concatenate([image.facts for image in images]))
        self._chance = chances(images)

    def run(self, tell: Callable[[str], None], checkpoint: Path | None = None) -> State:
        """Train to the end, from the checkpoint if there is one; returns the state with its best parameters, in
        NumPy arrays."""
        if checkpoint is not None and checkpoint.exists():
            self._load(checkpoint)
            tell(f"resumed at step {self.state.step}")
        saved = began = time.monotonic()
        before = self.state.seconds
        while self.state.step < self._plan.steps and not self._exhausted():
            self._step()
            self.state.seconds = before + time.monotonic() - began
            if self.state.step % self._plan.check == 0 or self.state.step == self._plan.steps:
                self._check(tell)
            if checkpoint is not None and time.monotonic() - saved > self._plan.save:
                self._save(checkpoint)
                saved = time.monotonic()
        if checkpoint is not None:
            self._save(checkpoint)
        return self._here()

    def _moved(self, state: State, move: Callable[[Any], Floats]) -> State:
        groups = ({name: move(value) for name, value in group.items()} for group in (
            state.values, state.first, state.second, state.best))  # fmt: skip
        values, first, second, best = groups
        return replace(
            state, values=values, first=first, second=second, best=best, bits=move(state.bits), heads=move(state.heads)
        )

    def _there(self, state: State) -> State:
        """A state of NumPy arrays on the machine that trains."""
        return self._moved(state, self._on.put)

    def _here(self) -> State:
        """The state in NumPy arrays."""
        return self._moved(self.state, self._on.take)

    def _exhausted(self) -> bool:
        """Whether the sources held out have not gained for too long."""
        return bool(self._held) and self.state.step - self.state.best_step >= self._plan.patience * self._plan.check

    def _draw(self) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
        """Images of a step [groups], places of their samples [groups * samples], and which keep their code."""
        plan = self._plan
        chosen = self._rng.choice(len(self._images), plan.groups, p=self._chance)
        within = self._rng.random((plan.groups, plan.samples)) * self._counts[chosen, None]
        places = (self._starts[chosen, None] + within.astype(np.int64)).ravel()
        kept = (self._rng.random(plan.groups) >= plan.dropout).astype(np.float32)[:, None]
        return chosen, places, kept

    def _step(self) -> None:
        gradient = self._gradient(*self._draw())
        self._adam(gradient)

    def _gradient(self, images: NDArray[np.int64], samples: NDArray[np.int64], coded: Floats) -> Parameters:
        """The gradient of a step's loss by every parameter, in their real units; the images' mean bits are kept."""
        plan, state, sizes, on, lib = self._plan, self.state, self._plan.sizes, self._on, self._on.lib
        chosen, places, kept = on.put(images), on.put(samples), on.put(coded)
        codes = rounded_codes(state.values["code"][chosen], lib) * kept
        layers = self._headed(rounded(state.values, lib), images)
        x = on.rows(self._x, places).reshape(plan.groups, plan.samples, -1)
        done = forward(layers, x, codes, sizes, lib)
        bits, slope = mixture_bits(flat(done.outputs), self._facts.take(places), lib)
        per_image, seen = bits.reshape(plan.groups, -1).mean(1), state.bits[chosen]
        fresh = lib.where(seen > 0, seen * 0.9 + per_image * 0.1, per_image)[on.put(last_of(images))]
        state.bits[chosen] = fresh
        share = 1 / (fresh + FLOOR_BITS) / (plan.groups * plan.samples)
        slope = slope.reshape(plan.groups, plan.samples, -1)
        if plan.head:
            learned = flat_rows(head_step(slope, done.hidden, lib) * plan.head)
            state.heads = state.heads + on.summed(len(self._images), chosen, learned).reshape(state.heads.shape)
        slope = slope * share[:, None, None]
        gradient, by_code = backward(layers, done, codes, slope, sizes, lib)
        scaled = {name: value * UNITS[name] for name, value in gradient.items()}
        code = on.summed(len(self._images), chosen, by_code * kept * CODE_UNIT)
        scaled["code"] = code + plan.decay / (len(self._images) * sizes.codes) * state.values["code"]
        return scaled

    def _headed(self, layers: Layers, images: NDArray[np.int64]) -> Layers:
        """The layers with the last ones of a step's images; some of these are forgotten first."""
        plan, heads, on = self._plan, self.state.heads, self._on
        if not plan.head:
            return layers
        kept = np.ones((len(self._images), 1, 1), np.float32)
        kept[images[self._rng.random(plan.groups) < plan.forget]] = 0
        self.state.heads = heads = heads * on.put(kept)
        return replace(layers, w3=layers.w3[None] + on.lib.floor(heads[on.put(images)]))

    def _adam(self, gradient: Parameters) -> None:
        plan, state = self._plan, self.state
        factor = self._on.shrink(gradient)
        turn = state.step + 1
        rate = plan.rate * min(1.0, turn / 100) * (0.5 * (1 + np.cos(np.pi * state.step / plan.steps)) + 0.01)
        rate = float(rate * np.sqrt(1 - 0.999**turn) / (1 - 0.9**turn))
        fresh: Parameters = {}
        for name, value in gradient.items():
            one, two = state.first[name], state.second[name]
            value *= factor
            one += 0.1 * (value - one)
            two += 0.001 * (value * value - two)
            fresh[name] = state.values[name] - rate * one / (self._on.lib.sqrt(two) + 1e-8)
        state.values = fresh
        state.step = turn

    def _check(self, tell: Callable[[str], None]) -> None:
        state, sizes, on = self.state, self._plan.sizes, self._on
        layers, none = rounded(state.values, on.lib), on.put(np.zeros(sizes.codes, np.float32))
        held = [mean_bits(layers, image, none, sizes, on, self._plan.head) for image in self._held]
        score = float(np.mean(np.log2(np.array(held) + FLOOR_BITS))) if held else 0.0
        bits = on.take(state.bits)
        trained = float(np.mean(np.log2(bits[bits > 0] + FLOOR_BITS)))
        state.curve.append((state.step, trained, score))
        if score < state.best_bits or not held:
            state.best, state.best_bits, state.best_step = state.values, score, state.step
        tell(f"step {state.step}/{self._plan.steps}: log2 bits {trained:.4f}, held out {score:.4f}")

    # --- checkpoints ---

    def _save(self, path: Path) -> None:
        state = self._here()
        groups = {"value": state.values, "first": state.first, "second": state.second, "best": state.best}
        arrays: dict[str, Any] = {f"{g}.{name}": value for g, group in groups.items() for name, value in group.items()}
        facts = {
            "step": state.step, "best_bits": state.best_bits, "best_step": state.best_step, "curve": state.curve,
            "seconds": state.seconds, "rng": self._rng.bit_generator.state, "plan": asdict(self._plan),
        }  # fmt: skip
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        fresh = path.with_suffix(".part")
        with fresh.open("wb") as file:
            np.savez(file, facts=text, bits=state.bits, heads=state.heads, **arrays)
        fresh.replace(path)

    def _load(self, path: Path) -> None:
        with np.load(path) as stored:
            facts = json.loads(stored["facts"].tobytes())
            groups: dict[str, Parameters] = {"value": {}, "first": {}, "second": {}, "best": {}}
            for key in stored.files:
                group, _, name = key.partition(".")
                if name:
                    groups[group][name] = stored[key]
            bits, heads = stored["bits"], stored["heads"]
        if facts["plan"] != json.loads(json.dumps(asdict(self._plan))) or len(bits) != len(self._images):
            raise ValueError(f"{path} is a checkpoint of another training")
        curve = [(int(step), float(a), float(b)) for step, a, b in facts["curve"]]
        self.state = self._there(State(
            facts["step"], groups["value"], groups["first"], groups["second"], bits, heads, groups["best"],
            facts["best_bits"], facts["best_step"], curve, facts["seconds"],
        ))  # fmt: skip
        self._rng.bit_generator.state = facts["rng"]


def last_of(images: NDArray[np.int64]) -> NDArray[np.int64]:
    """For every place of an array the last one that holds the same: of an image drawn twice the last draw counts."""
    last = {int(image): place for place, image in enumerate(images)}
    return np.array([last[int(image)] for image in images])


def chances(images: Sequence[Sampled]) -> NDArray[np.float64]:
    """How often each image is seen: sources with many images of a kind count less for each, as do small images."""
    groups = [(image.source, image.kind.split("|")[0]) for image in images]
    many = {group: groups.count(group) for group in set(groups)}
    weight = np.array(
        [(min(1.0, len(image.x) / 8000) / many[group]) ** 0.5 for group, image in zip(groups, images, strict=True)]
    )
    chance: NDArray[np.float64] = weight / weight.sum()
    return chance


def widened(values: Parameters, plan: Plan, images: int) -> Parameters:
    """First parameters of a network with more inputs out of a trained one's: the new inputs unused, codes 0."""
    more = plan.sizes.inputs - values["w1"].shape[1]
    w1 = np.concatenate([values["w1"], np.zeros((len(values["w1"]), more), np.float32)], axis=1)
    return {**values, "w1": w1, "code": np.zeros((images, plan.sizes.codes), np.float32)}
