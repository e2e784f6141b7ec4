"""What the admin page asks at every look: tallies and flow kept by triggers, heartbeats, disk samples, small indexes.

The triggers count in the transaction that changes a row, whoever changes it; no question scans a large table then.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

Big = sa.BigInteger().with_variant(sa.Integer, "sqlite")
BUCKET = 300
UNFINISHED = "('RECEIVED', 'CANDIDATE', 'VERIFIED')"

#: instance_tally: column -> expression over one row of `instance`; then what is summed
INSTANCE_KEY = {
    "state": "{r}.state",
    "form": "coalesce({r}.form, '')",
    "reason": "CASE WHEN {r}.form = 'PASSTHROUGH' THEN coalesce({r}.reason, '') ELSE '' END",
    "error": f"CASE WHEN {{r}}.state IN {UNFINISHED} THEN coalesce({{r}}.last_error, '') ELSE '' END",
    "modality": "coalesce({r}.modality, '')",
    "priority": f"CASE WHEN {{r}}.state IN {UNFINISHED} THEN {{r}}.priority ELSE -1 END",
    "conflict": "{r}.conflict",
    "shredded": "({r}.shredded_at IS NOT NULL)",
}
INSTANCE_SUMS = {
    "instances": "1",
    "bytes_in": "{r}.size",
    "bytes_archived": "coalesce({r}.archived_size, 0)",
    "raw_pixel_bytes": "coalesce({r}.raw_pixel_bytes, 0)",
    "codec_bytes": "coalesce({r}.codec_bytes, 0)",
    "payload_bytes": "coalesce({r}.payload_bytes, 0)",
}
INSTANCE_COLUMNS = (
    "state", "form", "reason", "last_error", "modality", "priority", "conflict", "shredded_at", "size",
    "archived_size", "raw_pixel_bytes", "codec_bytes", "payload_bytes",
)  # fmt: skip
#: table -> (a, b, c, bytes) of row_tally, and the columns they are made of
ROWS: Mapping[str, tuple[tuple[str, str, str, str], tuple[str, ...]]] = {
    "forward": (
        ("{r}.destination", "{r}.state", "CASE WHEN {r}.state = 'DEAD' THEN coalesce({r}.reason, '') ELSE '' END", "0"),
        ("destination", "state", "reason"),
    ),
    "commitment": (("{r}.role", "{r}.state", "''", "0"), ("state",)),
    "study": (("{r}.state", "''", "''", "0"), ("state",)),
    "stego_export": (("''", "''", "''", "coalesce({r}.record_size, 0)"), ("record_size",)),
}


def upgrade() -> None:
    _tables()
    _indexes()
    op.add_column("instance", sa.Column("accession_pseudonym", sa.String(16)))
    op.create_index("ix_instance_accession", "instance", ["accession_pseudonym"])
    _count("instance", "instance_tally", INSTANCE_KEY, INSTANCE_SUMS, INSTANCE_COLUMNS)
    for table, ((a, b, c, size), columns) in ROWS.items():
        key = {"topic": f"'{table}'", "a": a, "b": b, "c": c}
        _count(table, "row_tally", key, {"rows": "1", "bytes": size}, columns)
    _flow()


def _tables() -> None:
    op.create_table(
        "instance_tally",
        *(sa.Column(name, sa.String(64 if name in ("reason", "error") else 16), primary_key=True)
          for name in ("state", "form", "reason", "error", "modality")),
        sa.Column("priority", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("conflict", sa.Boolean(), primary_key=True),
        sa.Column("shredded", sa.Boolean(), primary_key=True),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in INSTANCE_SUMS),
    )  # fmt: skip
    op.create_table(
        "row_tally",
        sa.Column("topic", sa.String(16), primary_key=True),
        *(sa.Column(name, sa.String(64), primary_key=True) for name in "abc"),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("rows", "bytes")),
    )
    numbers = ("received", "bytes_received", "archived", "bytes_in", "bytes_archived", "sent")
    op.create_table(
        "flow",
        sa.Column("bucket", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("modality", sa.String(16), primary_key=True),
        *(sa.Column(name, sa.BigInteger(), nullable=False, server_default="0") for name in numbers),
        sa.Column("seconds", sa.Double(), nullable=False, server_default="0"),
    )
    op.create_table(
        "worker",
        sa.Column("owner", sa.String(128), primary_key=True),
        *(sa.Column(name, sa.String(128), nullable=False) for name in ("name", "host", "device", "task")),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("subject", sa.BigInteger()),
        sa.Column("task_since", sa.Double()),
        *(sa.Column(name, sa.Double(), nullable=False) for name in ("started_at", "seen_at")),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("done", "failed")),
    )
    op.create_table(
        "disk_sample",
        sa.Column("place", sa.String(16), primary_key=True),
        sa.Column("bucket", sa.BigInteger(), primary_key=True, autoincrement=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("total", "free")),
    )


def _indexes() -> None:
    def partial(name: str, table: str, columns: list[str], where: str, sqlite: str | None = None) -> None:
        op.create_index(name, table, columns, postgresql_where=sa.text(where), sqlite_where=sa.text(sqlite or where))

    partial("ix_instance_waiting", "instance", ["priority", "received_at"], "due_at IS NOT NULL")
    partial("ix_instance_leased", "instance", ["lease_until"], "lease_until IS NOT NULL")
    partial("ix_instance_failed", "instance", ["last_error", "id"], "last_error IS NOT NULL")
    partial("ix_instance_passed", "instance", ["reason", "id"], "form = 'PASSTHROUGH'")
    partial("ix_instance_conflict", "instance", ["id"], "conflict", "conflict = 1")
    partial("ix_forward_dead", "forward", ["destination", "reason", "id"], "state = 'DEAD'")
    partial("ix_forward_buried", "forward", ["id"], "state = 'DEAD'")
    partial("ix_forward_waiting", "forward", ["destination", "created_at"], "due_at IS NOT NULL")
    partial("ix_forward_leased", "forward", ["lease_until"], "lease_until IS NOT NULL")
    op.create_index("ix_instance_state", "instance", ["state", "id"])
    op.create_index("ix_instance_archived", "instance", ["archived_at"])


def _filled(expressions: Mapping[str, str], row: str) -> list[str]:
    return [text.format(r=row) for text in expressions.values()]


def _add(tally: str, key: Mapping[str, str], sums: Mapping[str, str], row: str) -> str:
    """Count one row in."""
    values = ", ".join(_filled(key, row) + _filled(sums, row))
    changes = ", ".join(f"{name} = {tally}.{name} + excluded.{name}" for name in sums)
    return (
        f"INSERT INTO {tally} ({', '.join((*key, *sums))}) VALUES ({values}) "
        f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes};"
    )


def _take(tally: str, key: Mapping[str, str], sums: Mapping[str, str], row: str) -> str:
    """Count one row out; what counts nothing any more goes."""
    where = " AND ".join(f"{name} = {text}" for name, text in zip(key, _filled(key, row), strict=True))
    changes = ", ".join(f"{name} = {name} - {text}" for name, text in zip(sums, _filled(sums, row), strict=True))
    return f"UPDATE {tally} SET {changes} WHERE {where}; DELETE FROM {tally} WHERE {where} AND {next(iter(sums))} = 0;"


def _count(table: str, tally: str, key: Mapping[str, str], sums: Mapping[str, str], columns: tuple[str, ...]) -> None:
    """Triggers that keep the tally of a table, and the tally of the rows that are there."""
    add, take = _add(tally, key, sums, "NEW"), _take(tally, key, sums, "OLD")
    _trigger(f"tally_{table}_insert", f"AFTER INSERT ON {table}", add)
    _trigger(f"tally_{table}_delete", f"AFTER DELETE ON {table}", take, "OLD")
    differ = " OR ".join(f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in columns)
    _trigger(f"tally_{table}_update", f"AFTER UPDATE OF {', '.join(columns)} ON {table}", take + " " + add, when=differ)
    grouped = ", ".join(str(number + 1) for number in range(len(key)))
    first, *others = _filled(sums, table)
    selected = ", ".join([*_filled(key, table), f"sum({first})", *(f"sum({text})" for text in others)])
    op.execute(f"INSERT INTO {tally} ({', '.join((*key, *sums))}) SELECT {selected} FROM {table} GROUP BY {grouped}")


def _trigger(name: str, event: str, body: str, row: str = "NEW", when: str = "") -> None:
    """A row trigger; on PostgreSQL with a function of the same name."""
    if op.get_bind().dialect.name == "sqlite":
        condition = f"WHEN {when.replace('IS DISTINCT FROM', 'IS NOT')} " if when else ""
        op.execute(f"CREATE TRIGGER {name} {event} {condition}BEGIN {body} END")
        return
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $body$ BEGIN {body} RETURN {row}; END $body$"
    )
    condition = f"WHEN ({when}) " if when else ""
    op.execute(f"CREATE TRIGGER {name} {event} FOR EACH ROW {condition}EXECUTE FUNCTION {name}()")


def _bucket(column: str) -> str:
    if op.get_bind().dialect.name == "sqlite":
        return f"CAST({column} / {BUCKET} AS INTEGER) * {BUCKET}"
    return f"CAST(floor({column} / {BUCKET}) AS BIGINT) * {BUCKET}"


def _flow() -> None:
    """What came in, was archived and was sent, by five minutes. A group's instances are archived one by one."""
    modality = "coalesce({r}.modality, '')"
    came = {"bucket": _bucket("{r}.received_at"), "modality": "''"}
    came_sums = {"received": "1", "bytes_received": "{r}.size"}
    done = {"bucket": _bucket("{r}.archived_at"), "modality": modality}
    done_sums = {
        "archived": "1",
        "bytes_in": "{r}.size",
        "bytes_archived": "coalesce({r}.archived_size, 0)",
        "seconds": "{r}.archived_at - {r}.received_at",
    }
    sent = {"bucket": _bucket("{r}.sent_at"), "modality": "''"}
    _trigger("flow_received", "AFTER INSERT ON instance", _add("flow", came, came_sums, "NEW"))
    archived = "OLD.archived_at IS NULL AND NEW.archived_at IS NOT NULL"
    body = _add("flow", done, done_sums, "NEW")
    _trigger("flow_archived", "AFTER UPDATE OF archived_at ON instance", body, when=archived)
    told = "OLD.sent_at IS NULL AND NEW.sent_at IS NOT NULL"
    _trigger("flow_sent", "AFTER UPDATE OF sent_at ON forward", _add("flow", sent, {"sent": "1"}, "NEW"), when=told)
