"""Commands for those who care for a gateway: the audit trail, and what they share with `keys`."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from gateway.bootstrap import Gateway

Home = Annotated[Path | None, typer.Option(help="Folder that holds all state.", metavar="DIR")]
PassFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="Read the passphrase from there instead of asking.")
]
console = Console()

audit = typer.Typer(
    help="The audit trail: who did what to which object, in a chain that shows every later change.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the command group to the command line."""
    app.add_typer(audit, name="audit", rich_help_panel="Care")


@contextmanager
def open_gateway(home: Path | None) -> Iterator[Gateway]:
    """The gateway of a home folder for one command."""
    from gateway.bootstrap import build
    from gateway.settings import load_settings

    gateway = build(load_settings(**({"home": home} if home else {})))
    try:
        yield gateway
    finally:
        gateway.close()


def operator() -> str:
    """Who is at the keyboard, as the trail names them."""
    return f"cli:{getpass.getuser()}"


def record(gateway: Gateway, event: str, **detail: str | int) -> None:
    """Every act on keys is in the trail, under the name of the operating system's user."""
    from gateway.audit import AuditEvent

    gateway.index.audit(AuditEvent(event, operator(), detail=detail))


def passphrase(file: Path | None, *, confirm: bool) -> str:
    """From the file, or asked for at the terminal. Raises PolicyRefused when the file cannot be read."""
    if file is not None:
        from gateway.errors import PolicyRefused

        try:
            return file.read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise PolicyRefused("passphrase-unreadable", f"{file} cannot be read as text") from None
    return str(typer.prompt("Passphrase of the backup", hide_input=True, confirmation_prompt=confirm))


@audit.command("verify")
def audit_verify(home: Home = None) -> None:
    """Walk the whole chain: finds every changed, removed, inserted or reordered event. Exit 1 if there is one."""
    from gateway.audit_notary import check_trail

    with open_gateway(home) as gateway:
        report = check_trail(gateway)
    if report.ok:
        console.print(f"[green]intact[/green]: {report.count} events, head {report.head[:16]}", highlight=False)
        return
    where = f" at event {report.at_seq}" if report.at_seq is not None else ""
    console.print(f"[bold red]NOT intact[/bold red]{where}: {report.problem} ({report.count} events are good)")
    raise typer.Exit(1)


@audit.command("export")
def audit_export(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File; default: standard output.")] = None,
    since: Annotated[int, typer.Option(help="Only events after this sequence number.")] = 0,
    home: Home = None,
) -> None:
    """Write the trail as JSON lines, oldest first."""
    from gateway.audit import export
    from gateway.database import Database

    with open_gateway(home) as gateway:
        database = Database(gateway.settings.database)
        if out is None:
            export(database, sys.stdout, since)
            return
        with out.open("w", encoding="utf-8") as stream:
            count = export(database, stream, since)
    console.print(f"{count} events in {out}", highlight=False, soft_wrap=True)
