"""Self-contained embedding over random images, rules and messages; its parts; hostile input to extract."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stego import bound, errortables
from stego.carriers import ground, segment
from stego.cover import Cover
from stego.errors import CarrierError, SealError
from stego.interpolation import CLASSES, class_of
from stego.lattice import reserved
from stego.pixelheader import BitReader, BitWriter, Places, from_bits, to_bits
from stego.selfcontained import METHODS, embed, extract

CASES = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
SHAPES = st.one_of(
    st.tuples(st.integers(50, 150), st.integers(50, 150)),
    st.tuples(st.integers(1, 12), st.integers(1, 400)),
    st.tuples(st.integers(1, 400), st.integers(1, 4)),
)


@st.composite
def covers(draw: st.DrawFn) -> Cover:
    """Frames of any shape, depth and sign: smooth or noisy, clipped at either end, with air and barred values."""
    shape, bits, signed = draw(SHAPES), draw(st.integers(8, 16)), draw(st.booleans())
    low = -(1 << bits - 1) if signed else 0
    high = low + (1 << bits) - 1
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    base = draw(st.sampled_from([low, high, (low + high) // 2, low + 3, high - 3]))
    scale = draw(st.sampled_from([0.0, 0.3, 1.0, 4.0, 40.0, 1000.0]))
    slope = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) * draw(st.sampled_from([0.0, 0.1, 1.3]))
    noise = rng.laplace(0, scale, shape) if draw(st.booleans()) else rng.normal(0, scale, shape)
    values = np.clip((base + slope + noise).round(), low, high).astype(np.int32)
    if draw(st.booleans()):
        values[: shape[0] // 3] = draw(st.sampled_from([low, high, base]))
    barred = tuple(draw(st.lists(st.sampled_from([low, high, base, base + 1, low + 1, base - 2]), max_size=3)))
    return Cover(values, low, high, barred)


@CASES
@given(covers(), st.binary(max_size=300), st.binary(min_size=32, max_size=32), st.sampled_from(METHODS), st.booleans())
def test_embedding_is_undone_exactly(cover: Cover, message: bytes, key: bytes, method: str, masked: bool) -> None:
    region = None
    if masked:
        region = np.zeros(cover.values.shape, np.bool_)
        region[:, : -(-2 * region.shape[1] // 3)] = True
    before = cover.values.copy()
    try:
        out = embed(cover, message, stego_key=key, salt=b"salt", region=region, method=method)
    except CarrierError as error:
        assert error.reason == "capacity"
        return
    assert np.array_equal(cover.values, before)
    got, values = extract(
        Cover(out.values, cover.low, cover.high, cover.barred), stego_key=key, salt=b"salt", region=region
    )
    assert got == message
    assert np.array_equal(values, before)
    changed = out.values != before
    assert not changed[reserved((before.shape[0], before.shape[1]))].any()
    assert region is None or not changed[~region].any()
    for value in cover.barred:
        assert np.array_equal(out.values == value, before == value)
    assert out.values.min() >= cover.low
    assert out.values.max() <= cover.high


@CASES
@given(covers(), st.binary(min_size=32, max_size=32))
def test_an_ordinary_image_is_refused(cover: Cover, key: bytes) -> None:
    with pytest.raises(SealError, match=r"^refused$"):
        extract(cover, stego_key=key, salt=b"")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_hostile_headers_end_in_refusal(monkeypatch: pytest.MonkeyPatch, method: str, bits: int) -> None:
    """Every header that whoever holds the key could write: refused, in bounded time and memory."""
    code = {"plain_pee": 1, "recursive": 2}[method]
    rng = np.random.default_rng(bits)
    values = rng.integers(0, 1 << bits, (96, 96)).astype(np.int32) if bits == 8 else _ramp(rng, bits)
    cover = Cover(values, 0, (1 << bits) - 1)
    real = BitReader.get

    def hostile(reader: BitReader, width: int) -> int:
        got = real(reader, width)
        if width == 2 and not hasattr(reader, "seen"):
            reader.seen = True  # type: ignore[attr-defined]
            return code
        return got

    monkeypatch.setattr(BitReader, "get", hostile)
    for n in range(40):
        with pytest.raises(SealError):
            extract(cover, stego_key=n.to_bytes(32, "big"), salt=b"")


def _ramp(rng: np.random.Generator, bits: int) -> NDArray[np.int32]:
    slope = np.add.outer(np.arange(96), np.arange(96)) * 0.3 + (1 << bits - 1)
    return (slope + rng.normal(0, 1.5, (96, 96))).round().astype(np.int32)


@given(st.lists(st.integers(0, 127), min_size=1, max_size=50), st.integers(1, 7))
def test_syndromes_are_bits(numbers: list[int], order: int) -> None:
    syndromes = np.array([n % (1 << order) for n in numbers], np.uint8)
    assert np.array_equal(from_bits(to_bits(syndromes, order), order), syndromes)


@given(st.lists(st.tuples(st.integers(0, 2**39 - 1), st.integers(39, 41)), max_size=8))
def test_bit_fields(fields: list[tuple[int, int]]) -> None:
    writer = BitWriter()
    for value, width in fields:
        writer.put(value, width)
    reader = BitReader(np.array(writer.bits, np.uint8))
    assert [reader.get(width) for _, width in fields] == [value for value, _ in fields]
    assert reader.get(20) == 0
    with pytest.raises(ValueError, match="field"):
        writer.put(4, 2)


def test_header_flips_are_undone_where_samples_may_not_change() -> None:
    rng = np.random.default_rng(2)
    values = rng.integers(0, 9, (200, 200)).astype(np.int32)
    cover = Cover(values, 0, 8, (1,))
    places = Places(ground(cover, None), stego_key=bytes(32), salt=b"")
    before, wanted = places.syndromes(values, 0, 40), rng.integers(0, 1 << places.order, 40).astype(np.uint8)
    turned = values.copy()
    places.turn(turned, wanted)
    assert np.array_equal(places.syndromes(turned, 0, 40), wanted)
    assert np.array_equal(turned == 1, values == 1)
    places.turn(turned, before)
    assert np.array_equal(turned, values)


def test_segments() -> None:
    values = np.zeros((4, 4), np.int32)
    bars = ground(Cover(values, -5, 10, (0, 1, 2, 7, 99)), None).bars
    assert [segment(v, bars) for v in (-5, -1, 3, 6, 8, 10)] == [(-5, -1), (-5, -1), (3, 6), (3, 6), (8, 10), (8, 10)]
    for v in (-6, 0, 1, 2, 7, 11, 99):
        first, last = segment(v, bars)
        assert first > last


def test_classes_of_activity_rise() -> None:
    kinds = [int(class_of(amount)) for amount in range(5000)]
    assert kinds == sorted(kinds)
    assert kinds[:13] == [0, 1, 2, 3, 3, 3, 4, 4, 5, 5, 5, 5, 6]
    assert class_of(2**40) == CLASSES - 1


@CASES
@given(
    st.integers(0, errortables.SCALES - 1), st.integers(0, 3), st.integers(0, 31), st.integers(0, 3),
    st.integers(0, errortables.PRICES - 1), st.integers(1, 31), st.integers(0, errortables.CUTS - 1),
)  # fmt: skip
def test_tables_are_distributions_within_reach(
    scale: int, shape: int, bias: int, phase: int, price: int, most: int, cut: int
) -> None:
    law = np.array([scale, shape, bias], np.int64)
    reach = int(errortables.half_width(scale))
    if cut:
        edge = int(errortables.EDGES[(cut - 1) % errortables.EDGES.size])
        if edge >= reach:
            return
    source, output = np.zeros(errortables.WIDTH, np.int32), np.zeros(errortables.WIDTH, np.int32)
    errortables.solve(law, phase, cut, errortables.price_ratio(price), most, source, output)
    start, end = (reach - edge if cut else 0), 2 * reach + 1
    x, y = source[start : end + 1], output[start : end + 1]
    assert x[0] == y[0] == 0
    assert x[-1] == y[-1] == errortables.TOTAL
    assert (np.diff(x) >= 1).all()
    assert (np.diff(y) >= 0).all()
    for n in range(x.size):  # no value moves further than it may
        assert x[max(0, n - most)] <= y[n] <= x[min(x.size - 1, n + most)]


def test_tables_reach_the_bound_of_their_law() -> None:
    for scale, price in ((12, 200), (20, 192), (28, 180)):
        source, output = np.zeros(errortables.WIDTH, np.int32), np.zeros(errortables.WIDTH, np.int32)
        ratio = int(errortables.price_ratio(price))
        errortables.solve(np.array([scale, 2, 16], np.int64), 0, 0, ratio, 8, source, output)
        end = 2 * int(errortables.half_width(scale)) + 2
        p, q = np.diff(source[:end]) / errortables.TOTAL, np.diff(output[:end]) / errortables.TOTAL
        best, gained, squares = bound.optimum(p, float(np.log(ratio / errortables.TOTAL)), 8)
        assert gained > 0.01
        assert squares > 0.001
        assert np.abs(best - q).max() < 3e-4


def test_the_bound_grows_and_needs_change() -> None:
    rng = np.random.default_rng(1)
    values = (rng.laplace(0, 2, (128, 128)) + 100).round().astype(np.int32)
    counts = bound.rhombus_histograms(values)
    points = [bound.at_rate(counts, values.size, rate) for rate in (0.02, 0.1, 0.3)]
    assert [round(p.rate, 2) for p in points] == [0.02, 0.1, 0.3]
    assert points[0].mse < points[1].mse / 4 < points[2].mse / 8
    assert bound.bound(np.full((64, 64), 7, np.int32), 3.0, max_change=1) == float("inf")
    smooth = bound.smoothed(counts * 1.0)
    assert smooth.sum() == pytest.approx(counts.sum(), rel=1e-3)
