"""Conformance vectors: published ones of every algorithm, frozen frames, archive objects and keys that open them."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from codec.bitplane import Words
from codec.blob import Frame
from codec.errors import CodecError
from codec.groupstack import Shape, decode_stack
from codec.header import read_header
from codec.limits import DEFAULT_LIMITS
from codec.plainstack import PlainStack
from codec.weights import add
from codec.wire import Reader
from worker.opener import zstd
from worker.opener.curves import ed25519_public, ed25519_signed, x25519
from worker.opener.errors import NeedsLibrary, OpenError, Refused
from worker.opener.keys import Keys
from worker.opener.restore import open_object
from worker.opener.standards import FrameDecoder
from worker.opener.symmetric import chacha20, gcm_open, hkdf, xor

Check = tuple[str, Callable[[], bool]]
#: RFC 8439, A.1, vector 1
CHACHA = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
#: made by libzstd 1.5 at level 19: Huffman and FSE tables, repeated offsets; 586 bytes of this SHA-256
ZSTD = (
    "28b52ffd604a01b5040002c9211ca0f61c0224025bfc8e2ceeb8cbf172524eca915a24a517daf2f00811bc9d2e87bbd96ab4992c067bb95a"
    "ac7125aa52a893a9441a8942a0fe783a9c8d2683b9582a9489240279381a8c85228138180a84812000e8f15a0f7a97feb89fecebbf7e8c02"
    "9fecc76fe6567dedece6dae5f516f10fd1be9fb3c56babb6b3fa6a2ab4a7a7eda99fbe5e03000b9d13d4e88a14049c16"
)
ZSTD_SHA256 = "2f72dc7fbff714e28ddfbd38fd2c130a8b3672caddc6220481b41cdab931b840"


def _hex(text: str) -> bytes:
    return bytes.fromhex(text)


def _gcm() -> bool:
    """Test case 16 of McGrew and Viega's GCM specification (AES-256, 96-bit nonce, 20 bytes of AAD)."""
    key = _hex("feffe9928665731c6d6a8f9467308308") * 2
    aad = _hex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    sealed = _hex(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0a"
        "bcc9f66276fc6ece0f4e1768cddf8853bb2d551b"
    )
    plain = _hex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657"
        "ba637b39"
    )
    if gcm_open(key, sealed, aad, _hex("cafebabefacedbaddecaf888")) != plain:
        return False
    try:
        gcm_open(key, sealed[:-1] + b"\0", aad, _hex("cafebabefacedbaddecaf888"))
    except Refused:
        return True
    return False


def _hkdf() -> bool:
    """RFC 5869, A.1."""
    found = hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    return found.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"


def _x25519() -> bool:
    """RFC 7748, 5.2."""
    scalar = _hex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    u = _hex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    return x25519(scalar, u).hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"


def _ed25519() -> bool:
    """RFC 8032, 7.1, test 2."""
    private = _hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = _hex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = _hex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aee"
        "b00d291612bb0c00"
    )
    holds = ed25519_signed(public, b"\x72", signature) and not ed25519_signed(public, b"\x73", signature)
    return holds and ed25519_public(private) == public


def algorithm_checks() -> Iterator[Check]:
    """Vectors out of the standards."""
    yield "AES-256-GCM", _gcm
    yield "HKDF-SHA256", _hkdf
    yield "ChaCha20", lambda: chacha20(bytes(32), 32).hex() == CHACHA and xor(b"\1", b"\3") == b"\2"
    yield "X25519", _x25519
    yield "Ed25519", _ed25519
    yield "Zstandard", lambda: hashlib.sha256(zstd.decompress(_hex(ZSTD), 586)).hexdigest() == ZSTD_SHA256


def frame_checks(folder: Path, decoder: FrameDecoder, most: int) -> Iterator[Check]:
    """Frozen frames of up to `most` samples: NAME.bin, and in manifest.json the SHA-256 of the words.

    weights.bin: the weight file that they name. NAME.previous: words of the frame before, little endian; NAME.upper:
    planes of G, int32, as a group's stack has them. `after` in the manifest: the one whose frame is the frame before.
    """
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    if (folder / "weights.bin").is_file():
        add((folder / "weights.bin").read_bytes())
    for name in sorted(manifest):
        blob = (folder / f"{name}.bin").read_bytes()
        fmt = read_header(Reader(blob), DEFAULT_LIMITS).fmt
        if fmt.rows * fmt.columns * fmt.samples <= most:
            yield f"{folder.name}/{name}", partial(_frame_matches, folder, name, manifest, decoder)


