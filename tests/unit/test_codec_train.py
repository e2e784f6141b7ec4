"""Training of the learned coder's networks: the law in float32 is the coded law, and it learns."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from codec.learneddecode import Setting
from codec.learnedfit import fit_plane
from codec.network import Network
from codec.pixelformat import PixelFormat
from codec.train import bank
from codec.train.bank import learn_bank
from codec.train.gradient import Facts, Floats, Layers, Sizes, backward, facts_of, forward, mixture_bits
from codec.train.release import weight_file
from codec.train.samples import Shot, View, changed, planes_of, restore, sample_shot, store, turned
from codec.train.trainer import Plan, Sampled, Trainer, chances, mean_bits, rounded, widened
from codec.wave import count_tile, features_tile
from codec.weights import parse

SIZES = Sizes(68, 10, 9, 3, 5)
SMALL = Plan(SIZES, 60, groups=8, samples=32, rate=0.02, check=20, save=0.0)


def smooth(seed: int, rows: int = 64, columns: int = 48, noise: float = 4.0) -> np.ndarray:
    """A plane of a few waves with noise, uint16."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    wave = sum(np.sin(x * a + y * b + c) for a, b, c in rng.uniform(-0.3, 0.3, (4, 3)))
    return np.rint(wave * 60 + 300 + rng.normal(0, noise, (rows, columns))).astype(np.uint16)


def shot(seed: int, source: str = "a", previous: bool = False, noise: float = 4.0) -> Shot:
    words = smooth(seed, noise=noise)
    before = np.roll(words, 1, axis=0) if previous else None
    return Shot(f"i{seed}", source, "MR|HEAD|M", words, PixelFormat(*words.shape, 1, 16, 16, 15, False), before)


def images(count: int, previous: bool = False, inputs: int = 68) -> list[Sampled]:
    rng = np.random.default_rng(0)
    views = (View(0, 0, 600), View(3, 2, 300))
    return [
        one for seed in range(count) for one in sample_shot(shot(seed, "ab"[seed % 2], previous), views, inputs, rng)
    ]


def random_layers(rng: np.random.Generator, sizes: Sizes = SIZES) -> Layers:
    i, h1, h2, k, codes = sizes

    def whole(low: int, high: int, *shape: int) -> Floats:
        return rng.integers(low, high, shape).astype(np.float32)

    return Layers(
        whole(-30, 31, h1, i), whole(-9000, 9000, h1), whole(20, 200, h1), whole(-30, 31, h2, h1),
        whole(-9000, 9000, h2), whole(20, 200, h2), whole(-30, 31, 3 * k, h1 + h2), whole(-9000, 9000, 3 * k),
        whole(-20, 21, codes, sizes.modulated),
    )  # fmt: skip


def network(layers: Layers) -> Network:
    return Network(**{part.name: getattr(layers, part.name).astype(np.int32) for part in fields(Network)})


def integers(net: Network, x: np.ndarray) -> np.ndarray:
    """The law of docs/bitstream.md, part 2, word for word."""
    sums = x.astype(np.int64) @ net.w1.T + net.b1
    first = np.clip(((sums >> 3) * net.g1) >> 9, 0, 1023)
    sums = first @ net.w2.T + net.b2
    second = np.clip(((sums >> 3) * net.g2) >> 9, 0, 1023)
    return np.asarray(np.concatenate([first, second], axis=-1) @ net.w3.T + net.b3)


def test_forward_is_the_integer_law() -> None:
    rng = np.random.default_rng(3)
    layers = random_layers(rng)
    x = rng.integers(-1023, 1024, (3, 500, SIZES.inputs))
    outputs = forward(layers, x.astype(np.float32), np.zeros((3, SIZES.codes), np.float32), SIZES).outputs
    assert (outputs == integers(network(layers), x)).all()


def random_facts(rng: np.random.Generator, count: int) -> Facts:
    level = rng.integers(0, 1024, count)
    mean = np.clip(level * 64 + rng.normal(0, 300, count), 0, 1023 * 64).astype(np.int32)
    scale = rng.integers(16, 900, count)
    low, high, top = np.zeros(count), np.full(count, 1023), np.full(count, 1023)
    low[::2], high[::2] = level[::2] >> 3 << 3, (level[::2] >> 3 << 3) + 7
    return facts_of(np.stack([level, mean, scale, low, high, top], axis=1).astype(np.int32))


