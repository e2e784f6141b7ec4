"""The global path's VAE and its bits-back stack: exact inverses, the same bytes by every way, bounded when damaged."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from codec import weights as weightfiles
from codec.bitsback import BitsBack
from codec.errors import CorruptBitstream, MissingContext, UnsupportedFrame
from codec.groupstack import MAX_PLANES, Shape, decode_stack, encode_stack
from codec.lattice import NEIGHBOURS, Batch, batches, errors_of, guess_of, tell
from codec.lattice import _gather as gather
from codec.pixelformat import PixelFormat
from codec.plainstack import PlainStack
from codec.vae import LATENTS, LAYERS, SHAPES, Law, Model, falling, pop_plane, push_plane
from codec.weights import BadWeights, Weights, write_weights
from tests.unit.codec_images import noise, picture

SIDES = [(1, 1), (1, 2), (2, 1), (1, 9), (9, 1), (2, 2), (3, 5), (8, 8), (33, 17), (2, 40), (64, 3), (40, 70)]


def random_weights(seed: int, size: int = 60) -> bytes:
    """A weight file full of noise: whatever a network says, the stack must be exact."""
    numbers = iter(noise(60_000, seed) - 32768)
    arrays: dict[str, NDArray[np.int8] | NDArray[np.int32]] = {}
    for name, sizes in SHAPES.items():
        for layer in range(LAYERS):
            count = sizes[layer] * sizes[layer + 1]
            matrix = np.array([next(numbers) for _ in range(count)]) * size >> 15
            arrays[f"{name}.m{layer}"] = matrix.reshape(sizes[layer + 1], sizes[layer]).astype(np.int8)
            arrays[f"{name}.c{layer}"] = np.array([next(numbers) for _ in range(sizes[layer + 1])], np.int32)
    arrays["top.scale"] = np.array([72, 48], np.int32)
    return write_weights(f"vae-test-{seed}", (), arrays)


@pytest.fixture(scope="module")
def weights() -> Iterator[Weights]:
    """Random ones, known to the process while this module runs."""
    own = weightfiles.add(random_weights(5))
    yield own
    weightfiles.drop(own)


def plane_of(shape: tuple[int, int], highest: int, seed: int, smooth: bool = False) -> NDArray[np.int32]:
    """A plane of G: noise, or steps with a little noise."""
    grains = noise(shape[0] * shape[1], seed).reshape(shape)
    if not smooth:
        return (grains * (highest + 1) >> 16).astype(np.int32)
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.clip((y // 7 + x // 5) % (highest + 1) + (grains >> 15), 0, highest).astype(np.int32)


# --- the lattice ---


@pytest.mark.parametrize("shape", SIDES)
def test_every_neighbour_is_known_before_its_pass(shape: tuple[int, int]) -> None:
    known, waiting, last = np.zeros(shape, np.int32), [], (0, 0)
    known[0, 0] = count = 1
    for batch in batches(shape, 7):
        if (batch.stride, batch.kind) != last:
            for done in waiting:
                done.put(known, np.ones(done.count, np.int32))
            waiting, last = [], (batch.stride, batch.kind)
        assert all(part.all() for part in gather(batch, known, len(NEIGHBOURS[0])))
        assert not batch.take(known).any()
        waiting.append(batch)
        count += batch.count
    assert count == shape[0] * shape[1]


def test_inputs_stay_in_range_and_do_not_depend_on_what_comes_later() -> None:
    plane = plane_of((40, 70), 1023, 3)
    errors = errors_of(plane)
    seen: dict[tuple[int, int], list[Batch]] = {}
    for batch in batches((40, 70)):
        told = tell(batch, plane, errors, 1023)
        assert float(np.abs(told.inputs).max()) <= 1023 and np.array_equal(told.inputs, np.rint(told.inputs))
        later = plane.copy()
        batch.put(later, np.zeros(batch.count, np.int32))
        assert np.array_equal(tell(batch, later, errors, 1023).inputs, told.inputs)
        assert np.array_equal(guess_of(batch, plane), told.guess)
        seen.setdefault((batch.stride, batch.kind), []).append(batch)


def test_falling_is_the_power_of_two_that_it_says() -> None:
    distance = np.arange(0, 20 * 256, dtype=np.int32)
    assert np.all(
        np.abs(falling(distance) - 65536 * 2.0 ** (-distance / 256)) <= 0.07 * 65536 * 2.0 ** (-distance / 256) + 1
    )
    assert np.all(np.diff(falling(distance)) <= 0)


# --- the stack ---


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 1023), st.integers(1, 60), st.integers(1, 3))
def test_pop_after_push_and_push_after_pop_change_nothing(seed: int, highest: int, count: int, parts: int) -> None:
    numbers = noise(3 * parts * count + count, seed).astype(np.int32)
    field = numbers[: 3 * parts * count].reshape(3, parts, count)
    law = Law(field[0], field[1] * highest // 1024, field[2] % 192, highest)
    values = numbers[3 * parts * count :] * (highest + 1) >> 16
    stacks = [kind(noise(count, seed + 1).astype(np.uint32), (1 << 40) + seed) for kind in (BitsBack, PlainStack)]
    before = stacks[0].words
    for stack in stacks:
        stack.push(law, values)
        assert np.array_equal(stack.pop(law), values)
        assert np.array_equal(stack.words, before) and stack.state == (1 << 40) + seed
    drawn = [stack.pop(law) for stack in stacks]
    assert np.array_equal(drawn[0], drawn[1]) and stacks[0].state == stacks[1].state
    assert stacks[0].deepest == stacks[1].deepest
    for stack in stacks:
        stack.push(law, drawn[0])
        assert np.array_equal(stack.words, before) and stack.state == (1 << 40) + seed


@pytest.mark.parametrize("shape", SIDES)
@pytest.mark.parametrize("highest", [1, 6, 1023])
def test_planes_and_initial_bits_come_back(weights: Weights, shape: tuple[int, int], highest: int) -> None:
    planes = [plane_of(shape, highest, 1), plane_of(shape, highest, 2, smooth=True), np.zeros(shape, np.int32)]
    shapes, payload = [Shape(*shape, highest)] * 3, b"sealed bytes, as many as are wanted" * 5
    coded = encode_stack(planes, shapes, weights, BitsBack, initial=payload, seed=9)
    back, initial = decode_stack(coded.data, shapes, BitsBack)
    assert all(np.array_equal(a, b) for a, b in zip(planes, back, strict=True))
    inside = min(len(payload), coded.used // 8)
    assert coded.used == 8 * len(initial) and initial[:inside] == payload[:inside]
    assert len(coded.growth) == 3


def test_the_payload_costs_nothing_where_random_bits_would_stand(weights: Weights) -> None:
    plane, shapes = plane_of((64, 64), 9, 4, smooth=True), [Shape(64, 64, 9)]
    with_payload = encode_stack([plane], shapes, weights, BitsBack, initial=bytes(range(256)), seed=1)
    without = encode_stack([plane], shapes, weights, BitsBack, seed=1)
    assert (
        with_payload.used > 8 * 32 and abs(len(with_payload.data) - len(without.data)) < 0.02 * len(without.data) + 16
    )


def test_padding_repeats_by_seed_only(weights: Weights) -> None:
    plane, shapes = plane_of((16, 16), 3, 4), [Shape(16, 16, 3)]
    one, again = (encode_stack([plane], shapes, weights, BitsBack, seed=1).data for _ in range(2))
    assert one == again != encode_stack([plane], shapes, weights, BitsBack).data


# --- one truth ---


def test_plain_reference_gives_the_same_bytes_and_planes(weights: Weights) -> None:
    planes = [plane_of((21, 34), 12, seed, smooth=seed == 2) for seed in (1, 2)]
    shapes = [Shape(21, 34, 12)] * 2
    one = encode_stack(planes, shapes, weights, BitsBack, initial=b"abcd", seed=3)
    two = encode_stack(planes, shapes, weights, PlainStack, initial=b"abcd", seed=3)
    assert one == two
    for opener in (BitsBack, PlainStack):
        back, initial = decode_stack(one.data, shapes, opener)
        assert all(np.array_equal(a, b) for a, b in zip(planes, back, strict=True)) and initial[:4] == b"abcd"


@pytest.mark.parametrize("size", [1, 50, 1 << 20])
def test_batches_of_any_size_give_the_same_bytes(weights: Weights, size: int) -> None:
    plane, model = plane_of((45, 61), 20, 3, smooth=True), Model(weights)
    supply = noise(3000, 1).astype(np.uint32)
    usual, other = BitsBack(supply, 1 << 40), BitsBack(supply, 1 << 40)
    push_plane(usual, model, plane, 20)
    push_plane(other, model, plane, 20, size)
    assert np.array_equal(usual.words, other.words) and usual.state == other.state
    assert np.array_equal(pop_plane(other, model, (45, 61), 20, size), plane)
    assert np.array_equal(other.words, supply) and other.state == 1 << 40


def test_any_number_of_blas_threads_gives_the_same_bytes() -> None:
    script = (
        "from tests.unit.test_codec_vae import *\n"
        "own = weightfiles.add(random_weights(5))\n"
        "coded = encode_stack([plane_of((150, 140), 30, 1, True)], [Shape(150, 140, 30)], own, BitsBack, seed=2)\n"
        "print(zlib.crc32(coded.data))"
    )
    said = set()
    for threads in ("1", "2"):
        names = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        run = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **names}, capture_output=True, text=True, check=True
        )
        said.add(run.stdout.strip())
    assert len(said) == 1 and said != {""}


# --- damage ---


def coded_small(weights: Weights) -> tuple[bytes, list[Shape]]:
    """A small stack."""
    shapes = [Shape(24, 19, 7)]
    return encode_stack([plane_of((24, 19), 7, 1)], shapes, weights, BitsBack, initial=b"1234", seed=1).data, shapes


def test_truncated_extended_and_flipped_stacks_are_refused(weights: Weights) -> None:
    data, shapes = coded_small(weights)
    for end in range(0, len(data), 7):
        with pytest.raises(CorruptBitstream):
            decode_stack(data[:end], shapes, BitsBack)
    with pytest.raises(CorruptBitstream):
        decode_stack(data + b"\0", shapes, BitsBack)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        with pytest.raises(CorruptBitstream):
            decode_stack(bytes(changed), shapes, BitsBack)


@pytest.mark.parametrize("other", [Shape(24, 19, 8), Shape(19, 24, 7), Shape(24, 20, 7)])
def test_a_stack_of_other_planes_is_refused(weights: Weights, other: Shape) -> None:
    with pytest.raises(CorruptBitstream):
        decode_stack(coded_small(weights)[0], [other], BitsBack)


def test_damage_under_a_right_checksum_ends_in_planes_in_range_or_a_typed_error(weights: Weights) -> None:
    data, shapes = coded_small(weights)
    sides = bytes((24, 19, 7))
    outcomes = set()
    for place in range(7, len(data) - 4, 5):
        changed = bytearray(data[:-4])
        changed[place] ^= 1 << place % 8
        changed += zlib.crc32(sides, zlib.crc32(changed)).to_bytes(4, "little")
        try:
            planes, _ = decode_stack(bytes(changed), shapes, BitsBack)
        except CorruptBitstream:
            outcomes.add("refused")
        else:
            assert int(planes[0].min()) >= 0 and int(planes[0].max()) <= 7
            outcomes.add("decoded")
    assert "refused" in outcomes


def test_a_short_stack_for_large_planes_is_refused_soon(weights: Weights) -> None:
    head = bytes((0x53, 1)) + weights.id + bytes((1,)) + (1 << 40).to_bytes(8, "little") + bytes((0,))
    side = bytes((0x80, 0x20))  # 4096
    data = head + zlib.crc32(side * 2 + b"\x07", zlib.crc32(head)).to_bytes(4, "little")
    with pytest.raises(CorruptBitstream, match="ran empty"):
        decode_stack(data, [Shape(4096, 4096, 7)], BitsBack)


def test_what_cannot_share_a_stack_is_refused(weights: Weights) -> None:
    plane = np.zeros((2, 2), np.int32)
    for shapes in ([Shape(2, 2, 0)], [Shape(2, 2, 1024)], [], [Shape(2, 2, 1)] * (MAX_PLANES + 1), [Shape(2, 3, 1)]):
        with pytest.raises(UnsupportedFrame):
            encode_stack([plane] * len(shapes), shapes, weights, BitsBack)


def test_unknown_weights_are_missing_context(weights: Weights) -> None:
    own = weightfiles.add(random_weights(6))
    data, shapes = coded_small(own)
    weightfiles.drop(own)
    with pytest.raises(MissingContext):
        decode_stack(data, shapes, BitsBack)


def test_weights_that_leave_the_exact_range_are_refused(weights: Weights) -> None:
    arrays = dict(weights.arrays)
    arrays["infer.c0"] = np.full_like(arrays["infer.c0"], 1 << 24)
    with pytest.raises(BadWeights, match="exact range"):
        Model(weightfiles.parse(write_weights("vae-wide", (), arrays)))
    del arrays["infer.c0"]
    with pytest.raises(BadWeights):
        Model(weightfiles.parse(write_weights("vae-none", (), arrays)))


def test_latents_are_two_a_patch_and_two_a_block(weights: Weights) -> None:
    model = Model(weights)
    assert model.top(3).centre.shape == (1, 3 * LATENTS)
    assert model.prior(np.zeros((LATENTS, 2), np.int32), (3, 5)).centre.shape == (1, 15 * LATENTS)


def test_frames_of_a_picture(weights: Weights) -> None:
    values = picture(PixelFormat(50, 60, 1, 16, 12, 11, False), 3, 20) >> 5
    plane, shapes = np.ascontiguousarray(values), [Shape(50, 60, 127)]
    coded = encode_stack([plane], shapes, weights, BitsBack, seed=1)
    assert np.array_equal(decode_stack(coded.data, shapes, BitsBack)[0][0], plane)
