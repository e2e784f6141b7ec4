"""A receiver of study events: where they are posted, and how it knows that they are ours.

Addresses come from the settings only, never from a request. No secret stands in here, only the file that holds it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.destination import LOCAL_HOSTS
from gateway.errors import Unavailable
from gateway.study_state import EVENT_KINDS, StudyEvent

__all__ = ["SIGNATURE", "Webhook", "signature"]

SIGNATURE = "Palimpsest-Signature"
MIN_SECRET = 16  # characters


class Webhook(BaseModel):
    """One entry of PALIMPSEST_WEBHOOKS, a JSON list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    url: str
    secret_file: Path = Field(description="text of at least 16 characters, read anew for each event")
    kinds: tuple[str, ...] = Field(default=(), description=f"of {', '.join(EVENT_KINDS)}; empty: all")
    study_uid: bool = Field(default=False, description="the body names the study; false: the event's number only")
    ca_file: Path | None = Field(default=None, description="PEM; default: the CAs that Python trusts")
    allow_http: bool = Field(default=False, description="plain HTTP to another machine")

    @model_validator(mode="after")
    def _can_be_used(self) -> Webhook:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"webhook '{self.name}': a URL begins with https:// and a host name")
        if parts.username or parts.password:
            raise ValueError(f"webhook '{self.name}': no credentials in a URL; the receiver checks the signature")
        if parts.scheme == "http" and parts.hostname not in LOCAL_HOSTS and not self.allow_http:
            raise ValueError(f"webhook '{self.name}': use https, or say allow_http = true in a protected network")
        if unknown := sorted(set(self.kinds) - set(EVENT_KINDS)):
            raise ValueError(f"webhook '{self.name}': no events are called {', '.join(unknown)}")
        return self

    def secret(self) -> bytes:
        """The key of the signature. Raises Unavailable ``secret-unreadable``, whose text names the file only."""
        try:
            text = self.secret_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable(
                "secret-unreadable", f"{self.secret_file} cannot be read ({type(error).__name__})"
            ) from None
        if len(text) < MIN_SECRET:
            raise Unavailable("secret-unreadable", f"{self.secret_file} holds fewer than {MIN_SECRET} characters")
        return text.encode()

    def body(self, event: StudyEvent) -> bytes:
        """The event as it is posted, JSON."""
        shown = {"event": event.id, "kind": event.kind, "count": event.count, "at": event.at}
        shown |= {"destination": event.destination} if event.destination else {}
        shown |= {"study_uid": event.study_uid} if self.study_uid else {}
        return json.dumps(shown, sort_keys=True).encode()


def signature(secret: bytes, at: int, body: bytes) -> str:
    """Value of the signature's header: `t=` seconds since the epoch, `v1=` HMAC-SHA256 (hex, RFC 2104) of the time, a
    dot and the body. The time is signed, so that a receiver can refuse what was recorded and is played again.
    """
    code = hmac.new(secret, b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={code}"