def test_slopes_of_the_mixture_are_those_of_its_bits() -> None:
    rng = np.random.default_rng(5)
    facts, outputs = random_facts(rng, 3000), (rng.normal(0, 1500, (3000, 9))).astype(np.float32)
    _, slope = mixture_bits(outputs, facts)
    for column in range(9):
        step = np.zeros(9, np.float32)
        step[column] = 256  # whole units of all outputs: rounding hides smaller ones
        found = (mixture_bits(outputs + step, facts)[0] - mixture_bits(outputs - step, facts)[0]) / 512
        assert np.corrcoef(found, slope[:, column])[0, 1] > 0.95
        assert np.polyfit(slope[:, column], found, 1)[0] == pytest.approx(1, abs=0.12)


def test_slopes_reach_every_parameter() -> None:
    """The gradient of a linear function of the outputs, against differences; rounding makes both inexact."""
    rng = np.random.default_rng(7)
    layers = random_layers(rng)
    x = rng.integers(-300, 300, (6, 400, SIZES.inputs)).astype(np.float32)
    codes = rng.integers(-30, 30, (6, SIZES.codes)).astype(np.float32)
    slope = rng.normal(0, 1, (6, 400, 9)).astype(np.float32)
    done = forward(layers, x, codes, SIZES)
    gradient, by_code = backward(layers, done, codes, slope, SIZES)

    def total(changed: Layers, code: Floats) -> float:
        return float((forward(changed, x, code, SIZES).outputs.astype(np.float64) * slope).sum())

    for part, value in gradient.items():
        direction = np.sign(value) * (4 if part[0] in "wgb" and part != "basis" else 1)
        direction *= 64 if part[0] == "b" and part != "basis" else 1
        more = total(replace(layers, **{part: getattr(layers, part) + direction}), codes)
        less = total(replace(layers, **{part: getattr(layers, part) - direction}), codes)
        expected = 2 * float((value * direction).sum())
        assert more - less == pytest.approx(expected, rel=0.35), part
    direction = np.sign(by_code) * 2
    change = total(layers, codes + direction) - total(layers, codes - direction)
    assert change == pytest.approx(2 * float((by_code * direction).sum()), rel=0.35)


@pytest.mark.parametrize("split", [0, 3])
def test_bits_are_those_of_the_kernel(split: int) -> None:
    plane = smooth(11).astype(np.int32)
    plane -= plane.min()
    highest = int(plane.max())
    predictors = fit_plane(plane, None, 3, 3, 1)
    layers = rounded(Trainer(SMALL, images(2), []).state.values)
    k = highest.bit_length() - split
    setting = Setting(highest, k, 0, predictors, network(layers), 1)
    bits = count_tile(plane, int(plane[0, 0]), plane >> k, None, setting)
    x, facts = features_tile(plane, int(plane[0, 0]), plane >> k, None, setting, SIZES.inputs, 1)
    facts = np.concatenate([facts[:, :5], np.full((len(facts), 1), highest, np.int32)], axis=1)
    mine = mean_bits(layers, Sampled("", "", "", x, facts), np.zeros(SIZES.codes, np.float32), SIZES)
    assert len(x) == plane.size
    assert mine * plane.size == pytest.approx(bits, rel=2e-3)


def test_training_learns_and_is_the_same_every_time() -> None:
    every = images(6)
    lines: list[str] = []
    first = Trainer(SMALL, every, every[:2]).run(lines.append)
    assert first.step == 60 and len(lines) == 3
    before = rounded(Trainer(SMALL, every, []).state.values)
    none = np.zeros(SIZES.codes, np.float32)
    after = rounded(first.best)
    assert mean_bits(after, every[0], none, SIZES) < mean_bits(before, every[0], none, SIZES) - 0.1
    second = Trainer(SMALL, every, every[:2]).run(lines.append)
    assert all((first.best[name] == second.best[name]).all() for name in first.best)


