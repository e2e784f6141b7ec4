"""Adapters: bytes to networks, whatever the bytes are; and the encoder's fit of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import fit_adapter, fit_pace
from codec.adapter import MATRICES, Adapter, candidates, is_for, materialise, of_scanner, parse
from codec.errors import CorruptBitstream
from codec.fit_adapter import NOTHING, Evidence, _Fit, fit, gather
from codec.fit_pace import LEAST_CODE, LEAST_DELTAS, MOST_CODE, MOST_DELTAS, Pace
from codec.frame import decode_frame, encode_frame
from codec.learneddecode import Setting
from codec.learnedfit import fit_plane
from codec.network import Network
from codec.pixelformat import PixelFormat
from codec.train.bank import Entry, bank_arrays, bank_facts
from codec.train.gradient import Sizes
from codec.train.lowrank import added
from codec.train.release import network_arrays
from codec.train.samples import Shot, View, planes_of, sample_shot
from codec.train.trainer import Plan, Sampled, Trainer
from codec.wave import count_tile
from codec.weights import Weights, add, drop, write_weights
from codec.weights import parse as parse_weights

SIZES = Sizes(74, 12, 10, 3, 6)
KEYS = [["MR", "", ""], ["MR", "HEAD", ""], ["CT", "", ""], ["", "", ""]]
BANK_KEYS = [("MR", "HEAD", "X"), ("CT", "", ""), ("MR", "", "")]
EMPTY = np.zeros(0, np.int8)
UNHURRIED = Pace(MOST_CODE, 120, math.inf)


def texture(seed: int, noise: float, rows: int = 96, columns: int = 80) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    return np.rint(400 + 80 * np.sin(x / 9) * np.cos(y / 11) + rng.normal(0, noise, (rows, columns))).astype(np.uint16)


def shot(seed: int, noise: float) -> Shot:
    words = texture(seed, noise)
    return Shot(f"i{seed}", "s", "MR", words, PixelFormat(*words.shape, 1, 16, 16, 15, False), None)


@pytest.fixture(scope="module")
def weights() -> Iterator[Weights]:
    """Weights of both networks, trained a little on smooth images, as the only ones for profile 'default' here."""
    rng = np.random.default_rng(0)
    images: list[Sampled] = []
    for seed in range(6):
        images += sample_shot(shot(seed, 2.0 + 2 * (seed % 2)), (View(0, 0, 2000),), SIZES.inputs, rng)
    plan = Plan(SIZES, 80, groups=8, samples=64, rate=0.02, check=80)
    values = Trainer(plan, images, []).run(lambda line: None).best
    centres = np.clip(rng.normal(0, 30, (len(KEYS), SIZES.codes)), -127, 127).astype(np.int8)
    arrays = network_arrays("frame", values, centres) | network_arrays("volume", values, centres)
    entries = [Entry(key, centres[3 - place], factors(place, 2), 9, 2, 0.01) for place, key in enumerate(BANK_KEYS)]
    arrays |= bank_arrays("frame", entries)
    facts = {"centres": {"frame": KEYS, "volume": KEYS}, **bank_facts({"frame": entries})}
    yield parse_weights(write_weights("adapters-test", ("default",), arrays, facts))


def same(a: Network, b: Network) -> bool:
    return all(
        (getattr(a, part) == getattr(b, part)).all() for part in ("w1", "b1", "g1", "w2", "b2", "g2", "w3", "b3")
    )


def factors(seed: int, rank: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    rng = np.random.default_rng(seed)
    shapes = ((12, 74), (10, 12), (9, 22))
    return tuple(
        (rng.integers(-128, 128, (o, rank)).astype(np.int8), rng.integers(-128, 128, (rank, i)).astype(np.int8))
        for o, i in shapes
    )


@pytest.mark.parametrize("previous", [False, True])
def test_every_kind_packs_and_parses(weights: Weights, previous: bool) -> None:
    code = np.array([5, -128, 127, 0], np.int8)
    for adapter in (
        Adapter(previous, 3, EMPTY),
        Adapter(previous, None, code),
        Adapter(previous, None, code, factors(1, 2)),
        Adapter(previous, None, EMPTY, factors(2, 8)),
        *([] if previous else [Adapter(False, None, EMPTY, entry=2), Adapter(False, None, code, entry=0)]),
    ):
        found = parse(adapter.pack(), weights)
        assert (found.previous, found.centre, found.entry) == (previous, adapter.centre, adapter.entry)
        assert (found.code == adapter.code).all() and len(found.factors) == len(adapter.factors)
        assert found.pack() == adapter.pack()


def test_no_adapter_and_an_adapter_of_the_other_network_change_nothing(weights: Weights) -> None:
    plain = materialise(weights, b"", False)
    other = Adapter(True, None, np.array([100, -100], np.int8)).pack()
    assert same(materialise(weights, other, False), plain)
    assert not same(materialise(weights, other, True), materialise(weights, b"", True))


def test_a_centre_is_its_code_and_missing_numbers_are_zero(weights: Weights) -> None:
    code = weights.array("frame.centres")[2]
    by_number = materialise(weights, Adapter(False, 2, EMPTY).pack(), False)
    assert same(by_number, materialise(weights, Adapter(False, None, code).pack(), False))
    short = np.array([7, 9], np.int8)
    long = np.array([7, 9, 0, 0, 0, 0], np.int8)
    assert same(
        materialise(weights, Adapter(False, None, short).pack(), False),
        materialise(weights, Adapter(False, None, long).pack(), False),
    )


def test_an_entry_of_the_bank_is_its_code_and_factors(weights: Weights) -> None:
    centres, code = weights.array("frame.centres"), np.array([3, -7, 0, 90, 1, 1], np.int8)
    own = materialise(weights, Adapter(False, None, EMPTY, entry=1).pack(), False)
    assert same(own, materialise(weights, Adapter(False, None, centres[2], factors(1, 2)).pack(), False))
    other = materialise(weights, Adapter(False, None, code, entry=1).pack(), False)
    assert same(other, materialise(weights, Adapter(False, None, code, factors(1, 2)).pack(), False))
    assert not same(own, other) and len(Adapter(False, None, EMPTY, entry=1).pack()) == 2


def test_what_an_adapter_adds(weights: Weights) -> None:
    """The rules of docs/bitstream.md, written out once more with Python's integers."""
    code, deltas = [3, -50, 127, -128, 1, 9], factors(4, 3)
    plain, layers = materialise(weights, b"", False), weights.layers("frame")
    network = materialise(weights, Adapter(False, None, np.array(code, np.int8), deltas).pack(), False)
    basis = weights.array("frame.basis").tolist()
    mixed = [sum(code[j] * basis[j][column] for j in range(6)) for column in range(len(basis[0]))]
    assert network.g1.tolist() == [
        min(max(int(g) + (m >> 6), 0), 255) for g, m in zip(plain.g1, mixed[:12], strict=True)
    ]
    assert network.b1.tolist() == [int(b) + 2 * m for b, m in zip(plain.b1, mixed[12:24], strict=True)]
    assert network.b3.tolist() == [int(b) + 2 * m for b, m in zip(plain.b3, mixed[44:], strict=True)]
    for part, (left, right) in zip(MATRICES, deltas, strict=True):
        added = (left.astype(int) @ right.astype(int) + 32) >> 6
        assert (getattr(network, part) == np.clip(layers[part] + added, -127, 127)).all()


