"""The bytes of a group's stack: planes of G of up to 16 frames under one start. No kernels.

| field | type | meaning |
|---|---|---|
| magic, version | 2 bytes | 53, 01 |
| weights | 4 bytes | first bytes of the SHA-256 of the VAE's weight file |
| planes | varint | 1..48 |
| state | 8 bytes | little-endian, 2^31 <= state < 2^63 |
| words | varint n, n words | little-endian, the top of the stack last |
| crc | crc | of all before, then (not stored: the frames say them) rows, columns, highest of every plane as varints |

Initial bits: the first word, below 2^32, is the first state's low half (its high half is 1); the others lie on the
stack, the second on top. What encoding never reached is not stored.
"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from codec.errors import CorruptBitstream, UnsupportedFrame
from codec.lattice import Plane
from codec.vae import HIGHEST_TOP, Model, Stack, latent_count, pop_plane, push_plane
from codec.weights import BadWeights, Weights, load
from codec.wire import Reader, put_varint

MAGIC, VERSION = 0x53, 1
MAX_PLANES = 48  # 16 frames of three planes
MAX_SAMPLES = 1 << 26  # of all planes of a stack together
MAX_WORDS = 1 << 26


class OpenStack(Stack, Protocol):
    """A stack that can be looked into: codec.bitsback.BitsBack or codec.plainstack.PlainStack."""

    @property
    def state(self) -> int:
        """The rANS state."""

    @property
    def words(self) -> NDArray[np.uint32]:
        """All words, the top last."""

    @property
    def deepest(self) -> int:
        """The smallest number of words that it ever held."""


Opener = Callable[[NDArray[np.uint32], int], OpenStack]


@dataclass(frozen=True)
class Shape:
    """A plane of G: its sides and its highest possible sample."""

    rows: int
    columns: int
    highest: int


@dataclass(frozen=True)
class CodedStack:
    """A stack's bytes. `used`: bits of the initial ones that it holds; `growth`: words that each plane added."""

    data: bytes
    used: int
    growth: tuple[int, ...]


def fits(shapes: Sequence[Shape]) -> bool:
    """Whether planes can share a stack."""
    samples = sum(shape.rows * shape.columns for shape in shapes)
    ranges = all(0 < shape.highest <= HIGHEST_TOP for shape in shapes)
    return 0 < len(shapes) <= MAX_PLANES and samples <= MAX_SAMPLES and ranges


def encode_stack(
    planes: Sequence[Plane], shapes: Sequence[Shape], weights: Weights, opener: Opener, *,
    initial: bytes = b"", seed: int | None = None,
) -> CodedStack:  # fmt: skip
    """Code planes of G (int32, of the sides and ranges in `shapes`) on one stack, the first plane deepest.

    `initial`: what the stack draws from first; where it ends, random bits go on (of `seed`; None: of the system). Of
    `initial` the first `used` bits are in the stack; the rest is the caller's to keep. Raises UnsupportedFrame.
    """
    if not fits(shapes) or [plane.shape for plane in planes] != [(s.rows, s.columns) for s in shapes]:
        raise UnsupportedFrame("planes that cannot share a stack")
    supply = _supply(initial, 2 + sum(latent_count((shape.rows, shape.columns)) for shape in shapes), seed)
    stack, model = opener(supply[:0:-1].copy(), 1 << 32 | int(supply[0])), Model(weights)
    growth = []
    for plane, shape in zip(planes, shapes, strict=True):
        before = stack.words.size
        push_plane(stack, model, plane, shape.highest)
        growth.append(stack.words.size - before)
    words = stack.words[stack.deepest :]
    out = bytearray((MAGIC, VERSION))
    out += weights.id
    put_varint(out, len(planes))
    out += stack.state.to_bytes(8, "little")
    put_varint(out, words.size)
    out += words.astype("<u4").tobytes()
    out += _checksum(bytes(out), shapes)
    return CodedStack(bytes(out), 32 * (supply.size - stack.deepest), tuple(growth))


def _supply(initial: bytes, count: int, seed: int | None) -> NDArray[np.uint32]:
    """Words of the initial bits, at least `count`, filled up with random ones."""
    short = max(0, 4 * count - len(initial)) + -len(initial) % 4
    fill = secrets.token_bytes(short) if seed is None else np.random.default_rng(seed).bytes(short)
    data = (initial + fill)[: 4 * (-(-max(4 * count, len(initial)) // 4))]
    return np.frombuffer(data, "<u4").astype(np.uint32)


def _checksum(data: bytes, shapes: Sequence[Shape]) -> bytes:
    sides = bytearray()
    for shape in shapes:
        for number in (shape.rows, shape.columns, shape.highest):
            put_varint(sides, number)
    return zlib.crc32(sides, zlib.crc32(data)).to_bytes(4, "little")


def decode_stack(data: bytes, shapes: Sequence[Shape], opener: Opener) -> tuple[list[Plane], bytes]:
    """The planes of a stack, and the initial bits that it holds (whole words; what the encoder filled up included).

    Raises CorruptBitstream, also when the planes are other ones; UnknownWeights. Bounded by the planes' sides.
    """
    reader = Reader(data)
    if reader.byte() != MAGIC or reader.byte() != VERSION:
        raise CorruptBitstream("not a stack of a known version")
    name, count = bytes(reader.take(4)), reader.varint(MAX_PLANES)
    state = int.from_bytes(reader.take(8), "little")
    words = np.frombuffer(reader.take(4 * reader.varint(MAX_WORDS)), "<u4").astype(np.uint32)
    stored = bytes(reader.take(4))
    if reader.left:
        raise CorruptBitstream(f"{reader.left} bytes after the end of a stack")
    if count != len(shapes) or not fits(shapes) or stored != _checksum(data[:-4], shapes):
        raise CorruptBitstream("a stack is damaged, or of other frames")
    if not 1 << 31 <= state < 1 << 63:
        raise CorruptBitstream("a stack's state is impossible")
    weights = load(name)
    try:
        model = Model(weights)
    except BadWeights as error:
        raise CorruptBitstream("a stack names weights that hold no VAE") from error
    stack = opener(words, state)
    planes = [pop_plane(stack, model, (shape.rows, shape.columns), shape.highest) for shape in reversed(shapes)]
    if stack.state >> 32 != 1:
        raise CorruptBitstream("a stack does not end where it should")
    rest = np.append(stack.words, np.uint32(stack.state & 0xFFFFFFFF))[::-1]
    return planes[::-1], rest.astype("<u4").tobytes()
