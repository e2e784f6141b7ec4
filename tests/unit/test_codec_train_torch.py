"""Training on torch is training by NumPy: same law, gradients, steps and checkpoints (here on the processor)."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from codec.train import machine
from codec.train.gradient import Floats, Layers, backward, flat, forward, mixture_bits
from codec.train.machine import Machine, Processor, open_machine
from codec.train.trainer import Sampled, State, Trainer, facts_on, mean_bits, rounded
from tests.unit.test_codec_train import SIZES, SMALL, images, random_layers

CLOSE = 2e-5  # of the largest number of an array: float32, sums in another order


@pytest.fixture(scope="module")
def on() -> Machine:
    """torch on the processor."""
    pytest.importorskip("torch", reason="could not import 'torch': training on a device is not at hand")
    from codec.train.torch_machine import TorchMachine

    return TorchMachine("cpu")


def near(one: Floats, other: Floats) -> bool:
    """Whether two arrays are float32 and the same but for rounding."""
    same_kind = one.dtype == other.dtype == np.float32 and one.shape == other.shape
    return same_kind and float(np.abs(one - other).max()) <= CLOSE * float(np.abs(one).max())


def check_gradients(on: Machine) -> None:
    """Outputs of the network are the same whole numbers; code lengths and all gradients are near."""
    rng = np.random.default_rng(9)
    layers, every = random_layers(rng), images(4)
    x = np.stack([one.x[:200, : SIZES.inputs] for one in every[:6]]).astype(np.float32)
    table = np.concatenate([one.facts[:200] for one in every[:6]])
    codes = rng.integers(-60, 61, (6, SIZES.codes)).astype(np.float32)

    def passes(where: Machine) -> list[Floats]:
        there = Layers(**{part.name: where.put(getattr(layers, part.name)) for part in fields(Layers)})
        done = forward(there, where.put(x), where.put(codes), SIZES, where.lib)
        bits, slope = mixture_bits(flat(done.outputs), facts_on(where, table), where.lib)
        parts, by_code = backward(there, done, where.put(codes), slope.reshape(6, 200, -1), SIZES, where.lib)
        return [where.take(one) for one in (done.outputs, bits, slope, by_code, *parts.values())]

    mine, theirs = passes(Processor()), passes(on)
    assert len(mine) == len(theirs) == 13 and (mine[0] == theirs[0]).all()
    assert all(near(one, other) for one, other in zip(mine, theirs, strict=True))


def held_bits(state: State, image: Sampled) -> float:
    """Bits per sample by the whole numbers that would be released."""
    return mean_bits(rounded(state.best), image, np.zeros(SIZES.codes, np.float32), SIZES)


def check_training(on: Machine, head: float) -> None:
    """The same steps: released whole numbers hardly differ (one unit where rounding is on the edge), bits do not."""
    every, plan = images(6), replace(SMALL, head=head)
    mine = Trainer(plan, every[2:], every[:2]).run(lambda line: None)
    theirs = Trainer(plan, every[2:], every[:2], on=on).run(lambda line: None)
    again = Trainer(plan, every[2:], every[:2], on=on).run(lambda line: None)
    assert all((theirs.values[name] == again.values[name]).all() for name in theirs.values)
    assert (mine.step, mine.best_step) == (theirs.step, theirs.best_step) and len(theirs.curve) == 3
    for part in fields(Layers):
        one, other = (getattr(rounded(state.best), part.name) for state in (mine, theirs))
        assert np.abs(one - other).max() <= 1 and (one != other).mean() < 0.01, part.name
    assert held_bits(theirs, every[0]) == pytest.approx(held_bits(mine, every[0]), rel=1e-4)
    assert theirs.bits == pytest.approx(mine.bits, rel=1e-3)


def check_handing_over(on: Machine, folder: Path) -> None:
    """A checkpoint of either goes on on the other."""
    every = images(4)
    whole = Trainer(SMALL, every, every[:1]).run(lambda line: None)

    class Killed(Exception):
        pass

    def kill(line: str) -> None:
        if line.startswith("step 40/"):
            raise Killed

    for first, second in ((Processor(), on), (on, Processor())):
        checkpoint = folder / f"{first.name}.npz"
        with pytest.raises(Killed):
            Trainer(SMALL, every, every[:1], on=first).run(kill, checkpoint)
        lines: list[str] = []
        resumed = Trainer(SMALL, every, every[:1], on=second).run(lines.append, checkpoint)
        assert lines[0] == "resumed at step 39" and resumed.step == 60
        assert all(np.abs(whole.values[name] - resumed.values[name]).max() < 1e-3 for name in whole.values)


def test_gradients(on: Machine) -> None:
    check_gradients(on)


@pytest.mark.parametrize("head", [0.0, 1.0])
def test_training(on: Machine, head: float) -> None:
    check_training(on, head)


def test_handing_over(on: Machine, tmp_path: Path) -> None:
    check_handing_over(on, tmp_path)


def test_an_image_drawn_twice_counts_twice(on: Machine) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    places = np.array([2, 0, 2, 2])
    for where in (Processor(), on):
        got = where.take(where.summed(4, where.put(places), where.put(rows)))
        assert got.tolist() == [[3, 4, 5], [0, 0, 0], [15, 18, 21], [0, 0, 0]]


@pytest.mark.parametrize("found", [True, False])
def test_cuda_is_taken_where_torch_finds_it(on: Machine, found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from codec.train import torch_machine

    monkeypatch.setattr(torch_machine, "has_cuda", lambda: found)
    monkeypatch.setattr(torch_machine, "TorchMachine", lambda name: f"machine {name}")
    assert isinstance(open_machine("cpu"), Processor)
    if found:
        assert [open_machine(name) for name in ("auto", "cuda")] == ["machine cuda"] * 2
    else:
        assert isinstance(open_machine("auto"), Processor)
        with pytest.raises(machine.NoDevice, match="torch finds no CUDA device: install torch with CUDA"):
            open_machine("cuda")
