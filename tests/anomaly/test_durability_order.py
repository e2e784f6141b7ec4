"""What SIGKILL cannot show: Success follows the commit, which follows the folder, the name and the bytes on the disk.

strace(1) watches the door's own system calls, over several associations, so that group commit is at work. For each
object that was acknowledged: fsync(file) ended before rename began, rename before fsync(folder), that before a sync of
the database's log, and that before the first byte of the answer that names the object. A shard folder that was made
for it is durable by then, too.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from gateway.tokens import mint_token
from palimpsest.selftest_objects import Generated, Source
from palimpsest.selftest_traffic import Ledger, Modality, Uploader
from tests.running import Rig

OBJECTS = 20
ASSOCIATIONS = 4
CALLS = ("fsync", "fdatasync", "rename", "mkdir", "sendto", "sendmsg")
LINE = re.compile(r"(\d+) +(?:<\.\.\. )?(\w+)(?: resumed>|\()(.*)")

pytestmark = [pytest.mark.anomaly, pytest.mark.integration]


@dataclass
class Call:
    """One system call: what it was given, and the numbers of the lines where it began and ended."""

    name: str
    text: str
    began: int
    ended: int


def calls(trace: Path) -> Iterator[Call]:
    """Every call of a trace that succeeded; one that another thread interrupted ends at its second line."""
    open_calls: dict[tuple[str, str], Call] = {}
    for number, line in enumerate(trace.read_text("utf-8", "replace").splitlines()):
        found = LINE.match(line)
        if found is None:
            continue
        pid, name, text = found.groups()
        if " resumed>" in line:
            call = open_calls.pop((pid, name))
            call.text, call.ended = call.text + text, number
        else:
            call = Call(name, text, number, number)
            if text.endswith("<unfinished ...>"):
                open_calls[pid, name] = call
                continue
        if " = -1 " not in call.text:
            yield call


def after(found: list[Call], line: int, name: str, path: str) -> Call:
    """The first call of that name on that path that began after a line of the trace."""
    there = [each for each in found if each.began > line and each.name in name.split("|") and f"<{path}>" in each.text]
    assert there, f"no {name} of {path} after line {line}"
    return min(there, key=lambda each: each.ended)


def assert_order(rig: Rig, found: list[Call], uid: str) -> None:
    """Each step of one object's receipt ended before the next one began."""
    row = rig.gw.index.by_sop(uid)
    assert row is not None
    place = rig.gw.spool.path(row.digest)
    [rename] = [each for each in found if each.name == "rename" and f'"{place}"' in each.text]
    part = rename.text.split('"')[1]
    assert "/incoming/" in part
    assert any(each.name == "fsync" and f"<{part}>" in each.text and each.ended < rename.began for each in found)
    folder = after(found, rename.ended, "fsync", str(place.parent))
    commit = after(found, folder.ended, "fsync|fdatasync", f"{rig.settings.database_path}-wal")
    answers = [each for each in found if each.name.startswith("send") and uid in each.text]
    assert answers, "nobody was answered"
    assert commit.ended < min(each.began for each in answers), "the answer came before the commit was durable"
    made = [each for each in found if each.name == "mkdir" and f'"{place.parent}"' in each.text]
    for mkdir in made:
        assert after(found, mkdir.ended, "fsync", str(place.parent.parent)).ended < min(each.began for each in answers)


def send(lanes: list[Modality] | list[Uploader], ledger: Ledger, rig: Rig) -> list[Generated]:
    ledger.quota = OBJECTS
    for lane in lanes:
        lane.start()
    rig.wait("everything acknowledged", lambda: len(ledger.acknowledged) == OBJECTS)
    ledger.stopped.set()
    for thread in lanes:
        thread.join(120)
    assert not any(thread in threading.enumerate() for thread in lanes)
    return [each.sent for each in ledger.acknowledged]


@pytest.mark.timeout(300)
def test_success_comes_after_everything_it_promises(tmp_path: Path) -> None:
    source, ledgers = iter(Source(tmp_path / "sent", 1)), (Ledger(), Ledger())
    with Rig(tmp_path / "home") as rig:
        for door in ("listener", "api"):
            rig.trace(door, tmp_path / door, *CALLS)
        rig.start("broker", "listener", "api")
        rig.wait("listener", rig.listens)
        url, token = f"http://127.0.0.1:{rig.settings.http_port}", mint_token(rig.gw, "service", "test")
        rig.wait("api", lambda: answers(url))
        port = rig.settings.dicom_port
        names = range(ASSOCIATIONS)
        stored = send([Modality(f"ct{each}", ledgers[0], source, port) for each in names], ledgers[0], rig)
        uploaded = send([Uploader(f"web{each}", ledgers[1], source, url, token) for each in names], ledgers[1], rig)
        for door in ("listener", "api"):
            rig.children[door].stop()
        for door, objects in (("listener", stored), ("api", uploaded)):
            found = list(calls(tmp_path / door))
            for each in objects:
                assert_order(rig, found, each.uid)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False, timeout=20).status_code == 200
    except httpx.HTTPError:
        return False
