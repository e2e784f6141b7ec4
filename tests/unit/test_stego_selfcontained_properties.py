"""Self-contained embedding over random images, rules and messages; its parts; hostile input to extract."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stego import bound, errortables, interpolation
from stego.carriers import Ground, ground, segment
from stego.cover import Cover
from stego.errors import CarrierError, SealError
from stego.interpolation import CLASSES, class_of
from stego.lattice import reserved
from stego.pixelheader import BitReader, BitWriter, Places, from_bits, keystream, to_bits
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
def test_hostile_headers_end_in_refusal(method: str, bits: int) -> None:
    """Headers that whoever holds the key could write: refused, in bounded time and memory."""
    rng = np.random.default_rng(bits)
    values = rng.integers(0, 1 << bits, (96, 96)).astype(np.int32) if bits == 8 else _ramp(rng, bits)
    for n in range(40):
        key, header = n.to_bytes(32, "big"), BitWriter()
        body = _wild_body(rng, method, values.size)
        header.put({"plain_pee": 1, "recursive": 2}[method], 2)
        header.put(len(body.bits), 10)
        frame = _with_header(values, key, 12, [*header.bits, *body.bits])
        with pytest.raises(SealError):
            extract(Cover(frame, 0, (1 << bits) - 1), stego_key=key, salt=b"")


def _wild_body(rng: np.random.Generator, method: str, size: int) -> BitWriter:
    """Fields that a reader takes for good, and that no sender has written."""
    body = BitWriter()
    if method == "plain_pee":
        for value, width in ((rng.integers(0, 16), 5), (rng.integers(0, 1 << 16), 16), (rng.integers(0, 2), 1)):
            body.put(int(value), width)
        body.put(int(rng.integers(0, size // 4)), 28)
        return body
    count = int(rng.integers(1, 20))
    for value, width in (*((int(rng.integers(0, 511)), 9) for _ in range(7)), (int(rng.integers(0, 352)), 9)):
        body.put(value, width)
    for top, width in ((32, 5), (64 - count, 6)):
        body.put(int(rng.integers(1, top)), width)
    body.put(count, 5)
    for low, high, width in ((0, 4, 2), (0, size + 1, 28), (1 << 31, 1 << 39, 39)):
        body.put(int(rng.integers(low, high)), width)
    for _ in range(count):
        for top, width in ((128, 7), (4, 2), (32, 5)):
            body.put(int(rng.integers(0, top)), width)
    return body


def _with_header(values: NDArray[np.int32], key: bytes, first: int, bits: list[int]) -> NDArray[np.int32]:
    """The frame with header `bits`, of which the `first` fill blocks of their own."""
    frame, places = values.copy(), _places(values, key)
    head = places.used(first) * places.order - first
    clear = np.array([*bits[:first], *[0] * head, *bits[first:]], np.uint8)
    places.turn(frame, from_bits(_whitened(clear, key), places.order))
    return frame


def _places(values: NDArray[np.int32], key: bytes) -> Places:
    return Places(ground(Cover(values, 0, 65535), None), stego_key=key, salt=b"")


def _whitened(bits: NDArray[np.uint8], key: bytes) -> NDArray[np.uint8]:
    derived = HKDF(SHA256(), 96, b"", b"palimpsest/selfcontained/v1").derive(key)
    return bits ^ np.unpackbits(np.frombuffer(keystream(derived[:32], 1024), np.uint8))[: bits.size]


@pytest.mark.parametrize("method", METHODS)
def test_a_header_of_another_form_is_refused(method: str) -> None:
    """Unknown methods, other lengths, padding that is not zero: what later versions may come to mean something by."""
    cover, key = Cover(_ramp(np.random.default_rng(3), 12, 220), 0, 4095), bytes(32)
    stego = embed(cover, b"message", stego_key=key, salt=b"", method=method).values
    places = _places(stego, key)
    assert places.order == 7
    bits = _whitened(to_bits(places.syndromes(stego, 0, places.blocks.shape[0]), 7), key)
    length = int("".join(map(str, bits[2:12])), 2)
    blocks = 2 + places.used(length)
    again = _turned(stego, key, bits[: 7 * blocks])
    assert extract(Cover(again, 0, 4095), stego_key=key, salt=b"")[0] == b"message"
    wrong = [(0, 0), (3, length), (2 if method == "plain_pee" else 1, length)]
    for code, said in [*wrong, *((None, length + n) for n in (-14, -7, -1, 1, 7, 14))]:
        header = BitWriter()
        header.put(int("".join(map(str, bits[:2])), 2) if code is None else code, 2)
        header.put(said, 10)
        with pytest.raises(SealError):
            extract(Cover(_turned(stego, key, header.bits), 0, 4095), stego_key=key, salt=b"")
    padding = [12, 13, *range(14 + length, 7 * blocks)]
    for at in padding:
        other = bits[: 7 * blocks].copy()
        other[at] ^= 1
        with pytest.raises(SealError):
            extract(Cover(_turned(stego, key, other), 0, 4095), stego_key=key, salt=b"")
    assert len(padding) > 2


def _turned(stego: NDArray[np.int32], key: bytes, clear: Sequence[int] | NDArray[np.uint8]) -> NDArray[np.int32]:
    """A stego image whose first header bits are `clear`, all others as they were."""
    frame, places = stego.copy(), _places(stego, key)
    bits = _whitened(to_bits(places.syndromes(stego, 0, places.blocks.shape[0]), places.order), key)
    bits[: len(clear)] = clear
    places.turn(frame, from_bits(_whitened(bits, key), places.order))
    return frame


def _ramp(rng: np.random.Generator, bits: int, side: int = 96) -> NDArray[np.int32]:
    slope = np.add.outer(np.arange(side), np.arange(side)) * 0.3 + (1 << bits - 1)
    return (slope + rng.normal(0, 1.5, (side, side))).round().astype(np.int32)


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
    assert reader.ended()
    assert reader.get(20) == 0
    assert not reader.ended()
    with pytest.raises(ValueError, match="field"):
        writer.put(4, 2)


def test_a_frame_whose_places_fit_no_field_has_no_room() -> None:
    mask = np.broadcast_to(np.ones(1, np.bool_), (1 << 14, 1 << 14))
    bars = ground(Cover(np.zeros((4, 4), np.int32), 0, 9), None).bars
    with pytest.raises(CarrierError, match="capacity"):
        Places(Ground(mask, bars), stego_key=bytes(32), salt=b"")


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


@CASES
@given(st.integers(0, 2**62), st.integers(1 << 14, 2**48))
def test_quotients_by_way_of_floats_are_exact(number: int, divisor: int) -> None:
    for near in (number, number // divisor * divisor, max(0, number // divisor * divisor - 1)):
        assert errortables._quotient(near, divisor) == near // divisor


def test_parts_of_a_row_give_activity_and_prediction_as_defined() -> None:
    rng = np.random.default_rng(3)
    work = rng.integers(-(2**15), 2**16, (5, 9)).astype(np.int32)
    weights = rng.integers(-interpolation.LIMIT, interpolation.LIMIT + 1, interpolation.FEATURES)
    parts = np.empty((interpolation.PARTS, 9), np.int64)
    interpolation.row_parts(work, 2, weights, parts)
    work[2, 3] += 7  # a walk changes samples of its row
    interpolation.set_steepness(work, 2, 3, parts)
    inner, outer = interpolation.row_weights(weights)
    out = np.empty(interpolation.FEATURES, np.int64)
    for c in range(2, 7):
        near = interpolation.features(work.reshape(-1), 2 * 9 + c, 9, out)
        total = interpolation.UNIT * int(near) + sum(int(w) * int(f) for w, f in zip(weights, out, strict=True))
        assert interpolation.quarters(work[2], c, parts, inner, outer) == (total + 128) // 256
        assert interpolation.activity(work[2], c, parts) == _activity(work, c)


def _activity(work: NDArray[np.int32], c: int) -> int:
    """By the definition: differences along every row and column of the 5 x 5 around (2, c)."""
    total = 0
    for lines in (work[:, c - 2 : c + 3].astype(int), work[:, c - 2 : c + 3].astype(int).T):
        for n, (a, b, middle, d, e) in enumerate(lines.tolist()):
            if n == 2:
                total += abs(a - b) + 2 * abs(b - d) + abs(d - e)
            else:
                twice = 2 if n in (1, 3) else 1
                total += abs(a - b) + twice * (abs(b - middle) + abs(middle - d)) + abs(d - e)
    return total