def test_broken_adapters_are_refused(weights: Weights) -> None:
    good = Adapter(False, None, np.array([1, 2], np.int8), factors(5, 2)).pack()
    for bad in (
        b"\4\3",
        b"\4\0" + bytes(7),
        b"\x84\0",
        b"\1",
        b"\0\0",
        b"\1\4",
        b"\1\0\0",
        b"\2" + bytes(7),
        good[:-1],
        good + b"\0",
        b"\4" + good[1:],
    ):
        with pytest.raises(CorruptBitstream):
            parse(bad, weights)
    for rank in (0, 9, 255):
        with pytest.raises(CorruptBitstream):
            parse(good[:4] + bytes([rank]) + good[5:], weights)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_bytes_give_a_network_that_cannot_overflow_or_an_error(weights: Weights, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([0, 1, 2, 3, 4, 129, 130, 131, 132, 200]))
    if kind in (3, 131):
        rank = data.draw(st.integers(1, 2))
        size = rank * sum((12 + 74, 10 + 12, 9 + 22))
        raw = bytes([kind, 1, data.draw(st.integers(0, 255)), rank]) + data.draw(
            st.binary(min_size=size, max_size=size)
        )
    else:
        raw = bytes([kind]) + data.draw(st.binary(max_size=9))
    for previous in (False, True):
        try:
            network = materialise(weights, raw, previous)
        except CorruptBitstream:
            continue
        assert network.fits()
        assert 0 <= min(network.g1.min(), network.g2.min()) <= max(network.g1.max(), network.g2.max()) <= 255


