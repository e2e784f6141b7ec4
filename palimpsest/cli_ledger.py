"""`palimpsest studies`, `reconcile` and `import`: how far studies have come, and what the sending PACS says of them."""

from __future__ import annotations

import json
import re
import signal
import threading
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from palimpsest.cli_care import open_gateway

if TYPE_CHECKING:
    from collections.abc import Iterable

    from palimpsest.pacs import Pacs
    from palimpsest.reconcile import Difference

Home = Annotated[Path | None, typer.Option(help="Folder that holds all state.", metavar="DIR")]
Study = Annotated[list[str] | None, typer.Option("--study", help="Study Instance UID; may be repeated.", metavar="UID")]
Date = Annotated[str, typer.Option(help="Study Date, or a range.", metavar="YYYYMMDD[-YYYYMMDD]")]
Name = Annotated[str, typer.Argument(help="Name of a configured destination with a DICOM node.", metavar="PACS")]
JsonOut = Annotated[bool, typer.Option("--json", help="As JSON.")]
console = Console(width=120)
_DATE = re.compile(r"\d{8}(-(\d{8})?)?|-\d{8}")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("studies", rich_help_panel="Care")(studies)
    app.command("reconcile", rich_help_panel="Care")(reconcile)
    app.command("import", rich_help_panel="Care")(import_archive)


def studies(
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="The newest so many.")] = 20,
    json_out: JsonOut = False,
    home: Home = None,
) -> None:
    """How far studies have come: received, complete and by what evidence, archived, forwarded, committed."""
    from gateway.study_state import STATES

    if state is not None and state not in STATES:
        raise typer.BadParameter(f"a state is one of {', '.join(STATES)}")
    with open_gateway(home) as gateway:
        uids = [uid for uid, _ in gateway.index.study_list(limit, None, state)]
        facts, now = gateway.index.study_facts(uids), gateway.index.now()
        quiet = gateway.settings.study_quiet_seconds
        rows = [facts[uid].describe(quiet, now) for uid in uids if uid in facts]
    if json_out:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table("study", "state", "instances", "archived", "complete by", "sent to", "last received (UTC)")
    for row in rows:
        proof = row["completeness_by"]
        sent = ", ".join(f"{each['destination']} {each['sent']}" for each in row["deliveries"])
        at = datetime.fromtimestamp(row["last_received_at"], UTC)
        table.add_row(
            row["study_uid"], row["state"], str(row["instances"]), f"{row['archived']}/{row['objects']}",
            proof["kind"] if proof else "", sent, f"{at:%Y-%m-%d %H:%M:%S}",
        )  # fmt: skip
    console.print(table)


def reconcile(pacs: Name, study: Study = None, date: Date = "", json_out: JsonOut = False, home: Home = None) -> None:
    """Ask a PACS by C-FIND which instances its studies have, and compare with what was received.

    The answer is kept as evidence for the study ledger. Exit 1 if something is missing here.
    """
    from palimpsest.pacs import pacs_of
    from palimpsest.reconcile import reconcile as compare

    with open_gateway(home) as gateway, pacs_of(gateway.settings, pacs) as node:
        found = [compare(gateway, node, uid) for uid in _chosen(node, study, date)]
    _show(found, json_out)


def import_archive(
    pacs: Name,
    study: Study = None,
    date: Date = "",
    rate: Annotated[float, typer.Option(min=0.01, help="Instances per second, at most.")] = 20.0,
    backlog: Annotated[int, typer.Option(min=1, help="Wait while more instances than that are unfinished.")] = 2000,
    json_out: JsonOut = False,
    home: Home = None,
) -> None:
    """Take over an archive: have a PACS send its studies to our listener by C-MOVE, one by one, and compare each.

    Our listener must run, and the PACS must know our AE title and port. What is here already is not asked for: repeat
    the command to resume. Exit 1 if something is missing at the end.
    """
    from palimpsest.pacs import pacs_of
    from palimpsest.reconcile import Pace, import_studies

    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    found = []
    with open_gateway(home) as gateway, pacs_of(gateway.settings, pacs) as node:
        for each in import_studies(gateway, node, _chosen(node, study, date), Pace(rate, backlog), stop):
            found.append(each)
            if not json_out:
                console.print(_line(each), highlight=False, soft_wrap=True)
    _show(found, json_out, listed=not json_out)
    if stop.is_set():
        console.print("stopped: repeat the command to go on")
        raise typer.Exit(1)


def _chosen(node: Pacs, study: list[str] | None, date: str) -> Iterable[str]:
    from gateway.uids import parse_uid

    if bool(study) == bool(date):
        raise typer.BadParameter("name studies by --study, or all of a --date")
    if study:
        return [str(parse_uid(each, "study-uid")) for each in study]
    if not _DATE.fullmatch(date):
        raise typer.BadParameter("--date is a day such as 20260131, or a range such as 20260101-20260131")
    return node.studies(date)


def _line(each: Difference) -> str:
    word = "equal" if each.equal else "MISSING"
    moved = f", {each.moved.completed} sent now" if each.moved else ""
    return f"{word:<8} {each.study}  {each.theirs} there, {each.here} here, {len(each.missing)} missing{moved}"


def _show(found: list[Difference], json_out: bool, *, listed: bool = False) -> None:
    missing = sum(len(each.missing) for each in found)
    if json_out:
        rows: list[dict[str, Any]] = [asdict(each) for each in found]
        typer.echo(json.dumps(rows, indent=1))
    else:
        for each in found if not listed else ():
            console.print(_line(each), highlight=False, soft_wrap=True)
        extra = sum(len(each.extra) for each in found)
        console.print(f"{len(found)} studies, {missing} instances missing here, {extra} only here", highlight=False)
    if missing:
        raise typer.Exit(1)
