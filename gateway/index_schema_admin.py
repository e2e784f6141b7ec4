"""Tables of what people look at all day. Tallies and flow are kept by triggers, in the transaction that changes a row
(revision 0010), and written by nobody else; heartbeats and disk samples by who beats and sweeps.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, String, Table

from gateway.index_schema import metadata

instance_tally = Table(
    "instance_tally",
    metadata,
    Column("state", String(16), primary_key=True),
    Column("form", String(16), primary_key=True),
    Column("reason", String(64), primary_key=True),
    Column("error", String(64), primary_key=True),
    Column("modality", String(16), primary_key=True),
    Column("priority", Integer, primary_key=True, autoincrement=False),
    Column("conflict", Boolean, primary_key=True),
    Column("shredded", Boolean, primary_key=True),
    Column("instances", BigInteger, nullable=False),
    Column("bytes_in", BigInteger, nullable=False),
    Column("bytes_archived", BigInteger, nullable=False),
    Column("raw_pixel_bytes", BigInteger, nullable=False),
    Column("codec_bytes", BigInteger, nullable=False),
    Column("payload_bytes", BigInteger, nullable=False),
)

row_tally = Table(
    "row_tally",
    metadata,
    Column("topic", String(16), primary_key=True),
    Column("a", String(64), primary_key=True),
    Column("b", String(64), primary_key=True),
    Column("c", String(64), primary_key=True),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
)

flow = Table(
    "flow",
    metadata,
    Column("bucket", BigInteger, primary_key=True, autoincrement=False),
    Column("modality", String(16), primary_key=True),
    *(
        Column(name, BigInteger, nullable=False, server_default="0")
        for name in ("received", "bytes_received", "archived", "bytes_in", "bytes_archived", "sent")
    ),
    Column("seconds", Double, nullable=False, server_default="0"),
)

worker = Table(
    "worker",
    metadata,
    Column("owner", String(128), primary_key=True),
    *(Column(name, String(128), nullable=False) for name in ("name", "host", "device", "task")),
    Column("pid", Integer, nullable=False),
    Column("subject", BigInteger),
    Column("task_since", Double),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("done", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
    *(Column(name, BigInteger) for name in ("memory_used", "memory_total", "busy")),
)

disk_sample = Table(
    "disk_sample",
    metadata,
    Column("place", String(16), primary_key=True),
    Column("bucket", BigInteger, primary_key=True, autoincrement=False),
    Column("total", BigInteger, nullable=False),
    Column("free", BigInteger, nullable=False),
)
