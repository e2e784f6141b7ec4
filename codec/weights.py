"""Released weights of the learned coder: one file a version, found by its SHA-256, every byte checked. No kernels.

File: `PALW`, u8 version 1, three zero bytes, u32 length of the header, the header (JSON in ASCII, keys sorted, no
spaces), then the arrays in the order in which the header lists them, little endian, C order, without gaps. Nothing
follows. The header is an object: `name`, `profiles` (list), `arrays` (list of [name, dtype, shape]), `facts` (what the
model card says; nothing that decodes depends on it). docs/bitstream.md says which arrays a network has.

A file is named by its digest: frames hold the first four bytes. `RELEASED` lists all that were ever released; none is
ever removed (a test pins them), since archived frames need them for good.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError, CorruptBitstream, MissingContext
from codec.header import read_header
from codec.limits import DEFAULT_LIMITS
from codec.wire import Reader

MAGIC: Final = b"PALW"
VERSION: Final = 1
MAX_BYTES: Final = 2 << 20  # of a file
MAX_HEADER: Final = 1 << 16
MAX_ARRAYS: Final = 256
MAX_SIDE: Final = 1 << 20  # of an array
ID_BYTES: Final = 4
DTYPES: Final = ("|i1", "|u1", "<i2", "<u2", "<i4")
SUM_LIMIT: Final = 1 << 24  # |bias| + 1023 * sum |weights| of a unit stays below, so float32 sums are exact, too
HIGHEST_INPUT: Final = 1023
LAYERS: Final = ("w1", "b1", "g1", "w2", "b2", "g2", "w3", "b3")
STACK_HEAD: Final = b"\x53\x01"  # codec.groupstack: magic and version of a stack
MAX_UNITS: Final = 512  # inputs of a layer, so hidden units of both layers together, each rounded up to whole eights
MAX_INPUTS: Final = 256
MAX_COMPONENTS: Final = 5  # logistics, three outputs each
MAX_CODES: Final = 255
MAX_ENTRIES: Final = 256  # of a bank
MAX_RANK: Final = 8
#: arrays of a network's bank of low-rank deltas, entry by entry: codes, then two factors each for w1, w2 and w3
BANK: Final = ("bank_codes", "bank_w1a", "bank_w1b", "bank_w2a", "bank_w2b", "bank_w3a", "bank_w3b")
UNIT_BLOCK: Final = 8  # hidden units that a kernel computes together
_HEAD: Final = struct.Struct("<4sB3sI")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,47}")

Array = NDArray[np.int8] | NDArray[np.uint8] | NDArray[np.int16] | NDArray[np.uint16] | NDArray[np.int32]


class BadWeights(CodecError):
    """The bytes are no weight file, or not the one that was asked for."""


class NoSuchArray(BadWeights, CorruptBitstream):
    """The weights lack what is asked of them: of a blob that names them, or of whoever encodes with them, a fault."""


class UnknownWeights(MissingContext):
    """A frame names weights that this program does not have; later releases, and the archive itself, do."""


@dataclass(frozen=True)
class Released:
    """One released file: its name, full SHA-256 in hex, and the profiles that encode with it (none: decoding only)."""

    name: str
    sha256: str
    profiles: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Its name in codec/models."""
        return f"{self.name}-{self.sha256[:8]}.bin"


#: every file ever released, oldest first. Add; never remove or change: archived frames name these digests.
RELEASED: Final[tuple[Released, ...]] = (
    Released("vae", "3b74968a7aa91647577b0d1e6133ffed39e13cc5d708c330092059bc0b7b31d7"),
    Released("fast", "83b2728bb5ce1bbed7ca34e3178133449842cd6b665845f766b166c2f3754df9", ("fast",)),
    Released("default", "259ec00523814fde76c37e3c04bc35414f7e67e7cf81f761866a92a94554ec55", ("default", "max")),
    Released("default", "a99582039ac9489156b8106e264a5c31ccf0b27a78d8459bc993643371417587", ("default", "max")),
)


