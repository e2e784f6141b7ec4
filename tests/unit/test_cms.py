"""stego.cms against the openssl command line: whatever is sealed here must open there, and what is damaged nowhere."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from stego.cms import check_recipient, open_cms, seal_cms
from stego.errors import SealError

OPENSSL = shutil.which("openssl")
CONTENT = b"Quastenflosser^Wilhelmine " * 40


def openssl(*arguments: str | Path) -> bytes:
    assert OPENSSL, "the openssl command line is a test requirement (Debian: openssl)"
    done = subprocess.run([OPENSSL, *map(str, arguments)], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with key.pem, cert.pem, pub.pem and a stranger's other.pem, all made by openssl."""
    folder = tmp_path_factory.mktemp("cms")
    for name in ("key", "other"):
        openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072", "-out", folder / f"{name}.pem")
    openssl("req", "-x509", "-new", "-key", folder / "key.pem", "-out", folder / "cert.pem", "-days", "30",
            "-subj", "/O=Hospital/CN=Archive recipient")  # fmt: skip
    openssl("pkey", "-in", folder / "key.pem", "-pubout", "-out", folder / "pub.pem")
    return folder


def opened_by_openssl(folder: Path, sealed: bytes, *more: str | Path) -> bytes:
    (folder / "sealed.der").write_bytes(sealed)
    return openssl("cms", "-decrypt", "-binary", "-inform", "DER", "-in", folder / "sealed.der",
                   "-inkey", folder / "key.pem", *more)  # fmt: skip


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 100_000])
def test_openssl_opens_what_is_sealed_to_a_certificate(pair: Path, size: int) -> None:
    content = (CONTENT * (size // len(CONTENT) + 1))[:size]
    sealed = seal_cms(content, [(pair / "cert.pem").read_bytes()])
    assert opened_by_openssl(pair, sealed, "-recip", pair / "cert.pem") == content
    assert CONTENT[:14] not in sealed


def test_openssl_opens_what_is_sealed_to_a_bare_public_key(pair: Path) -> None:
    sealed = seal_cms(CONTENT, [(pair / "pub.pem").read_bytes()])
    assert opened_by_openssl(pair, sealed) == CONTENT


def test_openssl_names_oaep_and_aes(pair: Path) -> None:
    (pair / "shown.der").write_bytes(seal_cms(CONTENT, [(pair / "cert.pem").read_bytes()]))
    shown = openssl("cms", "-cmsout", "-print", "-noout", "-inform", "DER", "-in", pair / "shown.der").decode()
    assert all(word in shown for word in ("rsaesOaep", "sha256", "mgf1", "aes-256-cbc", "Archive recipient"))


def test_we_open_what_openssl_seals(pair: Path) -> None:
    (pair / "plain.bin").write_bytes(CONTENT)
    sealed = openssl("cms", "-encrypt", "-binary", "-aes256", "-outform", "DER", "-in", pair / "plain.bin",
                     "-recip", pair / "cert.pem", "-keyopt", "rsa_padding_mode:oaep", "-keyopt", "rsa_oaep_md:sha256",
                     "-keyopt", "rsa_mgf1_md:sha256")  # fmt: skip
    assert open_cms(sealed, (pair / "key.pem").read_bytes()) == CONTENT


def test_every_recipient_opens_alone_and_a_stranger_does_not(pair: Path) -> None:
    openssl("pkey", "-in", pair / "other.pem", "-pubout", "-out", pair / "other-pub.pem")
    both = seal_cms(CONTENT, [(pair / name).read_bytes() for name in ("cert.pem", "other-pub.pem")])
    assert open_cms(both, (pair / "key.pem").read_bytes()) == CONTENT
    assert open_cms(both, (pair / "other.pem").read_bytes()) == CONTENT
    with pytest.raises(SealError, match="^refused$"):
        open_cms(seal_cms(CONTENT, [(pair / "cert.pem").read_bytes()]), (pair / "other.pem").read_bytes())


def test_der_forms_are_taken_too(pair: Path) -> None:
    openssl("x509", "-in", pair / "cert.pem", "-outform", "DER", "-out", pair / "cert.der")
    openssl("pkey", "-in", pair / "key.pem", "-outform", "DER", "-out", pair / "key.der")
    assert check_recipient((pair / "cert.der").read_bytes()) == "certificate"
    assert check_recipient((pair / "pub.pem").read_bytes()) == "public-key"
    sealed = seal_cms(CONTENT, [(pair / "cert.der").read_bytes()])
    assert open_cms(sealed, (pair / "key.der").read_bytes()) == CONTENT


def test_two_seals_of_one_content_differ(pair: Path) -> None:
    certificate = (pair / "cert.pem").read_bytes()
    assert seal_cms(CONTENT, [certificate]) != seal_cms(CONTENT, [certificate])


def test_damage_is_refused_or_changes_the_content_never_raises_otherwise(pair: Path) -> None:
    """CBC does not authenticate: a flip in the content may open to other bytes, but to nothing else than bytes."""
    key = (pair / "key.pem").read_bytes()
    sealed = seal_cms(CONTENT, [(pair / "cert.pem").read_bytes()])
    outcomes = set()
    for at in range(0, len(sealed), 47):
        broken = bytearray(sealed)
        broken[at] ^= 0x10
        try:
            outcomes.add(open_cms(bytes(broken), key) == CONTENT)
        except SealError as error:
            assert str(error) == "refused" and error.__cause__ is None
            outcomes.add("refused")
    assert "refused" in outcomes


@pytest.mark.parametrize("cut", [0, 1, 10, 400, -1])
def test_truncated_and_lengthened_are_refused(pair: Path, cut: int) -> None:
    sealed = seal_cms(CONTENT, [(pair / "cert.pem").read_bytes()])
    damaged = sealed + b"\0" if cut == -1 else sealed[:cut] if cut < 100 else sealed[:-cut]
    with pytest.raises(SealError):
        open_cms(damaged, (pair / "key.pem").read_bytes())


@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=300))
def test_nonsense_is_refused(pair: Path, data: bytes) -> None:
    with pytest.raises(SealError):
        open_cms(data, (pair / "key.pem").read_bytes())


def test_unfit_recipients_are_named(pair: Path) -> None:
    weak = pair / "weak.pem"
    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", weak)
    openssl("pkey", "-in", weak, "-pubout", "-out", pair / "weak-pub.pem")
    curve = ec.generate_private_key(ec.SECP256R1()).public_key()
    unfit = [
        (pair / "weak-pub.pem").read_bytes(),
        curve.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        b"nothing",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ]
    for recipient in unfit:
        with pytest.raises(ValueError):
            seal_cms(CONTENT, [recipient])
    with pytest.raises(ValueError, match="at least one"):
        seal_cms(CONTENT, [])
    with pytest.raises(ValueError):
        open_cms(b"", curve.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
