"""Masters: what wraps the ring's patient keys. In a file ring the `kek` keys, else Vault Transit or AWS KMS.

A token is text that begins with what names the master's version: 'kek-2:...', 'vault:v3:...', 'kms:<key id>:...'.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.errors import IntegrityError, PolicyRefused, Unavailable
from gateway.keystate import OpenSeal, RingState, Seal, UnknownKey

if TYPE_CHECKING:
    from gateway.settings import Settings

__all__ = ["FileMaster", "Master", "MasterRefused", "open_master", "open_seal", "seal_with", "state_master"]

FILE_MASTER = "file"
_RING_CONTEXT = b"palimpsest/ring/v1"
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


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


def state_master(state: Callable[[], RingState], add: Callable[[], str] | None = None) -> FileMaster:
    """The file master of a ring; without `add` it cannot be rotated."""

    def current() -> tuple[str, bytes]:
        key = state().current("kek")
        return key.id, key.secret

    def find(key_id: str) -> bytes:
        key = state().find(key_id, "kek")
        if key is None:
            raise UnknownKey("unknown-key")
        return key.secret

    def refuse() -> str:
        raise PolicyRefused("keys-readonly", "this key ring is read only")

    return FileMaster(current, find, add or refuse)


def seal_with(master: Master) -> Seal:
    """A fresh key for the ring file, wrapped by a remote master."""
    key = os.urandom(32)
    return Seal(master.name, master.wrap(key, _RING_CONTEXT), key)


def reseal(master: Master, seal: Seal) -> Seal:
    """The same key under the master's current version."""
    return Seal(master.name, master.rewrap(seal.token, _RING_CONTEXT), seal.key)


def open_seal(master: Master) -> OpenSeal:
    """Opens the seal of a ring file with this master. The opener raises PolicyRefused for another master's."""

    def opened(name: str, token: str) -> bytes:
        if name != master.name:
            raise mismatch(name, master.name)
        try:
            return master.unwrap(token, _RING_CONTEXT)
        except MasterRefused:
            message = f"{name} does not open this key ring: another Transit or KMS key of that name, or a damaged file"
            raise Unavailable("keys-corrupt", message, 60.0) from None

    return opened


def mismatch(ring: str, used: str) -> PolicyRefused:
    """For a ring that lies under another master than the one in use."""
    return PolicyRefused(
        "key-master-mismatch",
        f"the key ring is kept by master '{ring}', the settings name '{used}': correct PALIMPSEST_KEY_MASTER, or move "
        "the ring with `palimpsest keys backup`, then `palimpsest keys restore --overwrite` under the new master",
    )


def _box(key: bytes) -> AESGCM:
    # A subkey of its own: the kek also wraps data keys directly, in another construction.
    return AESGCM(HKDF(SHA256(), 32, None, b"palimpsest/master-wrap/v1").derive(key))


def _associated(key_id: str, context: bytes) -> bytes:
    return key_id.encode("ascii", "replace") + b"\x00" + context


def open_master(settings: Settings) -> Master | None:
    """The remote master that the settings name; None for a file ring, whose `kek` keys are its master.

    Connects to nothing yet. Raises PolicyRefused 'key-master-settings' when something is missing or insecure.
    """
    if settings.key_master == "vault":
        return _vault(settings)
    if settings.key_master == "kms":
        from gateway.kmsmaster import KmsAccess, KmsMaster

        seconds, endpoint = settings.key_master_timeout_seconds, urlsplit(settings.kms_endpoint)
        if settings.kms_endpoint and endpoint.scheme != "https" and endpoint.hostname not in _LOOPBACK:
            raise _incomplete("PALIMPSEST_KMS_ENDPOINT must be an https URL: keys would travel in clear")
        return KmsMaster(KmsAccess(settings.kms_key, settings.kms_region, settings.kms_endpoint, seconds))
    return None


def _vault(settings: Settings) -> Master:
    from gateway.vaultmaster import VaultAccess, VaultMaster

    where = urlsplit(settings.vault_addr)
    if where.scheme not in ("http", "https") or not where.hostname:
        raise _incomplete("PALIMPSEST_VAULT_ADDR must be the URL of Vault or OpenBao")
    if where.scheme == "http" and where.hostname not in _LOOPBACK:
        raise _incomplete("PALIMPSEST_VAULT_ADDR must be https: keys and logins would travel in clear")
    role = settings.vault_role_id and (settings.vault_secret_id or settings.vault_secret_id_file)
    if not (role or settings.vault_token or settings.vault_token_file):
        raise _incomplete(
            "Vault needs a login: PALIMPSEST_VAULT_ROLE_ID with PALIMPSEST_VAULT_SECRET_ID_FILE, "
            "or PALIMPSEST_VAULT_TOKEN_FILE"
        )
    return VaultMaster(
        VaultAccess(
            address=settings.vault_addr,
            mount=settings.vault_mount,
            key=settings.vault_key,
            namespace=settings.vault_namespace,
            ca_file=settings.vault_ca_file,
            token=settings.vault_token,
            token_file=settings.vault_token_file,
            role_id=settings.vault_role_id,
            secret_id=settings.vault_secret_id,
            secret_id_file=settings.vault_secret_id_file,
            approle_mount=settings.vault_approle_mount,
            timeout_seconds=settings.key_master_timeout_seconds,
        )
    )


def _incomplete(message: str) -> PolicyRefused:
    return PolicyRefused("key-master-settings", message)