@dataclass(frozen=True, eq=False)
class Weights:
    """A parsed file. arrays: by name, read only. data: the file itself."""

    name: str
    sha256: str
    profiles: tuple[str, ...]
    arrays: Mapping[str, Array] = field(repr=False)
    facts: Mapping[str, Any] = field(repr=False)
    data: bytes = field(repr=False)

    @property
    def id(self) -> bytes:
        """What frames name it by: the first four bytes of its SHA-256."""
        return bytes.fromhex(self.sha256)[:ID_BYTES]

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of its networks ('frame', 'volume', ...), sorted."""
        return tuple(sorted(name.removesuffix(".w1") for name in self.arrays if name.endswith(".w1")))

    def layers(self, network: str) -> dict[str, NDArray[np.int32]]:
        """Fresh int32 arrays w1[H1, I], b1[H1], g1[H1], w2[H2, H1], b2[H2], g2[H2], w3[O, H1 + H2], b3[O] of a network.

        Raises NoSuchArray when there is no such network.
        """
        return {part: self.array(f"{network}.{part}").astype(np.int32) for part in LAYERS}

    def entries(self, network: str) -> int:
        """How many entries a network's bank has, 0 without a bank."""
        codes = self.arrays.get(f"{network}.{BANK[0]}")
        return 0 if codes is None else len(codes)

    def array(self, name: str) -> Array:
        """One array as stored. Raises NoSuchArray when there is none of that name."""
        if name not in self.arrays:
            raise NoSuchArray(f"weights {self.name} hold no {name}")
        return self.arrays[name]


# --- reading ---


def parse(data: bytes, digest: str | None = None) -> Weights:
    """Read a weight file. digest: the SHA-256 (hex) that it must have. Raises BadWeights.

    Arrays are views of `data`: no size that it declares is ever allocated.
    """
    if not _HEAD.size <= len(data) <= MAX_BYTES:
        raise BadWeights("a weight file of impossible size")
    found = sha256(data).hexdigest()
    if digest is not None and found != digest:
        raise BadWeights("a weight file is not the one that its SHA-256 names")
    magic, version, zeros, size = _HEAD.unpack_from(data)
    if magic != MAGIC or version != VERSION or any(zeros) or size > min(MAX_HEADER, len(data) - _HEAD.size):
        raise BadWeights("no weight file of a known version")
    at = _HEAD.size + size
    header = _read_header(data[_HEAD.size : at])
    arrays = _read_arrays(data, at, header["arrays"])
    for network in {name.rpartition(".")[0] for name in arrays if name.endswith(".w1")}:
        _check_network(arrays, network)
        _check_adapters(arrays, network)
    profiles = tuple(header["profiles"])
    return Weights(header["name"], found, profiles, MappingProxyType(arrays), MappingProxyType(header["facts"]), data)


def find(data: bytes) -> bytes:
    """The first weight file that lies anywhere in `data`, such as in its archive object. Raises BadWeights."""
    at = data.find(MAGIC)
    if at < 0 or len(data) - at < _HEAD.size:
        raise BadWeights("no weight file in these bytes")
    size = _HEAD.unpack_from(data, at)[3]
    end = at + _HEAD.size + min(size, MAX_HEADER)
    for entry in _read_header(data[at + _HEAD.size : end])["arrays"][:MAX_ARRAYS]:
        _, dtype, shape = _read_entry(entry)
        end += math.prod(shape) * np.dtype(dtype).itemsize
    found = data[at : min(end, at + MAX_BYTES)]
    parse(found)
    return found


def needed_by(blob: bytes | memoryview) -> bytes | None:
    """The id of the weights that a frame or a group's stack names; None if it needs none. Raises CorruptBitstream."""
    reader = Reader(blob)
    if blob[:2] == STACK_HEAD:
        reader.take(len(STACK_HEAD))
        return bytes(reader.take(ID_BYTES))
    return bytes(reader.take(ID_BYTES)) if read_header(reader, DEFAULT_LIMITS).coder == "learned" else None


def _read_header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("ascii"))
        canonical = isinstance(header, dict) and _json(header) == text
    except (ValueError, RecursionError):
        canonical = False
    if not canonical or set(header) != {"name", "profiles", "arrays", "facts"}:
        raise BadWeights("a weight file's header is broken")
    kinds = ((header["name"], str), (header["profiles"], list), (header["arrays"], list), (header["facts"], dict))
    if not all(isinstance(value, kind) for value, kind in kinds):
        raise BadWeights("a weight file's header is broken")
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in (header["name"], *header["profiles"])):
        raise BadWeights("a weight file's header names nothing")
    checked: dict[str, Any] = header
    return checked


def _read_arrays(data: bytes, at: int, listed: Sequence[Any]) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    if len(listed) > MAX_ARRAYS:
        raise BadWeights("more arrays than a weight file has")
    for entry in listed:
        name, dtype, shape = _read_entry(entry)
        count = math.prod(shape)
        size = count * np.dtype(dtype).itemsize
        if name in arrays or size > len(data) - at:
            raise BadWeights("a weight file's arrays do not fit it")
        array = np.frombuffer(data, dtype, count, at).reshape(shape)  # of `bytes`: read only
        arrays[name] = array
        at += size
    if at != len(data):
        raise BadWeights("bytes after the end of a weight file")
    return arrays


