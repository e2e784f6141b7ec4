"""`palimpsest codec train`: from a folder of images to weight files and their model card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from codec.adapter import FRAME, VOLUME
from codec.frame import LEARNING_RATES
from codec.train.bank import Entry, learn_bank
from codec.train.machine import Machine, Processor
from codec.train.release import SIZES, VOLUME_INPUTS, weight_file
from codec.train.samples import View, restore, sample_shot, store
from codec.train.trainer import Parameters, Plan, Sampled, State, Trainer, rounded, widened
from gateway.errors import InvalidInstance
from worker.training import Found, held_sources, read_shots
from worker.training_card import Trained, model_card

SAMPLES = 8000  # of a frame as it is; half as many of the same turned, and split
SPLIT_EVERY, MOST_SPLIT = 3, 6
FIRST_CHANGES, MORE_CHANGES = 3, 5  # of a view, see View.change: each frame has one of the first and two of the others
VOLUME_SHARE = 0.6  # of the steps, for the network with a previous frame: it starts from the other
CARD = "model-card.md"
HEAD = 1.0  # see Plan.head
PLAIN = "t0s0c0"  # ends the names of images that are seen as they are


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how long. steps: of a profile's network for frames."""

    profiles: tuple[str, ...] = ("fast", "default", "max")
    steps: int = 5000
    groups: int = 64
    samples: int = 128
    seed: int = 1
    frames: int = 0  # read at most (0: all)

    def plan(self, profile: str) -> Plan:
        """The plan of a profile's network for frames."""
        head = HEAD if any(LEARNING_RATES[profile]) else 0.0
        return Plan(SIZES[profile], self.steps, self.groups, self.samples, head=head, seed=self.seed)


@dataclass
class Data:
    """Samples of all frames, without and with their previous frame, and where they are from."""

    frames: list[Sampled] = field(default_factory=list)
    volumes: list[Sampled] = field(default_factory=list)
    sources: list[tuple[str, str, str, int]] = field(default_factory=list)  # source, licence, Modality, frames
    skipped: dict[str, int] = field(default_factory=dict)  # files left out, by reason

    def held(self) -> frozenset[str]:
        """Sources that training stops by."""
        return held_sources(Counter({source: count for source, _, _, count in self.sources}))


def read_data(data: Path, out: Path, recipe: Recipe, tell: Callable[[str], None]) -> Data:
    """Samples of all frames below `data`, or those that an earlier run put into `out`."""
    paths = [out / "samples-frame.npz", out / "samples-volume.npz", out / "samples.json"]
    if all(path.exists() for path in paths):
        facts = json.loads(paths[2].read_text("utf-8"))
        tell(f"samples of an earlier run: {paths[0].parent}")
        return Data(restore(paths[0]), restore(paths[1]), [tuple(row) for row in facts["sources"]], facts["skipped"])
    found, got, rng = Found(), Data(), np.random.default_rng(recipe.seed)
    for number, shot in enumerate(read_shots(data, found)):
        if recipe.frames and number >= recipe.frames:
            break
        views = _views(number, rng)
        got.frames += sample_shot(replace(shot, previous=None), views, VOLUME_INPUTS, rng)
        if shot.previous is not None:
            got.volumes += sample_shot(shot, views, VOLUME_INPUTS, rng)
        if number % 20 == 19:
            tell(f"{number + 1} frames read")
    if not got.frames:
        raise InvalidInstance("no-images", "nothing in this folder can be trained on")
    got.sources = [(*key, count) for key, count in sorted(found.frames.items())]
    got.skipped = dict(Counter(found.skipped.values()))
    store(paths[0], got.frames)
    store(paths[1], got.volumes)
    paths[2].write_text(json.dumps({"sources": got.sources, "skipped": got.skipped}), "utf-8")
    return got


