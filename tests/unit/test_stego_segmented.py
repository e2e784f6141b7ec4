"""stego.segmented: three readings of one stego image, over every pixel format, and what may never change."""

from __future__ import annotations

import os
import random
from collections import Counter
from itertools import permutations
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from codec.bitplane import LevelTable, choose_levels, join_words, sign_extension, split_words
from codec.pixelformat import PixelFormat
from stego import localplane, segmented
from stego.errors import CarrierError
from stego.positions import _shuffle, permutation

KEY, SALT = bytes(range(32)), bytes(16)
GOLDEN = [12, 6, 13, 1, 11, 14, 4, 0, 7, 2, 9, 3, 15, 8, 5, 10]


def ct_like(rows: int = 128, columns: int = 160, seed: int = 5) -> tuple[NDArray[np.uint16], PixelFormat, LevelTable]:
    """A noisy disc in constant air, 12 of 16 bits, unsigned."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    disc = (y - rows / 2) ** 2 / (rows / 2.2) ** 2 + (x - columns / 2) ** 2 / (columns / 2.2) ** 2 < 1
    words = np.where(disc, 1000 + x + rng.normal(0, 12, (rows, columns)), 24).astype(np.uint16)
    fmt = PixelFormat(rows, columns, 1, 16, 12, 11, False)
    return words, fmt, choose_levels(split_words(words, fmt)[0])


@st.composite
def frames(draw: st.DrawFn) -> tuple[NDArray[np.uint16] | NDArray[np.uint8], PixelFormat, LevelTable]:
    """Any grey frame with a table of levels that holds it, sign extension in the unused bits or noise."""
    allocated = draw(st.sampled_from((8, 16)))
    stored = draw(st.integers(1, allocated))
    high = draw(st.integers(stored - 1, allocated - 1))
    rows, columns = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    fmt = PixelFormat(rows, columns, 1, allocated, stored, high, draw(st.booleans()))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    low = -(1 << (stored - 1)) if fmt.signed else 0
    spread = draw(st.sampled_from((2, 5, 40, 1 << stored)))
    middle = int(rng.integers(low, low + (1 << stored)))
    values = np.clip(rng.integers(middle - spread, middle + spread, fmt.shape), low, low + (1 << stored) - 1)
    values = values.astype(np.int32)
    unused = {
        "none": None,
        "sign": sign_extension(values, fmt),
        "noise": rng.integers(0, 65536, fmt.shape).astype(np.uint16) & np.uint16(~fmt.mask & 0xFFFF),
    }[draw(st.sampled_from(("none", "sign", "noise")))]
    words = join_words(values, None if unused is None else unused & np.uint16((1 << allocated) - 1), fmt)
    values = split_words(words, fmt)[0]
    used = np.unique(values).astype(np.int32)
    dense = LevelTable(int(used[0]), int(used[-1] - used[0]) + 1)
    return words, fmt, draw(st.sampled_from((dense, LevelTable(int(used[0]), used.size, used))))


@settings(max_examples=250, deadline=None)
@given(frames(), st.data())
def test_all_three_readings(frame: tuple[NDArray[np.uint16], PixelFormat, LevelTable], data: st.DataObject) -> None:
    words, fmt, levels = frame
    before = words.copy()
    capacity = segmented.suitability(words, fmt, levels, 1).capacity
    if capacity < 8:
        with pytest.raises(CarrierError):
            segmented.embed(words, fmt, levels, b"x", stego_key=KEY, salt=SALT)
        return
    message = data.draw(st.binary(min_size=1, max_size=capacity // 8))
    start = data.draw(st.one_of(st.none(), st.integers(0, capacity - 8 * len(message))))
    done = segmented.embed(words, fmt, levels, message, stego_key=KEY, salt=SALT, start=start)
    at = (done.start, done.nbits)
    assert done.words.dtype == words.dtype and done.words.shape == words.shape
    assert np.array_equal(words, before), "the cover was changed in place"
    assert segmented.extract(done.words, fmt, levels, *at, stego_key=KEY, salt=SALT) == message
    assert np.array_equal(segmented.exact(done.words, fmt, levels, done.bitmap, *at), words)
    assert segmented.untouched(done.words, fmt, levels, *at) == segmented.untouched(words, fmt, levels, *at)
    assert segmented.suitability(done.words, fmt, levels, 1).capacity == capacity
    check_legal(words, done.words, fmt, levels)


def check_legal(cover: NDArray[np.uint16], stego: NDArray[np.uint16], fmt: PixelFormat, levels: LevelTable) -> None:
    """Only levels of the table, no change in unused bits, no changed sign, extremes and flat areas untouched."""
    (old, old_unused), (new, new_unused) = split_words(cover, fmt), split_words(stego, fmt)
    assert np.array_equal(old_unused, new_unused)  # None equals None
    assert np.array_equal(old < 0, new < 0)
    index, changed = levels.rank(old), levels.rank(old) != levels.rank(new)
    assert np.array_equal(index >> 1, levels.rank(new) >> 1)
    assert not changed[(index < 2) | (index >> 1 == (levels.count - 1) >> 1)].any()


def test_the_window_avoids_air_and_is_raw() -> None:
    words, fmt, levels = ct_like()
    found = segmented.suitability(words, fmt, levels, 4096)
    assert found.ok and found.reason == "ok" and found.entropy >= segmented.RAW_ENTROPY
    done = segmented.embed(words, fmt, levels, os.urandom(512), stego_key=KEY, salt=SALT)
    assert done.start == found.start
    assert (done.words[words == 24] == 24).all()
    assert 4096 * 0.45 < np.count_nonzero(done.words != words) < 4096 * 0.55
    old, new = (levels.rank(split_words(each, fmt)[0]).astype(int) for each in (words, done.words))
    assert np.abs(old - new).max() == 1


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: np.full((64, 64), 7), "capacity"),
        (lambda: np.mgrid[:64, :64][1] * 64, "modelled"),
        (lambda: np.random.default_rng(1).integers(0, 2, (64, 64)), "capacity"),
        (lambda: np.random.default_rng(1).integers(0, 4096, (8, 8)), "capacity"),
    ],
    ids=["flat", "ramp", "binary", "tiny"],
)
def test_frames_without_room_say_why(make: object, reason: str) -> None:
    words = make().astype(np.uint16)  # type: ignore[operator]
    fmt = PixelFormat(*words.shape, 1, 16, 12, 11, False)
    levels = LevelTable(0, 4096)
    assert segmented.suitability(words, fmt, levels, 1024).reason == reason


def test_colour_is_refused_but_hashed() -> None:
    fmt = PixelFormat(4, 4, 3, 8, 8, 7, False)
    words = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    levels = choose_levels(words.astype(np.int32))
    assert segmented.suitability(words, fmt, levels, 8).reason == "colour"
    with pytest.raises(CarrierError, match="colour"):
        segmented.embed(words, fmt, levels, b"x", stego_key=KEY, salt=SALT)
    one = segmented.untouched(words, fmt, levels)
    words[0, 0, 0] ^= 1
    assert segmented.untouched(words, fmt, levels) != one


def test_a_description_that_does_not_fit_is_a_typed_error() -> None:
    words, fmt, levels = ct_like()
    done = segmented.embed(words, fmt, levels, bytes(64), stego_key=KEY, salt=SALT)
    at = (done.start, done.nbits)
    for start, nbits in ((-1, 512), (0, 0), (0, -8), (2**40, 512), (0, 2**40), (10**6, 8)):
        with pytest.raises(CarrierError):
            segmented.exact(done.words, fmt, levels, done.bitmap, start, nbits)
        with pytest.raises(CarrierError):
            segmented.extract(done.words, fmt, levels, start, nbits, stego_key=KEY, salt=SALT)
    for bitmap in (b"", done.bitmap[:-1], done.bitmap + b"\0"):
        with pytest.raises(CarrierError, match="bitmap"):
            segmented.exact(done.words, fmt, levels, bitmap, *at)
    with pytest.raises(CarrierError, match="levels"):
        segmented.exact(done.words, fmt, LevelTable(500, 20), done.bitmap, *at)
    with pytest.raises(CarrierError, match="levels"):
        segmented.exact(done.words[:-1], fmt, levels, done.bitmap, *at)
    with pytest.raises(CarrierError, match="window"):
        segmented.extract(done.words, fmt, levels, 0, 511, stego_key=KEY, salt=SALT)


def test_a_wrong_key_or_salt_reads_noise() -> None:
    words, fmt, levels = ct_like()
    message = bytes(256) + b"\xff" * 256
    done = segmented.embed(words, fmt, levels, message, stego_key=KEY, salt=SALT)
    for key, salt in ((bytes(32), SALT), (KEY, b"x" * 16)):
        read = segmented.extract(done.words, fmt, levels, done.start, done.nbits, stego_key=key, salt=salt)
        ones = np.unpackbits(np.frombuffer(read, np.uint8))
        assert 0.4 < ones[:2048].mean() < 0.6 and 0.4 < ones[2048:].mean() < 0.6


def test_untouched_binds_every_other_bit() -> None:
    words, fmt, levels = ct_like(24, 24)
    done = segmented.embed(words, fmt, levels, bytes(8), stego_key=KEY, salt=SALT, start=3)
    whole = segmented.untouched(done.words, fmt, levels, 3, 64)
    values, _ = split_words(words, fmt)
    inside = set(localplane.eligible_positions(levels.rank(values), levels)[3:67].tolist())
    for at in range(words.size):
        altered = done.words.copy()
        altered.reshape(-1)[at] ^= 1 << 15  # an unused bit
        assert segmented.untouched(altered, fmt, levels, 3, 64) != whole
        altered = done.words.copy()
        index = levels.rank(values).reshape(-1)[at]
        if index < 2 or at in inside:
            continue
        altered.reshape(-1)[at] = levels.value(np.array([index - 1], np.uint16))[0]
        if not np.array_equal(altered, done.words):
            assert segmented.untouched(altered, fmt, levels, 3, 64) != whole
    assert segmented.untouched(done.words, fmt, levels, 4, 64) != whole


def test_embedded_bits_look_uniform_whatever_the_message() -> None:
    """The carried segment of a uniform (sealed) message: frequency, serial and runs tests at 5 s.d."""
    words, fmt, levels = ct_like()
    bits, rng = [], random.Random(3)  # of 40 bitmaps and all else, one in 40,000 runs would be beyond
    for i in range(40):
        message, key = rng.randbytes(512), rng.randbytes(32)
        done = segmented.embed(words, fmt, levels, message, stego_key=key, salt=bytes([i]) * 16)
        values, _ = split_words(done.words, fmt)
        index = levels.rank(values)
        places = localplane.eligible_positions(index, levels)[done.start : done.start + done.nbits]
        bits.append(index.reshape(-1)[places] & 1)
        flips = np.unpackbits(np.frombuffer(done.bitmap, np.uint8))
        assert abs(flips.mean() - 0.5) < 5 * 0.5 / 64  # the bitmap tells nothing either
    series = np.concatenate(bits).astype(np.int64)
    n = series.size
    assert abs(series.sum() - n / 2) < 5 * np.sqrt(n) / 2
    assert abs((series[1:] ^ series[:-1]).sum() - n / 2) < 5 * np.sqrt(n) / 2
    pairs = np.bincount(series[:-2] * 4 + series[1:-1] * 2 + series[2:], minlength=8)
    assert ((pairs - n / 8) ** 2 / (n / 8)).sum() < 60
    columns = np.stack(bits).mean(axis=0)
    assert np.abs(columns - 0.5).max() < 6 * 0.5 / np.sqrt(40)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3000), st.binary(min_size=32, max_size=32), st.binary(max_size=20))
def test_permutations_are_permutations(n: int, key: bytes, salt: bytes) -> None:
    items = permutation(n, stego_key=key, salt=salt)
    assert items.dtype == np.uint32 and np.array_equal(np.sort(items), np.arange(n))


def test_permutations_are_uniform_over_keys() -> None:
    seen = Counter(tuple(permutation(4, stego_key=i.to_bytes(32), salt=SALT).tolist()) for i in range(4800))
    assert set(seen) == set(permutations(range(4)))
    expected = 4800 / factorial(4)
    assert sum((n - expected) ** 2 / expected for n in seen.values()) < 70  # 23 degrees of freedom, deterministic


def test_the_permutation_stands_still() -> None:
    """Golden: a change here loses every embedded record."""
    assert permutation(16, stego_key=KEY, salt=SALT).tolist() == GOLDEN


def test_rejection_skips_draws_that_would_bias() -> None:
    draws = np.array([2**32 - 1, 0, 2**32 - 1, 1], np.uint32)
    items = np.arange(3, dtype=np.uint32)
    # 2^32 mod 3 = 1, so the top value is rejected for i = 2; 2^32 mod 2 = 0, so it is taken for i = 1.
    assert _shuffle(items, draws) and items.tolist() == [2, 1, 0]
    assert not _shuffle(np.arange(3, dtype=np.uint32), draws[:1])


def test_a_stream_that_runs_out_is_prolonged(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = permutation(500, stego_key=KEY, salt=SALT)
    monkeypatch.setattr("stego.positions._SPARE_DRAWS", -400)
    assert np.array_equal(permutation(500, stego_key=KEY, salt=SALT), whole)


def test_eligible_positions_by_hand() -> None:
    idx = np.array([[0, 2, 2, 2, 2], [2, 2, 2, 2, 2], [4, 5, 2, 2, 2]], np.uint16)
    assert localplane.eligible_positions(idx, LevelTable(0, 6)).tolist() == [1, 5, 6, 7, 12]
    assert localplane.eligible_positions(idx, LevelTable(0, 8)).tolist() == [1, 5, 6, 7, 10, 11, 12]
    assert localplane.eligible_positions(idx, LevelTable(-3, 8)).tolist() == [10, 11]  # levels -1 and 0 share pair 1


def test_eligible_positions_agree_with_plain_python() -> None:
    rng = np.random.default_rng(9)
    for _ in range(20):
        rows, columns, count = (int(n) for n in rng.integers(1, 14, 3))
        idx = rng.integers(0, count, (rows, columns)).astype(np.uint16)
        minimum = int(rng.integers(-8, 3))
        places = np.ndindex(rows, columns)
        expected = [y * columns + x for y, x in places if plainly_eligible(idx, y, x, minimum, count)]
        assert localplane.eligible_positions(idx, LevelTable(minimum, count)).tolist() == expected


def plainly_eligible(idx: NDArray[np.uint16], y: int, x: int, minimum: int, count: int) -> bool:
    pair = idx[y, x] >> 1
    low = minimum + 2 * int(pair)
    around = idx[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] >> 1
    return bool(0 < pair < (count - 1) >> 1 and (low < 0) == (low + 1 < 0) and (around != pair).any())


def test_the_sliding_window_agrees_with_plain_sums() -> None:
    words, _, levels = ct_like(40, 50)
    idx = levels.rank(words.astype(np.int32))
    positions = localplane.eligible_positions(idx, levels)
    costs = localplane.bit_costs(idx)[positions]
    for nbits in (1, 7, 400, positions.size):
        rawness = [int(costs[at : at + nbits].sum(axis=0).min()) for at in range(positions.size - nbits + 1)]
        start, best = localplane.rawest_window(idx, positions, nbits)
        assert (start, best) == (rawness.index(max(rawness)), max(rawness) / nbits / 65536)


def test_estimated_costs_tell_noise_from_structure() -> None:
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 4096, (64, 64)).astype(np.uint16)
    ramp = (np.mgrid[:64, :64][1] * 2).astype(np.uint16)
    assert (np.abs(localplane.bit_costs(noise).mean(axis=0) / 65536 - 1) < 0.05).all()
    assert (localplane.bit_costs(ramp).mean(axis=0) / 65536 < 0.2).all()
