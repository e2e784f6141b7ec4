"""Archive objects written by earlier versions restore for ever.

`python -m tests.unit.test_worker_object_golden LABEL` adds those of this version; what is there is never rewritten.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from codec.errors import MissingContext
from codec.frame import decode_frame, encode_frame
from gateway.keys import Recipient
from gateway.policy import DEFAULT_ARCHIVE, ArchiveRule
from stego.recipients import Kind, public_of
from stego.seal import Context, open_side
from tests.object_makers import FACTS, IDENTITY, JPEG_LS, compressed, header, image, noisy, packaged, save
from worker import candidate, framechain
from worker import container as box
from worker.candidate import Candidate, Secrets, build_candidate
from worker.container import SectionType
from worker.encrypted_attributes import open_attributes
from worker.envelope import parse_envelope
from worker.framechain import ChainCoder
from worker.groupobject import GroupFile, build_group
from worker.pixels import open_pixels, pixel_digest
from worker.restore import exact_image, restore, stego_image
from worker.sealing import open_wraps_as
from worker.splice import read_object

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "archive-object"
EXPECTED = FOLDER / "expected.json"
PATIENT_KEY = "pat-" + "G" * 26
#: private keys of recipients, published like the ring
RECIPIENTS: dict[Kind, bytes] = {
    "x25519": bytes(range(160, 192)),
    "xwing": bytes(range(192, 224)),
    "rsa": (FOLDER / "recipient-rsa.der").read_bytes(),
}
#: of the released weights: a centre by anatomical prior, which `_waves` are coded shorter with
ADAPTER = bytes.fromhex("8114")
RULES = {
    "recipients": ArchiveRule(
        name="golden", shreddable=False, recipients=tuple(f"golden-{kind}" for kind in RECIPIENTS)
    ),
    "sealed": ArchiveRule(name="golden", seal_bitmap=True),
    "cms": ArchiveRule(name="golden", shreddable=False, cms=("golden-rsa",)),
}


@dataclass(frozen=True)
class GoldenRing:
    """Published keys in place of a key ring: what opens the golden objects."""

    kek: bytes = bytes(range(32))
    signing: bytes = bytes(range(32, 64))
    pseudonym: bytes = bytes(range(64, 96))
    patient: bytes = bytes(range(96, 128))
    pixel: bytes = bytes(range(128, 160))

    def find_kek(self, key_id: str) -> bytes:
        return {"kek-golden": self.kek, PATIENT_KEY: self.patient}[key_id]

    def patient_key(self, label: str) -> tuple[str, bytes]:
        assert label == f"P\0{IDENTITY['PatientID']}"
        return PATIENT_KEY, self.patient

    def pixel_key(self) -> tuple[str, bytes]:
        return "pixel-golden", self.pixel

    def find_pixel_key(self, key_id: str) -> bytes:
        return {"pixel-golden": self.pixel}[key_id]

    def recipients(self) -> tuple[Recipient, ...]:
        return tuple(
            Recipient(f"golden-{kind}", kind, public_of(kind, private), recovery=True)
            for kind, private in RECIPIENTS.items()
        )

    def signing_key(self) -> tuple[str, bytes]:
        return "sign-golden", self.signing

    def find_verify_key(self, key_id: str) -> bytes:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        key = {"sign-golden": self.signing}[key_id]
        return Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()

    def pseudonym_key(self) -> bytes:
        return self.pseudonym


def sources() -> dict[str, bytes]:
    """What the golden objects of one instance hold, made anew."""
    colour = np.random.default_rng(7).integers(0, 200, (12, 10, 3)).astype(np.uint8)
    grey = noisy(40, 40)
    return {
        "segmented": image([noisy()], stored=16, PixelRepresentation=0),
        "beside": image([np.add.outer(np.arange(30), np.arange(31)).astype(np.uint16)], stored=12),
        "multiframe": image([np.zeros((96, 96), np.uint16), noisy(seed=3)], stored=16),
        "colour": image([colour], planar=1, vr="OB"),
        "compressed": compressed([grey], [bytes(imagecodecs.jpegls_encode(grey))], syntax=JPEG_LS, stored=16),
        "whole": save(header()),
        "recipients": image([noisy(seed=4)], stored=16),
        "sealed": image([noisy(seed=5)], stored=16),
        "cms": image([noisy(seed=6)], stored=16),
        "volume": image([_waves(at) for at in range(4)], stored=16),
        "stack": image([_slice(0, 64)], stored=16),
    }


def slices() -> list[bytes]:
    """What the golden group holds."""
    return [
        image([_slice(at, 32)], stored=16, SOPInstanceUID=f"1.2.826.0.1.3680043.8.498.4.{at}", InstanceNumber=at + 1)
        for at in range(3)
    ]


def _waves(at: int) -> npt.NDArray[np.uint16]:
    """A frame that resembles the one before, with rough noise."""
    rows, columns = np.mgrid[0:40, 0:40]
    noise = np.random.default_rng(at).laplace(0, 12, (40, 40)) * (1 + 3 * (columns > 20))
    return (2000 + 300 * np.sin((columns + at) / 5) * np.cos(rows / 7) + noise).astype(np.uint16)


def _slice(at: int, side: int) -> npt.NDArray[np.uint16]:
    """A cut of a real image whose global part, once it has one, is shorter on a stack."""
    whole = open_pixels(read_object(packaged("MR_small.dcm"))).frame(0).astype(np.uint16)
    return np.roll(whole, (at, -at), (0, 1))[:side, :side].copy()


NAMES = sorted(path.stem for path in FOLDER.glob("*.dcm"))


def test_there_are_golden_objects() -> None:
    kinds = {name.split("-")[0] for name in NAMES}
    assert kinds == {*sources(), "group"}
    assert set(NAMES) == set(json.loads(EXPECTED.read_text(encoding="ascii")))


@pytest.mark.parametrize("name", NAMES)
def test_golden_object_restores(name: str) -> None:
    entry = json.loads(EXPECTED.read_text(encoding="ascii"))[name]
    envelope = (FOLDER / f"{name}.dcm").read_bytes()
    for number, expected in enumerate(entry.get("members", [entry])):
        member = number if "members" in entry else None
        back = restore(envelope, GoldenRing(), member=member)  # type: ignore[arg-type]
        assert back.sha256 == expected["restored_sha256"]
        assert back.record.file_sha256 == expected["file_sha256"]
        assert back.pixel_sha256 == expected["pixel_sha256"]
        assert back.record.patient_name == IDENTITY["PatientName"]
        if back.pixel_sha256:
            ring = GoldenRing() if name.startswith("sealed") else None
            frames = exact_image(envelope, ring, member=member).frames()  # type: ignore[arg-type]
            assert pixel_digest(frames).hex() == expected["pixel_sha256"]


def test_golden_objects_of_container_version_2_hold_what_they_are_for() -> None:
    held: dict[str, set[SectionType]] = {}
    for kind in ("volume", "stack", "group"):
        container = parse_envelope((FOLDER / f"{kind}-3.dcm").read_bytes()).container
        held[kind] = set(box.parse(container))
        assert container[4] == box.CONTEXT_VERSION
    assert SectionType.ADAPTER in held["volume"]
    assert {SectionType.STACK, SectionType.MEMBERS} <= held["group"] and SectionType.STACK in held["stack"]
    blobs = box.unpack_frames(
        box.parse(parse_envelope((FOLDER / "volume-3.dcm").read_bytes()).container)[SectionType.FRAMES]
    )
    with pytest.raises(MissingContext):
        decode_frame(bytes(blobs[1]))


@pytest.mark.parametrize("kind", RECIPIENTS)
def test_golden_recipients_open(kind: Kind) -> None:
    """The file for a recipient of the data key; the exact pixels, and no more, for a recovery key."""
    for path in FOLDER.glob("recipients-*.dcm"):
        sections = box.parse(parse_envelope(path.read_bytes()).container)
        context = Context.parse(bytes(sections[SectionType.CONTEXT]))
        found = open_wraps_as(box.unpack_wraps(sections[SectionType.WRAPS]), RECIPIENTS[kind], context)
        assert found.id == f"golden-{kind}"
        open_side(sections[SectionType.SIDE], data_key=found.key, context=context, label="nonpixel")
    for path in FOLDER.glob("sealed-*.dcm"):
        envelope = path.read_bytes()
        expected = json.loads(EXPECTED.read_text(encoding="ascii"))[path.stem]["pixel_sha256"]
        assert pixel_digest(exact_image(envelope, recovery=RECIPIENTS[kind]).frames()).hex() == expected
        assert pixel_digest(stego_image(envelope).frames()).hex() != expected


def test_golden_identity_copies_open() -> None:
    for path in FOLDER.glob("cms-*.dcm"):
        item = pydicom.dcmread(path).EncryptedAttributesSequence[0]
        found = open_attributes(item, RECIPIENTS["rsa"], find_verify_key=GoldenRing().find_verify_key)
        assert found.removed.PatientName == IDENTITY["PatientName"]


def add(label: str) -> None:
    """Write the objects of this version as KIND-LABEL.dcm."""
    expected = json.loads(EXPECTED.read_text(encoding="ascii")) if EXPECTED.exists() else {}
    for kind in (*sources(), "group"):
        name = f"{kind}-{label}"
        path = FOLDER / f"{name}.dcm"
        if path.exists():
            raise SystemExit(f"{path.name} is there already")
        with pytest.MonkeyPatch.context() as patched:
            built = _built(kind, name, patched)
        path.write_bytes(built[0].envelope)
        found = [
            {
                "file_sha256": each.file_sha256,
                "pixel_sha256": each.pixel_sha256,
                "restored_sha256": restore(each.envelope, GoldenRing(), member=each.member).sha256,  # type: ignore[arg-type]
            }
            for each in built
        ]
        expected[name] = {"members": found} if kind == "group" else found[0]
    EXPECTED.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n", encoding="ascii")


def _built(kind: str, name: str, patched: pytest.MonkeyPatch) -> list[Candidate]:
    """The candidates of one golden object. What encoders do only where it pays is brought about for the last three."""
    ring: Any = GoldenRing()
    if kind == "volume":
        patched.setattr(candidate, "chain_coder", lambda *_: ChainCoder(shared=ADAPTER))
    if kind in ("stack", "group"):
        options = {"coders": ("learned",), "split": 6}
        patched.setattr(framechain, "encode_frame", lambda *args, **given: encode_frame(*args, **{**given, **options}))
    if kind == "group":
        return build_group([GroupFile(partial(bytes, data), FACTS) for data in slices()], ring, rule=DEFAULT_ARCHIVE)
    secrets = Secrets(sha256(name.encode()).digest()[:16], sha256(b"key " + name.encode()).digest())
    return [build_candidate(sources()[kind], FACTS, ring, secrets=secrets, rule=RULES.get(kind, DEFAULT_ARCHIVE))]


if __name__ == "__main__":
    add(sys.argv[1])
