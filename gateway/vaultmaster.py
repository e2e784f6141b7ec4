"""HashiCorp Vault or OpenBao as master: the Transit engine wraps, its key never leaves it.

The context is bound inside the plaintext (its SHA-256 in front of the secret): the rewrap endpoint takes no associated
data, and this way Vault rewraps without showing us anything. API: Vault's and OpenBao's "Transit secrets engine".
"""

from __future__ import annotations

import base64
import hmac
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from gateway.errors import PolicyRefused, Unavailable
from gateway.masters import MasterRefused

__all__ = ["VaultAccess", "VaultMaster"]

_TOKEN = re.compile(r"vault:(v[1-9][0-9]*):[A-Za-z0-9+/=]+")
_BOUND_BYTES = 32
DENIED_SECONDS = 60.0  # a missing right is mended by a person, not by asking every few seconds


@dataclass(frozen=True, slots=True)
class VaultAccess:
    """Where the Transit key is and how to log in: a token, or AppRole (role id and secret id). Files win, read anew
    at each login, so that an agent may renew them.
    """

    address: str
    mount: str = "transit"
    key: str = "palimpsest"
    namespace: str = ""
    ca_file: Path | None = None
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    role_id: str = field(default="", repr=False)
    secret_id: str = field(default="", repr=False)
    secret_id_file: Path | None = None
    approle_mount: str = "approle"
    timeout_seconds: float = 10.0


class VaultMaster:
    """A Transit key. One login per process, renewed when it is refused. See Master."""

    def __init__(self, access: VaultAccess) -> None:
        self._access = access
        self._client: tuple[int, Any] | None = None  # process id and client: a forked child logs in by itself

    def __repr__(self) -> str:
        return f"VaultMaster({self.name})"

    @property
    def name(self) -> str:
        """See Master."""
        return f"vault:{self._access.mount}/{self._access.key}"

    def wrap(self, secret: bytes, context: bytes) -> str:
        """See Master."""
        text = base64.b64encode(sha256(context).digest() + secret).decode("ascii")
        return self._token(self._ask(lambda transit, where: transit.encrypt_data(plaintext=text, **where)))

    def unwrap(self, token: str, context: bytes) -> bytes:
        """See Master."""
        self.version_of(token)
        answer = self._ask(lambda transit, where: transit.decrypt_data(ciphertext=token, **where))
        try:
            plain = base64.b64decode(answer["data"]["plaintext"], validate=True)
        except (KeyError, TypeError, ValueError):
            raise _nonsense() from None
        if not hmac.compare_digest(plain[:_BOUND_BYTES], sha256(context).digest()):
            raise MasterRefused
        return plain[_BOUND_BYTES:]

    def rewrap(self, token: str, context: bytes) -> str:
        """See Master. Vault does it alone; the context stays bound inside."""
        self.version_of(token)
        return self._token(self._ask(lambda transit, where: transit.rewrap_data(ciphertext=token, **where)))

    def rotate(self) -> str:
        """See Master. Needs `update` on <mount>/keys/<key>/rotate."""
        self._ask(lambda transit, where: transit.rotate_key(**where))
        return self.version()

    def version(self) -> str:
        """See Master. Needs `read` on <mount>/keys/<key>."""
        answer = self._ask(lambda transit, where: transit.read_key(**where))
        try:
            return f"v{int(answer['data']['latest_version'])}"
        except (KeyError, TypeError, ValueError):
            raise _nonsense() from None

    def version_of(self, token: str) -> str:
        """See Master."""
        found = _TOKEN.fullmatch(token)
        if found is None:
            raise MasterRefused
        return found[1]

    # --- inside ---

    def _token(self, answer: Any) -> str:
        try:
            token = str(answer["data"]["ciphertext"])
        except (KeyError, TypeError):
            raise _nonsense() from None
        if _TOKEN.fullmatch(token) is None:
            raise _nonsense()
        return token

    def _ask(self, request: Callable[[Any, dict[str, str]], Any]) -> Any:
        """One request; a refused login is renewed once. Nothing of Vault's text goes into our errors."""
        hvac, requests = _libraries()
        where = {"name": self._access.key, "mount_point": self._access.mount}
        try:
            client, fresh = self._logged_in(hvac, requests)
            try:
                return request(client.secrets.transit, where)
            except (hvac.exceptions.Forbidden, hvac.exceptions.Unauthorized):
                if fresh:
                    raise
                self._client = None
                return request(self._logged_in(hvac, requests)[0].secrets.transit, where)
        except hvac.exceptions.VaultError as error:
            raise _translated(hvac, error) from None
        except (requests.RequestException, OSError):
            raise Unavailable("key-master-unreachable", "Vault cannot be reached; see docs/operations.md") from None

    def _logged_in(self, hvac: Any, requests: Any) -> tuple[Any, bool]:
        """(client, whether it logged in just now)."""
        if self._client is not None and self._client[0] == os.getpid():
            return self._client[1], False
        access = self._access
        verify: bool | str = str(access.ca_file) if access.ca_file else True
        session = None
        if access.address.startswith("http:"):  # on this machine: what goes in clear must not go by way of a proxy
            session = requests.Session()
            session.trust_env = False
        client = hvac.Client(
            url=access.address, verify=verify, namespace=access.namespace or None, timeout=access.timeout_seconds,
            session=session,
        )  # fmt: skip
        if access.role_id:
            secret = _secret(access.secret_id, access.secret_id_file)
            client.auth.approle.login(access.role_id, secret or None, mount_point=access.approle_mount)
        else:
            client.token = _secret(access.token, access.token_file)
        self._client = (os.getpid(), client)
        return client, True


def _secret(value: str, file: Path | None) -> str:
    if file is None:
        return value
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise Unavailable(
            "key-master-denied", f"{file} with the login to Vault cannot be read", DENIED_SECONDS
        ) from None


def _translated(hvac: Any, error: Exception) -> Exception:
    known, text = hvac.exceptions, str(error).lower()
    if isinstance(error, (known.Forbidden, known.Unauthorized)) or "invalid role or secret" in text:
        message = "Vault denies access to the master key: check token or AppRole and its policy (docs/operations.md)"
        return Unavailable("key-master-denied", message, DENIED_SECONDS)
    if isinstance(error, known.VaultDown) and "sealed" in text:
        return Unavailable("key-master-sealed", "Vault is sealed: unseal it", 30.0)
    if isinstance(error, known.InvalidPath) or "encryption key not found" in text:
        message = "Vault has no Transit key of that mount and name: create it, or correct the settings"
        return Unavailable("key-master-missing", message, DENIED_SECONDS)
    if isinstance(error, known.InvalidRequest):
        return MasterRefused()
    return Unavailable("key-master-unreachable", "Vault does not answer as it should; it is tried again")


def _nonsense() -> Unavailable:
    return Unavailable("key-master-unreachable", "what answers at Vault's address is no Transit engine")


def _libraries() -> tuple[Any, Any]:
    try:
        import hvac
        import hvac.exceptions
        import requests
    except ImportError:
        raise PolicyRefused(
            "key-master-extra", "PALIMPSEST_KEY_MASTER=vault needs `pip install palimpsest[vault]`"
        ) from None
    return hvac, requests
