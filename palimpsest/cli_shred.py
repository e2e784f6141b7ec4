"""`palimpsest keys shred`: one patient's identity destroyed for good, in words that leave no doubt."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from gateway.bootstrap import Gateway
    from worker.shred import Patient

console = Console()
REASON = re.compile(r"[a-z0-9][a-z0-9-]{1,63}")


def keys_shred(
    patient_id: Annotated[
        str, typer.Option("--patient-id", help="Patient ID (0010,0020). A minus sign: read it from standard input.")
    ] = "",
    study: Annotated[str, typer.Option(help="Study Instance UID, for objects without a Patient ID.")] = "",
    reason: Annotated[str, typer.Option(help="Why, as a machine word; it stands in the trail.")] = "erasure-request",
    backup: Annotated[
        list[Path] | None, typer.Option(help="A backup of the key ring to take the keys out of; may be repeated.")
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="Passphrase of the backups, instead of asking.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Go on although other recipients, or the master key, can open some.")
    ] = False,
    images_too: Annotated[
        bool, typer.Option("--images-too", help="Go on although some images were sealed whole and are lost, too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen, and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Annotated[Path | None, typer.Option(help="Folder that holds all state.", metavar="DIR")] = None,
) -> None:
    """Destroy one patient's keys and every trace of the identity here. **Nobody can undo it.** The pixels stay."""
    from gateway.keybackup import open_backup, read_backup
    from palimpsest.cli_care import open_gateway, operator, passphrase, record
    from worker.shred import find_patient, shred

    if REASON.fullmatch(reason) is None:
        raise typer.BadParameter("a machine word: small letters, digits and minus signs", param_hint="--reason")
    if bool(patient_id) == bool(study):
        raise typer.BadParameter("name either a Patient ID or a study")
    if patient_id == "-" and not (yes or dry_run or sys.stdin.isatty()):
        raise typer.BadParameter("standard input holds the ID and cannot answer the question: say --yes, too")
    with open_gateway(home) as gateway:
        who = sys.stdin.readline().strip() if patient_id == "-" else patient_id
        patient = find_patient(gateway, who, study)
        _describe(patient)
        if dry_run:
            return
        secret = passphrase(passphrase_file, confirm=False) if backup else ""
        for path in backup or ():  # before anything is destroyed: a wrong passphrase would leave the keys in it
            open_backup(read_backup(path), secret)
        if not yes:
            typer.confirm("Destroy this patient's keys for good?", abort=True)
        report = shred(gateway, patient, actor=operator(), reason=reason, partial=partial, images_too=images_too)
        for path in backup or ():
            gateway.keys.purge_backup(path, secret, patient.key_ids)
            record(gateway, "key-backup-purged", count=len(patient.key_ids))
            console.print(f"{path}: taken out of this backup", highlight=False, soft_wrap=True)
        console.print(f"{report.pseudonym}: {report.keys} keys destroyed, {report.instances} instances forgotten")
        if report.still_open:
            console.print(f"[bold red]{report.still_open} of them can still be opened by others[/bold red]")
        if report.kept:
            console.print(
                f"[bold red]{report.kept} sealed whole came meanwhile[/bold red]: they stay in the spool until you run "
                "this again with --images-too", highlight=False, soft_wrap=True,
            )  # fmt: skip
        _warn_of_backups(gateway, patient)


def _describe(patient: Patient) -> None:
    subject = patient.subject
    rows = (
        ("pseudonym", patient.pseudonym),
        ("keys", len(patient.key_ids)),
        ("instances", len(subject.rows)),
        ("not archived or forwarded yet", len(subject.unfinished)),
        ("shared with other recipients", len(subject.shared)),
        ("sealed before there were patient keys", len(subject.old)),
        ("sealed whole: their pixels go, too", len(subject.whole)),
    )
    for name, value in rows:
        console.print(f"{name:40}{value}", highlight=False)


def _warn_of_backups(gateway: Gateway, patient: Patient) -> None:
    """Backups that hold the keys still: whoever has one, and its passphrase, undoes what was done."""
    for each, _ in gateway.keys.backups_holding(patient.key_ids):
        console.print(
            f"[bold red]the backup of {each.at} (SHA-256 {each.sha256}) holds the keys still[/bold red]: "
            "run `palimpsest keys purge FILE`, or destroy it and `palimpsest keys forget` its digest",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
