"""Mode B, hidden: adaptive +-1 embedding that looks like the frame's own noise. Needs a restoration record.

Both sides order the samples that are not reserved by a keyed permutation and cut this stream into a head, whose
groups' parities spell the code's variant and the sizes of the sign blocks, and a body. In the body the lowest bits
carry one part of the message by a syndrome-trellis code, and the directions of the changes carry the rest
(stego/signlayer.py). Only the encoder knows costs and forbidden samples. The stream has no length and no magic: who
asks with a wrong key, or for a wrong number of bytes, gets noise, and the capsule above refuses it. Messages must
look uniform already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from stego import changemap, signlayer, stc
from stego.costs import Costs, rho_map
from stego.cover import Cover
from stego.errors import CarrierError
from stego.lattice import reserved
from stego.positions import permutation
from stego.suitability import Suitability, suitability, usable

__all__ = ["Hidden", "Suitability", "capacity", "embed", "extract", "restore", "suitability"]

Values = NDArray[np.int32]
Bits = NDArray[np.uint8]

_INFO_SIGNS = b"palimpsest/hidden-signs/v1"
_BLOCK_BITS = 4096
_COUNT_BITS = 12
_VARIANT_BITS = 4  # stc.VARIANTS of them
#: samples of a head group; the head is at most one in _BODY_TO_HEAD of the stream
_GROUP = 64
_BODY_TO_HEAD = 8
#: what the codes lose against the bound: costs are scaled for this much more than the message
_CODING_LOSS = 1.08
#: the code changes this many times as many samples as the bound says at that scale (measured: 1.11 to 1.16)
_CHANGES_OVER_BOUND = 1.11
#: a lane must have at least this many dry samples per message bit, this many standard deviations below its mean
_DRY_PER_BIT = 1.6
_LANE_MARGIN = 4.0
#: highest chance of a head group without any dry sample
_HEAD_RISK = 1e-3
_ATTEMPTS = stc.VARIANTS


@dataclass(frozen=True, slots=True)
class Hidden:
    """values: the stego frame, int32. changes: the compressed way back (`restore`), to be sealed and stored elsewhere.

    changed: samples that differ, each by one. mse: their share of all samples. rate: message bits per sample.
    """

    values: Values = field(repr=False)
    changes: bytes = field(repr=False)
    changed: int
    mse: float
    rate: float


class _Layout(NamedTuple):
    """How a stream of n samples is cut for a message: known to both sides."""

    bits: int
    blocks: int
    group: int
    steps: int

    @property
    def head(self) -> int:
        return self.group * self.head_bits

    @property
    def head_bits(self) -> int:
        return _VARIANT_BITS + _COUNT_BITS * self.blocks

    def share(self, block: int) -> int:
        """The most sign bits of a block."""
        most = self.bits * (block + 1) // self.blocks - self.bits * block // self.blocks
        return min(most, (1 << _COUNT_BITS) - 1)

    def span(self, block: int) -> slice:
        """The block's samples in the body."""
        return slice(self.steps * block // self.blocks * stc.LANES, self.steps * (block + 1) // self.blocks * stc.LANES)


def capacity(cover: Cover, bpp: float = 0.1, region: NDArray[np.bool_] | None = None) -> int:
    """Message bits (whole bytes) at `bpp` bits per usable sample; 0 if not even one byte fits. bpp: up to 0.6."""
    if not 0 < bpp <= 0.6:
        raise ValueError("0 < bpp <= 0.6")
    dry = usable(cover, region)
    bits = int(np.count_nonzero(dry) * bpp) // 8 * 8
    while bits > 0 and not _fits(dry, _layout(dry.shape, bits)):
        bits = bits * 7 // 8 // 8 * 8
    return bits


def embed(
    cover: Cover,
    message: bytes,
    *,
    stego_key: bytes,
    salt: bytes,
    costs: Costs = "mipod",
    region: NDArray[np.bool_] | None = None,
) -> Hidden:
    """Hide `message` (uniform bytes, a length both sides know). The same arguments give the same frame.

    salt: `stego.lattice.fingerprint` of the frame. region: bool, True where a sample may change; encoder side only.
    Raises CarrierError('capacity') when the usable samples do not carry the message, ValueError for an empty message.
    """
    if not message:
        raise ValueError("an empty message")
    dry = usable(cover, region)
    layout = _layout(dry.shape, 8 * len(message))
    if not _fits(dry, layout):
        raise CarrierError("capacity")
    order = _order(dry.shape, stego_key, salt)
    rho = rho_map(cover.values, dry, layout.bits * _CODING_LOSS, costs).ravel()[order]
    signs = _key_bits(order.size, stego_key, salt)
    stream = cover.values.ravel()[order]
    delta = _changes(stream, rho, np.unpackbits(np.frombuffer(message, dtype=np.uint8)), layout, signs)
    values = cover.values.copy()
    values.reshape(-1)[order] += delta
    changed = int(np.count_nonzero(delta))
    record = changemap.encode(cover.values, values)
    return Hidden(values, record, changed, changed / dry.size, layout.bits / dry.size)


def extract(values: Values, nbytes: int, *, stego_key: bytes, salt: bytes) -> bytes:
    """The `nbytes` bytes that the frame spells under this key: noise, unless key, salt and length are right.

    values: int32 (rows, columns). Raises CarrierError('capacity') when no frame of this shape carries so much.
    """
    if values.ndim != 2 or nbytes < 1:
        raise ValueError("a frame (rows, columns) and at least one byte")
    layout = _layout(values.shape, 8 * nbytes)
    if not _possible(layout):
        raise CarrierError("capacity")
    stream = values.ravel()[_order(values.shape, stego_key, salt)]
    variant, counts = _read_head((stream[: layout.head] & 1).astype(np.uint8), layout)
    body = stream[layout.head : layout.head + layout.steps * stc.LANES]
    first = layout.bits - sum(counts)
    spelled = stc.syndrome(_low_bits(body), -(-first // stc.LANES), variant)
    second = ((body >> 1) & 1).astype(np.uint8)
    parts = [signlayer.read(second[layout.span(block)], count) for block, count in enumerate(counts)]
    return np.packbits(np.concatenate([spelled.ravel()[:first], *parts])).tobytes()


def restore(values: Values, changes: bytes) -> Values:
    """The original frame from the stego frame and `Hidden.changes`. Raises CarrierError('changes')."""
    return changemap.apply(values, changes)


# --- what both sides agree on ---


def _layout(shape: tuple[int, ...], bits: int) -> _Layout:
    rows, columns = shape
    samples = rows * columns - len(range(2, rows, 4)) * len(range(2, columns, 4))
    blocks = max(1, -(-bits // _BLOCK_BITS))
    head_bits = _VARIANT_BITS + _COUNT_BITS * blocks
    group = min(_GROUP, samples // (_BODY_TO_HEAD * head_bits))
    return _Layout(bits, blocks, group, max(0, samples - group * head_bits) // stc.LANES)


def _possible(layout: _Layout) -> bool:
    return layout.group > 0 and layout.steps * stc.LANES >= _DRY_PER_BIT * layout.bits


def _fits(dry: NDArray[np.bool_], layout: _Layout) -> bool:
    """Whether every lane very likely has enough dry samples, and every head group one.

    Only likely: the keyed order deals them out at random.
    """
    if not _possible(layout):
        return False
    share = min(1.0, float(np.count_nonzero(dry)) / max(1, int(np.count_nonzero(~reserved(dry.shape)))))
    if layout.head_bits * (1 - share) ** layout.group > _HEAD_RISK:
        return False
    expected = layout.steps * share
    sure = expected - _LANE_MARGIN * math.sqrt(expected * (1 - share))
    return sure >= _DRY_PER_BIT * -(-layout.bits // stc.LANES)


def _order(shape: tuple[int, ...], stego_key: bytes, salt: bytes) -> NDArray[np.int64]:
    rows, columns = shape
    free = np.flatnonzero(~reserved((rows, columns)))
    return free[permutation(free.size, stego_key=stego_key, salt=salt)]


def _read_head(low_bits: Bits, layout: _Layout) -> tuple[int, list[int]]:
    """The code's variant, and the sign bits of each block, bounded by what a block may have.

    A wrong key gives numbers, too.
    """
    parities = np.bitwise_xor.reduce(low_bits.reshape(-1, layout.group), axis=1)
    variant = int(parities[:_VARIANT_BITS] @ _powers(_VARIANT_BITS))
    counts = parities[_VARIANT_BITS:].reshape(layout.blocks, _COUNT_BITS) @ _powers(_COUNT_BITS)
    return variant, [min(int(count), layout.share(block)) for block, count in enumerate(counts)]


def _head_parities(variant: int, counts: list[int]) -> Bits:
    """Inverse of `_read_head`: the parity of every group."""
    sizes = (np.array(counts)[:, None] // _powers(_COUNT_BITS)) & 1
    return np.concatenate([(variant // _powers(_VARIANT_BITS)) & 1, sizes.ravel()]).astype(np.uint8)


def _powers(bits: int) -> NDArray[np.int64]:
    return np.asarray(1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


# --- encoder ---


def _changes(stream: Values, rho: NDArray[np.float32], bits: Bits, layout: _Layout, signs: Bits) -> Values:
    """+1, -1 or 0 for every sample of the stream. Raises CarrierError('capacity')."""
    begin, end = layout.head, layout.head + layout.steps * stc.LANES
    body, wish = stream[begin:end], signs[begin:end]
    costs = np.minimum(np.maximum(rho[begin:end] - np.float32(math.log(2)), np.float32(1e-3)), stc.WET)
    counts = _planned(rho[begin:end], layout)
    variant = 0
    for _ in range(_ATTEMPTS):
        flips = _first_layer(body, costs, bits[: layout.bits - sum(counts)], variant)
        if (costs[flips] >= stc.WET).any():
            variant += 1
            continue
        up = _second_layer(body, flips, bits[layout.bits - sum(counts) :], counts, layout, wish)
        if up is not None:
            break
        counts = _lowered(flips, counts, layout)
    else:
        raise CarrierError("capacity")
    delta = np.zeros(stream.size, dtype=np.int32)
    delta[begin:end] = np.where(flips, np.where(up, 1, -1), 0)
    at = _head_flips(stream[:begin], rho[:begin], _head_parities(variant, counts), layout)
    delta[at] = np.where(signs[at], 1, -1)
    return delta


def _planned(rho: NDArray[np.float32], layout: _Layout) -> list[int]:
    """Sign bits of each block that its changes will very likely carry."""
    counts = []
    for block in range(layout.blocks):
        expected = float((2 / (2 + np.exp(np.minimum(rho[layout.span(block)], 80)))).sum())
        counts.append(_carried(_CHANGES_OVER_BOUND * expected - 1.5 * math.sqrt(expected), layout.share(block)))
    return counts


def _lowered(flips: NDArray[np.bool_], counts: list[int], layout: _Layout) -> list[int]:
    """Smaller counts after a failure: what the last changes would have carried, and less."""
    seen = [int(np.count_nonzero(flips[layout.span(block)])) for block in range(layout.blocks)]
    return [min(count * 7 // 8, _carried(0.97 * n, count)) for count, n in zip(counts, seen, strict=True)]


def _carried(changes: float, most: int) -> int:
    return min(most, max(0, int(changes) - signlayer.SPARE))


def _first_layer(body: Values, costs: NDArray[np.float32], bits: Bits, variant: int) -> NDArray[np.bool_]:
    """Which samples of the body change so that their lowest bits spell `bits` (zero-padded to whole rows)."""
    rows = -(-bits.size // stc.LANES)
    target = np.zeros(rows * stc.LANES, dtype=np.uint8)
    target[: bits.size] = bits
    missing = target.reshape(-1, stc.LANES) ^ stc.syndrome(_low_bits(body), rows, variant)
    return stc.cheapest_flips(costs.reshape(-1, stc.LANES), missing, variant).ravel()


def _low_bits(body: Values) -> Bits:
    return (body & 1).astype(np.uint8).reshape(-1, stc.LANES)


def _second_layer(
    body: Values, flips: NDArray[np.bool_], bits: Bits, counts: list[int], layout: _Layout, wish: Bits
) -> NDArray[np.bool_] | None:
    """True where a changed sample goes up; None when a block has too few changes for its bits."""
    up = wish.astype(np.bool_)
    second = (((body - flips) >> 1) & 1).astype(np.uint8)  # as if every change went down
    start = 0
    for block, count in enumerate(counts):
        span = layout.span(block)
        changed = np.flatnonzero(flips[span])
        if count and changed.size < count + signlayer.SPARE // 2:
            return None
        chosen = signlayer.choose(second[span], changed, bits[start : start + count], wish[span][changed])
        if chosen is None:
            return None
        up[span][changed] = chosen.astype(np.bool_)
        start += count
    return up


def _head_flips(head: Values, rho: NDArray[np.float32], parities: Bits, layout: _Layout) -> NDArray[np.int64]:
    """The cheapest sample of every group whose parity is not yet right. Raises CarrierError('capacity')."""
    groups = (head & 1).reshape(-1, layout.group)
    wrong = np.flatnonzero(np.bitwise_xor.reduce(groups, axis=1) != parities)
    cheapest = rho.reshape(-1, layout.group)[wrong].argmin(axis=1) + wrong * layout.group
    if np.isinf(rho[cheapest]).any():
        raise CarrierError("capacity")
    return np.asarray(cheapest)


def _key_bits(n: int, stego_key: bytes, salt: bytes) -> Bits:
    """n bits of key stream: the directions that the message leaves open."""
    key = HKDF(SHA256(), 32, salt, _INFO_SIGNS).derive(stego_key)
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(-(-n // 8)))
    return np.unpackbits(np.frombuffer(stream, dtype=np.uint8))[:n]