def test_candidates_begin_with_the_closest_prior(weights: Weights) -> None:
    found = [tuple(raw) for raw in candidates(weights, ("MR", "HEAD", "X"), False)]
    assert found == [(4, 0), (4, 2), (1, 1), (1, 0), (1, 3)]
    assert [tuple(raw) for raw in candidates(weights, ("CT", "HEAD", ""), False)] == [(4, 1), (1, 2), (1, 3)]
    assert [raw[1] for raw in candidates(weights, ("PT", "", ""), True)] == [3]
    assert candidates(weights, ("MR", "", ""), True)[0][0] == 128 | 1


def test_unfitted_only_entries_of_this_very_scanner_are_used(weights: Weights) -> None:
    entry = Adapter(False, None, EMPTY, entry=0).pack()
    assert of_scanner(weights, ("MR", "HEAD", "X")) == (entry,)
    for other in (("MR", "HEAD", ""), ("MR", "FOOT", "X"), ("CT", "", ""), ("", "", "")):
        assert of_scanner(weights, other) == ()
    assert is_for(entry, False) and not is_for(entry, True) and not is_for(b"", False)


def test_a_frame_names_an_entry_of_the_bank_where_that_is_shorter(weights: Weights) -> None:
    """Weights whose network alone is bad, and an entry that undoes what was done to it."""
    rng = np.random.default_rng(8)
    arrays = dict(weights.arrays)
    left, right = rng.integers(-90, 91, (12, 1)), rng.integers(-90, 91, (1, 74))
    added_noise = np.clip(arrays["frame.w1"].astype(int) + ((left @ right + 32) >> 6), -127, 127).astype(np.int8)
    entry = Entry(
        ("MR", "", "X"), np.zeros(6, np.int8), tuple((0 * a[:, :1], 0 * b[:1]) for a, b in factors(1, 1)), 9, 1, 0.1
    )
    entry = replace(entry, factors=((-left.astype(np.int8), right.astype(np.int8)), *entry.factors[1:]))
    arrays |= {"frame.w1": added_noise, **bank_arrays("frame", [entry])}
    spoilt = add(write_weights("spoilt-test", ("default",), arrays, bank_facts({"frame": [entry]})))
    try:
        words, fmt = texture(60, 2.0), PixelFormat(96, 80, 1, 16, 16, 15, False)
        plain = encode_frame(words, fmt, coders=("learned",))
        found = encode_frame(words, fmt, coders=("learned",), adapters=of_scanner(spoilt, ("MR", "", "X")))
        assert found.details["adapter"] == 1 and found.details["adapter_bytes"] == 2
        assert len(found.blob) < len(plain.blob)
        assert (decode_frame(found.blob).words == words).all()
    finally:
        drop(spoilt)


def bits_under(weights: Weights, adapter: bytes, image: Shot) -> float:
    plane, highest, _ = planes_of(image)[0]
    predictors = fit_plane(plane, None, 1, 1, 1)
    setting = Setting(highest, highest.bit_length(), 0, predictors, materialise(weights, adapter, False), 1)
    return count_tile(plane, int(plane[0, 0]), None, None, setting)


def test_a_fitted_code_pays_on_images_unlike_those_trained_on(weights: Weights) -> None:
    """Spiky images, where training saw smooth noise."""
    add(weights.data)
    try:
        words = texture(50, 1.0)
        words[np.random.default_rng(2).random(words.shape) < 0.08] += 60
        image = Shot("x", "s", "MR", words, PixelFormat(*words.shape, 1, 16, 16, 15, False), None)
        found = fit([(words, image.fmt, None)], profile="default", prior=("MR", "", ""), seconds=120.0)
    finally:
        drop(weights)
    adapter = found.adapter
    assert adapter and not found.cut
    assert bits_under(weights, adapter, image) + 8 * len(adapter) < bits_under(weights, b"", image)


