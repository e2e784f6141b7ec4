"""What the commands for those who care for a gateway share: the open gateway, the operator's name, the passphrase."""

from __future__ import annotations

import getpass
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


@contextmanager
def open_gateway(home: Path | None, *, restoring: bool = False) -> Iterator[Gateway]:
    """The gateway of a home folder for one command. restoring: one that finishes what a restore has begun."""
    from gateway.bootstrap import build
    from gateway.settings import load_settings

    gateway = build(load_settings(**({"home": home} if home else {})), restoring=restoring)
    try:
        yield gateway
    finally:
        gateway.close()


def operator() -> str:
    """Who is at the keyboard, as the trail names them."""
    return f"cli:{getpass.getuser()}"


def record(gateway: Gateway, event: str, *, patient: str | None = None, **detail: str | int) -> None:
    """Every act on keys and on the trail is in the trail, under the name of the operating system's user.

    patient: keyed pseudonym of the patient it is about.
    """
    from gateway.audit import AuditEvent

    gateway.index.audit(AuditEvent(event, operator(), detail=detail, patient=patient))


def passphrase(file: Path | None, *, confirm: bool) -> str:
    """From the file, or asked for at the terminal. Raises PolicyRefused when the file cannot be read."""
    if file is not None:
        from gateway.errors import PolicyRefused

        try:
            return file.read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise PolicyRefused("passphrase-unreadable", f"{file} cannot be read as text") from None
    return str(typer.prompt("Passphrase of the backup", hide_input=True, confirmation_prompt=confirm))
