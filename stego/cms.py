"""CMS EnvelopedData (RFC 5652): the standard way out for what de-identification removed (PS3.15 E.1.1, 4).

Key transport RSAES-OAEP with SHA-256 and MGF1 of SHA-256 (RFC 3560, RFC 8017), content AES-256-CBC (RFC 3565): what
`openssl cms -decrypt` opens. pyca's builder knows only PKCS #1 v1.5, so the structure is asn1crypto's and the
arithmetic pyca's. EnvelopedData does not authenticate: what is put in must carry its own signature, and whoever opens
it must check that signature.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha1

from asn1crypto import algos, cms, core
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.padding import PKCS7
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)

from stego.errors import SealError

#: smallest RSA modulus that is sealed to, bits (NIST SP 800-57: beyond 2030)
MIN_RSA_BITS = 3072
#: longest EnvelopedData that is opened, bytes
MAX_CMS_BYTES = 1 << 28
_KEY_BYTES, _IV_BYTES, _BLOCK_BITS = 32, 16, 128


def seal_cms(content: bytes, recipients: Sequence[bytes]) -> bytes:
    """DER of a ContentInfo with EnvelopedData that each recipient opens alone.

    recipients: at least one X.509 certificate or RSA public key (SubjectPublicKeyInfo), each DER or PEM. A certificate
    is named by issuer and serial number, a bare key by its key identifier (SHA-1 of the key bits, RFC 5280 4.2.1.2).
    Raises ValueError for no recipient, one that cannot be read, or a key that is not RSA of MIN_RSA_BITS.
    """
    if not recipients:
        raise ValueError("CMS needs at least one recipient")
    key, iv = os.urandom(_KEY_BYTES), os.urandom(_IV_BYTES)
    infos = [_transport(recipient, key) for recipient in recipients]
    padder = PKCS7(_BLOCK_BITS).padder()
    padded = padder.update(content) + padder.finalize()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
    enveloped = cms.EnvelopedData(
        {
            "version": "v0" if all(info.chosen["version"].native == "v0" for info in infos) else "v2",
            "recipient_infos": cms.RecipientInfos(infos),
            "encrypted_content_info": {
                "content_type": "data",
                "content_encryption_algorithm": {"algorithm": "aes256_cbc", "parameters": core.OctetString(iv)},
                "encrypted_content": encryptor.update(padded) + encryptor.finalize(),
            },
        }
    )
    sealed: bytes = cms.ContentInfo({"content_type": "enveloped_data", "content": enveloped}).dump()
    return sealed


def open_cms(sealed: bytes, private_key: bytes) -> bytes:
    """Inverse of `seal_cms` for one recipient's RSA private key (unencrypted PKCS #8 or PKCS #1, DER or PEM).

    Every recipient of the structure is tried. The content is not authenticated. Raises SealError, whatever the cause;
    ValueError when the private key cannot be read.
    """
    private = _private_key(private_key)
    parsed = _parse(sealed)
    if parsed is None:
        raise SealError
    transported, iv, body = parsed
    found = [key for key in (_untransport(private, wrapped) for wrapped in transported) if key is not None]
    # with no key the work is done all the same, so that a wrong key and damaged content look alike
    content = _decrypt(found[0] if found else os.urandom(_KEY_BYTES), iv, body)
    if not found or content is None:
        raise SealError
    return content


def check_recipient(recipient: bytes) -> str:
    """'certificate' or 'public-key' for what `seal_cms` would take. Raises ValueError as it does."""
    certificate, _ = _recipient(recipient)
    return "public-key" if certificate is None else "certificate"


def _transport(recipient: bytes, key: bytes) -> cms.RecipientInfo:
    certificate, public = _recipient(recipient)
    if certificate is not None:
        parsed = asn1_x509.Certificate.load(certificate.public_bytes(Encoding.DER))
        rid = cms.RecipientIdentifier(
            "issuer_and_serial_number", {"issuer": parsed.issuer, "serial_number": parsed.serial_number}
        )
    else:
        bits = public.public_bytes(Encoding.DER, PublicFormat.PKCS1)
        rid = cms.RecipientIdentifier("subject_key_identifier", sha1(bits, usedforsecurity=False).digest())
    digest = algos.DigestAlgorithm({"algorithm": "sha256"})
    parameters = algos.RSAESOAEPParams(
        {"hash_algorithm": digest, "mask_gen_algorithm": {"algorithm": "mgf1", "parameters": digest}}
    )
    info = cms.KeyTransRecipientInfo(
        {
            "version": "v0" if certificate is not None else "v2",
            "rid": rid,
            "key_encryption_algorithm": {"algorithm": "rsaes_oaep", "parameters": parameters},
            "encrypted_key": public.encrypt(key, _oaep()),
        }
    )
    return cms.RecipientInfo("ktri", info)


def _recipient(data: bytes) -> tuple[x509.Certificate | None, rsa.RSAPublicKey]:
    certificate, public = _load(data)
    if not isinstance(public, rsa.RSAPublicKey) or public.key_size < MIN_RSA_BITS:
        raise ValueError(f"a CMS recipient needs an RSA key of at least {MIN_RSA_BITS} bits")
    return certificate, public


def _load(data: bytes) -> tuple[x509.Certificate | None, object]:
    pem = data.lstrip().startswith(b"-----BEGIN")
    try:
        certificate = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
        return certificate, certificate.public_key()
    except ValueError:
        return None, load_pem_public_key(data) if pem else load_der_public_key(data)


def _private_key(data: bytes) -> rsa.RSAPrivateKey:
    pem = data.lstrip().startswith(b"-----BEGIN")
    try:
        key = load_pem_private_key(data, None) if pem else load_der_private_key(data, None)
    except TypeError as error:
        raise ValueError("the private key is encrypted") from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("the private key is not RSA")
    return key


def _parse(sealed: bytes) -> tuple[list[bytes], bytes, bytes] | None:
    """(transported keys, iv, encrypted content) of our kind of EnvelopedData, None when it is anything else."""
    if len(sealed) > MAX_CMS_BYTES:
        return None
    try:
        info = cms.ContentInfo.load(sealed, strict=True)
        if info["content_type"].native != "enveloped_data":
            return None
        content = info["content"]["encrypted_content_info"]
        algorithm = content["content_encryption_algorithm"]
        if algorithm["algorithm"].native != "aes256_cbc":
            return None
        transported = [r.chosen for r in info["content"]["recipient_infos"] if r.name == "ktri"]
        keys = [
            ktri["encrypted_key"].native
            for ktri in transported
            if ktri["key_encryption_algorithm"]["algorithm"].native == "rsaes_oaep"
        ]
        return keys, algorithm["parameters"].native, content["encrypted_content"].native
    except (ValueError, TypeError, KeyError):
        return None


def _untransport(private: rsa.RSAPrivateKey, wrapped: bytes) -> bytes | None:
    try:
        key = private.decrypt(wrapped, _oaep())
    except ValueError:
        return None
    return key if len(key) == _KEY_BYTES else None


def _decrypt(key: bytes, iv: bytes, body: bytes) -> bytes | None:
    try:
        decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
        padded = decryptor.update(body) + decryptor.finalize()
        unpadder = PKCS7(_BLOCK_BITS).unpadder()
        return unpadder.update(padded) + unpadder.finalize()
    except (ValueError, TypeError):
        return None


def _oaep() -> OAEP:
    return OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)
