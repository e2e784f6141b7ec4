"""A copy of the database as one file: rows as JSON lines, compressed, from one consistent snapshot.

The same for SQLite and PostgreSQL, so that a backup of the one is restored into the other. What can be derived (the
admin page's tallies), what is of a process (heartbeats) and sessions are left out. It holds names: keep it like the
database. Format: Zstandard; first line an object (format, version, revision of the schema), then for each table an
object (table, columns) and its rows as arrays, last an object (rows: how many in all).
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import zstandard
from sqlalchemy import Connection

from gateway.blobs import CHUNK, storage_errors, sync_folder
from gateway.database import Database
from gateway.errors import IntegrityError, PolicyRefused
from gateway.index_care import RESTORE, put_care
from gateway.index_schema import HEAD, instance, metadata

__all__ = ["Dumped", "dump_database", "load_database"]

FORMAT: Final = "palimpsest-database"
VERSION: Final = 1
#: derived by triggers, or of running processes
LEFT_OUT: Final = frozenset({"instance_tally", "row_tally", "flow", "worker", "disk_sample", "session"})
PAGE: Final = 500
MAX_LINE: Final = 1 << 28  # one row: its metadata may be megabytes


@dataclass(frozen=True, slots=True)
class Dumped:
    """sha256, size (bytes) of the file; rows by table; seq: of the trail's last event in it, 0 without any."""

    sha256: str
    size: int
    rows: Mapping[str, int]
    seq: int


def dump_database(database: Database, path: Path) -> Dumped:
    """Write a new file, owner-only and durably. Raises PolicyRefused ``backup-exists``, OutOfResources, Unavailable."""
    with storage_errors():
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise PolicyRefused("backup-exists", f"{path} exists already; backups are never overwritten") from None
        with os.fdopen(fd, "wb") as file:
            with zstandard.ZstdCompressor(level=3, write_checksum=True).stream_writer(file, closefd=False) as out:
                rows, seq = _write_all(database, out)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    digest, size = digest_of(path)
    return Dumped(digest, size, rows, seq)


def digest_of(path: Path) -> tuple[str, int]:
    """(SHA-256 in hex, bytes) of a file. Raises Unavailable."""
    with storage_errors(), path.open("rb") as file:
        hasher, size = sha256(), 0
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
            size += len(chunk)
    return hasher.hexdigest(), size


def load_database(database: Database, path: Path, *, restoring: bool = False) -> dict[str, int]:
    """Fill an empty database in one transaction; rows by table. The schema is brought up to date afterwards.

    restoring: `Index.restore_unfinished` holds from that commit on, until `Index.restore_over`. Raises PolicyRefused
    ``index-not-empty``, ``newer-release``; IntegrityError ``backup-damaged``, Unavailable.
    """
    with storage_errors(), path.open("rb") as file:
        lines = _lines(file)
        head = next(lines, None)
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise _damaged("it is no copy of a database of this program")
        version, revision = head.get("version"), head.get("revision")
        if isinstance(version, int) and version > VERSION:
            raise PolicyRefused("newer-release", "this backup is of a newer release: install that one or a newer one")
        if version != VERSION or not isinstance(revision, str) or not re.fullmatch("[0-9]{4}", revision):
            raise _damaged("it does not say of which release it is")
        database.create(revision)
        with database.write() as conn:
            if conn.execute(sa.select(sa.func.count()).select_from(sa.table(instance.name))).scalar_one():
                message = "the database is not empty: move it aside, or name another one, and restore again"
                raise PolicyRefused("index-not-empty", message)
            found = _load(conn, lines)
            _continue_numbers(conn)
            if restoring:
                put_care(conn, RESTORE, {"state": "running"}, database.now())
    database.create()
    return found


def _write_all(database: Database, out: Any) -> tuple[dict[str, int], int]:
    rows: dict[str, int] = {}
    with database.snapshot() as conn:
        _line(out, {"format": FORMAT, "version": VERSION, "revision": HEAD})
        for table in metadata.sorted_tables:
            if table.name in LEFT_OUT:
                continue
            columns = [column.name for column in table.columns]
            _line(out, {"table": table.name, "columns": columns})
            rows[table.name] = 0
            order = list(table.primary_key.columns)
            result = conn.execution_options(yield_per=PAGE).execute(sa.select(table).order_by(*order))
            for row in result:
                _line(out, list(row))
                rows[table.name] += 1
        audit = metadata.tables["audit"]
        seq = conn.execute(sa.select(sa.func.max(audit.c.seq))).scalar() or 0
        _line(out, {"rows": sum(rows.values())})
    return rows, int(seq)


def _load(conn: Connection, lines: Iterator[Any]) -> dict[str, int]:
    there = sa.MetaData()
    there.reflect(conn)
    rows: dict[str, int] = {}
    table: sa.Table | None = None
    columns: list[str] = []
    page: list[dict[str, Any]] = []

    def flush() -> None:
        if page and table is not None:
            conn.execute(table.insert(), page)
            page.clear()

    for line in lines:
        if isinstance(line, list) and table is not None and len(line) == len(columns):
            page.append(dict(zip(columns, line, strict=True)))
            rows[table.name] += 1
            if len(page) == PAGE:
                flush()
        elif isinstance(line, dict) and line.get("table") in there.tables and line["table"] not in LEFT_OUT:
            flush()
            table, columns = there.tables[line["table"]], [str(name) for name in line["columns"]]
            rows[table.name] = 0
        elif isinstance(line, dict) and line.get("rows") == sum(rows.values()):
            flush()
            return rows
        else:
            raise _damaged("a line of it is none that belongs there")
    raise _damaged("its end is missing")


def _continue_numbers(conn: Connection) -> None:
    """PostgreSQL numbers rows from sequences, which know nothing of rows that came with their numbers."""
    if conn.dialect.name != "postgresql":
        return
    for table in metadata.sorted_tables:
        column = table.columns.get("id")
        if column is not None and column.autoincrement is True and table.name not in LEFT_OUT:
            last = conn.execute(sa.select(sa.func.max(column))).scalar() or 0
            sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
            conn.execute(sa.select(sa.func.setval(sequence, max(1, last), last > 0)))


def _line(out: Any, value: Any) -> None:
    out.write(json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n")


def _lines(file: Any) -> Iterator[Any]:
    """Lines as they come, in bounded memory. Raises IntegrityError ``backup-damaged``."""
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file, closefd=False) as raw:
            reader = io.BufferedReader(raw, CHUNK)
            while line := reader.readline(MAX_LINE):
                yield json.loads(line)
    except (zstandard.ZstdError, ValueError):
        raise _damaged("it cannot be read") from None


def _damaged(what: str) -> IntegrityError:
    return IntegrityError("backup-damaged", f"the copy of the database is damaged or cut off: {what}")
