"""What somebody may do to the audit trail, and what of `audit verify` sees it: the table of docs/audit.md is this one.

The attackers grow: with the database file, with the folder of signed heads too, with another machine's key, and last
with the gateway's own key ring, where only a copy of the heads elsewhere helps.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway import audit
from gateway.audit import AuditEvent
from gateway.audit_heads import append_head, head_files, last_head, sign_head
from gateway.audit_notary import ANCHORS, check_trail, heads_folder, keep_head, recheck_trail
from gateway.bootstrap import Gateway, build
from gateway.errors import Unavailable
from gateway.jobs import MemoryQueue
from gateway.keystate import new_state
from gateway.settings import load_settings
from palimpsest.cli import app
from tests.fakes import FakeClock

DOCS = Path(__file__).parent.parent.parent / "docs" / "audit.md"
FOREVER = "DROP TRIGGER audit_no_UPDATE; DROP TRIGGER audit_no_DELETE;"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine events, a signed head after the third, the sixth and the ninth; every test gets a copy."""
    folder = tmp_path_factory.mktemp("trail") / "home"
    gw = opened(folder)
    clock = FakeClock()
    gw.index.now = clock  # type: ignore[method-assign]
    for number in range(1, 10):
        gw.index.audit(AuditEvent("retrieved", f"user{number}", study="2.25.7", patient="P1", detail={"count": number}))
        clock.advance(61)
        if number % 3 == 0:
            assert keep_head(gw) == 1
    assert check_trail(gw).ok
    gw.close()
    return folder


def opened(folder: Path) -> Gateway:
    return build(load_settings(home=folder, profile="demo"), queue=MemoryQueue())


@pytest.fixture
def trail(home: Path, tmp_path: Path) -> Iterator[Gateway]:
    gw = opened(shutil.copytree(home, tmp_path / "home"))
    gw.index.now = FakeClock(1_700_000_000 + 9 * 61)  # type: ignore[method-assign]
    yield gw
    gw.close()


def sql(gw: Gateway, script: str) -> None:
    """What an intruder with the database file can do: the triggers go first."""
    gw.index.close()
    with sqlite3.connect(gw.settings.database_path) as conn:
        conn.executescript(FOREVER + script)


def recompute(gw: Gateway, script: str) -> None:
    """The same, and every later hash computed anew, so that the chain holds again."""
    sql(gw, script)
    with sqlite3.connect(gw.settings.database_path) as conn:
        conn.row_factory = sqlite3.Row
        previous = audit.GENESIS
        for row in [dict(each) for each in conn.execute("SELECT * FROM audit ORDER BY seq")]:
            previous = audit.digest_of({name: row[name] for name in row if name != "hash"}, previous)
            conn.execute("UPDATE audit SET hash = ? WHERE seq = ?", (previous, row["seq"]))
    assert audit.verify(gw.index).ok  # the chain alone knows nothing of it


def heads_file(gw: Gateway) -> Path:
    (found,) = head_files(heads_folder(gw))
    return found


def keep_lines(gw: Gateway, count: int) -> None:
    """The heads' file without its end."""
    path = heads_file(gw)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:count]))


def change_head(gw: Gateway) -> None:
    """The last head now says what the changed database says."""
    seq, digest = gw.index.audit_last()
    lines = heads_file(gw).read_text().splitlines()
    found = json.loads(lines[-1])
    found["statement"] |= {"hash": digest, "seq": seq}
    heads_file(gw).write_text("\n".join([*lines[:-1], json.dumps(found, sort_keys=True, separators=(",", ":"))]) + "\n")


def sign_anew(gw: Gateway, keys: tuple[object, ...]) -> None:
    """A whole new row of heads over the changed database."""
    shutil.rmtree(heads_folder(gw))
    seq, digest = gw.index.audit_last()
    append_head(heads_folder(gw), sign_head(None, seq, digest, now=gw.index.now(), issuer="X", keys=keys))  # type: ignore[arg-type]


