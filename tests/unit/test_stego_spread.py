"""One message over a series, and the baselines of the benchmarks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stego import hidden, replacement, spread
from stego.cover import Cover
from stego.errors import CarrierError
from stego.lattice import fingerprint, lattice

KEY = bytes(32)


@given(samples=st.lists(st.integers(0, 1 << 22), min_size=1, max_size=60), share=st.floats(0.0, 1.0))
def test_shares_add_up_follow_the_root_and_keep_the_rate(samples: list[int], share: float) -> None:
    total = int(share * sum(n // 80 for n in samples))
    shares = spread.shares(total, samples)
    assert sum(shares) == total
    assert all(0 <= size <= n // 80 for size, n in zip(shares, samples, strict=True))
    free = [(size, n) for size, n in zip(shares, samples, strict=True) if size < n // 80]
    if free:
        rate = [size / math.sqrt(n) for size, n in free]
        assert max(size - max(rate) * math.sqrt(n) for size, n in free) <= 1e-6
        assert all(
            abs(size - min(rate) * math.sqrt(n)) <= 1 + math.sqrt(n / min(m for _, m in free)) for size, n in free
        )


@given(message=st.binary(max_size=900), samples=st.lists(st.integers(4000, 300_000), min_size=20, max_size=40))
def test_split_and_gather(message: bytes, samples: list[int]) -> None:
    parts = spread.split(message, samples)
    assert spread.gather(parts, samples) == message
    if len(message) > 40:
        with pytest.raises(ValueError):
            spread.gather([parts[0] + b"x", *parts[1:-1], parts[-1][1:]], samples)


def test_limits() -> None:
    with pytest.raises(CarrierError, match="capacity"):
        spread.shares(1000, [40_000, 39_000])
    assert spread.shares(0, [0, 5]) == [0, 0]
    assert spread.budget(512 * 512) == 1638 and spread.budget(4 * 512 * 512) == 3276
    assert spread.budget(4096) == 4096 // 80 and spread.budget(0) == 0
    with pytest.raises(ValueError):
        spread.order([b"a", b"b", b"a"])
    assert spread.order([b"c", b"a", b"b"]) == [1, 2, 0]


def test_a_series_with_air_carries_a_message_and_both_sides_agree() -> None:
    rng = np.random.default_rng(1)
    frames = [np.rint(1000 + 8 * rng.normal(size=(128, 128))).astype(np.int32) for _ in range(5)]
    frames[2][:] = 7  # air
    message = rng.bytes(300)

    def plan(values: list[np.ndarray]) -> tuple[list[int], list[int]]:
        order = spread.order([fingerprint(frame, 12, False, "hidden") for frame in values])
        return order, [spread.effective_samples(values[i]) for i in order]

    order, samples = plan(frames)
    sent = list(frames)
    for i, part in zip(order, spread.split(message, samples), strict=True):
        if part:
            salt = fingerprint(frames[i], 12, False, "hidden")
            sent[i] = hidden.embed(Cover(frames[i], 0, 4095), part, stego_key=KEY, salt=salt).values
    assert sent[2] is frames[2]
    received = [sent[i] for i in (3, 0, 4, 1, 2)]
    order, samples = plan(received)
    parts = []
    for i, size in zip(order, spread.shares(len(message), samples), strict=True):
        salt = fingerprint(received[i], 12, False, "hidden")
        parts.append(hidden.extract(received[i], size, stego_key=KEY, salt=salt) if size else b"")
    assert spread.gather(parts, samples) == message


@given(seed=st.integers(0, 2**32 - 1), method=st.sampled_from(["replacement", "matching"]), share=st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None)
def test_baselines_give_the_message_back(seed: int, method: str, share: float) -> None:
    rng = np.random.default_rng(seed)
    cover = Cover(rng.integers(-8, 8, (37, 41)).astype(np.int32), -8, 7)
    message = rng.bytes(int(share * replacement.capacity(cover)) // 8)
    values = replacement.embed(
        cover, message, stego_key=KEY, salt=b"s", method="matching" if method == "matching" else "replacement"
    )
    assert replacement.extract(values, len(message), stego_key=KEY, salt=b"s") == message
    assert values.min() >= -8 and values.max() <= 7 and np.abs(values - cover.values).max(initial=0) <= 1
    assert np.array_equal(lattice(values), lattice(cover.values))
    if method == "replacement":
        assert np.array_equal(values >> 1, cover.values >> 1)


def test_baselines_refuse_too_much() -> None:
    cover = Cover(np.zeros((16, 16), dtype=np.int32), 0, 1)
    with pytest.raises(CarrierError, match="capacity"):
        replacement.embed(cover, bytes(31), stego_key=KEY, salt=b"s")
    assert replacement.capacity(cover) == 240
