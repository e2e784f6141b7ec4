"""Masters: what wraps the ring's patient keys. In a file ring the `kek` keys, else Vault Transit or AWS KMS.

A token is text that begins with what names the master's version: 'kek-2:...', 'vault:v3:...', 'kms:<key id>:...'.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.errors import IntegrityError

__all__ = ["FileMaster", "Master", "MasterRefused"]

FILE_MASTER = "file"


class MasterRefused(IntegrityError):
    """A token that the master does not open: damaged, of another context, or of a version it no longer has."""

    def __init__(self, reason: str = "wrapped-key-refused", message: str = "") -> None:
        super().__init__(reason, message or "a wrapped key does not open: damaged, or wrapped by another master")


class Master(Protocol):
    """Wraps 32-byte secrets. `context` (bytes, not secret) must be the same at both ends.

    All raise Unavailable when the master cannot be reached or denies access (`key-master-unreachable`,
    `key-master-denied`, `key-master-sealed`): a retry may help, and no object is to blame.
    """

    @property
    def name(self) -> str:
        """Which master this is, as the ring file records it: 'file', 'vault:<mount>/<key>', 'kms:<alias>'."""

    def wrap(self, secret: bytes, context: bytes) -> str:
        """A token under the current version."""

    def unwrap(self, token: str, context: bytes) -> bytes:
        """Inverse of `wrap`, for every version that is still there. Raises MasterRefused."""

    def rewrap(self, token: str, context: bytes) -> str:
        """The same secret under the current version; remote masters do it without showing it to us where they can."""

    def rotate(self) -> str:
        """Put a new version into use and return its name. Old ones keep opening."""

    def version(self) -> str:
        """Name of the version in use. Also the check whether the master can be reached."""

    def version_of(self, token: str) -> str:
        """Name of the version that a token is under. Raises MasterRefused for no token of this master's."""


class FileMaster:
    """The `kek` keys of the ring itself: AES-256-GCM under a subkey, a random nonce, the context as associated data."""

    name = FILE_MASTER

    def __init__(
        self, current: Callable[[], tuple[str, bytes]], find: Callable[[str], bytes], add: Callable[[], str]
    ) -> None:
        """current: (id, 32 bytes) in use; find: by id, raises LookupError; add: makes a new one, gives its id."""
        self._current, self._find, self._add = current, find, add

    def wrap(self, secret: bytes, context: bytes) -> str:
        """See Master."""
        key_id, key = self._current()
        nonce = os.urandom(12)
        sealed = nonce + _box(key).encrypt(nonce, secret, _associated(key_id, context))
        return f"{key_id}:{base64.b64encode(sealed).decode('ascii')}"

    def unwrap(self, token: str, context: bytes) -> bytes:
        """See Master."""
        key_id, _, text = token.partition(":")
        try:
            sealed = base64.b64decode(text, validate=True)
            return _box(self._find(key_id)).decrypt(sealed[:12], sealed[12:], _associated(key_id, context))
        except (LookupError, ValueError, InvalidTag):
            raise MasterRefused from None

    def rewrap(self, token: str, context: bytes) -> str:
        """See Master."""
        return self.wrap(self.unwrap(token, context), context)

    def rotate(self) -> str:
        """See Master."""
        return self._add()

    def version(self) -> str:
        """See Master."""
        return self._current()[0]

    def version_of(self, token: str) -> str:
        """See Master."""
        version, colon, _ = token.partition(":")
        if not colon or not version.startswith("kek-"):
            raise MasterRefused
        return version


def _box(key: bytes) -> AESGCM:
    # A subkey of its own: the kek also wraps data keys directly, in another construction.
    return AESGCM(HKDF(SHA256(), 32, None, b"palimpsest/master-wrap/v1").derive(key))


def _associated(key_id: str, context: bytes) -> bytes:
    return key_id.encode("ascii", "replace") + b"\x00" + context
