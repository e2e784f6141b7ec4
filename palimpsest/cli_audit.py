"""`palimpsest audit`: verify, search and export the trail."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.cli_care import Home, open_gateway, record

if TYPE_CHECKING:
    from gateway.audit import AuditReport

console = Console()
audit = typer.Typer(
    help="The audit trail: who did what to which object, in a chain that shows every later change.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the command group to the command line."""
    app.add_typer(audit, name="audit", rich_help_panel="Care")


@audit.command("verify")
def audit_verify(
    trail: Annotated[
        Path | None, typer.Option(help="An exported trail (jsonl) instead of the database: needs no gateway.")
    ] = None,
    heads: Annotated[
        Path | None, typer.Option(help="Signed heads from elsewhere: a folder, or a syslog server's file.")
    ] = None,
    trusted: Annotated[
        Path | None, typer.Option(help="Public keys: of `palimpsest keys export-public`, JSON or PEM.")
    ] = None,
    home: Home = None,
) -> None:
    """Walk the whole chain and compare it with the signed heads: finds every changed, removed, inserted or reordered
    event, a cut end and a chain that was computed anew. Exit 1 if there is one.
    """
    from gateway.certificate_format import read_trusted
    from gateway.errors import Unavailable

    try:
        keys = read_trusted(trusted.read_bytes()) if trusted else None
        if trail is not None:
            report = _verify_export(trail, heads, keys)
        else:
            report = _verify_gateway(home, heads, keys)
    except OSError as error:
        raise Unavailable("audit-unreadable", f"{error.filename} cannot be read ({error.strerror})") from None
    _show(report)


def _verify_export(trail: Path, heads: Path | None, keys: dict[str, str] | None) -> AuditReport:
    from gateway.audit import read_export, verify
    from gateway.audit_heads import lines_of, read_heads
    from gateway.errors import InvalidInstance, PolicyRefused

    if (heads is None) != (keys is None):
        raise PolicyRefused("heads-and-keys", "--heads and --trusted go together: heads are worth what their key is")
    read = read_heads(lines_of(heads), keys, whole=heads.is_dir()) if heads and keys is not None else None
    with trail.open("rb") as stream:
        try:
            return verify(read_export(stream), read)
        except (ValueError, KeyError, TypeError):
            raise InvalidInstance("bad-trail", f"{trail} is no trail exported as jsonl") from None


def _verify_gateway(home: Path | None, heads: Path | None, keys: dict[str, str] | None) -> AuditReport:
    from gateway.audit_heads import lines_of
    from gateway.audit_notary import check_trail

    with open_gateway(home) as gateway:
        report = check_trail(gateway, heads=lines_of(heads) if heads else None, trusted=keys)
        record(gateway, "audit-used", kind="verify", outcome="intact" if report.ok else "broken")
    return report


def _show(report: AuditReport) -> None:
    signed = f"{report.heads} signed heads, the last of {report.newest_head}" if report.heads else "no signed head"
    if report.ok:
        line = f"[green]intact[/green]: {report.count} events, head {report.head[:16]}; {signed}"
        console.print(f"{line}; {report.unsigned} events since", highlight=False, soft_wrap=True)
        return
    for each in report.findings:
        where = f" at event {each.at_seq}" if each.at_seq is not None else ""
        line = f"[bold red]NOT intact[/bold red]{where}: {each.problem} (found by: {each.by})"
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"the first {report.count} events are a whole chain; {signed}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


@audit.command("export")
def audit_export(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File; default: standard output.")] = None,
    since: Annotated[int, typer.Option(help="Only events after this sequence number.")] = 0,
    form: Annotated[
        str, typer.Option("--format", help="jsonl (can be verified), dicom (PS3.15 A.5 XML), fhir (R4 AuditEvent).")
    ] = "jsonl",
    home: Home = None,
) -> None:
    """Write the trail, an event a line, oldest first."""
    from gateway.audit_writer import FORMATS, export_lines
    from gateway.errors import PolicyRefused
    from gateway.index_audit import AuditQuery

    chosen = next((each for each in FORMATS if each == form), None)
    if chosen is None:
        raise PolicyRefused("bad-format", f"a format is one of {', '.join(FORMATS)}")
    with open_gateway(home) as gateway:
        record(gateway, "audit-used", kind="export", form=chosen)
        count = 0
        with _stream(out) as stream:
            for line in export_lines(gateway, chosen, AuditQuery(after=since)):
                stream.write(line)
                count += 1
    if out is not None:
        console.print(f"{count} events in {out}", highlight=False, soft_wrap=True)


@contextmanager
def _stream(out: Path | None) -> Iterator[BinaryIO]:
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with out.open("wb") as stream:
        yield stream


@audit.command("search")
def audit_search(
    patient_id: Annotated[str, typer.Option(help="Patient ID (0010,0020); its pseudonyms are looked for.")] = "",
    patient: Annotated[str, typer.Option(help="Pseudonym of a patient, as envelopes show it.")] = "",
    study: Annotated[str, typer.Option(help="Study Instance UID, or its pseudonym.")] = "",
    user: Annotated[str, typer.Option(help="AE title, token subject or process; NAME* matches any ending.")] = "",
    event: Annotated[list[str] | None, typer.Option(help="Names of events; may be repeated.")] = None,
    since: Annotated[datetime | None, typer.Option("--from", help="UTC.")] = None,
    until: Annotated[datetime | None, typer.Option("--to", help="UTC, excluded.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Of the newest.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Events as JSON lines, as `audit export` has them.")] = False,
    home: Home = None,
) -> None:
    """Find events by patient, study, user, event and time, newest first. The search itself becomes an event."""
    from gateway.audit_subject import patient_names, study_names
    from gateway.index_audit import AuditQuery

    with open_gateway(home) as gateway:
        names = (*((patient,) if patient else ()), *(patient_names(gateway, patient_id) if patient_id else ()))
        query = AuditQuery(
            patients=names, studies=study_names(gateway, study) if study else (), actor=user,
            events=tuple(event or ()), since=_seconds(since), until=_seconds(until), limit=limit,
        )  # fmt: skip
        found = gateway.index.audit_search(query)
        record(gateway, "audit-used", patient=names[-1] if names else None, kind="search", count=len(found))
    if as_json:
        for line in found:
            print(json.dumps(line, sort_keys=True))
        return
    table = Table("seq", "time (UTC)", "event", "actor", "outcome", "instance", "detail", box=None)
    for line in found:
        at = datetime.fromtimestamp(line["at_us"] / 1_000_000, UTC).isoformat(" ", "seconds")[:19]
        detail = " ".join(f"{name}={value}" for name, value in line["detail"].items() if value is not None)
        number = str(line["instance_id"] or "")
        table.add_row(str(line["seq"]), at, line["event"], line["actor"], line["outcome"], number, detail)
    console.print(table, highlight=False)


def _seconds(moment: datetime | None) -> float | None:
    return moment.replace(tzinfo=UTC).timestamp() if moment is not None else None