def _frame_matches(folder: Path, name: str, manifest: dict[str, Any], decoder: FrameDecoder) -> bool:
    words = _frame(folder, name, manifest, decoder).words
    data = np.ascontiguousarray(words, words.dtype.newbyteorder("<")).tobytes()
    return bool(hashlib.sha256(data).hexdigest() == manifest[name]["sha256"])


def _frame(folder: Path, name: str, manifest: dict[str, Any], decoder: FrameDecoder) -> Frame:
    """A vector's frame, decoded after the one that it goes on from."""
    path, blob = folder / name, (folder / f"{name}.bin").read_bytes()
    if "after" in manifest[name]:
        frame = _frame(folder, manifest[name]["after"], manifest, decoder)
        return decoder.decode(blob, previous=frame.words, memory=frame.memory)
    fmt = read_header(Reader(blob), DEFAULT_LIMITS).fmt
    before, above = path.with_suffix(".previous"), path.with_suffix(".upper")
    previous: Words | None = None
    upper = None
    if before.is_file():
        previous = np.frombuffer(before.read_bytes(), np.dtype(fmt.dtype).newbyteorder("<")).astype(fmt.dtype)
        previous = previous.reshape(fmt.shape)
    if above.is_file():
        upper = list(np.frombuffer(above.read_bytes(), "<i4").astype(np.int32).reshape(-1, fmt.rows, fmt.columns))
    return decoder.decode(blob, previous=previous, upper=upper)


def stack_checks(folder: Path) -> Iterator[Check]:
    """Frozen stacks of a group's global parts: NAME.bin; in stacks.json the planes' sides and their SHA-256 (int32)."""

    def matches(name: str, entry: dict[str, Any]) -> bool:
        shapes = [Shape(*sides) for sides in entry["shapes"]]
        planes, _ = decode_stack((folder / f"{name}.bin").read_bytes(), shapes, PlainStack)
        data = b"".join(plane.astype("<i4").tobytes() for plane in planes)
        return hashlib.sha256(data).hexdigest() == str(entry["sha256"])

    for name, entry in sorted(json.loads((folder / "stacks.json").read_text("utf-8")).items()):
        yield f"{folder.name}/{name}", partial(matches, name, entry)


def object_checks(folder: Path, decoder: FrameDecoder) -> Iterator[Check]:
    """Archive objects, published keys in keys.json, digests of the restored files in expected.json."""
    published = json.loads((folder / "keys.json").read_text("utf-8"))
    secrets = {name: _hex(value) for name, value in published["secrets"].items()}
    signers = {name: ed25519_public(_hex(value)) for name, value in published["signing"].items()}
    recipients = {name: _hex(value) for name, value in published["recipients"].items()}
    expected = json.loads((folder / "expected.json").read_text("utf-8"))

    if (folder / "weights.bin").is_file():
        add((folder / "weights.bin").read_bytes())

    def opens(name: str, keys: Keys) -> bool:
        wanted = expected[name].get("members") or [expected[name]]
        found = list(open_object((folder / f"{name}.dcm").read_bytes(), keys, decoder))
        digests = [each.sha256 for each in found] == [each["restored_sha256"] for each in wanted]
        return digests and all(each.signed is not False for each in found)

    for name in sorted(expected):
        yield f"{folder.name}/{name}", lambda name=name: opens(name, Keys(secrets, signers=signers))
        if name.startswith("recipients"):
            for who, private in sorted(recipients.items()):
                yield f"{folder.name}/{name} by {who}", lambda name=name, key=private: opens(name, Keys(private=(key,)))


def run(folder: Path, decoder: FrameDecoder | None = None, *, most: int = 1 << 14) -> int:
    """Run every vector under `folder` and say how it went. Exit status 0 if none failed.

    most: samples of a frame; larger ones take minutes each in plain Python and are left out.
    """
    decoder = decoder or FrameDecoder()
    checks = list(algorithm_checks())
    for each in sorted(path for path in folder.iterdir() if path.is_dir()):
        if (each / "manifest.json").is_file():
            checks += frame_checks(each, decoder, most)
        elif (each / "stacks.json").is_file():
            checks += stack_checks(each)
        elif (each / "keys.json").is_file():
            checks += object_checks(each, decoder)
    counts = {"good": 0, "needs a library": 0, "FAILED": 0}
    for name, check in checks:
        try:
            outcome = "good" if check() else "FAILED"
        except NeedsLibrary:
            outcome = "needs a library"
        except (OpenError, CodecError) as error:
            outcome = "FAILED"
            name = f"{name}: {error}"
        counts[outcome] += 1
        print(f"{outcome:16}{name}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()), file=sys.stderr)
    return 1 if counts["FAILED"] else 0
