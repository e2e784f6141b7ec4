"""A small server that speaks the part of Vault's HTTP API that the key ring uses, for hvac to talk to.

AppRole and token logins, the Transit engine (keys, encrypt, decrypt, rewrap, rotate, min_decryption_version),
namespaces, and its faults: denied, sealed, failing, slow, nonsense. Answers and status codes as Vault documents them.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Answer = tuple[int, dict[str, Any]]
MOUNT = "transit"


@dataclass
class Vault:
    """State of the server; tests change it while it runs."""

    address: str = ""
    namespace: str = ""
    tokens: set[str] = field(default_factory=lambda: {"root"})
    role: tuple[str, str] = ("role-1", "secret-1")
    keys: dict[str, list[bytes]] = field(default_factory=lambda: {"palimpsest": [os.urandom(32)]})
    min_decryption_version: int = 1
    fault: str = ""  # '', denied, sealed, failing, nonsense, slow
    seen: list[str] = field(default_factory=list)
    logins: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def expire_tokens(self) -> None:
        """As when leases run out."""
        self.tokens.clear()

    def answer(self, path: str, body: dict[str, Any], headers: Any) -> Answer:
        """Status and JSON for one request."""
        with self.lock:
            self.seen.append(path)
        if self.fault == "slow":
            time.sleep(3.0)
            return 504, {"errors": ["nobody waits any more"]}  # and nothing is done that a later test would see
        if self.fault == "sealed":
            return 503, {"errors": ["Vault is sealed"]}
        if self.fault == "failing":
            return 500, {"errors": ["internal error"]}
        if self.fault == "nonsense":
            return 200, {"data": {}}
        if path == "auth/approle/login":
            return self._login(body)
        if self.fault == "denied" or headers.get("X-Vault-Token") not in self.tokens:
            return 403, {"errors": ["permission denied"]}
        if headers.get("X-Vault-Namespace", "") != self.namespace:
            return 403, {"errors": ["permission denied"]}
        mount, _, rest = path.partition("/")
        if mount != MOUNT:
            return 404, {"errors": [f"no handler for route '{path}'"]}
        return self._transit(rest.split("/"), body)

    def _login(self, body: dict[str, Any]) -> Answer:
        if (body.get("role_id"), body.get("secret_id")) != self.role:
            return 400, {"errors": ["invalid role or secret ID"]}
        self.logins += 1
        token = f"hvs.{os.urandom(8).hex()}"
        self.tokens.add(token)
        return 200, {"auth": {"client_token": token, "lease_duration": 60, "renewable": True}}

    def _transit(self, parts: list[str], body: dict[str, Any]) -> Answer:
        if parts[0] == "keys" and parts[1] in self.keys and parts[2:] == ["rotate"]:
            self.keys[parts[1]].append(os.urandom(32))
            return 200, {"data": self._facts(parts[1])}
        if parts[0] == "keys":
            found = self.keys.get(parts[1])
            return (200, {"data": self._facts(parts[1])}) if found else (404, {"errors": []})
        name = parts[-1]
        if name not in self.keys:
            return 400, {"errors": ["encryption key not found"]}
        if parts[0] == "encrypt":
            return 200, {"data": {"ciphertext": self._seal(name, base64.b64decode(body["plaintext"]))}}
        try:
            plain = self._open(name, str(body["ciphertext"]))
        except PermissionError:
            return 400, {"errors": ["ciphertext or signature version is disallowed by policy (too old)"]}
        except (ValueError, IndexError, InvalidTag):
            return 400, {"errors": ["cipher: message authentication failed"]}
        if parts[0] == "rewrap":
            return 200, {"data": {"ciphertext": self._seal(name, plain)}}
        return 200, {"data": {"plaintext": base64.b64encode(plain).decode()}}

    def _facts(self, name: str) -> dict[str, Any]:
        return {"name": name, "type": "aes256-gcm96", "latest_version": len(self.keys[name])}

    def _seal(self, name: str, plain: bytes) -> str:
        nonce, version = os.urandom(12), len(self.keys[name])
        sealed = nonce + AESGCM(self.keys[name][version - 1]).encrypt(nonce, plain, None)
        return f"vault:v{version}:{base64.b64encode(sealed).decode()}"

    def _open(self, name: str, ciphertext: str) -> bytes:
        _, number, text = ciphertext.split(":")
        version, sealed = int(number.removeprefix("v")), base64.b64decode(text)
        if version < self.min_decryption_version:
            raise PermissionError
        return AESGCM(self.keys[name][version - 1]).decrypt(sealed[:12], sealed[12:], None)


@contextmanager
def serving(vault: Vault, certificate: Path | None = None) -> Iterator[Vault]:
    """Serve on a free port of this machine; with `certificate` (PEM of key and certificate) over TLS."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, answer = vault.answer(
                self.path.removeprefix("/v1/"), json.loads(body) if body else {}, self.headers
            )
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _handle

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    scheme = "http"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        scheme = "https"
    vault.address = f"{scheme}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield vault
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
