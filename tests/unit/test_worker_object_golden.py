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
import pytest

from tests.object_makers import FACTS, IDENTITY, JPEG_LS, compressed, header, image, noisy, save
from worker.candidate import Secrets, build_candidate
from worker.pixels import pixel_digest
from worker.restore import exact_image, restore

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "archive-object"
EXPECTED = FOLDER / "expected.json"


@dataclass(frozen=True)
class GoldenRing:
    """Published keys in place of a key ring: what opens the golden objects."""

    kek: bytes = bytes(range(32))
    signing: bytes = bytes(range(32, 64))
    pseudonym: bytes = bytes(range(64, 96))

    def kek_current(self) -> tuple[str, bytes]:
        return "kek-golden", self.kek

    def find_kek(self, key_id: str) -> bytes:
        return {"kek-golden": self.kek}[key_id]

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
        assert pixel_digest(exact_image(envelope).frames()).hex() == expected["pixel_sha256"]


def add(label: str) -> None:
    """Write the objects of this version as KIND-LABEL.dcm."""
    expected = json.loads(EXPECTED.read_text(encoding="ascii")) if EXPECTED.exists() else {}
    for kind, data in sources().items():
        name = f"{kind}-{label}"
        path = FOLDER / f"{name}.dcm"
        if path.exists():
            raise SystemExit(f"{path.name} is there already")
        secrets = Secrets(sha256(name.encode()).digest()[:16], sha256(b"key " + name.encode()).digest())
        built = build_candidate(data, FACTS, GoldenRing(), secrets=secrets)  # type: ignore[arg-type]
        path.write_bytes(built.envelope)
        expected[name] = {
            "file_sha256": built.file_sha256,
            "pixel_sha256": built.pixel_sha256,
            "restored_sha256": restore(built.envelope, GoldenRing()).sha256,  # type: ignore[arg-type]
        }
    EXPECTED.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n", encoding="ascii")


if __name__ == "__main__":
    add(sys.argv[1])
