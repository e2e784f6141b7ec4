"""Adapters: what turns released weights into the network that a frame is coded with. NumPy only, no kernels.

An adapter is bytes inside the object that needs it: u8 kind | 128 when it is for frames with a previous one, then
 kind 1: u8 number of a centre, a code that the weight file holds;
 kind 2: a code, int8[1..codes] (1/32); numbers that are missing are 0;
 kind 3: u8 length of the code, the code (may be empty), u8 rank 1..8, then for w1, w2 and w3 the factors
         int8[outputs, rank] and int8[rank, inputs] of what is added to the weights;
 kind 4: u8 number of an entry of the weight file's bank, whose factors are added; then a code that stands in place of
         the entry's own, or nothing.
A code times the weight file's basis shifts gains and biases. A network of the other kind stays as it is.
docs/bitstream.md, part 2, section 1.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from codec.errors import CorruptBitstream
from codec.network import Network
from codec.weights import BANK, MAX_RANK, Weights, load

FRAME, VOLUME = "frame", "volume"  # names of the networks for frames without and with a previous one
CENTRE, CODE, LOW_RANK, ENTRY = 1, 2, 3, 4
FOR_VOLUME: Final = 128
MOST_RANK: Final = MAX_RANK
MOST_BYTES: Final = 65535
GAIN_SHIFT, GAIN_LIMIT = 6, 255
BIAS_SHIFT, BIAS_LIMIT = 1, (1 << 17) - 1
DELTA_SHIFT: Final = 6
WEIGHT_LIMIT: Final = 127
MATRICES: Final = ("w1", "w2", "w3")

Code = NDArray[np.int8]
Factors = tuple[Code, Code]  # int8[outputs, rank], int8[rank, inputs]


@dataclass(frozen=True)
class Adapter:
    """A parsed adapter. centre, entry: their numbers, or None; code: int8, may be empty (with an entry: its own);
    factors: of w1, w2, w3, or none."""

    previous: bool
    centre: int | None
    code: Code
    factors: tuple[Factors, ...] = ()
    entry: int | None = None

    def pack(self) -> bytes:
        """Its bytes."""
        flag = FOR_VOLUME if self.previous else 0
        if self.centre is not None:
            return struct.pack("BB", CENTRE | flag, self.centre)
        if self.entry is not None:
            return struct.pack("BB", ENTRY | flag, self.entry) + self.code.tobytes()
        if not self.factors:
            return bytes([CODE | flag]) + self.code.tobytes()
        head = bytes([LOW_RANK | flag, self.code.size]) + self.code.tobytes() + bytes([self.factors[0][0].shape[1]])
        return head + b"".join(part.tobytes() for pair in self.factors for part in pair)


def parse(data: bytes, weights: Weights) -> Adapter:
    """Read an adapter for these weights. Raises CorruptBitstream."""
    if not 2 <= len(data) <= MOST_BYTES:
        raise CorruptBitstream("an adapter of impossible size")
    previous, kind = bool(data[0] & FOR_VOLUME), data[0] & ~FOR_VOLUME
    name = VOLUME if previous else FRAME
    if name not in weights.networks or f"{name}.basis" not in weights.arrays:
        raise CorruptBitstream("these weights know no such adapter")
    codes = weights.array(f"{name}.basis").shape[0]
    empty = np.zeros(0, np.int8)
    if kind == CENTRE:
        centres = weights.arrays.get(f"{name}.centres")
        if len(data) != 2 or centres is None or data[1] >= len(centres):
            raise CorruptBitstream("an adapter names no centre")
        return Adapter(previous, data[1], empty)
    if kind == ENTRY and data[1] < weights.entries(name) and len(data) - 2 <= codes:
        return Adapter(previous, None, np.frombuffer(data, np.int8, offset=2), entry=data[1])
    if kind == CODE and len(data) - 1 <= codes:
        return Adapter(previous, None, np.frombuffer(data, np.int8, offset=1))
    if kind == LOW_RANK and data[1] <= codes and len(data) > data[1] + 2:
        code = np.frombuffer(data, np.int8, data[1], 2)
        return Adapter(previous, None, code, _factors(data, data[1] + 2, weights, name))
    raise CorruptBitstream("an adapter is broken")


def _factors(data: bytes, at: int, weights: Weights, name: str) -> tuple[Factors, ...]:
    rank, at, found = data[at], at + 1, []
    shapes = [weights.array(f"{name}.{matrix}").shape for matrix in MATRICES]
    if not 1 <= rank <= MOST_RANK or len(data) - at != rank * sum(sum(shape) for shape in shapes):
        raise CorruptBitstream("an adapter's factors do not fit the weights")
    for outputs, inputs in shapes:
        left = np.frombuffer(data, np.int8, outputs * rank, at).reshape(outputs, rank)
        right = np.frombuffer(data, np.int8, rank * inputs, at + outputs * rank).reshape(rank, inputs)
        found.append((left, right))
        at += rank * (outputs + inputs)
    return tuple(found)


def materialise(weights: Weights, adapter: bytes, previous: bool) -> Network:
    """The network under an adapter (empty: none) for frames with or without a previous one.

    Raises CorruptBitstream on adapter bytes that these weights cannot read, NoSuchArray when they lack the network.
    """
    name = VOLUME if previous else FRAME
    layers = weights.layers(name)
    if adapter:
        parsed = parse(adapter, weights)
        if parsed.previous == previous:
            _adapt(layers, parsed, weights, name)
    network = Network(**layers)
    if not network.fits():
        raise CorruptBitstream("a network under an adapter could overflow")
    return network


def _adapt(layers: dict[str, NDArray[np.int32]], adapter: Adapter, weights: Weights, name: str) -> None:
    """Apply an adapter to a network's layers, in place."""
    code, factors = adapter.code, adapter.factors
    if adapter.centre is not None:
        code = weights.array(f"{name}.centres")[adapter.centre]
    elif adapter.entry is not None:
        own, factors = entry_of(weights, name, adapter.entry)
        code = code if code.size else own
    basis = weights.array(f"{name}.basis").astype(np.int32)
    shift = code.astype(np.int32) @ basis[: code.size]
    for part in ("g1", "b1", "g2", "b2", "b3"):
        own, shift = shift[: layers[part].size], shift[layers[part].size :]
        if part[0] == "g":
            layers[part] = np.clip(layers[part] + (own >> GAIN_SHIFT), 0, GAIN_LIMIT).astype(np.int32)
        else:
            layers[part] = np.clip(layers[part] + (own << BIAS_SHIFT), -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
    for part, (left, right) in zip(MATRICES, factors, strict=False):
        added = (left.astype(np.int32) @ right.astype(np.int32) + (1 << (DELTA_SHIFT - 1))) >> DELTA_SHIFT
        layers[part] = np.clip(layers[part] + added, -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int32)


def entry_of(weights: Weights, name: str, number: int) -> tuple[Code, tuple[Factors, ...]]:
    """The code and the factors of an entry of a network's bank. Raises NoSuchArray when it has no bank."""
    code, *parts = (np.asarray(weights.array(f"{name}.{part}")[number], np.int8) for part in BANK)
    return code, tuple(zip(parts[::2], parts[1::2], strict=True))


@lru_cache(maxsize=16)
def network_of(weights: bytes, adapter: bytes, previous: bool) -> Network:
    """The network that a blob names by 4 bytes of a weight file's SHA-256. Raises as `load` and `materialise` do."""
    return materialise(load(weights), adapter, previous)


def candidates(weights: Weights, prior: tuple[str, str, str], previous: bool) -> list[bytes]:
    """Adapters worth trying for an anatomical prior (Modality, BodyPartExamined, model): entries of the bank, then
    centres, the closest first."""
    name, empty = VOLUME if previous else FRAME, np.zeros(0, np.int8)
    entries, centres = (weights.facts.get(kind, {}).get(name, []) for kind in ("bank", "centres"))
    found = [Adapter(previous, None, empty, entry=place) for place in _closest(entries, prior)]
    found += [Adapter(previous, place, empty) for place in _closest(centres, prior)]
    return [each.pack() for each in found]


def of_scanner(weights: Weights, prior: tuple[str, str, str]) -> tuple[bytes, ...]:
    """Entries of the bank for exactly this Modality, body part and model of scanner, none where no model is known.

    They are what a frame may be coded with unfitted: entries of other keys do not hold for scanners never seen.
    """
    found = []
    for name in (FRAME, VOLUME) if prior[2] else ():
        for place, key in enumerate(weights.facts.get("bank", {}).get(name, [])):
            if tuple(key) == prior:
                found.append(Adapter(name == VOLUME, None, np.zeros(0, np.int8), entry=place).pack())
    return tuple(found)


def is_for(adapter: bytes, previous: bool) -> bool:
    """Whether an adapter changes the network for frames with (`previous`) or without a previous one."""
    return bool(adapter) and bool(adapter[0] & FOR_VOLUME) == previous


def _closest(keys: Iterable[Iterable[str]], prior: tuple[str, str, str]) -> list[int]:
    """Places of centres by how much of the prior they share; those of another Modality, but not those of none, left
    out."""
    scored = []
    for place, key in enumerate(keys):
        parts = tuple(key)
        shared = 0
        while shared < 3 and parts[shared] and parts[shared] == prior[shared]:
            shared += 1
        if shared or not parts[0]:
            scored.append((-shared, place))
    return [place for _, place in sorted(scored)]