def _read_entry(entry: Any) -> tuple[str, str, tuple[int, ...]]:
    if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[2], list):
        raise BadWeights("a weight file's header is broken")
    name, dtype, shape = entry
    sides = all(type(side) is int and 0 <= side <= MAX_SIDE for side in shape) and len(shape) <= 4
    if not isinstance(name, str) or not _NAME.fullmatch(name) or dtype not in DTYPES or not sides:
        raise BadWeights("a weight file's header lists an impossible array")
    return name, dtype, tuple(shape)


def _check_network(arrays: Mapping[str, Array], network: str) -> None:
    """Shapes that fit together, and sums that no order of additions can overflow."""
    parts = [arrays.get(f"{network}.{part}") for part in LAYERS]
    if any(part is None for part in parts):
        raise BadWeights(f"network {network} lacks a layer")
    w1, b1, g1, w2, b2, g2, w3, b3 = (part for part in parts if part is not None)
    matrices = ((w1, (b1, g1)), (w2, (b2, g2)), (w3, (b3,)))
    inputs = w1.shape[-1] if w1.ndim == 2 else 0
    for matrix, vectors in matrices:
        if matrix.ndim != 2 or matrix.shape[1] != inputs or not 0 < matrix.shape[0] <= MAX_UNITS:
            raise BadWeights(f"network {network} has layers that do not fit")
        if not 0 < inputs <= MAX_UNITS or any(vector.shape != matrix.shape[:1] for vector in vectors):
            raise BadWeights(f"network {network} has layers that do not fit")
        inputs = matrix.shape[0] + (w1.shape[0] if matrix is w2 else 0)  # the last layer sees both
        sums = np.abs(matrix.astype(np.int64)).sum(axis=1) * HIGHEST_INPUT + np.abs(vectors[0].astype(np.int64))
        if int(sums.max()) >= SUM_LIMIT:
            raise BadWeights(f"network {network} could overflow")
    if min(int(g1.min()), int(g2.min())) < 0 or max(int(g1.max()), int(g2.max())) > 255:
        raise BadWeights(f"network {network} has gains outside 0..255")
    hidden = sum(-(-matrix.shape[0] // UNIT_BLOCK) * UNIT_BLOCK for matrix in (w1, w2))
    if w1.shape[1] > MAX_INPUTS or hidden > MAX_UNITS or w3.shape[0] not in range(3, 3 * MAX_COMPONENTS + 1, 3):
        raise BadWeights(f"network {network} is larger than the law has room for, or its outputs are not in threes")


def _check_adapters(arrays: Mapping[str, Array], network: str) -> None:
    """A basis for exactly the network's gains and biases, and centres of as many codes."""
    codes = 0
    basis, centres = (arrays.get(f"{network}.{part}") for part in ("basis", "centres"))
    if basis is not None:
        codes = basis.shape[0] if basis.ndim == 2 else 0
        modulated = sum(arrays[f"{network}.{part}"].size for part in ("g1", "b1", "g2", "b2", "b3"))
        if not 0 < codes <= MAX_CODES or basis.dtype != np.int8 or basis.shape[1] != modulated:
            raise BadWeights(f"network {network} has a basis that does not fit it")
    if centres is not None and (centres.ndim != 2 or centres.dtype != np.int8 or centres.shape[1] != codes):
        raise BadWeights(f"network {network} has centres that do not fit its basis")
    _check_bank(arrays, network, codes)


def _check_bank(arrays: Mapping[str, Array], network: str, codes: int) -> None:
    """All arrays of a bank or none, of as many entries and one rank."""
    bank = [arrays.get(f"{network}.{part}") for part in BANK]
    if all(part is None for part in bank):
        return
    entries, rank = (bank[1].shape[0], bank[1].shape[-1]) if bank[1] is not None and bank[1].ndim == 3 else (0, 0)
    shapes: list[tuple[int, ...]] = [(entries, codes)]
    for matrix in ("w1", "w2", "w3"):
        outputs, inputs = arrays[f"{network}.{matrix}"].shape
        shapes += [(entries, outputs, rank), (entries, rank, inputs)]
    whole = all(
        part is not None and part.dtype == np.int8 and part.shape == shape
        for part, shape in zip(bank, shapes, strict=True)
    )
    if not whole or not codes or not 0 < entries <= MAX_ENTRIES or not 0 < rank <= MAX_RANK:
        raise BadWeights(f"network {network} has a bank that does not fit it")


# --- writing (training, tests) ---


def write_weights(
    name: str, profiles: Iterable[str], arrays: Mapping[str, Array], facts: Mapping[str, Any] | None = None
) -> bytes:
    """The bytes of a weight file; deterministic. arrays: int8, uint8, int16, uint16 or int32, by name.

    A network N is the arrays N.w1 ... N.b3 of `LAYERS`. facts: JSON values (training data, seed, figures).
    Raises BadWeights for what `parse` would refuse.
    """
    listed, parts = [], []
    for key, array in arrays.items():
        packed = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        listed.append([key, packed.dtype.str, list(array.shape)])
        parts.append(packed.tobytes())
    header = _json({"name": name, "profiles": list(profiles), "arrays": listed, "facts": dict(facts or {})})
    data = b"".join((_HEAD.pack(MAGIC, VERSION, bytes(3), len(header)), header, *parts))
    parse(data)
    return data


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


# --- the released ones ---

#: weights of this process beside the released ones, by id: a trainer's, or out of an archive (`add`)
_ADDED: Final[dict[bytes, Weights]] = {}


def released_bytes(digest: str) -> bytes:
    """A released file by its SHA-256 (hex). Raises BadWeights when it is not listed, missing or damaged."""
    entry = next((each for each in RELEASED if each.sha256 == digest), None)
    if entry is None:
        raise BadWeights(f"no weights of SHA-256 {digest[:8]}... were released")
    try:
        data = files("codec").joinpath("models", entry.file).read_bytes()
    except OSError as error:
        raise BadWeights(f"{entry.file} is missing from this installation") from error
    if sha256(data).hexdigest() != digest:
        raise BadWeights(f"{entry.file} is damaged")
    return data


@cache
def _released(digest: str) -> Weights:
    return parse(released_bytes(digest), digest)


def load(which: bytes | str) -> Weights:
    """Weights by their id (four bytes, as a frame names them), full SHA-256 in hex, or name (its newest release).

    Raises UnknownWeights when there are none, BadWeights when the file is missing or damaged.
    """
    for added in tuple(_ADDED.values()):  # a copy: another thread may add
        if which in (added.id, added.sha256, added.name):
            return added
    for entry in reversed(RELEASED):
        if which in (bytes.fromhex(entry.sha256)[:ID_BYTES], entry.sha256, entry.name):
            return _released(entry.sha256)
    shown = which.hex() if isinstance(which, bytes) else which
    raise UnknownWeights(f"weights {shown} are not in this release: take them out of the archive, or use a later one")


def in_use() -> tuple[Weights, ...]:
    """All weights that something is encoded with: of every profile the newest, each once."""
    profiles = {profile for each in RELEASED for profile in each.profiles}
    profiles |= {profile for each in tuple(_ADDED.values()) for profile in each.profiles}
    found = {weights.sha256: weights for weights in map(current, sorted(profiles))}
    return tuple(found.values())


def current(profile: str) -> Weights:
    """What a profile encodes with: the newest weights added for it, else the newest released. Raises UnknownWeights."""
    for added in reversed(_ADDED.values()):
        if profile in added.profiles:
            return added
    for entry in reversed(RELEASED):
        if profile in entry.profiles:
            return _released(entry.sha256)
    raise UnknownWeights(f"no weights were released for profile {profile}")


def add(data: bytes) -> Weights:
    """Make a weight file that is not released known to this process: a trainer's, a test's, or out of an archive.

    It decodes what names it, and encodes for its profiles in place of released ones: adding is a choice that only
    training, measuring and tests make. Raises BadWeights, also when another file has its id.
    """
    weights = parse(data)
    taken = {bytes.fromhex(each.sha256)[:ID_BYTES]: each.sha256 for each in RELEASED}
    taken |= {key: each.sha256 for key, each in tuple(_ADDED.items())}
    if taken.get(weights.id, weights.sha256) != weights.sha256:
        raise BadWeights("another weight file has the same first four bytes")
    if weights.id not in taken:
        _ADDED[weights.id] = weights
    return load(weights.sha256)


@cache
def silenced(which: bytes) -> Weights:
    """The same weights but for last layers of zeros, known to this process: what the law is without its network."""
    own = load(which)
    blank = {f"{network}.w3" for network in own.networks}
    arrays = {name: np.zeros_like(array) if name in blank else array for name, array in own.arrays.items()}
    return add(write_weights(f"{own.name}-silent"[-48:], (), arrays, own.facts))


def drop(weights: Weights) -> None:
    """Forget what `add` made known."""
    _ADDED.pop(weights.id, None)
