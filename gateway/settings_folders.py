"""Settings of places: the home folder, and where everything in it lies."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings

MAX_SOCKET_PATH = 100  # bytes; sun_path holds 108 with its NUL (unix(7)), and servers append suffixes


class FolderSettings(BaseSettings):
    """A part of `gateway.settings.Settings`."""

    home: Path = Field(default=Path("var"), description="one folder for all state")
    local_dir: Path | None = Field(
        default=None,
        description="for what is this host's alone (sockets, logs, compiled kernels), where several share <home>",
    )
    viewer_folder: Path | None = Field(default=None, description="where OHIF is installed; default <home>/viewer")
    # Not in the repr: both URLs may hold a password.
    redis_url: str | None = Field(
        default=None, repr=False, validation_alias=AliasChoices("PALIMPSEST_REDIS_URL", "REDIS_URL")
    )
    database_url: str | None = Field(
        default=None, repr=False, validation_alias=AliasChoices("PALIMPSEST_DATABASE_URL", "DATABASE_URL")
    )

    @field_validator("redis_url", "database_url", "viewer_folder", "local_dir", mode="before")
    @classmethod
    def _no_place(cls, value: Any) -> Any:
        return value or None

    @field_validator("home", "viewer_folder", "local_dir", mode="after")
    @classmethod
    def _absolute_place(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @property
    def spool_dir(self) -> Path:
        """Received files, by digest."""
        return self.home / "spool"

    @property
    def incoming_dir(self) -> Path:
        """Files being received; inside the spool, because rename must not cross file systems."""
        return self.spool_dir / "incoming"

    @property
    def candidates_dir(self) -> Path:
        """Archive objects not yet in the archive, by digest."""
        return self.home / "candidates"

    @property
    def archive_dir(self) -> Path:
        """The filesystem archive."""
        return self.home / "archive"

    @property
    def cache_dir(self) -> Path:
        """Restored files, content-addressed; may be deleted at any time."""
        return self.home / "cache"

    @property
    def viewer_dir(self) -> Path:
        """OHIF as `palimpsest viewer install` left it; may be deleted at any time."""
        return self.viewer_folder or self.home / "viewer"

    @property
    def keys_dir(self) -> Path:
        """The key ring; never inside the archive."""
        return self.home / "keys"

    @property
    def quarantine_dir(self) -> Path:
        """Candidates that failed their proof, with the reason."""
        return self.home / "quarantine"

    @property
    def database_path(self) -> Path:
        """The SQLite file, used when no database URL is set."""
        return self.home / "palimpsest.db"

    @property
    def database(self) -> str:
        """SQLAlchemy URL of the system of record; plain postgres URLs are given the psycopg 3 driver."""
        if self.database_url is None:
            return f"sqlite:///{self.database_path}"
        for prefix in ("postgres://", "postgresql://"):
            if self.database_url.startswith(prefix):
                return "postgresql+psycopg://" + self.database_url[len(prefix) :]
        return self.database_url

    @property
    def numba_cache_dir(self) -> Path:
        """Compiled kernels; writable where the install is not. A folder for each version of their sources."""
        return self.local / "numba" / kernel_sources()

    @property
    def local(self) -> Path:
        """What no other host may see; the home folder where no other was named."""
        return self.local_dir or self.home

    @property
    def log_dir(self) -> Path:
        """What the supervisor's children write."""
        return self.local / "log"

    @property
    def local_run_dir(self) -> Path:
        """Sockets, locks among the processes of this host, files without a name."""
        return self.local / "run"

    @property
    def run_dir(self) -> Path:
        """Locks and states that all hosts share: of destinations, of the sweep"""
        return self.home / "run"

    @property
    def metrics_dir(self) -> Path:
        """What the processes of this host count, see gateway/metricfiles.py."""
        return self.local_run_dir / "metrics"

    @property
    def redis_socket(self) -> Path:
        """The embedded broker's unix socket; a short one in the temporary folder if the path were too long."""
        path = self.local_run_dir / "redis.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
            return path
        name = hashlib.sha256(os.fsencode(self.local)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"palimpsest-{os.getuid()}-{name}" / "redis.sock"

    @property
    def flower_socket(self) -> Path:
        """Where Flower answers, if it is wanted: beside the broker's socket."""
        return self.redis_socket.with_name("flower.sock")

    @property
    def folders(self) -> tuple[Path, ...]:
        """Every folder that must exist before anything runs (the key ring makes its own, with its own mode)."""
        return (
            self.home,
            self.spool_dir,
            self.incoming_dir,
            self.candidates_dir,
            self.archive_dir,
            self.cache_dir,
            self.quarantine_dir,
            self.numba_cache_dir,
            self.run_dir,
            self.local_run_dir,
        )


@cache
def kernel_sources() -> str:
    """16 hex digits that change with any source that kernels are compiled from.

    numba looks only at the file of the kernel that it is asked for: a kernel cached before one that it calls, or a
    table that it reads, was changed in another file would go on with the old one, and write past its buffers.
    """
    digest = hashlib.sha256(sys.version.encode())
    for room in ("codec", "stego", "worker"):
        for path in sorted((Path(__file__).resolve().parent.parent / room).rglob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