def change_time(gw: Gateway) -> bytes:
    """A line like the last head whose time is none."""
    found = json.loads(heads_file(gw).read_text().splitlines()[-1])
    found["statement"]["at"] = "yesterday"
    return json.dumps(found, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def edit(seq: int) -> str:
    return f"UPDATE audit SET actor = 'nobody' WHERE seq = {seq};"


def stranger_keys() -> tuple[object, ...]:
    return new_state("2026-01-01T00:00:00+00:00").of_kind("certify")


def replace_middle(gw: Gateway) -> None:
    lines = heads_file(gw).read_bytes().splitlines(keepends=True)
    heads_file(gw).write_bytes(lines[0] + lines[2])


def with_the_ring(gw: Gateway) -> None:
    recompute(gw, edit(2))
    (gw.keys.folder / ANCHORS).unlink()
    sign_anew(gw, gw.keys.certify_keys())


EARLIER = ("2023-11-14T22:1", "2023-11-14T21:1")  # of the trail's clock: the keys in a head are dated by the real one
Attack = Callable[[Gateway], object]
CHANGES = {
    "an event is edited": edit(5),
    "a time is moved by a microsecond": "UPDATE audit SET at_us = at_us + 1 WHERE seq = 1",
    "the patient is taken out of an event": "UPDATE audit SET patient = NULL WHERE seq = 4",
    "the last event's detail is emptied": "UPDATE audit SET detail = '{}' WHERE seq = 9",
    "an event is deleted": "DELETE FROM audit WHERE seq = 5",
    "the first event is deleted": "DELETE FROM audit WHERE seq = 1",
    "two events change places": "UPDATE audit SET seq = 99 WHERE seq = 4; UPDATE audit SET seq = 4 WHERE seq = 5;"
    "UPDATE audit SET seq = 5 WHERE seq = 99",
    "an event is deleted, the later ones renumbered": "DELETE FROM audit WHERE seq = 5;"
    "UPDATE audit SET seq = seq - 1 WHERE seq > 5",
    "an event is put in between": "UPDATE audit SET seq = -seq - 1 WHERE seq > 4;"
    "UPDATE audit SET seq = -seq WHERE seq < 0;"
    "INSERT INTO audit SELECT 5, at_us, event, actor, outcome, instance_id, study, detail, hash, patient FROM audit"
    " WHERE seq = 4",
    "the end is cut off": "DELETE FROM audit WHERE seq > 5",
    "all events are deleted": "DELETE FROM audit",
}


def changed(script: str) -> Attack:
    return lambda gw: sql(gw, script)


def anew(script: str, then: Attack = lambda gw: None) -> Attack:
    return lambda gw: (recompute(gw, script), then(gw))


#: what is done -> how, and what sees it
ATTACKS: dict[str, tuple[Attack, set[str]]] = {
    **{name: (changed(script), {"chain"}) for name, script in CHANGES.items()},
    "an event is deleted, the later ones renumbered": (
        changed(CHANGES["an event is deleted, the later ones renumbered"]),
        {"chain", "heads"},
    ),
    "an event is put in between": (changed(CHANGES["an event is put in between"]), {"chain", "heads"}),
    "the end is cut off": (changed(CHANGES["the end is cut off"]), {"heads"}),
    "all events are deleted": (changed(CHANGES["all events are deleted"]), {"heads"}),
    "an event is edited, the chain computed anew": (anew(edit(2)), {"heads"}),
    "an older copy of the database is put back": (anew("DELETE FROM audit WHERE seq > 7"), {"heads"}),
    "end cut off, the newest heads too": (
        lambda gw: (sql(gw, "DELETE FROM audit WHERE seq > 3"), keep_lines(gw, 1)),
        {"key ring"},
    ),
    "chain computed anew, later heads removed": (anew(edit(5), lambda gw: keep_lines(gw, 1)), {"key ring"}),
    "chain computed anew, all heads removed": (
        anew(edit(2), lambda gw: shutil.rmtree(heads_folder(gw))),
        {"key ring"},
    ),
    "chain computed anew, the last head altered to fit": (anew(edit(8), change_head), {"signature", "key ring"}),
    "chain computed anew, heads signed by a key of one's own": (
        anew(edit(2), lambda gw: sign_anew(gw, stranger_keys())),
        {"signature", "key ring"},
    ),
    "a head in the middle is removed": (replace_middle, {"heads"}),
    "a head's time is changed": (
        lambda gw: heads_file(gw).write_text(heads_file(gw).read_text().replace(*EARLIER, 1)),
        {"signature", "heads"},
    ),
    "chain and heads made anew by who holds the key ring": (with_the_ring, {"heads elsewhere"}),
}
#: of them those that leave the database alone
HEADS_ONLY = ("a head in the middle is removed", "a head's time is changed")


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_is_found(trail: Gateway, tmp_path: Path, name: str) -> None:
    elsewhere = heads_file(trail).read_bytes()
    attack, seen_by = ATTACKS[name]
    attack(trail)
    report = check_trail(trail)
    copy = check_trail(trail, heads=elsewhere.splitlines())
    if seen_by == {"heads elsewhere"}:
        assert report.ok  # who has the keys can say anything, here
    else:
        assert {each.by for each in report.findings} == seen_by
        assert not report.ok and report.problem
    database_changed = name not in HEADS_ONLY
    assert copy.ok != database_changed, copy.findings
    if database_changed and report.findings and report.findings[0].by in ("chain", "heads"):  # the sweep notices, too
        trail.index.now.advance(3700)  # type: ignore[attr-defined]
        keep_head(trail)
        recheck_trail(trail)
        assert "audit-broken" in [each.kind for each in trail.index.alerts()]


def test_the_table_in_the_documentation_is_this_one() -> None:
    section = DOCS.read_text("utf-8").split("## Attacks")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section, re.MULTILINE)
    told = {name: set(seen.split(", ")) for name, seen in rows[1:]}
    assert told == {name: seen for name, (_, seen) in ATTACKS.items()}


