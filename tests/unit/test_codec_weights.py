"""Weight files: read and written alike, found by digest, never trusted, never removed."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec import weights
from codec.errors import CorruptBitstream
from codec.weights import BadWeights, UnknownWeights, Weights, parse, write_weights
from tests.unit.codec_networks import VOLUME_INPUTS, Array, layers, weight_file

DATA = weight_file()

#: full SHA-256 of everything that was ever released. Add; a line that goes is an archive that cannot be read.
PINNED: dict[str, str] = {
    "vae-3b74968a.bin": "3b74968a7aa91647577b0d1e6133ffed39e13cc5d708c330092059bc0b7b31d7",
    "fast-83b2728b.bin": "83b2728bb5ce1bbed7ca34e3178133449842cd6b665845f766b166c2f3754df9",
    "default-259ec005.bin": "259ec00523814fde76c37e3c04bc35414f7e67e7cf81f761866a92a94554ec55",
    "default-a9958203.bin": "a99582039ac9489156b8106e264a5c31ccf0b27a78d8459bc993643371417587",
}


@pytest.fixture
def added() -> Iterator[Weights]:
    found = weights.add(DATA)
    yield found
    weights.drop(found)


def test_released_weights_are_never_removed() -> None:
    listed = {entry.file: entry.sha256 for entry in weights.RELEASED}
    assert listed == PINNED


@pytest.mark.parametrize("entry", weights.RELEASED, ids=lambda entry: entry.file)
def test_released_files_are_what_their_digest_says(entry: weights.Released) -> None:
    data = weights.released_bytes(entry.sha256)
    assert sha256(data).hexdigest() == entry.sha256
    assert len(data) <= 2 << 20
    found = weights.load(entry.sha256)
    assert found.name == entry.name
    assert set(entry.profiles) <= set(found.profiles)
    assert weights.load(bytes.fromhex(entry.sha256)[:4]) is found


def test_every_file_in_models_is_listed() -> None:
    from importlib.resources import files

    there = {each.name for each in files("codec").joinpath("models").iterdir() if each.name.endswith(".bin")}
    assert there == {entry.file for entry in weights.RELEASED}


def test_ids_of_released_weights_differ() -> None:
    assert len({entry.sha256[:8] for entry in weights.RELEASED}) == len(weights.RELEASED)


def test_written_is_what_is_read() -> None:
    found = parse(DATA, sha256(DATA).hexdigest())
    assert (found.name, found.networks) == ("test", ("frame", "volume"))
    assert found.id == sha256(DATA).digest()[:4]
    assert write_weights(found.name, found.profiles, dict(found.arrays), dict(found.facts)) == DATA
    layers = found.layers("volume")
    assert layers["w1"].shape == (16, VOLUME_INPUTS)
    assert all(array.dtype == np.int32 and array.flags.writeable for array in layers.values())
    with pytest.raises(ValueError, match="read-only"):
        found.arrays["frame.b1"][0] = 1
    with pytest.raises(BadWeights):
        found.layers("other")


@pytest.mark.parametrize(
    ("inputs", "hidden", "parts"), [(257, (16, 8), 3), (74, (256, 264), 3), (74, (249, 257), 3), (74, (16, 8), 6)]
)
def test_networks_that_no_kernel_has_room_for_are_refused(inputs: int, hidden: tuple[int, int], parts: int) -> None:
    arrays = {f"frame.{name}": array for name, array in layers(1, inputs, hidden, parts, 1).items()}
    with pytest.raises(BadWeights):
        write_weights("large", (), arrays)


@pytest.mark.parametrize("outputs", [1, 2, 4, 16])
def test_outputs_come_in_threes(outputs: int) -> None:
    arrays = {f"frame.{name}": array for name, array in layers(1, 74).items()}
    arrays |= {"frame.w3": np.zeros((outputs, 24), np.int8), "frame.b3": np.zeros(outputs, np.int32)}
    with pytest.raises(BadWeights):
        write_weights("odd", (), arrays)


MODULATED = 2 * (16 + 8) + 9  # gains and biases of the tests' networks


@pytest.mark.parametrize(
    "changed",
    [
        {"frame.basis": np.zeros((4, MODULATED - 1), np.int8)},
        {"frame.basis": np.zeros(4 * MODULATED, np.int8)},
        {"frame.basis": np.array(1, np.int8)},
        {"frame.basis": np.zeros((256, MODULATED), np.int8)},
        {"frame.basis": np.zeros((4, MODULATED), np.int32)},
        {"frame.centres": np.zeros((2, 5), np.int8)},
        {"frame.centres": np.zeros(4, np.int8)},
        {"frame.centres": np.zeros((2, 4), np.int16)},
    ],
)
def test_adapters_of_another_shape_than_their_network_are_refused(changed: dict[str, Array]) -> None:
    arrays = {f"frame.{name}": array for name, array in layers(1, 74).items()}
    arrays |= {"frame.basis": np.zeros((4, MODULATED), np.int8), "frame.centres": np.zeros((2, 4), np.int8)}
    write_weights("right", (), arrays)
    with pytest.raises(BadWeights):
        write_weights("wrong", (), arrays | changed)


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("bank_codes", np.zeros((2, 4), np.int8)),
        ("bank_codes", np.zeros((3, 5), np.int8)),
        ("bank_w1a", np.zeros((3, 16, 9), np.int8)),
        ("bank_w1a", np.zeros((16, 2), np.int8)),
        ("bank_w2b", np.zeros((3, 2, 17), np.int8)),
        ("bank_w3a", np.zeros((3, 9, 2), np.int16)),
        ("bank_w3b", None),
    ],
)
def test_banks_of_another_shape_than_their_network_are_refused(part: str, other: Array | None) -> None:
    arrays = {f"frame.{name}": array for name, array in layers(1, 74).items()}
    arrays |= {"frame.basis": np.zeros((4, MODULATED), np.int8), "frame.bank_codes": np.zeros((3, 4), np.int8)}
    for matrix in ("w1", "w2", "w3"):
        outputs, inputs = arrays[f"frame.{matrix}"].shape
        arrays[f"frame.bank_{matrix}a"] = np.zeros((3, outputs, 2), np.int8)
        arrays[f"frame.bank_{matrix}b"] = np.zeros((3, 2, inputs), np.int8)
    assert parse(write_weights("right", (), arrays)).entries("frame") == 3
    if other is None:
        del arrays[f"frame.{part}"]
    else:
        arrays[f"frame.{part}"] = other
    with pytest.raises(BadWeights, match="bank"):
        write_weights("wrong", (), arrays)


def test_added_weights_are_found_and_forgotten(added: Weights) -> None:
    assert weights.load(added.id) is weights.load(added.sha256) is weights.load("test") is added
    assert weights.add(DATA) is added
    weights.drop(added)
    with pytest.raises(UnknownWeights):
        weights.load(added.id)
    assert issubclass(UnknownWeights, CorruptBitstream)


def test_another_file_of_the_same_id_is_refused(added: Weights) -> None:
    with pytest.MonkeyPatch.context() as patch:
        same = added.id
        patch.setattr(Weights, "id", property(lambda self: same))
        with pytest.raises(BadWeights, match="same first four"):
            weights.add(weight_file(2))


def test_other_bytes_than_the_digest_says_are_refused() -> None:
    with pytest.raises(BadWeights, match="not the one"):
        parse(DATA, "0" * 64)
    with pytest.raises(BadWeights, match="released"):
        weights.released_bytes("0" * 64)


@pytest.mark.parametrize("end", [0, 3, 11, 12, 40, len(DATA) - 1])
def test_truncated_and_longer_files_are_refused(end: int) -> None:
    with pytest.raises(BadWeights):
        parse(DATA[:end])
    with pytest.raises(BadWeights):
        parse(DATA + bytes(1))
    with pytest.raises(BadWeights):
        parse(DATA + bytes(3 << 20))


def with_header(**changes: object) -> bytes:
    size = struct.unpack_from("<I", DATA, 8)[0]
    header = {**json.loads(DATA[12 : 12 + size]), **changes}
    text = json.dumps({key: value for key, value in header.items() if value is not None}, sort_keys=True)
    text = text.replace(", ", ",").replace(": ", ":")
    return DATA[:8] + struct.pack("<I", len(text)) + text.encode() + DATA[12 + size :]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../x"}, {"name": 3}, {"name": None}, {"profiles": "max"}, {"profiles": [1]}, {"facts": []},
        {"extra": 1}, {"arrays": []}, {"arrays": [["a", "|i1", [1 << 40]]]}, {"arrays": [["a", "<f4", [1]]]},
        {"arrays": [["a", "|i1", [-1]]]}, {"arrays": [["a", "|i1", [True]]]}, {"arrays": [["a", "|i1"]]},
        {"arrays": [[["a"], "|i1", [1]]]}, {"arrays": [["a", ["|i1"], [1]]]}, {"arrays": [["a", "|i1", [1]]] * 300},
        {"arrays": [["frame.w1", "|i1", [4, 4]]]},
    ],
)  # fmt: skip
def test_hostile_headers_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BadWeights):
        parse(with_header(**changes))


def test_networks_that_do_not_fit_or_could_overflow_are_refused() -> None:
    arrays = dict(parse(DATA).arrays)
    for key, array in (
        ("frame.w2", np.zeros((8, 15), np.int8)),
        ("frame.b1", np.zeros(15, np.int32)),
        ("frame.b3", np.full(9, 1 << 24, np.int32)),
        ("frame.w3", np.zeros((9, 8), np.int8)),
        ("frame.g1", np.full(16, 256, np.int16)),
        ("frame.w1", np.zeros((16, 74, 1), np.int8)),
    ):
        with pytest.raises(BadWeights):
            write_weights("x", (), {**arrays, key: array})
    with pytest.raises(BadWeights):
        write_weights("x", (), {"a": np.zeros(4, np.float32)})  # type: ignore[dict-item]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_change_of_a_byte_goes_unnoticed_or_does_harm(data: st.DataObject) -> None:
    changed = bytearray(DATA)
    changed[data.draw(st.integers(0, min(900, len(DATA) - 1)))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadWeights):
        parse(bytes(changed), sha256(DATA).hexdigest())
    with contextlib.suppress(BadWeights):
        parse(bytes(changed))  # without a digest: a typed error or weights
