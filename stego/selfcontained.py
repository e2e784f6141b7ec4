"""Self-contained reversible embedding: the stego image and its key give back message and original image.

    stack    message and tag, whitened, then what the header samples' lowest bits were (stego.pixelheader)
    method   takes the stack into the carrying samples (stego.pee, stego.recursive)
    header   method and its parameters, whitened, at keyed places

No location map, no clear length, no magic. The tag (HMAC-SHA-256, 64 bits) covers the message and the original image:
whatever does not restore exactly is refused. The message's own seal is the caller's (a capsule).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from hashlib import sha256
from types import ModuleType

import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from stego import pee, recursive
from stego.carriers import Ground, ground
from stego.cover import Cover
from stego.errors import CarrierError, SealError
from stego.pixelheader import BitReader, BitWriter, Places, from_bits, keystream, to_bits

_INFO = b"palimpsest/selfcontained/v1"
_TAG = 8
_METHOD_BITS = 2
_LENGTH_BITS = 10
_PREFIX_BITS = _METHOD_BITS + _LENGTH_BITS
_HEADER_GUESS = 320
_MARGIN_SHARE = 50  # capacity: messages differ by less than this part of what fits,
_MARGIN_BITS = 64  # and by this
_METHODS: dict[str, ModuleType] = {"recursive": recursive, "plain_pee": pee}  # the first is 'auto'
_CODES = {"plain_pee": 1, "recursive": 2}
METHODS = tuple(_METHODS)


@dataclass(frozen=True, slots=True)
class SelfContained:
    """values: int32 stego image. changed: samples that differ. mse: in squared stored units. method: as embedded."""

    values: NDArray[np.int32]
    changed: int
    mse: float
    max_change: int
    method: str


class _Keys:
    """What a stego key and a salt give: three keys for three uses."""

    def __init__(self, stego_key: bytes, salt: bytes) -> None:
        derived = HKDF(SHA256(), 96, salt, _INFO).derive(stego_key)
        self._header, self._stack, self._tag = derived[:32], derived[32:64], derived[64:]

    def whiten_header(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        stream = keystream(self._header, -(-bits.size // 8))
        return bits ^ np.unpackbits(np.frombuffer(stream, np.uint8))[: bits.size]

    def whiten_stack(self, data: bytes) -> bytes:
        stream = keystream(self._stack, len(data))
        return (np.frombuffer(data, np.uint8) ^ np.frombuffer(stream, np.uint8)).tobytes()

    def tag(self, message: bytes, values: NDArray[np.int32]) -> bytes:
        pixels = sha256(np.ascontiguousarray(values, dtype="<i4").data).digest()
        return hmac.digest(self._tag, pixels + message, "sha256")[:_TAG]


def embed(
    cover: Cover,
    message: bytes,
    *,
    stego_key: bytes,
    salt: bytes,
    region: NDArray[np.bool_] | None = None,
    method: str = "auto",
    max_change: int | None = None,
) -> SelfContained:
    """Put `message` into the cover; verified by extracting it again before anything is returned.

    stego_key, salt: secret bytes and the image's fingerprint. region: bool, True where a sample may carry; the receiver
    must be given the same. method: one of METHODS, or 'auto'. max_change: the most that a sample may move, or None:
    the least that does not cost rate. Raises CarrierError ('capacity', 'wet', 'region', 'verify').
    """
    name = _named(method)
    keys, land = _Keys(stego_key, salt), ground(cover, region)
    places = Places(land, stego_key=stego_key, salt=salt)
    stego = _embed(cover, message, keys, land, places, name, max_change)
    if not _verified(cover, message, stego, stego_key, salt, region):
        raise CarrierError("verify")
    change = np.abs(stego.astype(np.int64) - cover.values)
    return SelfContained(
        stego, int(np.count_nonzero(change)), float(np.mean(np.square(change))), int(change.max()), name
    )


def extract(
    cover: Cover, *, stego_key: bytes, salt: bytes, region: NDArray[np.bool_] | None = None
) -> tuple[bytes, NDArray[np.int32]]:
    """Inverse of `embed`: (message, original values int32). `cover.values` is the stego image.

    Raises SealError for a wrong key, another region, a damaged or an ordinary image; never anything half restored.
    """
    keys = _Keys(stego_key, salt)
    try:
        land = ground(cover, region)
        places = Places(land, stego_key=stego_key, salt=salt)
        return _extract(cover, keys, land, places)
    except CarrierError:
        raise SealError from None


def capacity(cover: Cover, region: NDArray[np.bool_] | None = None, max_change: int = 1, method: str = "auto") -> int:
    """Bits of message (a whole number of bytes) that `embed` takes with no sample changed by more than `max_change`.

    Found by embedding noise, less what header and tag cost and a margin for how messages differ. 0 where nothing fits.
    Raises CarrierError ('wet', 'region').
    """
    carrier = _METHODS[_named(method)]
    if not 1 <= max_change <= carrier.MAX_CHANGE:
        raise ValueError("max_change")
    land, noise_key = ground(cover, region), bytes(32)
    try:
        places = Places(land, stego_key=noise_key, salt=b"")
    except CarrierError:
        return 0
    try:
        plan = carrier.prepare(cover.values, land.mask, land.bars, 0, max_change)
    except CarrierError:
        return 0
    blocks = places.used(_PREFIX_BITS) + places.used(carrier.body_bits(plan))
    work, mask = _canonical(cover.values, land, places, blocks)
    net: int = carrier.trial(plan, work, mask, land.bars, keystream(noise_key, cover.values.size))
    room = net - net // _MARGIN_SHARE - _MARGIN_BITS - 8 * (-(-blocks * places.order // 8) + _TAG)
    return max(0, room // 8 * 8)


def _named(method: str) -> str:
    name = METHODS[0] if method == "auto" else method
    if name not in _METHODS:
        raise ValueError("no such method")
    return name


def _embed(
    cover: Cover, message: bytes, keys: _Keys, land: Ground, places: Places, name: str, max_change: int | None
) -> NDArray[np.int32]:
    carrier = _METHODS[name]
    overhead = 8 * _TAG + _HEADER_GUESS
    plan = carrier.prepare(cover.values, land.mask, land.bars, 8 * len(message) + overhead, max_change)
    blocks = places.used(_PREFIX_BITS) + places.used(carrier.body_bits(plan))
    before = places.syndromes(cover.values, 0, blocks)
    body_of_stack = message + keys.tag(message, cover.values)
    stack = keys.whiten_stack(body_of_stack + np.packbits(to_bits(before, places.order)).tobytes())
    work, mask = _canonical(cover.values, land, places, blocks)
    body = carrier.forward(plan, work, mask, land.bars, stack)
    prefix = BitWriter()
    prefix.put(_CODES[name], _METHOD_BITS)
    prefix.put(len(body.bits), _LENGTH_BITS)
    wanted = _header(keys, places, prefix, body)
    _put_back(work, cover.values, places, blocks)
    places.turn(work, wanted)
    return work


def _extract(cover: Cover, keys: _Keys, land: Ground, places: Places) -> tuple[bytes, NDArray[np.int32]]:
    first = places.used(_PREFIX_BITS)
    total = places.blocks.shape[0]
    bits = keys.whiten_header(to_bits(places.syndromes(cover.values, 0, total), places.order))
    prefix, after = BitReader(bits), bits[first * places.order :]
    code, length = prefix.get(_METHOD_BITS), prefix.get(_LENGTH_BITS)
    name = next((name for name, known in _CODES.items() if known == code), None)
    blocks = first + places.used(length)
    if name is None or blocks > total:
        raise SealError
    if bits[_PREFIX_BITS : first * places.order].any() or after[length : places.used(length) * places.order].any():
        raise SealError
    body = BitReader(after[:length])
    work, mask = _canonical(cover.values, land, places, blocks)
    stack = keys.whiten_stack(_METHODS[name].backward(work, mask, land.bars, body))
    saved = -(-blocks * places.order // 8)
    if len(stack) < saved + _TAG:
        raise SealError
    kept = np.unpackbits(np.frombuffer(stack[len(stack) - saved :], np.uint8))
    if kept[blocks * places.order :].any():
        raise SealError
    _put_back(work, cover.values, places, blocks)
    places.turn(work, from_bits(kept[: blocks * places.order], places.order))
    message, tag = stack[: len(stack) - saved - _TAG], stack[len(stack) - saved - _TAG : len(stack) - saved]
    if not hmac.compare_digest(tag, keys.tag(message, work)):
        raise SealError
    return message, work


def _canonical(
    values: NDArray[np.int32], land: Ground, places: Places, blocks: int
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The frame as both sides see it: header samples without their lowest bit, and none of them carries."""
    work, mask = np.ascontiguousarray(values).copy(), land.mask.copy()
    places.clear(work, blocks)
    mask.reshape(-1)[places.blocks[:blocks]] = False
    return work, mask


def _put_back(work: NDArray[np.int32], values: NDArray[np.int32], places: Places, blocks: int) -> None:
    at = places.blocks[:blocks]
    work.reshape(-1)[at] = np.ascontiguousarray(values).reshape(-1)[at]


def _header(keys: _Keys, places: Places, prefix: BitWriter, body: BitWriter) -> NDArray[np.uint8]:
    """Syndromes of the first blocks: prefix, filled up to a block, then body, whitened."""
    first = places.used(len(prefix.bits)) * places.order
    bits = np.zeros(first + places.used(len(body.bits)) * places.order, np.uint8)
    bits[: len(prefix.bits)] = prefix.bits
    bits[first : first + len(body.bits)] = body.bits
    return from_bits(keys.whiten_header(bits), places.order)


def _verified(
    cover: Cover,
    message: bytes,
    stego: NDArray[np.int32],
    stego_key: bytes,
    salt: bytes,
    region: NDArray[np.bool_] | None,
) -> bool:
    carrier = Cover(stego, cover.low, cover.high, cover.barred)
    try:
        got, values = extract(carrier, stego_key=stego_key, salt=salt, region=region)
    except SealError:
        return False
    return got == message and np.array_equal(values, cover.values)
