"""Self-contained embedding: exact restore, untouched samples, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stego.cover import Cover
from stego.errors import CarrierError, SealError
from stego.lattice import reserved
from stego.selfcontained import METHODS, capacity, embed, extract

KEY, SALT = bytes(range(32)), bytes(range(32, 64))


def noisy(rows: int, columns: int, *, scale: float = 2.0, seed: int = 1, base: int = 500) -> NDArray[np.int32]:
    rng = np.random.default_rng(seed)
    slope = np.add.outer(np.arange(rows), np.arange(columns)) * 0.7
    return (base + slope + rng.normal(0, scale, (rows, columns))).round().astype(np.int32)


def back(cover: Cover, stego: NDArray[np.int32], **kw: object) -> tuple[bytes, NDArray[np.int32]]:
    carrier = Cover(stego, cover.low, cover.high, cover.barred)
    return extract(carrier, stego_key=KEY, salt=SALT, **kw)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [0, 1, 100, 700])
def test_message_and_image_come_back(method: str, size: int) -> None:
    cover = Cover(noisy(160, 150), 0, 4095)
    message = np.random.default_rng(size).bytes(size)
    out = embed(cover, message, stego_key=KEY, salt=SALT, method=method)
    got, values = back(cover, out.values)
    assert got == message
    assert np.array_equal(values, cover.values)
    change = np.abs(out.values.astype(np.int64) - cover.values)
    assert (out.changed, out.max_change) == (np.count_nonzero(change), change.max())
    assert out.mse == pytest.approx(float((change**2).mean()))
    assert out.changed > 0
    assert not change[reserved((160, 150))].any()


@pytest.mark.parametrize("method", METHODS)
def test_region_padding_and_range_ends_are_kept(method: str) -> None:
    values = noisy(200, 200, base=0) - 60
    values = np.clip(values, -40, 200).astype(np.int32)
    values[:50] = -2000
    values[60:70, 60:70] = 17
    cover = Cover(values, -2048, 200, (-2000, 17))
    region = np.ones((200, 200), np.bool_)
    region[:, 150:] = False
    out = embed(cover, b"m" * 90, stego_key=KEY, salt=SALT, region=region, method=method)
    got, restored = back(cover, out.values, region=region)
    assert got == b"m" * 90
    assert np.array_equal(restored, values)
    for barred in cover.barred:
        assert np.array_equal(out.values == barred, values == barred)
    assert np.array_equal(out.values[:, 150:], values[:, 150:])
    assert out.values.max() <= 200
    with pytest.raises(SealError):
        back(cover, out.values)


@pytest.mark.parametrize("method", METHODS)
def test_capacity_is_what_embed_takes(method: str) -> None:
    cover = Cover(noisy(130, 170, scale=1.2), 0, 4095)
    bits = capacity(cover, method=method)
    assert bits > 800
    assert bits % 8 == 0
    message = np.random.default_rng(3).bytes(bits // 8)
    out = embed(cover, message, stego_key=KEY, salt=SALT, method=method, max_change=1)
    assert out.max_change == 1
    with pytest.raises(CarrierError, match="capacity"):
        embed(cover, bytes(cover.values.size), stego_key=KEY, salt=SALT, method=method)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (2, 2), (3, 300), (20, 20)])
def test_frames_with_no_room(shape: tuple[int, int]) -> None:
    cover = Cover(noisy(*shape), 0, 1 << 15)
    assert capacity(cover) == 0
    with pytest.raises(CarrierError, match="capacity"):
        embed(cover, b"", stego_key=KEY, salt=SALT)
    with pytest.raises(SealError):
        extract(cover, stego_key=KEY, salt=SALT)


def test_constant_and_saturated_frames_carry_nothing() -> None:
    for value in (0, 100, 4095):
        cover = Cover(np.full((128, 128), value, np.int32), 0, 4095)
        assert capacity(cover) == 0
        with pytest.raises(CarrierError, match="capacity"):
            embed(cover, b"x", stego_key=KEY, salt=SALT)


@pytest.mark.parametrize("method", METHODS)
def test_constant_air_is_untouched(method: str) -> None:
    values = noisy(200, 200)
    values[:, :90] = 0
    out = embed(Cover(values, 0, 4095), b"air" * 30, stego_key=KEY, salt=SALT, method=method)
    assert not out.values[:, :90].any()
    assert np.count_nonzero(out.values == 0) == np.count_nonzero(values == 0)


def test_what_only_the_sender_knows_is_refused() -> None:
    values = noisy(64, 64)
    wet = Cover(values, 0, 4095, wet=np.zeros((64, 64), np.bool_))
    with pytest.raises(CarrierError, match="wet"):
        embed(wet, b"", stego_key=KEY, salt=SALT)
    with pytest.raises(CarrierError, match="region"):
        embed(Cover(values, 0, 4095), b"", stego_key=KEY, salt=SALT, region=np.ones((2, 2), np.bool_))
    with pytest.raises(ValueError, match="method"):
        embed(Cover(values, 0, 4095), b"", stego_key=KEY, salt=SALT, method="magic")


@pytest.mark.parametrize("method", METHODS)
def test_wrong_key_salt_or_image_is_refused(method: str) -> None:
    cover = Cover(noisy(128, 128), 0, 4095)
    out = embed(cover, b"secret", stego_key=KEY, salt=SALT, method=method)
    carrier = Cover(out.values, 0, 4095)
    for key, salt in ((bytes(32), SALT), (KEY, bytes(32))):
        with pytest.raises(SealError, match=r"^refused$"):
            extract(carrier, stego_key=key, salt=salt)
    with pytest.raises(SealError):
        extract(cover, stego_key=KEY, salt=SALT)
    with pytest.raises(SealError):
        extract(Cover(out.values[:, :-1].copy(), 0, 4095), stego_key=KEY, salt=SALT)


@pytest.mark.parametrize("method", METHODS)
def test_any_damage_is_refused(method: str) -> None:
    cover = Cover(noisy(128, 128), 0, 4095)
    out = embed(cover, b"a message of some length" * 4, stego_key=KEY, salt=SALT, method=method)
    rng = np.random.default_rng(5)
    for _ in range(60):
        damaged = out.values.copy()
        for at in rng.integers(0, damaged.size, rng.integers(1, 4)):
            damaged.flat[at] ^= 1 << int(rng.integers(0, 12))
        if np.array_equal(damaged, out.values):
            continue
        with pytest.raises(SealError):
            back(cover, damaged)
