"""What the admin pages ask costs the same however large the archive: counted in steps of SQLite's virtual machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from sqlalchemy import event

from gateway.audit import AuditEvent
from gateway.bootstrap import Gateway
from gateway.tokens import mint_token
from service.api import create_app
from service.board import Board, Picture
from tests.admin_demo import demo_gateway

pytestmark = pytest.mark.integration

STEP = 100
FEW, MANY = 4_000, 200_000
#: Finished instances, a tenth of them passed through; a fourth of them forwarded, a fifth of that in vain, and audited.
INSTANCES = """
INSERT INTO instance (sop_uid, sop_class, study_uid, series_uid, transfer_syntax, digest, dataset_digest, size, source,
    calling_ae, priority, received_at, state, form, reason, attempts, candidate_digest, archived_size, modality,
    verified_at, archived_at, indexed_at, current, conflict, coder)
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :many)
SELECT '1.2.9.' || i, '1.2', '1.2.8.' || (i / 400), '1.2.8.1', '1.2', 'd' || i, 'e' || i, 500000, 'dimse', 'CT1', 5,
    :now - i * 5, 'RELEASED', CASE WHEN i % 10 THEN 'CODED' ELSE 'PASSTHROUGH' END,
    CASE WHEN i % 10 THEN NULL ELSE 'lossy-source' END, 1, 'c', 200000, CASE WHEN i % 3 THEN 'CT' ELSE 'MR' END,
    :now, :now - i * 5 + 3, :now, 1, 0, 'learned' FROM n
"""
FORWARDS = """
INSERT INTO forward (instance_id, destination, state, attempts, reason, created_at, sent_at, commit_attempts)
SELECT id, 'pacs', CASE WHEN id % 20 THEN 'SENT' ELSE 'DEAD' END, 1, CASE WHEN id % 20 THEN NULL ELSE 'refused' END,
    received_at, CASE WHEN id % 20 THEN archived_at END, 0 FROM instance WHERE id % 4 = 0
"""
EVENTS = """
INSERT INTO audit (seq, at_us, event, actor, outcome, instance_id, detail, hash)
SELECT (SELECT max(seq) FROM audit) + row_number() OVER (), 1, 'received', 'CT1', 'success', id, '{}', 'h'
FROM instance WHERE id % 4 = 0
"""


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Gateway]]:
    """The same gateway with FEW and with MANY instances."""
    made = tuple(demo_gateway(tmp_path_factory.mktemp("admin") / "home") for _ in range(2))
    for gw, number in zip(made, (FEW, MANY), strict=True):
        gw.index.audit(AuditEvent("started", "test"))
        with gw.index.write(durable=False) as conn:
            conn.execute(sa.text(INSTANCES), {"many": number, "now": gw.index.now() - 1000})
            conn.execute(sa.text(FORWARDS))
            conn.execute(sa.text(EVENTS))
    yield made[0], made[1]
    for gw in made:
        gw.close()


def steps_of(gw: Gateway, ask: Any) -> int:
    """Steps of the virtual machine, in hundreds, that the database takes while `ask` runs."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    def watch(connection: sqlite3.Connection, *_: object) -> None:
        connection.set_progress_handler(count, STEP)

    engine = gw.index._engine
    event.listen(engine, "checkout", watch)
    try:
        ask()
    finally:
        event.remove(engine, "checkout", watch)
    return taken


def test_the_tallies_say_what_the_rows_say(gateways: tuple[Gateway, Gateway]) -> None:
    index = gateways[1].index
    counts = index.counts()
    with index.read() as conn:
        rows = conn.execute(sa.text("SELECT state, count(*), sum(size), sum(archived_size) FROM instance")).one()
        dead = conn.execute(sa.text("SELECT count(*) FROM forward WHERE state = 'DEAD'")).scalar_one()
    assert (dict(counts.by_state), counts.bytes_in, counts.bytes_archived) == ({rows[0]: rows[1]}, rows[2], rows[3])
    assert counts.total == MANY and counts.passthrough_by_reason == {"lossy-source": MANY // 10}
    assert [group.count for group in index.failures() if group.kind == "dead-letter"] == [dead]
    assert sum(each.received for each in index.flow(0)) == MANY


def test_a_look_costs_the_same_with_200_000_instances(gateways: tuple[Gateway, Gateway]) -> None:
    few, many = (steps_of(gw, Board(gw).picture) for gw in gateways)
    assert few > 50 and many < 1.5 * few, (few, many)  # a day's flow has more buckets, and no more than a day has


PATHS = (
    "/admin/instances",
    "/admin/instances/400",
    "/admin/instances?state=RELEASED&before=3000",
    "/admin/instances?study_of=3000",
    "/admin/instances?passthrough=lossy-source",
    "/admin/audit",
    "/admin/audit?event=received&outcome=success",
    "/admin/audit?instance=400",
)


@pytest.mark.parametrize("path", PATHS)
def test_a_page_costs_the_same_with_200_000_instances(gateways: tuple[Gateway, Gateway], path: str) -> None:
    picture = Board(gateways[0]).picture()
    few, many = (steps_of(gw, lambda gw=gw: page(gw, path, picture)) for gw in gateways)
    assert many < 1.3 * few + 20, (few, many)


@pytest.mark.parametrize("asked", ["400", "1.2.9.400", "1.2.8.1", "0" * 64, "A-1234", "D0123456789ABCDE"])
def test_a_search_costs_the_same_with_200_000_instances(gateways: tuple[Gateway, Gateway], asked: str) -> None:
    few, many = (steps_of(gw, lambda gw=gw: gw.index.instances_found(asked)) for gw in gateways)
    assert many < 1.3 * few + 20, (few, many)


class Still:
    """A board that shows one picture: the pictures are measured elsewhere."""

    def __init__(self, shown: Picture) -> None:
        self.shown = shown

    def picture(self, *, fresh: bool = False) -> Picture:
        return self.shown


def page(gw: Gateway, path: str, picture: Picture) -> None:
    app = create_app(gw)
    app.state.board = Still(picture)
    headers = {"Authorization": f"Bearer {mint_token(gw, 'admin', 'root')}"}
    with TestClient(app, headers=headers) as web:
        answer = web.get(path)
    assert answer.status_code == 200 and "<table" in answer.text
