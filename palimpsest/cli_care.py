"""Commands for those who care for a gateway: keys, audit trail, codec measurements."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from gateway.bootstrap import Gateway

Home = Annotated[Path | None, typer.Option(help="Folder that holds all state.", metavar="DIR")]
PassFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="Read the passphrase from there instead of asking.")
]
console = Console()

keys = typer.Typer(
    help="The key ring: what opens the sealed data. **Without it (or a backup) the patient data inside archived images "
    "cannot be read; the pixels can.**",
    no_args_is_help=True,
)
audit = typer.Typer(
    help="The audit trail: who did what to which object, in a chain that shows every later change.",
    no_args_is_help=True,
)
codec = typer.Typer(help="The image codec by itself.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the command groups to the command line."""
    app.add_typer(keys, name="keys", rich_help_panel="Care")
    app.add_typer(audit, name="audit", rich_help_panel="Care")
    app.add_typer(codec, name="codec", rich_help_panel="Care")


@contextmanager
def _gateway(home: Path | None) -> Iterator[Gateway]:
    from gateway.bootstrap import build
    from gateway.settings import load_settings

    gateway = build(load_settings(**({"home": home} if home else {})))
    try:
        yield gateway
    finally:
        gateway.close()


def _record(gateway: Gateway, event: str, **detail: str | int) -> None:
    """Every act on keys is in the trail, under the name of the operating system's user."""
    from gateway.audit import AuditEvent

    gateway.index.audit(AuditEvent(event, f"cli:{getpass.getuser()}", detail=detail))


def _passphrase(file: Path | None, *, confirm: bool) -> str:
    if file is not None:
        return file.read_text("utf-8").rstrip("\r\n")
    return str(typer.prompt("Passphrase of the backup", hide_input=True, confirmation_prompt=confirm))


@keys.command("list")
def keys_list(home: Home = None) -> None:
    """All keys, without their secrets: id, kind, age, whether in use, whether in a proven backup."""
    with _gateway(home) as gateway:
        table = Table("id", "kind", "created", "in use", "backed up")
        for row in gateway.keys.list():
            table.add_row(row.id, row.kind, row.created, "yes" if row.current else "", "yes" if row.backed_up else "NO")
        console.print(table)


@keys.command("rotate")
def keys_rotate(
    kind: Annotated[str, typer.Argument(help="kek (seals objects), sign (signs records), token (web tokens), pseudo.")],
    new_pseudonyms: Annotated[
        bool, typer.Option("--new-pseudonyms", help="Needed for pseudo: patients and studies get other pseudonyms.")
    ] = False,
    home: Home = None,
) -> None:
    """Put a new key of one kind into use. Old ones stay, so that old objects still open. Then make a new backup."""
    if kind == "pseudo" and not new_pseudonyms:
        raise typer.BadParameter(
            "from then on the archive would file a patient's and a study's new objects under other pseudonyms than the "
            "old ones; if that is what you want, say --new-pseudonyms"
        )
    with _gateway(home) as gateway:
        key_id = gateway.keys.rotate(kind)
        _record(gateway, "key-rotated", kind=kind, key_id=key_id)
    console.print(f"{key_id} is in use now; make a new backup: palimpsest keys backup FILE", highlight=False)


@keys.command("backup")
def keys_backup(
    file: Annotated[Path, typer.Argument(help="New file, best on another disk; it is sealed with your passphrase.")],
    passphrase_file: PassFile = None,
    home: Home = None,
) -> None:
    """Write a sealed copy of the key ring, open it again, and try every key in it before it counts as a backup."""
    with _gateway(home) as gateway:
        proof = gateway.keys.backup(file, _passphrase(passphrase_file, confirm=True))
        _record(gateway, "key-backup", count=len(proof.ids))
    console.print(f"{file}: written, opened and proven for {len(proof.ids)} keys", highlight=False, soft_wrap=True)


@keys.command("restore")
def keys_restore(
    file: Annotated[Path, typer.Argument(help="A backup made by `palimpsest keys backup`.")],
    passphrase_file: PassFile = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing ring (the old one is kept beside).")
    ] = False,
    home: Home = None,
) -> None:
    """Rebuild the key ring from a backup."""
    from gateway.keys import KeyRing
    from gateway.settings import load_settings

    settings = load_settings(**({"home": home} if home else {}))
    KeyRing.restore(
        file, _passphrase(passphrase_file, confirm=False), settings.keys_dir,
        overwrite=overwrite, archive_dir=settings.archive_dir,
    )  # fmt: skip
    with _gateway(home) as gateway:
        count = len(gateway.keys.list())
        _record(gateway, "key-restored", count=count)
    console.print(f"{count} keys restored into {settings.keys_dir}", highlight=False, soft_wrap=True)


@keys.command("export-public")
def keys_export_public(
    file: Annotated[Path, typer.Argument(help="JSON file to write.")],
    home: Home = None,
) -> None:
    """Write the public keys with which others can check the signatures inside archived images. No secret is in it."""
    with _gateway(home) as gateway:
        gateway.keys.export_public(file)
        _record(gateway, "key-exported", kind="public")
    console.print(str(file), highlight=False, soft_wrap=True)


@audit.command("verify")
def audit_verify(home: Home = None) -> None:
    """Walk the whole chain: finds every changed, removed, inserted or reordered event. Exit 1 if there is one."""
    from gateway.audit import verify
    from gateway.database import Database

    with _gateway(home) as gateway:
        database = Database(gateway.settings.database)
        report = verify(database, gateway.settings.audit_head_path)
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

    with _gateway(home) as gateway:
        database = Database(gateway.settings.database)
        if out is None:
            export(database, sys.stdout, since)
            return
        with out.open("w", encoding="utf-8") as stream:
            count = export(database, stream, since)
    console.print(f"{count} events in {out}", highlight=False, soft_wrap=True)


@codec.command("bench")
def codec_bench(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files, or folders that hold some.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures there.", metavar="FILE")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of our coder; the others run in one.")] = 1,
) -> None:
    """Measure our coder against JPEG XL (effort 9), JPEG-LS and HTJ2K on your files: bytes and speed. Sends nothing."""
    from worker.bench import bench, format_table

    with console.status("measuring") as status:
        report = bench(paths, json_file, threads, lambda row: status.update(f"measured {Path(row.path).name}"))
    typer.echo(format_table(report))
    for path, reason in report.skipped.items():
        typer.echo(f"skipped {path}: {reason}")
    raise typer.Exit(0 if report.rows else 1)
