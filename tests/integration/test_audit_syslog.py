"""The audit trail at a real rsyslogd over TLS: complete, in order, whoever dies; and its own troubles are seen."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lxml import etree
from pydantic import ValidationError

from gateway.audit_notary import check_trail, keep_head
from gateway.audit_standing import STATE, audit_standing
from gateway.audit_syslog import SyslogConnection
from gateway.bootstrap import Gateway, build
from gateway.errors import Unavailable
from gateway.settings import Settings, load_settings
from gateway.tls import syslog_context
from tests.certificates import Authority
from tests.fakes import FakeClock, part10, take_in
from tests.rsyslog import Rsyslog
from tests.running import free_port, until
from worker import audit_export
from worker.audit_export import deliver

pytestmark = [pytest.mark.peers, pytest.mark.integration]
SCHEMA = etree.RelaxNG(etree.parse(Path(__file__).parent.parent / "data" / "audit-message.rng"))
LINE = re.compile(
    r"<(?P<pri>8[45])>1 (?P<at>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) host-1 palimpsest \d+ (?P<msgid>\S+) "
    r'(?P<data>-|\[meta sequenceId="(?P<seq>\d+)"\]\[origin software="palimpsest" swVersion="[^"]+"\]) '
    r"(?P<msg>.*)"
)
Make = Callable[..., Gateway]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def make(tmp_path: Path, memory_queue: Any) -> Iterator[Make]:
    made: list[Gateway] = []

    def gateway(port: int, ca: Path, **settings: Any) -> Gateway:
        found = load_settings(
            home=tmp_path / "home", profile="demo", watermark_bytes=0, audit_syslog_host="127.0.0.1",
            audit_syslog_port=port, audit_syslog_ca=ca, audit_source_id="GATE-1", audit_site_id="RAD", **settings,
        )  # fmt: skip
        made.append(build(found, queue=memory_queue))
        made[-1].index.now = FakeClock()  # type: ignore[method-assign]
        return made[-1]

    yield gateway
    for each in made:
        each.close()


def clock_of(gw: Gateway) -> FakeClock:
    clock = gw.index.now
    assert isinstance(clock, FakeClock)
    return clock


def connection(gw: Gateway) -> SyslogConnection:
    settings = gw.settings
    return SyslogConnection(
        settings.audit_syslog_host, settings.audit_syslog_port, syslog_context(settings),
        close_notify=settings.audit_syslog_close == "close-notify",
    )  # fmt: skip


def export(gw: Gateway, seconds: float = 400.0) -> int:
    """Deliver what there is, some time later; the longest pause is over."""
    clock_of(gw).advance(seconds)
    return deliver(gw, lambda: connection(gw), node="host-1")


def parsed(server: Rsyslog, wanted: int) -> list[re.Match[str]]:
    assert until(lambda: len(server.lines()) >= wanted), server.lines()
    found = [LINE.fullmatch(line) for line in server.lines()]
    assert all(found), server.lines()
    return [each for each in found if each]


def numbers(server: Rsyslog, wanted: int) -> list[int]:
    return [int(each["seq"]) for each in parsed(server, wanted) if each["seq"]]


@pytest.mark.parametrize("driver", ["gtls", "ossl"])
def test_events_and_heads_arrive_in_order_as_the_standard_has_them(
    make: Make, authority: Authority, tmp_path: Path, driver: str
) -> None:
    client = authority.issue("gateway")
    with Rsyslog(tmp_path, authority, driver=driver, client="gateway.test") as server:
        close = "tcp" if driver == "gtls" else "close-notify"  # GnuTLS' driver never answers one
        files = {"audit_syslog_cert": client.certificate, "audit_syslog_key": client.key}
        gw = make(server.port, authority.file, audit_syslog_close=close, **files)
        for _ in range(5):
            take_in(gw, part10(patient="Quastenflosser^Jane"))
        clock_of(gw).advance(120)
        assert keep_head(gw) == 1
        assert export(gw) == 6
        found = parsed(server, 6)
        assert [each["seq"] for each in found] == ["1", "2", "3", "4", "5", None]
        for each in found[:5]:
            assert (each["pri"], each["msgid"], each["msg"][0]) == ("85", "DICOM+RFC3881", "\ufeff")
            root = etree.fromstring(each["msg"][1:].encode())
            assert SCHEMA.validate(root), SCHEMA.error_log
            assert "Quastenflosser" not in each["msg"]
            assert root.find("AuditSourceIdentification").get("AuditSourceID") == "GATE-1"
        report = check_trail(gw, heads=server.out.read_bytes().splitlines())
        assert (report.ok, report.heads, report.unsigned) == (True, 1, 0)
        assert export(gw) == 0  # nothing new
        standing = audit_standing(gw)
        assert (standing.export_lag_events, standing.export_lag_seconds, standing.export_attempts) == (0, 0.0, 0)
        gw.index.close()
        take_in(gw, part10())
        assert export(gw) == 1 and numbers(server, 7)[-1] == 6


def test_a_server_that_is_away_costs_nothing_and_loses_nothing(
    make: Make, authority: Authority, tmp_path: Path
) -> None:
    server = Rsyslog(tmp_path, authority)
    gw = make(server.port, authority.file)
    for attempt in range(1, 7):
        take_in(gw, part10())
        assert export(gw) == 0
        standing = audit_standing(gw)
        assert (standing.export_attempts, standing.export_reason) == (attempt, "connection-refused")
        assert standing.export_lag_events == attempt and (standing.export_lag_seconds or 0) >= 400
    assert deliver(gw, lambda: pytest.fail("tried before its time")) == 0
    assert [each.kind for each in gw.index.alerts()] == ["audit-export-down"]
    with server:
        assert export(gw) == 6
        assert numbers(server, 6) == [1, 2, 3, 4, 5, 6]
    assert audit_standing(gw).export_attempts == 0


def test_a_server_killed_in_the_middle_gets_it_again(
    make: Make, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_export, "BATCH", 3)
    server = Rsyslog(tmp_path, authority)
    server.start()
    gw = make(server.port, authority.file)
    for _ in range(9):
        take_in(gw, part10())

    class Killing(SyslogConnection):
        sent = 0

        def send(self, lines: Any) -> None:
            super().send(lines)
            Killing.sent += 1
            if Killing.sent == 2:
                server.kill()

    clock_of(gw).advance(60)
    settings = gw.settings
    context = syslog_context(settings)
    assert deliver(gw, lambda: Killing("127.0.0.1", server.port, context), node="host-1") == 0
    assert (gw.index.audit_state(STATE) or {}).get("seq", 0) == 0
    server.out.unlink(missing_ok=True)  # whoever is killed may have written half a line
    with server:
        assert export(gw) == 9
        assert numbers(server, 9) == list(range(1, 10))


def test_who_is_not_trusted_gets_nothing(make: Make, authority: Authority, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    stranger = Authority(other, "Other CA")
    wrong = stranger.issue("gateway")
    with Rsyslog(tmp_path, authority, client="gateway.test") as server:
        for settings, reason in (
            ({"audit_syslog_ca": stranger.file}, {"certificate-refused"}),
            (
                {"audit_syslog_cert": wrong.certificate, "audit_syslog_key": wrong.key},
                {"tls-failed", "connection-lost"},
            ),
            ({"audit_syslog_cert": tmp_path / "none", "audit_syslog_key": tmp_path / "none"}, {"bad-tls-files"}),
            ({"audit_syslog_port": free_port()}, {"connection-refused"}),
        ):
            gw = make(server.port, authority.file)
            take_in(gw, part10())
            object.__setattr__(gw, "settings", gw.settings.model_copy(update=settings))
            gw.index.audit_state_set(STATE, {})
            assert export(gw) == 0
            assert (gw.index.audit_state(STATE) or {})["reason"] in reason
        assert server.lines() == []


def test_one_of_two_hosts_exports(make: Make, authority: Authority, tmp_path: Path) -> None:
    with Rsyslog(tmp_path, authority) as server:
        gw = make(server.port, authority.file)
        take_in(gw, part10())
        assert gw.index.audit_claim(STATE, "host-2/1", 60.0) == {
            "owner": "host-2/1", "lease_until": gw.index.now() + 60}  # fmt: skip
        assert export(gw, 30) == 0
        assert export(gw, 60) == 1


def test_a_trail_that_began_anew_is_sent_from_its_beginning(make: Make, authority: Authority, tmp_path: Path) -> None:
    with Rsyslog(tmp_path, authority) as server:
        gw = make(server.port, authority.file)
        gw.index.audit_state_set(STATE, {"seq": 40, "hash": "00"})
        take_in(gw, part10())
        assert export(gw) == 1 and numbers(server, 1) == [1]


def test_settings_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="AUDIT_SYSLOG_CA"):
        Settings(home=tmp_path, audit_syslog_host="logs")
    with pytest.raises(ValidationError, match="go together"):
        Settings(home=tmp_path, audit_syslog_cert=tmp_path / "c")
    with pytest.raises(Unavailable, match="gaierror"):
        SyslogConnection(
            "no.such.host.invalid",
            6514,
            syslog_context(load_settings(home=tmp_path, audit_syslog_ca=Authority(tmp_path).file)),
        )
