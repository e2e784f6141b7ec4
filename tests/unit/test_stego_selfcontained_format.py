"""docs/payload-format.md, section 12, is enough to read the self-contained carrier: `selfcontained_reader` does."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stego import errortables
from stego.carriers import ground
from stego.cover import Cover
from stego.errors import CarrierError
from stego.pixelheader import Places
from stego.selfcontained import METHODS, embed
from tests.unit import selfcontained_reader as reader

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "payload-format.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Case:
    """A scene: base + slope + noise, clipped to the range, with air and barred values in it."""

    bits: int
    signed: bool
    base: int
    noise: float
    size: int
    shape: tuple[int, int] = (64, 66)
    slope: float = 0.3
    barred: tuple[int, ...] = ()
    air: int | None = None
    half: bool = False  # only the left half may carry
    max_change: int | None = None

    def cover(self) -> Cover:
        low = -(1 << (self.bits - 1)) if self.signed else 0
        high = low + (1 << self.bits) - 1
        rng = np.random.default_rng(self.bits + self.size)
        plane = np.add.outer(np.arange(self.shape[0]), np.arange(self.shape[1])) * self.slope
        values = np.clip(np.rint(self.base + plane + rng.normal(0, self.noise, self.shape)), low, high)
        if self.air is not None:
            values[: self.shape[0] // 4] = self.air
        return Cover(values.astype(np.int32), low, high, self.barred)


CASES = {
    "8-unsigned": Case(8, False, 60, 2, 12),
    "8-range-ends": Case(8, False, -4, 2, 6, slope=0.15, shape=(110, 110)),
    "8-upper-end": Case(8, False, 244, 3, 10, slope=0.05, shape=(110, 110)),
    "10-odd-shape": Case(10, False, 400, 1.2, 8, shape=(57, 83)),
    "12-signed-air": Case(12, True, -30, 4, 16, air=-2000, shape=(80, 70)),
    "12-barred-inside": Case(12, True, -3, 3, 9, barred=(-10, 16, 17, 30), slope=0.1, shape=(100, 100)),
    "12-barred-ends": Case(12, False, 6, 2, 9, barred=(0, 1, 7), slope=0.1, shape=(100, 110)),
    "12-larger-order": Case(12, False, 900, 5, 90, shape=(130, 100)),
    "16-unsigned": Case(16, False, 30000, 9, 24),
    "16-signed-wide": Case(16, True, -200, 90, 30),
    "14-region": Case(14, False, 5000, 2, 10, shape=(100, 90), half=True),
    "12-one": Case(12, False, 800, 2, 20, max_change=1),
    "12-fuller": Case(12, False, 800, 1.5, 100),
    "12-coarse-end": Case(12, False, 24, 12, 16, slope=0.05, shape=(110, 100)),
    "12-coarse-bars": Case(12, True, 0, 10, 14, slope=0.1, shape=(100, 110), barred=(-25, 40)),
    "12-empty-message": Case(12, False, 800, 2, 0),
}


def read(cover: Cover, stego: NDArray[np.int32], key: bytes, salt: bytes, region: NDArray[np.bool_] | None) -> object:
    message, values = reader.read(
        stego.tolist(), cover.low, cover.high, cover.barred, key, salt, None if region is None else region.tolist()
    )
    return message, np.array(values, np.int32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CASES)
def test_the_format_is_what_its_description_says(name: str, method: str) -> None:
    case = CASES[name]
    cover, rng = case.cover(), np.random.default_rng(case.size)
    key, salt, message = rng.bytes(32), rng.bytes(32), rng.bytes(case.size)
    region = None
    if case.half:
        region = np.zeros(case.shape, np.bool_)
        region[:, : case.shape[1] // 2 + 12] = True
    done = embed(cover, message, stego_key=key, salt=salt, region=region, method=method, max_change=case.max_change)
    assert done.changed
    got, values = read(cover, done.values, key, salt, region)  # type: ignore[misc]
    assert got == message
    assert np.array_equal(values, cover.values)


@pytest.mark.parametrize("method", METHODS)
def test_the_reader_refuses_what_it_must(method: str) -> None:
    case = CASES["8-unsigned"]
    cover, key, salt = case.cover(), bytes(range(32)), bytes(32)
    done = embed(cover, b"message", stego_key=key, salt=salt, method=method)
    damaged = done.values.copy()
    damaged[1, 1] ^= 1
    for values, wrong in ((damaged, key), (cover.values, key), (done.values, bytes(32))):
        with pytest.raises(reader.Refused):
            read(cover, values, wrong, salt, None)


@pytest.mark.parametrize("barred", [(1,), (1, 4), (2, 7)])
def test_blocks_turn_back_as_the_description_says(barred: tuple[int, ...]) -> None:
    rng = np.random.default_rng(barred[-1])
    values = rng.integers(0, 9, (120, 120)).astype(np.int32)
    cover = Cover(values, 0, 8, barred)
    land = ground(cover, None)
    places = Places(land, stego_key=bytes(32), salt=b"")
    wanted = rng.integers(0, 1 << places.order, places.blocks.shape[0]).astype(np.uint8)
    flips = set()
    for block, number in zip(places.blocks, wanted, strict=True):
        turned, frame = values.copy(), reader.Frame(values.reshape(-1).tolist(), 120, 120, 0, 8, set(barred))
        one = copy(places)
        one.blocks = block[None]
        try:
            one.turn(turned, np.array([number]))
        except CarrierError:
            with pytest.raises(reader.Refused):
                reader.turn_back(frame, block.tolist(), int(number))
            continue
        reader.turn_back(frame, block.tolist(), int(number))
        assert frame.x == turned.reshape(-1).tolist()
        flips.add(int(np.count_nonzero(turned != values)))
    assert flips >= {0, 1, 2}


@pytest.mark.parametrize("cut", [None, (-2, False), (-2, True)])
def test_vectors_of_the_description(cut: tuple[int, bool] | None) -> None:
    for table in reader.tables((12, 2, 14), 1, cut, 200, 2):
        assert f"`{' '.join(map(str, table))}`" in DOCUMENT


def test_tables_of_any_law_are_what_the_description_says() -> None:
    rng = np.random.default_rng(12)
    for n in range(40):
        law = np.array([rng.integers(0, 60 if n % 4 else 128), rng.integers(0, 4), rng.integers(0, 32)], np.int64)
        price, most, phase = int(rng.integers(0, 352)), int(rng.integers(1, 32)), int(rng.integers(0, 4))
        described = (int(law[0]), int(law[1]), int(law[2]))
        reach = reader.reach_of(described)
        cut = int(rng.integers(0, errortables.CUTS)) if n % 2 else 0
        edge = reader.EDGES[(cut - 1) % len(reader.EDGES)]
        if cut and edge >= reach:
            cut = 0
        where = (-edge, cut > len(reader.EDGES)) if cut else None
        made = np.zeros((2, errortables.WIDTH), np.int32)
        errortables.solve(law, phase, cut, errortables.price_ratio(price), most, made[0], made[1])
        source, output = reader.tables(described, phase, where, price, most)
        assert made[0, : len(source)].tolist() == source
        assert made[1, : len(output)].tolist() == output