def _views(number: int, rng: np.random.Generator) -> list[View]:
    """How the number-th frame is looked at."""
    views = [View(0, 0, SAMPLES), View(1 + number % 7, 0, SAMPLES // 2)]
    for change in (number % FIRST_CHANGES, *(FIRST_CHANGES + (number + step) % MORE_CHANGES for step in (0, 2))):
        views.append(View(int(rng.integers(8)), 0, SAMPLES // 2, 1 + change))
    if number % SPLIT_EVERY == 0:
        views.append(View(0, int(rng.integers(1, MOST_SPLIT)), SAMPLES // 2))
    return views


def train(data: Path, out: Path, recipe: Recipe, tell: Callable[[str], None], on: Machine | None = None) -> list[Path]:
    """Train the recipe's profiles; the weight files in `out`, beside the model card. Resumes what was interrupted.

    `on`: what trains, None: NumPy (codec.train.machine.open_machine); it may be another one than before. Raises
    InvalidInstance when there is nothing to train on.
    """
    machine = on or Processor()
    tell(f"training on {machine.name}")
    out.mkdir(parents=True, exist_ok=True)
    got = read_data(data, out, recipe, tell)
    held = got.held()
    made: list[Path] = []
    trained: list[Trained] = []
    for profile in recipe.profiles:
        networks, facts = _train_profile(profile, got, held, recipe, out, tell, machine)
        banks = _banks(profile, networks, recipe, tell)
        content = weight_file(profile, networks, facts, banks)
        path = out / f"{profile}-{sha256(content).hexdigest()[:8]}.bin"
        path.write_bytes(content)
        made.append(path)
        trained.append(Trained(path.name, sha256(content).hexdigest(), len(content), profile, facts, banks))
        (out / CARD).write_text(model_card(got.sources, held, got.skipped, trained), "utf-8")
    return made


def _train_profile(
    profile: str,
    got: Data,
    held: frozenset[str],
    recipe: Recipe,
    out: Path,
    tell: Callable[[str], None],
    machine: Machine,
) -> tuple[dict[str, tuple[Parameters, Sequence[Sampled]]], dict[str, Any]]:
    """Both networks of a profile, with the images of their codes; and facts for the file and the card."""
    networks: dict[str, tuple[Parameters, Sequence[Sampled]]] = {}
    facts: dict[str, Any] = {"seed": recipe.seed, "device": machine.name}
    plan, start = recipe.plan(profile), None
    for name, images in ((FRAME, got.frames), (VOLUME, got.volumes)):
        learned = [image for image in images if image.source not in held]
        stopped = [image for image in images if image.source in held and image.name.endswith(PLAIN)]
        if not learned:
            break
        if name == VOLUME:
            sizes = plan.sizes._replace(inputs=VOLUME_INPUTS)
            plan = replace(plan, sizes=sizes, steps=max(1, int(recipe.steps * VOLUME_SHARE)))
            start = widened(networks[FRAME][0], plan, len(learned))
        trainer = Trainer(plan, learned, stopped, start, machine)

        state = trainer.run(partial(_prefixed, tell, f"{profile} {name}: "), out / f"checkpoint-{profile}-{name}.npz")
        networks[name] = (state.best, learned)
        facts[name] = _facts(state, plan, learned, stopped)
    return networks, facts


def _banks(
    profile: str,
    networks: Mapping[str, tuple[Parameters, Sequence[Sampled]]],
    recipe: Recipe,
    tell: Callable[[str], None],
) -> dict[str, list[Entry]]:
    """A bank for each network, out of its images as they are."""
    found: dict[str, list[Entry]] = {}
    plan = recipe.plan(profile)
    for name, (values, images) in networks.items():
        sizes = plan.sizes if name == FRAME else plan.sizes._replace(inputs=VOLUME_INPUTS)
        plain = [image for image in images if image.name.endswith(PLAIN)]
        lines = partial(_prefixed, tell, f"{profile} {name}: ")
        found[name] = learn_bank(rounded(values), plain, sizes, plan.head, recipe.seed, lines)
    return found


def _prefixed(tell: Callable[[str], None], prefix: str, line: str) -> None:
    tell(prefix + line)


def _facts(state: State, plan: Plan, learned: Sequence[Sampled], stopped: Sequence[Sampled]) -> Mapping[str, Any]:
    """What the card says of one network."""
    return {
        "sizes": list(plan.sizes), "steps": state.step, "samples_a_step": plan.groups * plan.samples,
        "images": len(learned), "held_images": len(stopped), "samples": sum(len(image.x) for image in learned),
        "best_step": state.best_step, "held_log2_bits": round(state.best_bits, 5), "seconds": round(state.seconds),
        "curve": [[step, round(own, 4), round(other, 4)] for step, own, other in state.curve][-60:],
    }  # fmt: skip
