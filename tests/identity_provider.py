"""A real identity provider for tests: Glewlwyd (Debian's package), on a folder and a port of its own."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from tests.running import free_port, until

PACKAGE = Path("/usr/share/doc/glewlwyd")
PASSWORD = "correct horse"
SECRET = "a secret of the gateway's own client"


def installed() -> bool:
    """True if the program and what it makes its database from are there."""
    return shutil.which("glewlwyd") is not None and (PACKAGE / "database" / "init.sqlite3.sql.gz").is_file()


def signing_key(kid: str) -> dict[str, Any]:
    """A new private key as a JWK."""
    made: dict[str, Any] = json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048)))
    return made | {"kid": kid, "alg": "RS256", "use": "sig"}


class IdentityProvider:
    """Runs while it is a context. Its people are in groups, its machines have scopes."""

    def __init__(self, folder: Path, callback: str) -> None:
        """callback: where it sends browsers back to, and nowhere else."""
        self.url = f"http://127.0.0.1:{free_port()}"
        self.issuer = f"{self.url}/api/oidc"
        self._folder, self._callback = folder, callback
        self._process: subprocess.Popen[bytes] | None = None
        self._admin = httpx.Client(base_url=f"{self.url}/api", timeout=120)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        database = self._folder / "glewlwyd.db"
        with sqlite3.connect(database) as connection:
            connection.executescript(gzip.open(PACKAGE / "database" / "init.sqlite3.sql.gz", "rt").read())
        config = gzip.open(PACKAGE / "glewlwyd.conf.sample.gz", "rt").read()
        for old, new in (
            ("port=4593", f"port={self.url.rpartition(':')[2]}"),
            ("http://localhost:4593", self.url),
            ("/var/cache/glewlwyd/glewlwyd.db", str(database)),
            ("cookie_secure=1", "cookie_secure=0"),
            ('cookie_domain="localhost"', 'cookie_domain=""'),
        ):
            assert old in config
            config = config.replace(old, new)
        file = self._folder / "glewlwyd.conf"
        file.write_text(config)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(["glewlwyd", "--config-file", str(file)], stdout=log, stderr=log)
        assert until(self._answers), (self._folder / "log").read_text()[-2000:]
        self._admin.headers["Cookie"] = self.signed_in("admin", "password")
        self._set_up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admin.close()
        if self._process is not None:
            self._process.terminate()
            self._process.wait(120)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/config").status_code == 200
        except httpx.HTTPError:
            return False

    def _set_up(self) -> None:
        module = self._admin.get("/mod/user/database").json()
        readable = {"multiple": True, "read": True, "write": True, "profile-read": True, "profile-write": False}
        module["parameters"]["data-format"]["groups"] = readable
        self._done(self._admin.put("/mod/user/database", json=module))
        self._done(self._admin.put("/mod/user/database/reset/"))
        self.rotate("first", new=True)
        self._done(
            self._admin.post("/scope/", json={"name": "palimpsest", "display_name": "x", "password_required": False})
        )
        client = {
            "client_id": "palimpsest", "name": "x", "enabled": True, "confidential": True, "client_secret": SECRET,
            "password": SECRET, "redirect_uri": [f"{self._callback}/login/callback"], "scope": ["palimpsest"],
            "authorization_type": ["code", "client_credentials"], "token_endpoint_auth_method": ["client_secret_post"],
            "post_logout_redirect_uri": f"{self._callback}/login",
        }  # fmt: skip
        self._done(self._admin.post("/client/?source=database", json=client))

    def rotate(self, kid: str, *, new: bool = False, access_token_seconds: int = 3600) -> None:
        """From now on it signs by another key, and knows the old one no more."""
        parameters = {
            "iss": self.issuer, "jwks-private": json.dumps({"keys": [signing_key(kid)]}), "default-kid": kid,
            "jwt-type": "rsa", "jwt-key-size": "256", "access-token-duration": access_token_seconds,
            "refresh-token-duration": 3600, "code-duration": 600, "allow-non-oidc": True, "jwks-show": True,
            "auth-type-code-enabled": True, "auth-type-client-enabled": True, "auth-type-id-token-enabled": True,
            "pkce-allowed": True, "pkce-method-plain-allowed": False, "pkce-required": True,
            "session-management-allowed": True, "session-cookie-name": "SID", "session-cookie-expiration": 3600,
            "claims": [
                {"name": "groups", "user-property": "groups", "type": "string", "mandatory": True, "on-demand": False,
                 "scope": []}
            ],
        }  # fmt: skip
        plugin = {"module": "oidc", "name": "oidc", "display_name": "x", "parameters": parameters}
        if new:
            self._done(self._admin.post("/mod/plugin/", json=plugin))
        else:
            self._done(self._admin.put("/mod/plugin/oidc", json=plugin))
            self._done(self._admin.put("/mod/plugin/oidc/reset"))

    def add_person(self, name: str, *groups: str) -> None:
        """Somebody with a password, in these groups."""
        person = {"username": name, "password": PASSWORD, "enabled": True, "scope": ["openid"], "groups": list(groups)}
        self._done(self._admin.post("/user/?source=database", json=person))

    def signed_in(self, name: str, password: str = PASSWORD) -> str:
        """The Cookie header of a browser that signed in there and granted what is asked for."""
        answer = httpx.post(f"{self.url}/api/auth/", json={"username": name, "password": password}, timeout=120)
        self._done(answer)
        cookie = str(answer.headers["set-cookie"]).partition(";")[0]
        grant = f"{self.url}/api/auth/grant/palimpsest"
        if name != "admin":
            self._done(httpx.put(grant, json={"scope": "openid"}, headers={"Cookie": cookie}, timeout=120))
        return cookie

    def back(self, cookie: str, location: str) -> str:
        """Where it sends that browser which was sent there."""
        answer = httpx.get(location + "&g_continue", headers={"Cookie": cookie}, timeout=120)
        assert answer.status_code == 302, (answer.status_code, answer.text)
        return str(answer.headers["location"])

    def machine_token(self) -> str:
        """An access token by client credentials (RFC 6749 4.4)."""
        client = {"client_id": "palimpsest", "client_secret": SECRET}
        form = {"grant_type": "client_credentials", "scope": "palimpsest", **client}
        answer = httpx.post(f"{self.issuer}/token", data=form, timeout=120)
        self._done(answer)
        return str(answer.json()["access_token"])

    @staticmethod
    def _done(answer: httpx.Response) -> None:
        assert answer.status_code == 200, (answer.status_code, answer.text)
