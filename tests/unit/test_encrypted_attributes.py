"""The Encrypted Attributes Sequence: openssl opens it, pydicom reads it, the identity comes back, none can alter it."""

from __future__ import annotations

import glob
import io
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import pydicom
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset

from gateway.errors import InvalidInstance
from stego.errors import SealError
from tests.object_makers import BIG, EXPLICIT, IDENTITY, IMPLICIT, header, image, noisy, save
from tests.unit.deid_makers import KEY, written
from worker.deid import Profile, deidentify, reidentify, separate
from worker.encrypted_attributes import (
    ENCRYPTED_ATTRIBUTES,
    CmsItem,
    attach,
    open_attributes,
    pack_attributes,
    seal_attributes,
    seal_identity,
    unpack_attributes,
)

SIGNING = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIGNER = ("sign-1", SIGNING.private_bytes_raw())
VERIFY = {"sign-1": SIGNING.public_key().public_bytes_raw()}.__getitem__
BELONGS = "2.25.1234567890"


def openssl(*arguments: str | Path) -> bytes:
    found = shutil.which("openssl")
    assert found, "the openssl command line is a test requirement (Debian: openssl)"
    done = subprocess.run([found, *map(str, arguments)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    openssl("req", "-x509", "-newkey", "rsa:3072", "-noenc", "-keyout", folder / "key.pem", "-out", folder / "cert.pem",
            "-days", "30", "-subj", "/CN=recipient")  # fmt: skip
    return folder


def ct(syntax: str = EXPLICIT, **changes: object) -> bytes:
    return image([noisy(32, 32)], syntax=syntax, **changes)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_openssl_alone_opens_it_and_pydicom_reads_the_identity(keys: Path, syntax: str) -> None:
    recipients = [(keys / "cert.pem").read_bytes()]
    done = deidentify(dcmread(io.BytesIO(ct(syntax))), Profile(), KEY)
    attach(done.dataset, [seal_attributes(done.removed, recipients, belongs_to=BELONGS, signer=SIGNER)])
    file = written(done.dataset)
    assert all(value.encode() not in file for value in IDENTITY.values())

    received = dcmread(io.BytesIO(file)).EncryptedAttributesSequence[0]
    assert received.EncryptedContentTransferSyntaxUID == syntax
    (keys / "content.der").write_bytes(received.EncryptedContent)
    plain = openssl("cms", "-decrypt", "-binary", "-inform", "DER", "-in", keys / "content.der",
                    "-inkey", keys / "key.pem", "-recip", keys / "cert.pem")  # fmt: skip
    opened = read_dataset(DicomBytesIO(plain), syntax == IMPLICIT, syntax != BIG)
    (original,) = opened.ModifiedAttributesSequence
    assert original.PatientName == IDENTITY["PatientName"] and original.SOPInstanceUID == IDENTITY["SOPInstanceUID"]


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG])
def test_the_data_set_comes_back_identical_over_the_wire(keys: Path, syntax: str) -> None:
    data = ct(syntax, PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100")
    before = written(dcmread(io.BytesIO(data)))
    done = deidentify(dcmread(io.BytesIO(data)), Profile(), KEY)
    item = seal_attributes(done.removed, [(keys / "cert.pem").read_bytes()], belongs_to=BELONGS, signer=SIGNER)
    attach(done.dataset, [item])
    sent = dcmread(io.BytesIO(written(done.dataset)))
    opened = open_attributes(
        sent[ENCRYPTED_ATTRIBUTES].value[0], (keys / "key.pem").read_bytes(), find_verify_key=VERIFY
    )
    assert (opened.belongs_to, opened.signer) == (BELONGS, "sign-1")
    assert written(reidentify(sent, opened.removed)) == before
    assert "ller" not in repr(opened)


def test_a_received_file_is_sealed_in_one_call(keys: Path) -> None:
    item = seal_identity(ct(), [(keys / "cert.pem").read_bytes()], belongs_to=BELONGS, signer=SIGNER, key=KEY)
    opened = open_attributes(item, (keys / "key.pem").read_bytes(), find_verify_key=VERIFY)
    assert opened.removed.PatientID == IDENTITY["PatientID"]
    assert IDENTITY["PatientID"].encode() not in item.content
    for bad in (b"", b"no DICOM at all" * 20, ct()[:200]):
        with pytest.raises(InvalidInstance) as refused:
            seal_identity(bad, [(keys / "cert.pem").read_bytes()], belongs_to=BELONGS, signer=SIGNER, key=KEY)
        assert refused.value.reason == "cms-unreadable"
    with pytest.raises(ValueError):
        seal_identity(ct(), [b"no certificate"], belongs_to=BELONGS, signer=SIGNER, key=KEY)


def packed() -> tuple[bytes, str]:
    done = separate(dcmread(io.BytesIO(ct())), Profile(), KEY)
    return pack_attributes(done.removed, belongs_to=BELONGS, signer=SIGNER)


def test_packing_is_deterministic_and_every_flip_is_refused() -> None:
    data, syntax = packed()
    assert (data, syntax) == packed()
    assert unpack_attributes(data, syntax, find_verify_key=VERIFY).removed.PatientID == IDENTITY["PatientID"]
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 1
        with pytest.raises(SealError):
            unpack_attributes(bytes(broken), syntax, find_verify_key=VERIFY)


def test_cut_lengthened_mislabelled_and_wrongly_signed_are_refused() -> None:
    data, syntax = packed()
    stranger = {"sign-1": Ed25519PrivateKey.generate().public_key().public_bytes_raw()}.__getitem__
    tries = [
        (data[:-1], syntax, VERIFY), (data + b"\0", syntax, VERIFY), (b"", syntax, VERIFY), (data, IMPLICIT, VERIFY),
        (data, "1.2.840.10008.1.2.4.90", VERIFY), (data, syntax, stranger), (data, syntax, {}.__getitem__),
    ]  # fmt: skip
    for content, named, find in tries:
        with pytest.raises(SealError, match="^refused$"):
            unpack_attributes(content, named, find_verify_key=find)


def test_content_that_somebody_else_sealed_is_refused(keys: Path) -> None:
    """Anybody can encrypt to a public key: only the signature tells whose data these are."""
    from stego.cms import seal_cms

    forged = Dataset()
    forged.PatientName = "Somebody^Else"
    outer = header(ModifiedAttributesSequence=[forged])
    item = CmsItem(EXPLICIT, seal_cms(save(outer), [(keys / "cert.pem").read_bytes()]))
    with pytest.raises(SealError):
        open_attributes(item, (keys / "key.pem").read_bytes(), find_verify_key=VERIFY)
    with pytest.raises(SealError):
        open_attributes(Dataset(), (keys / "key.pem").read_bytes(), find_verify_key=VERIFY)


def test_every_file_of_pydicom_comes_back_from_its_packed_attributes() -> None:
    done = 0
    data = os.path.join(os.path.dirname(pydicom.__file__), "data")
    paths = [
        p for f in ("test_files", "charset_files") for p in glob.glob(os.path.join(data, f, "**", "*"), recursive=True)
    ]
    for path in sorted(paths):
        if not os.path.isfile(path):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                source, before = dcmread(path), written(dcmread(path))
            except (pydicom.errors.InvalidDicomError, TypeError, ValueError, EOFError):
                continue
            result = separate(source, Profile(), KEY)
            content, syntax = pack_attributes(result.removed, belongs_to=BELONGS, signer=SIGNER)
            removed = unpack_attributes(content, syntax, find_verify_key=VERIFY).removed
            restored = reidentify(dcmread(io.BytesIO(written(result.dataset))), removed)
            assert written(restored) == before, path
            assert restored == dcmread(path), path
        done += 1
    assert done >= 175