def test_deltas_are_fitted_to_what_a_code_cannot_say(weights: Weights) -> None:
    words = texture(51, 1.0)
    words[::2] += np.random.default_rng(3).integers(0, 40, words[::2].shape).astype(np.uint16)
    evidence, judged = gather([(words, PixelFormat(*words.shape, 1, 16, 16, 15, False), None)], SIZES.inputs, False, 10)
    assert isinstance(evidence, Evidence)
    task = _Fit(weights, False, evidence, judged, UNHURRIED)
    code = np.zeros(SIZES.codes, np.float32)
    adapter = task._fit_deltas(code, 2).pack()
    assert task._cost(adapter) - 8 * len(adapter) < task._cost(b"") * 0.995


def test_nothing_is_fitted_without_weights_or_samples(weights: Weights) -> None:
    fmt = PixelFormat(32, 32, 1, 16, 16, 15, False)
    flat = np.zeros((32, 32), np.uint16)
    assert fit([(flat, fmt, None)], profile="no such", prior=("", "", ""), seconds=1.0) == NOTHING
    add(weights.data)
    try:
        assert fit([(flat, fmt, None)], profile="default", prior=("", "", ""), seconds=1.0) == NOTHING
        assert fit([], profile="default", prior=("", "", ""), seconds=1.0) == NOTHING
    finally:
        drop(weights)


def test_fitting_computes_with_the_materialised_integers(weights: Weights) -> None:
    """What the fit adds while it learns is what `materialise` adds."""
    evidence, judged = gather(
        [(texture(52, 3.0), PixelFormat(96, 80, 1, 16, 16, 15, False), None)], SIZES.inputs, False, 10
    )
    assert evidence is not None
    task = _Fit(weights, False, evidence, judged, UNHURRIED)
    deltas = factors(6, 2)
    layers = added(task._layers, [part.astype(np.float32) for pair in deltas for part in pair])
    network = materialise(weights, Adapter(False, None, EMPTY, deltas).pack(), False)
    assert all((getattr(layers, part) == getattr(network, part)).all() for part in MATRICES)


def test_a_fit_does_what_its_seconds_are_nominally_worth_whatever_the_clock_says(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Same seconds, same bytes, on a machine of any speed; only one that is too slow is cut, and says so."""
    words = texture(53, 2.0)
    words[::3] += np.random.default_rng(4).integers(0, 30, words[::3].shape).astype(np.uint16)
    frame = (words, PixelFormat(*words.shape, 1, 16, 16, 15, False), None)
    monkeypatch.setattr(fit_adapter, "RANKS", ((1, 1),))
    monkeypatch.setattr(fit_pace, "MOST_CODE", LEAST_CODE)
    monkeypatch.setattr(fit_pace, "MOST_DELTAS", 120)
    add(weights.data)
    try:
        found = []
        for tick in (0.0, 0.01, 0.5):  # seconds that pass each time somebody looks at the clock
            clock = itertools.count(start=100.0, step=tick)
            for module in (fit_adapter, fit_pace):  # theirs alone: other threads look at the clock, too
                monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda clock=clock: next(clock)))
            found.append(fit([frame], profile="default", prior=("MR", "", ""), seconds=6.0))
    finally:
        drop(weights)
    assert found[0].adapter[0] == 3
    assert found[0] == found[1]
    assert [each.cut for each in found] == [False, False, True]
    assert "cut by the clock after 6.0 s" in caplog.text


def test_the_plan_of_a_fit_follows_from_seconds_and_sizes_alone() -> None:
    def plan(seconds: float, seen: int = 1 << 18, weights: int = 9152) -> tuple[int, int]:
        made = Pace.of(seconds, 5.0, seen, 1 << 17, weights)
        assert made.deadline == 5.0 + seconds
        return made.code, made.deltas

    assert plan(0.1) == (0, 0)
    assert plan(1000.0) == (MOST_CODE, MOST_DELTAS)
    plans = [plan(seconds) for seconds in (0.5, 1, 1.5, 2, 2.5, 4)]
    assert plans == sorted(plans) and len(set(plans)) > 3
    assert all((not code or code >= LEAST_CODE) and (not deltas or deltas >= LEAST_DELTAS) for code, deltas in plans)
    assert plan(2.0, seen=4 << 18) < plan(2.0) < plan(2.0, weights=2232)
