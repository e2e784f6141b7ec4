"""Hidden carrier: what is put in comes out, the frame comes back, and nothing forbidden changes."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stego import hidden
from stego.cover import Cover
from stego.errors import CarrierError
from stego.lattice import fingerprint, lattice, reserved
from stego.suitability import usable

KEY = bytes(range(32))
SALT = bytes(32)


def noisy(shape: tuple[int, int], sigma: float = 5.0, seed: int = 0, middle: float = 1000.0) -> NDArray[np.int32]:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    smooth = middle + 80 * np.sin(rows / 37) + 60 * np.cos(columns / 29)
    return np.rint(smooth + rng.normal(0, sigma, shape)).astype(np.int32)


def cover_of(values: NDArray[np.int32]) -> Cover:
    return Cover(values, -32768, 65535)


def put(cover: Cover, message: bytes, key: bytes = KEY, costs: hidden.Costs = "mipod") -> hidden.Hidden:
    done = hidden.embed(cover, message, stego_key=key, salt=SALT, costs=costs)
    assert hidden.extract(done.values, len(message), stego_key=key, salt=SALT) == message
    assert np.array_equal(hidden.restore(done.values, done.changes), cover.values)
    return done


@given(
    rows=st.integers(24, 90),
    columns=st.integers(24, 90),
    bits=st.integers(8, 16),
    signed=st.booleans(),
    sigma=st.floats(1.0, 40.0),
    seed=st.integers(0, 2**32 - 1),
    rate=st.floats(0.01, 0.3),
    key=st.binary(min_size=32, max_size=32),
    costs=st.sampled_from(["mipod", "hill"]),
)
@settings(max_examples=60, deadline=None)
def test_every_frame_gives_message_and_original_back(
    rows: int, columns: int, bits: int, signed: bool, sigma: float, seed: int, rate: float, key: bytes, costs: str
) -> None:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    values = np.clip(noisy((rows, columns), sigma, seed, (low + high) / 2), low, high).astype(np.int32)
    cover = Cover(values, low, high)
    nbytes = min(int(rate * values.size) // 8, hidden.capacity(cover, 0.4) // 8)
    if nbytes == 0:
        with pytest.raises(CarrierError):
            hidden.embed(cover, bytes(values.size // 8), stego_key=key, salt=SALT)
        return
    message = np.random.default_rng(seed).bytes(nbytes)
    done = put(cover, message, key, "hill" if costs == "hill" else "mipod")
    assert np.abs(done.values - values).max() <= 1
    assert done.values.min() >= low and done.values.max() <= high
    assert np.array_equal(lattice(done.values), lattice(values))
    assert done.changed == np.count_nonzero(done.values != values)


def test_forbidden_samples_stay() -> None:
    values = noisy((128, 160))
    values[:, 60:80] = 0  # air
    values[30:34] = 1023
    wet = np.zeros(values.shape, dtype=np.bool_)
    wet[64:96, 90:150] = True
    region = np.ones(values.shape, dtype=np.bool_)
    region[100:, :40] = False
    cover = Cover(values, 0, 1100, barred=(1000, 1023), wet=wet)
    done = hidden.embed(cover, bytes(range(200)), stego_key=KEY, salt=SALT, region=region)
    changed = done.values != values
    assert changed.any() and not (changed & ~usable(cover, region)).any()
    assert not (changed & (wet | ~region | reserved(values.shape))).any()
    assert not changed[:, 62:78].any()
    assert np.array_equal(done.values == 1000, values == 1000) and np.array_equal(done.values == 1023, values == 1023)
    assert hidden.extract(done.values, 200, stego_key=KEY, salt=SALT) == bytes(range(200))


def test_the_same_arguments_give_the_same_frame_and_salt_is_the_same_on_both_sides() -> None:
    values = noisy((96, 96))
    salt = fingerprint(values, 12, False, "hidden")
    one, two = (hidden.embed(cover_of(values), b"x" * 60, stego_key=KEY, salt=salt) for _ in range(2))
    assert np.array_equal(one.values, two.values) and one.changes == two.changes
    assert fingerprint(one.values, 12, False, "hidden") == salt


def test_a_wrong_key_salt_or_length_gives_noise_of_the_length_asked_for() -> None:
    message = b"palimpsest" * 30
    done = put(cover_of(noisy((256, 256))), message)
    for key, salt in ((bytes(32), SALT), (KEY, bytes(31) + b"\x01")):
        wrong = np.frombuffer(hidden.extract(done.values, 300, stego_key=key, salt=salt), dtype=np.uint8)
        right = np.frombuffer(message, dtype=np.uint8)
        assert wrong.size == 300
        errors = np.unpackbits(wrong ^ right).mean()
        assert 0.44 < errors < 0.56  # 2400 fair coins: 6 standard deviations
    assert hidden.extract(done.values, 299, stego_key=KEY, salt=SALT) != message[:299]


def test_too_much_is_refused_by_both_sides() -> None:
    values = noisy((64, 64))
    with pytest.raises(CarrierError, match="capacity"):
        hidden.embed(cover_of(values), bytes(300), stego_key=KEY, salt=SALT)
    with pytest.raises(CarrierError, match="capacity"):
        hidden.extract(values, 300, stego_key=KEY, salt=SALT)
    with pytest.raises(CarrierError, match="capacity"):
        hidden.extract(np.zeros((3, 3), dtype=np.int32), 1, stego_key=KEY, salt=SALT)
    with pytest.raises(ValueError):
        hidden.embed(cover_of(values), b"", stego_key=KEY, salt=SALT)
    flat = np.full((256, 256), 7, dtype=np.int32)
    assert hidden.capacity(cover_of(flat)) == 0
    with pytest.raises(CarrierError, match="capacity"):
        hidden.embed(cover_of(flat), b"1", stego_key=KEY, salt=SALT)


@pytest.mark.parametrize("bpp", [0.01, 0.1, 0.4])
def test_what_capacity_promises_can_be_embedded(bpp: float) -> None:
    values = noisy((128, 128))
    values[:, 70:] = 50
    cover = cover_of(values)
    bits = hidden.capacity(cover, bpp)
    assert bits % 8 == 0 and 0 < bits <= bpp * np.count_nonzero(usable(cover))
    put(cover, np.random.default_rng(1).bytes(bits // 8))


def test_busy_samples_change_and_quiet_ones_do_not() -> None:
    rng = np.random.default_rng(5)
    values = (2000 + rng.normal(0, 1, (256, 256)) * np.where(np.arange(256) < 128, 3.0, 20.0)).astype(np.int32)
    for costs in ("mipod", "hill"):
        done = put(cover_of(values), rng.bytes(400), costs="hill" if costs == "hill" else "mipod")
        changed = done.values != values
        assert changed[:, 140:].sum() > 5 * changed[:, :116].sum()


def test_a_large_frame_in_sections_and_with_many_samples_a_bit() -> None:
    """More than one section of the trellis, and more steps a row than columns."""
    rng = np.random.default_rng(11)
    values = np.rint(3000 + rng.normal(0, 7, (900, 1100))).astype(np.int32)
    put(cover_of(values), rng.bytes(60))
    put(cover_of(values), rng.bytes(4000))


def test_the_way_back_is_not_much_longer_than_the_message() -> None:
    done = put(cover_of(noisy((512, 512))), np.random.default_rng(12).bytes(1638))
    assert len(done.changes) < 1.35 * 1638


def test_suitability_names_the_reason() -> None:
    assert hidden.suitability(cover_of(noisy((128, 128)))).reason == "suited"
    assert hidden.suitability(cover_of(noisy((128, 128), sigma=0.8))).reason == "smooth"
    assert hidden.suitability(cover_of(noisy((32, 32)))).reason == "small"
    air = noisy((128, 128))
    air[:, 8:] = 0
    flat = hidden.suitability(cover_of(air))
    assert flat.reason == "flat" and not flat.suited and flat.usable < 0.1
    comb = hidden.suitability(cover_of(noisy((256, 256)) * 2))
    assert comb.reason == "comb"
    judged = hidden.suitability(cover_of(noisy((256, 256), sigma=6.0)))
    assert 5 < judged.sigma < 7


def test_changes_keep_away_from_the_step_between_padding_and_image() -> None:
    """The ring of structure around a field of view is the noisiest place for a naive noise model."""
    values = noisy((256, 256), sigma=8.0)
    values[:, 128:] = -2000
    values[:, 120:128] = np.random.default_rng(13).integers(-1001, -998, (256, 8))
    done = put(Cover(values, -32768, 32767, barred=(-2000,)), np.random.default_rng(14).bytes(400))
    changed = done.values != values
    assert changed[:, :112].mean() > 0.01 and changed[:, 120:].mean() < 0.001


def test_what_was_hidden_once_is_read_for_ever() -> None:
    """Order, head, code and sign layer are a format: every frame in an archive depends on them."""
    rows, columns = np.mgrid[:160, :200].astype(np.int64)
    mixed = (rows * 7919 + columns * 104729 + rows * columns * 31) * 2654435761 % 2**32 >> 20
    values = (mixed - 2048).astype(np.int32)
    found = hidden.extract(values, 700, stego_key=KEY, salt=SALT)
    assert sha256(found).hexdigest() == "2a7b2321770566f85631b7fd38688593413fa64398917e2b95a1e369c0efc9f1"