def test_training_resumes_where_it_was_killed(tmp_path: Path) -> None:
    every, checkpoint = images(4), tmp_path / "c.npz"
    whole = Trainer(SMALL, every, every[:1]).run(lambda line: None)

    class Killed(Exception):
        pass

    def kill(line: str) -> None:
        raise Killed

    with pytest.raises(Killed):
        Trainer(SMALL, every, every[:1]).run(kill, checkpoint)
    lines: list[str] = []
    resumed = Trainer(SMALL, every, every[:1]).run(lines.append, checkpoint)
    assert lines[0].startswith("resumed at step")
    assert all((whole.values[name] == resumed.values[name]).all() for name in whole.values)
    with pytest.raises(ValueError, match="another training"):
        Trainer(replace(SMALL, seed=2), every, every[:1]).run(lines.append, checkpoint)


def test_last_layers_of_images_learn_as_in_the_law() -> None:
    """What an image gains by its own last layer in training's sums is about what it gains in the kernel."""
    plane = smooth(21, 160, 128, noise=9.0).astype(np.int32)
    plane -= plane.min()
    highest, none = int(plane.max()), np.zeros(SIZES.codes, np.float32)
    every = images(4)
    layers = rounded(Trainer(SMALL, every, []).run(lambda line: None).best)
    predictors = fit_plane(plane, None, 4, 1, 3)
    setting = Setting(highest, highest.bit_length(), 0, predictors, network(layers), 1)
    x, facts = features_tile(plane, 0, None, None, setting, SIZES.inputs, 1)
    image = Sampled("i", "s", "MR", x, np.concatenate([facts[:, :5], np.full((len(x), 1), highest)], axis=1))
    own = [mean_bits(layers, image, none, SIZES, head=head) * len(x) for head in (0.0, 1.0)]
    kernel = [count_tile(plane, 0, None, None, replace(setting, rate=rate)) for rate in (0, 8)]
    assert kernel[0] - kernel[1] > 0.004 * kernel[0]
    assert own[0] - own[1] == pytest.approx(kernel[0] - kernel[1], rel=0.25)


