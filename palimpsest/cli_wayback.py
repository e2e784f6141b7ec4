"""The way back: `palimpsest rebuild`, and what goes with it."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from palimpsest.cli_care import Home, PassFile, open_gateway, operator, passphrase

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
    for command in (backup, restore, rebuild, scrub, export):
        app.command(rich_help_panel="Care")(command)


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
    from gateway.settings import load_settings, use_numba_cache

    use_numba_cache()
    from worker.rebuild import rebuild as run

    require_ring(load_settings(**({"home": home} if home else {})))
    with open_gateway(home, restoring=True) as gateway:
        report = run(gateway, add=add, forwards=forwards.value, progress=_progress())
    _tell(report)
    if not report.ok:
        raise typer.Exit(1)


def backup(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder, on another disk than the gateway's.")],
    passphrase_file: PassFile = None,
    home: Home = None,
) -> None:
    """Copy the database and the key ring into a folder, while the gateway works. The archive is not in it.

    The passphrase protects the keys. The database holds names: keep the folder as safe as the gateway itself.
    """
    from palimpsest.backup import make_backup

    with open_gateway(home) as gateway:
        manifest = make_backup(gateway, folder, passphrase(passphrase_file, confirm=True), operator())
    rows, size = manifest["rows"]["instance"], sum(each["size"] for each in manifest["files"].values())
    console.print(f"{rows} instances, {size:,} bytes in {folder}", highlight=False, soft_wrap=True)


def restore(
    folder: Annotated[Path, typer.Argument(help="A backup made by `palimpsest backup`.")],
    passphrase_file: PassFile = None,
    no_catch_up: Annotated[
        bool, typer.Option("--no-catch-up", help="Do not look for what archive and spool have beyond the backup.")
    ] = False,
    home: Home = None,
) -> None:
    """Bring the database back from a backup, and the key ring if there is none; then catch up with the archive.

    With the gateway stopped, and what is left of the old database moved aside. Exit 1 if an object cannot be read.
    """
    from gateway.settings import load_settings, use_numba_cache

    use_numba_cache()
    from palimpsest.backup import restore_backup

    settings = load_settings(**({"home": home} if home else {}))
    secret = passphrase(passphrase_file, confirm=False)
    done = restore_backup(settings, folder, secret, operator(), catch_up=not no_catch_up, progress=_progress())
    ring = "key ring restored" if done.ring else "the key ring that is here stays"
    console.print(f"{done.rows} rows restored; {ring}; {done.reshredded} shredded again", highlight=False)
    if done.caught_up is not None:
        _tell(done.caught_up)
        raise typer.Exit(0 if done.caught_up.ok else 1)


def scrub(
    everything: Annotated[bool, typer.Option("--all", help="The whole archive; one that was stopped goes on.")] = False,
    sample: Annotated[int, typer.Option(min=0, metavar="N", help="So many objects, drawn at random.")] = 0,
    list_: Annotated[bool, typer.Option("--list", help="Only list what is known to be damaged.")] = False,
    home: Home = None,
) -> None:
    """Read and decode archived objects again; mend what is damaged where another copy is.

    Exit 1 if damage is left, or an object could not be read.

    The sweep does the same all the time, slowly: PALIMPSEST_SCRUB_SAMPLE objects a day, everything every
    PALIMPSEST_SCRUB_WHOLE_DAYS.
    """
    from gateway.errors import PolicyRefused
    from worker.scrub import scrub as run
    from worker.verify import Verifier

    if everything + bool(sample) + list_ != 1:
        raise PolicyRefused("bad-option", "say one of --all, --sample N, --list")
    unread: list[tuple[str, str]] = []
    with open_gateway(home) as gateway:
        if not list_:
            settings = gateway.settings
            with Verifier(settings.keys_dir, memory_bytes=settings.worker_memory_bytes, settings=settings) as verifier:
                report = run(gateway, verifier, "whole" if everything else "drawn", count=sample)
            mended, unread = dict(report.mended), report.unread
            console.print(f"{report.checked} objects, {len(report.damaged)} damaged, {len(mended)} mended")
        left = gateway.index.damages()
    for each in left:
        console.print(
            f"[bold red]damaged[/bold red] {each.archive_key}: {each.reason}", highlight=False, soft_wrap=True
        )
    for key, reason in unread:
        console.print(f"[bold red]not readable now[/bold red] {key}: {reason}", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if left or unread else 0)


def export(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder, or one where an export was stopped.")],
    everything: Annotated[bool, typer.Option("--all", help="All instances, all versions.")] = False,
    home: Home = None,
) -> None:
    """Write every original as a plain DICOM file, as it was received, with a manifest. Exit 1 if one is missing.

    What was received compressed and released is written in its native form, marked in the manifest.
    """
    from gateway.errors import PolicyRefused
    from gateway.settings import use_numba_cache

    if not everything:
        raise PolicyRefused("bad-option", "say --all: there is no other export yet (one study: `palimpsest fetch`)")
    use_numba_cache()
    from palimpsest.export import export_all

    with open_gateway(home) as gateway:
        report = export_all(gateway, folder, operator())
    counts = ", ".join(f"{name} {count}" for name, count in sorted(report.counts.items()) if count)
    console.print(f"exported: {counts or 'nothing'}", highlight=False)
    for number, reason in report.failed[:SHOWN]:
        console.print(f"[bold red]instance {number}[/bold red]: {reason}", highlight=False)
    raise typer.Exit(1 if report.failed else 0)


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
        console.print(f"[bold red]{report.failed} could not be read[/bold red]: `palimpsest scrub --list` names those")
        console.print("that are damaged; for the others run `palimpsest rebuild --add` when the archive gives them out")
        return
    console.print("Now make a new key backup: outside the demo profile the spool waits for one.", highlight=False)
