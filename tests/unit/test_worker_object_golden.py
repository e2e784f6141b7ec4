"""Archive objects written by earlier versions restore for ever.

`python -m tests.unit.test_worker_object_golden LABEL` adds those of this version; what is there is never rewritten.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest

from gateway.keys import Recipient
from gateway.policy import DEFAULT_ARCHIVE, ArchiveRule
from stego.recipients import Kind, public_of
from stego.seal import Context, open_side
from tests.object_makers import FACTS, IDENTITY, JPEG_LS, compressed, header, image, noisy, save
from worker import container as box
from worker.candidate import Secrets, build_candidate
from worker.container import SectionType
from worker.encrypted_attributes import open_attributes
from worker.envelope import parse_envelope
from worker.pixels import pixel_digest
from worker.restore import exact_image, restore, stego_image
from worker.sealing import open_wraps_as

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "archive-object"
EXPECTED = FOLDER / "expected.json"
PATIENT_KEY = "pat-" + "G" * 26
#: private keys of recipients, published like the ring
RECIPIENTS: dict[Kind, bytes] = {
    "x25519": bytes(range(160, 192)),
    "xwing": bytes(range(192, 224)),
    "rsa": (FOLDER / "recipient-rsa.der").read_bytes(),
}
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
    """What the golden objects hold, made anew; stored digests say whether this still makes the same."""
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
    }


NAMES = sorted(path.stem for path in FOLDER.glob("*.dcm"))


def test_there_are_golden_objects() -> None:
    kinds = {name.split("-")[0] for name in NAMES}
    assert kinds == set(sources())
    assert set(NAMES) == set(json.loads(EXPECTED.read_text(encoding="ascii")))


@pytest.mark.parametrize("name", NAMES)
def test_golden_object_restores(name: str) -> None:
    expected = json.loads(EXPECTED.read_text(encoding="ascii"))[name]
    envelope = (FOLDER / f"{name}.dcm").read_bytes()
    back = restore(envelope, GoldenRing())  # type: ignore[arg-type]
    assert back.sha256 == expected["restored_sha256"]
    assert back.record.file_sha256 == expected["file_sha256"]
    assert back.pixel_sha256 == expected["pixel_sha256"]
    assert back.record.patient_name == IDENTITY["PatientName"]
    if back.pixel_sha256:
        sealed = name.startswith("sealed")
        frames = exact_image(envelope, GoldenRing() if sealed else None).frames()  # type: ignore[arg-type]
        assert pixel_digest(frames).hex() == expected["pixel_sha256"]


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
    for kind, data in sources().items():
        name = f"{kind}-{label}"
        path = FOLDER / f"{name}.dcm"
        if path.exists():
            raise SystemExit(f"{path.name} is there already")
        secrets = Secrets(sha256(name.encode()).digest()[:16], sha256(b"key " + name.encode()).digest())
        rule = RULES.get(kind, DEFAULT_ARCHIVE)
        built = build_candidate(data, FACTS, GoldenRing(), secrets=secrets, rule=rule)  # type: ignore[arg-type]
        path.write_bytes(built.envelope)
        expected[name] = {
            "file_sha256": built.file_sha256,
            "pixel_sha256": built.pixel_sha256,
            "restored_sha256": restore(built.envelope, GoldenRing()).sha256,  # type: ignore[arg-type]
        }
    EXPECTED.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n", encoding="ascii")


if __name__ == "__main__":
    add(sys.argv[1])