def test_another_machine_verifies_with_a_public_key_alone(trail: Gateway, tmp_path: Path) -> None:
    run = CliRunner()
    trail.keys.rotate("certify")  # the trusted key is the old one: it vouches for the new one
    trail.index.audit(AuditEvent("retrieved", "late"))
    trail.index.now.advance(61)  # type: ignore[attr-defined]
    export, keys, heads = tmp_path / "trail.jsonl", tmp_path / "keys.json", tmp_path / "heads"
    trail.keys.export_public(keys)
    old = json.loads(keys.read_text())
    old["keys"] = [each for each in old["keys"] if each["id"] == "certify-1"]
    keys.write_text(json.dumps(old))
    assert keep_head(trail) == 1
    with export.open("w") as stream:
        audit.export(trail.index, stream)
    shutil.copytree(heads_folder(trail), heads)
    asked = ["audit", "verify", "--trail", str(export), "--heads", str(heads), "--trusted", str(keys)]
    good = run.invoke(app, asked)
    assert (good.exit_code, "intact: 10 events" in good.output, "4 signed heads" in good.output) == (0, True, True)
    lines = export.read_text().splitlines()
    export.write_text("\n".join(lines[:8]) + "\n")
    cut = run.invoke(app, asked)
    assert cut.exit_code == 1 and "the end of the trail was cut off (found by: heads)" in cut.output
    export.write_text("\n".join([lines[0].replace("user1", "user9"), *lines[1:]]))
    edited = run.invoke(app, asked)
    assert edited.exit_code == 1 and "an event was changed (found by: chain)" in edited.output
    export.write_text("no trail")
    assert "bad-trail" in run.invoke(app, asked).output or run.invoke(app, asked).exit_code == 1
    assert run.invoke(app, asked[:4] + ["--heads", str(heads)]).exit_code == 1
    assert run.invoke(app, ["audit", "verify", "--trail", str(tmp_path / "none")]).exit_code == 1


def test_heads_begin_again_after_a_loss_and_the_loss_stays_seen(trail: Gateway) -> None:
    shutil.rmtree(heads_folder(trail))
    trail.index.now.advance(61)  # type: ignore[attr-defined]
    assert keep_head(trail) == 1 and keep_head(trail) == 0
    assert "audit-heads-lost" in [each.kind for each in trail.index.alerts()]
    head = last_head(heads_folder(trail))
    assert head is not None and (head.number, head.seq) == (1, 9)
    recompute(trail, edit(8))
    shutil.rmtree(heads_folder(trail))
    assert {each.by for each in check_trail(trail).findings} == {"key ring"}


@pytest.mark.parametrize("script", [edit(2), "DELETE FROM audit WHERE seq > 5", "DELETE FROM audit WHERE seq = 9"])
def test_taking_all_heads_away_has_no_other_trail_signed(trail: Gateway, script: str) -> None:
    recompute(trail, script)
    shutil.rmtree(heads_folder(trail))
    trail.index.now.advance(61)  # type: ignore[attr-defined]
    assert keep_head(trail) == 0 and last_head(heads_folder(trail)) is None
    assert "audit-broken" in [each.kind for each in trail.index.alerts()]
    assert {each.by for each in check_trail(trail).findings} == {"key ring"}


def test_heads_of_a_folder_that_is_not_here_still_count(trail: Gateway) -> None:
    shutil.rmtree(heads_folder(trail))
    trail.index.now.advance(61)  # type: ignore[attr-defined]
    assert keep_head(trail) == 1 and check_trail(trail).ok  # as where each host has a folder of its own
    (anchors := trail.keys.folder / ANCHORS).write_text(anchors.read_text().replace('"trail"', '"older release"'))
    assert check_trail(trail).ok


def test_a_line_torn_by_a_power_loss_is_no_attack(trail: Gateway) -> None:
    with heads_file(trail).open("ab") as file:
        file.write(change_time(trail) + b'{"keys":[{"created":')
    trail.index.audit(AuditEvent("retrieved", "late"))
    trail.index.now.advance(61)  # type: ignore[attr-defined]
    assert keep_head(trail) == 1
    report = check_trail(trail)
    assert (report.ok, report.heads, report.unsigned) == (True, 4, 0)


def test_an_idle_trail_gets_a_head_an_hour(trail: Gateway) -> None:
    clock = trail.index.now
    assert isinstance(clock, FakeClock)
    clock.advance(120)
    assert keep_head(trail) == 0
    clock.advance(3600)
    assert keep_head(trail) == 1
    clock.advance(-7200)  # a clock that stepped back does not stop it, and begins no older file
    trail.index.audit(AuditEvent("retrieved", "late"))
    assert keep_head(trail) == 1 and check_trail(trail).ok
    (heads_folder(trail) / "heads-99991231.jsonl").mkdir()
    with pytest.raises(Unavailable, match="signed heads"):
        check_trail(trail)
