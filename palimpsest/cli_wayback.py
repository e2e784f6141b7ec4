"""The way back: `palimpsest rebuild`, and what goes with it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from palimpsest.cli_care import Home, open_gateway

if TYPE_CHECKING:
    from gateway.settings import Settings
    from worker.rebuild import RebuildReport

console = Console()
EVERY = 100  # objects between two lines of progress
SHOWN = 20


class ForwardChoice(StrEnum):
    """What is taken for sent after a rebuild."""

    auto = "auto"
    done = "done"
    again = "again"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(rich_help_panel="Care")(rebuild)


def require_ring(settings: Settings) -> None:
    """Without the key ring nothing could be opened, and a new one must not take its place. Raises PolicyRefused."""
    from gateway.errors import PolicyRefused
    from gateway.keyfile import RING_FILE

    if not (settings.keys_dir / RING_FILE).is_file():
        message = "there is no key ring here: bring it back first (`palimpsest keys restore FILE`)"
        raise PolicyRefused("keys-missing", message)


def rebuild(
    add: Annotated[
        bool, typer.Option("--add", help="The index is not empty: add what the archive has beyond it.")
    ] = False,
    forwards: Annotated[
        ForwardChoice,
        typer.Option(
            help="auto: what the spool still has is sent (again), the rest counts as sent. done: all does. again: none."
        ),
    ] = ForwardChoice.auto,
    home: Home = None,
) -> None:
    """Make the database anew from the archive and the key ring. Exit 1 if an object could not be read.

    For a lost database: move what is left of it aside, then run this with the gateway stopped. Every object is restored
    and compared on the way. Stopped in the middle, it goes on when it is run again.
    """
    from gateway.settings import load_settings
    from worker.rebuild import rebuild as run

    require_ring(load_settings(**({"home": home} if home else {})))
    with open_gateway(home) as gateway:
        report = run(gateway, add=add, forwards=forwards.value, progress=_progress())
    _tell(report)
    if not report.ok:
        raise typer.Exit(1)


def _progress() -> Callable[[RebuildReport], None]:
    seen = 0

    def tell(report: RebuildReport) -> None:
        nonlocal seen
        seen += 1
        if seen % EVERY == 0:
            console.print(f"{seen} objects; {_counts(report)}", highlight=False)

    return tell


def _counts(report: RebuildReport) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(report.counts.items()) if count) or "nothing yet"


def _tell(report: RebuildReport) -> None:
    console.print(f"rebuilt: {_counts(report)}", highlight=False)
    for name, reason in report.unreadable[:SHOWN]:
        console.print(f"[red]not readable[/red] {name}: {reason}", highlight=False, soft_wrap=True)
    if report.failed:
        console.print(f"[bold red]{report.failed} could not be read[/bold red]: `palimpsest scrub --list` names them")
        return
    console.print("Now make a new key backup: outside the demo profile the spool waits for one.", highlight=False)