def test_training_with_last_layers_of_images_is_resumed_exactly(tmp_path: Path) -> None:
    every, plan, lines = images(3), replace(SMALL, head=1.0, forget=0.1), list[str]()
    whole = Trainer(plan, every, every[:1]).run(lines.append)
    assert np.abs(whole.heads).max() > 1 and len(whole.heads) == len(every)

    def kill(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(plan, every, every[:1]).run(kill, tmp_path / "c.npz")
    resumed = Trainer(plan, every, every[:1]).run(lines.append, tmp_path / "c.npz")
    assert (whole.heads == resumed.heads).all()
    assert all((whole.best[name] == resumed.best[name]).all() for name in whole.best)


def test_training_stops_when_the_sources_held_out_gain_no_more() -> None:
    every = images(2)
    plan = replace(SMALL, steps=400, rate=0.0, patience=2)
    assert Trainer(plan, every, every).run(lambda line: None).step == 60


def test_the_network_with_a_previous_frame_starts_from_the_other() -> None:
    frame = Trainer(SMALL, images(2), []).state.values
    plan = replace(SMALL, sizes=SIZES._replace(inputs=83))
    volume = images(2, previous=True, inputs=83)
    wide = rounded(widened(frame, plan, len(volume)))
    none = np.zeros(SIZES.codes, np.float32)
    assert wide.w1.shape == (10, 83)
    assert mean_bits(wide, volume[0], none, plan.sizes) == mean_bits(rounded(frame), volume[0], none, SIZES)


def test_weight_file_has_both_networks_and_centres_by_prior() -> None:
    every = images(6)
    values = Trainer(SMALL, every, []).run(lambda line: None).best
    weights = parse(weight_file("fast", {"frame": (values, every)}, {"seed": 1}))
    assert weights.networks == ("frame",)
    keys = weights.facts["centres"]["frame"]
    assert keys[:3] == [["MR", "", ""], ["MR", "HEAD", ""], ["MR", "HEAD", "M"]]
    assert weights.array("frame.centres").shape == (len(keys), SIZES.codes)
    assert (weights.array("frame.w1") == rounded(values).w1).all()


def test_samples_are_kept_in_a_file(tmp_path: Path) -> None:
    every = images(3)
    store(tmp_path / "s.npz", every)
    again = restore(tmp_path / "s.npz")
    assert [one.name for one in again] == [one.name for one in every]
    assert all((a.x == b.x).all() and (a.facts == b.facts).all() for a, b in zip(every, again, strict=True))


def test_samples_of_colour_and_of_a_previous_frame() -> None:
    words = np.stack([smooth(1), smooth(2), smooth(3)], axis=-1)
    colour = Shot("c", "s", "US", words, PixelFormat(*words.shape[:2], 3, 16, 16, 15, False), words)
    found = planes_of(colour)
    assert len(found) == 3
    assert all(plane.min() >= 0 and plane.max() <= highest for plane, highest, _ in found)
    assert all(earlier is not None and (earlier == plane).all() for plane, _, earlier in found)
    assert planes_of(shot(1))[0][2] is None


def test_eight_orientations() -> None:
    plane = np.arange(6, dtype=np.int32).reshape(2, 3)
    assert len({turned(plane, turn).tobytes() + bytes(turned(plane, turn).shape) for turn in range(8)}) == 8


@pytest.mark.parametrize("change", range(1, 9))
def test_changed_views_are_other_images_in_the_same_range(change: int) -> None:
    plane, highest, earlier = planes_of(shot(4, previous=True))[0]
    rng = np.random.default_rng(1)
    seen = changed(plane, change, highest, rng)
    assert seen.dtype == np.int32 and seen.min() >= 0 and seen.max() <= highest
    assert seen.shape == ((32, 24) if change == 1 else plane.shape)
    (image,) = sample_shot(shot(4, previous=True), (View(2, 0, 500, change),), 90, rng)
    assert image.name.endswith(f"c{change}") and len(image.x) > 100
    assert (image.facts[:, 0] <= image.facts[:, 5]).all()


def test_many_images_of_a_source_count_less_each() -> None:
    every = [replace(one, x=one.x[:100]) for one in images(1)]
    few, many = replace(every[0], source="few"), [replace(every[0], source="many")] * 9
    chance = chances([few, *many])
    assert chance.sum() == pytest.approx(1)
    assert chance[0] == pytest.approx(3 * chance[1])


def bank_images(count: int, source: str, model: str, spikes: int) -> list[Sampled]:
    """Images whose rows are not alike, as those of no other key."""
    rng, found = np.random.default_rng(len(source) + spikes), list[Sampled]()
    for seed in range(count):
        words = smooth(100 + seed, noise=2.0)
        words[::2] += rng.integers(0, spikes, words[::2].shape).astype(np.uint16)
        one = Shot(
            f"b{seed}", source, f"CT|CHEST|{model}", words, PixelFormat(*words.shape, 1, 16, 16, 15, False), None
        )
        found += sample_shot(one, (View(0, 0, 2000),), SIZES.inputs, rng)
    return found


def parts(entry: bank.Entry) -> list[np.ndarray]:
    return [part for pair in entry.factors for part in pair]


def test_a_bank_keeps_what_holds_for_images_that_were_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "STEPS", 60)
    layers = rounded(Trainer(SMALL, images(4), []).run(lambda line: None).best)
    every = [*bank_images(5, "one", "A", 40), *bank_images(5, "two", "A", 40)]
    every += [replace(image, kind="MR||B", source="three") for image in images(5)]
    lines: list[str] = []
    found = learn_bank(layers, every, SIZES, 1.0, 1, lines.append)
    again = learn_bank(layers, every, SIZES, 1.0, 1, lines.append)
    told = [line.split(":")[0] for line in lines[: len(lines) // 2]]
    assert told[:3] == ["bank CT | - | -", "bank CT | CHEST | -", "bank CT | CHEST | A"]
    assert "bank MR | - | -" not in told  # one source: nothing to say about a Modality
    kept = {entry.key: entry for entry in found}
    assert kept["CT", "CHEST", "A"].sources == 2 and kept["CT", "", ""].gain > 0.01
    assert all(
        (one.code == other.code).all() and all((a == b).all() for a, b in zip(parts(one), parts(other), strict=True))
        for one, other in zip(found, again, strict=True)
    )

    values = Trainer(SMALL, every, []).state.values
    weights = parse(weight_file("default", {"frame": (values, every)}, {}, {"frame": found}))
    assert weights.facts["bank"]["frame"] == [list(entry.key) for entry in found]
    assert weights.entries("frame") == len(found)


def test_folds_are_sources_or_the_halves_of_one() -> None:
    assert bank._folds([3, 5, 8], ["b", "a", "b"]) == [{5}, {3, 8}]
    assert bank._folds([3, 5, 8, 9], ["a"] * 4) == [{3, 5}, {8, 9}]
