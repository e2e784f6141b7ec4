"""`palimpsest keys`: the key ring, its backups, its recipients, and how it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from palimpsest.cli_care import Home, PassFile, open_gateway, passphrase, record
from palimpsest.cli_shred import keys_shred

console = Console()

keys = typer.Typer(
    help="The key ring: what opens the sealed data. **Without it (or a backup) the patient data inside archived images "
    "cannot be read; the pixels can.**",
    no_args_is_help=True,
)
recipients = typer.Typer(
    help="Partners and offline recovery keys, to whom policy may share what is sealed. Public keys only.",
    no_args_is_help=True,
)
keys.add_typer(recipients, name="recipients")
keys.command("shred")(keys_shred)


def register(app: typer.Typer) -> None:
    """Add the command group to the command line."""
    app.add_typer(keys, name="keys", rich_help_panel="Care")


@keys.command("list")
def keys_list(home: Home = None) -> None:
    """All keys, without their secrets: id, kind, age, whether in use, whether in a proven backup."""
    with open_gateway(home) as gateway:
        table = Table("id", "kind", "created", "in use", "backed up")
        for row in gateway.keys.list():
            table.add_row(row.id, row.kind, row.created, "yes" if row.current else "", "yes" if row.backed_up else "NO")
        console.print(table)
        master, patients = gateway.keys.master.name, len(gateway.keys.patients.ids())
        console.print(f"{patients} patient keys, wrapped by master '{master}'", highlight=False)


@keys.command("rotate")
def keys_rotate(
    kind: Annotated[
        str,
        typer.Argument(help="kek (wraps patient keys), sign (signs records), certify, token, stego, pixel, or pseudo"),
    ],
    new_pseudonyms: Annotated[
        bool, typer.Option("--new-pseudonyms", help="Needed for pseudo: patients and studies get other pseudonyms.")
    ] = False,
    home: Home = None,
) -> None:
    """Put a new key of one kind into use. Old ones stay, so that old objects still open. Then make a new backup.

    `rotate kek` also brings every patient key under the new master version, while the gateway works.
    """
    if kind == "pseudo" and not new_pseudonyms:
        raise typer.BadParameter(
            "from then on the archive would file a patient's and a study's new objects under other pseudonyms than the "
            "old ones; if that is what you want, say --new-pseudonyms"
        )
    with open_gateway(home) as gateway:
        key_id = gateway.keys.rotate(kind)
        record(gateway, "key-rotated", kind=kind, key_id=key_id)
    console.print(f"{key_id} is in use now; make a new backup: palimpsest keys backup FILE", highlight=False)


@keys.command("rewrap")
def keys_rewrap(home: Home = None) -> None:
    """Finish a rotation that was stopped: bring every patient key under the master's version in use."""
    with open_gateway(home) as gateway:
        count = gateway.keys.rewrap()
        record(gateway, "key-rewrapped", count=count)
    console.print(f"{count} patient keys rewrapped", highlight=False)


@keys.command("backup")
def keys_backup(
    file: Annotated[Path, typer.Argument(help="New file, best on another disk; it is sealed with your passphrase.")],
    passphrase_file: PassFile = None,
    home: Home = None,
) -> None:
    """Write a sealed copy of the key ring, open it again, and try every key in it before it counts as a backup."""
    with open_gateway(home) as gateway:
        proof = gateway.keys.backup(file, passphrase(passphrase_file, confirm=True))
        record(gateway, "key-backup", count=len(proof.ids) + proof.patients)
    console.print(
        f"{file}: written, opened and proven for {len(proof.ids)} keys and {proof.patients} patients",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


@keys.command("restore")
def keys_restore(
    file: Annotated[Path, typer.Argument(help="A backup made by `palimpsest keys backup`.")],
    passphrase_file: PassFile = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing ring (the old one is kept beside).")
    ] = False,
    home: Home = None,
) -> None:
    """Rebuild the key ring from a backup, under the master that the settings name. Destroyed keys never come back."""
    from gateway.bootstrap import read_policy
    from gateway.index import Index
    from gateway.keys import KeyRing
    from gateway.masters import open_master
    from gateway.settings import load_settings

    settings = load_settings(**({"home": home} if home else {}))
    read_policy(settings)  # a wrong one would keep the restore out of the trail
    shredded: set[str] = set()
    if settings.database_url or settings.database_path.exists():
        index = Index(settings.database)
        index.create()
        shredded = index.shredded_keys()
        index.close()
    KeyRing.restore(
        file, passphrase(passphrase_file, confirm=False), settings.keys_dir, overwrite=overwrite,
        archive_dir=settings.archive_dir, master=open_master(settings), shredded=shredded,
    )  # fmt: skip
    with open_gateway(home, restoring=True) as gateway:  # also where a restore was killed: the trail must tell of it
        count, patients = len(gateway.keys.list()), len(gateway.keys.patients.ids())
        record(gateway, "key-restored", count=count + patients)
    where = f"{count} keys restored into {settings.keys_dir}, and {patients} patients"
    console.print(where, highlight=False, soft_wrap=True)


@keys.command("drill")
def keys_drill(
    file: Annotated[Path, typer.Argument(help="The backup to try.")],
    count: Annotated[int, typer.Option(min=1, max=10_000, help="Archived objects to open, drawn at random.")] = 20,
    passphrase_file: PassFile = None,
    home: Home = None,
) -> None:
    """Prove that a backup alone opens the archive: restore it beside, open random objects with it, remove it again."""
    from gateway.settings import use_numba_cache

    use_numba_cache()
    from palimpsest.drill import drill

    with open_gateway(home) as gateway:
        report = drill(gateway, file, passphrase(passphrase_file, confirm=False), count)
        outcome = "passed" if report.ok else "failed"
        record(gateway, "key-drill", count=report.opened + report.closed, outcome=outcome)
    console.print(
        f"{report.keys} keys of {report.at}: {report.opened} objects restored bit for bit, "
        f"{report.closed} shredded ones stayed closed, {len(report.failed)} failed",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for instance, reason in report.failed:
        console.print(f"[bold red]instance {instance}[/bold red]: {reason}", highlight=False)
    if not report.ok and not report.failed:
        console.print("nothing was archived before this backup: it proves nothing yet")
    raise typer.Exit(0 if report.ok else 1)


@keys.command("doctor")
def keys_doctor(home: Home = None) -> None:
    """Look at the whole key ring: permissions, master, every key, backups, rotation. Exit 1 if something is wrong."""
    from gateway.index import Index
    from gateway.keydoctor import examine
    from gateway.keys import KeyRing
    from gateway.masters import open_master
    from gateway.settings import load_settings

    settings = load_settings(**({"home": home} if home else {}))
    ring = KeyRing.open_readonly(settings.keys_dir, master=open_master(settings))
    named: set[str] = set()
    shredded: set[str] = set()
    if settings.database_url or settings.database_path.exists():
        index = Index(settings.database)
        named, shredded = index.patient_keys(), index.shredded_keys()
        index.close()
    findings = examine(ring, settings.archive_dir, named=named, shredded=shredded)
    colours = {"ok": "green", "note": "yellow", "problem": "bold red"}
    for found in findings:
        colour = colours[found.level]
        line = f"[{colour}]{found.level:8}[/{colour}]{found.check:14}{escape(found.text)}"
        console.print(line, highlight=False, soft_wrap=True)
        if found.advice:
            console.print(f"{'':22}-> {escape(found.advice)}", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if any(found.level == "problem" for found in findings) else 0)


@keys.command("purge")
def keys_purge(
    file: Annotated[Path, typer.Argument(help="A backup that still holds keys of shredded patients.")],
    passphrase_file: PassFile = None,
    home: Home = None,
) -> None:
    """Take the keys of all shredded patients out of a backup file, in its place."""
    with open_gateway(home) as gateway:
        ids = {stone.id for stone in gateway.keys.tombstones()}
        gateway.keys.purge_backup(file, passphrase(passphrase_file, confirm=False), ids)
        record(gateway, "key-backup-purged", count=len(ids))
    console.print(f"{file}: holds no shredded patient's key any more", highlight=False, soft_wrap=True)


@keys.command("forget")
def keys_forget(
    sha256: Annotated[str, typer.Argument(help="SHA-256 of a backup file that was destroyed, as the doctor names it.")],
    home: Home = None,
) -> None:
    """Strike a backup off the list, after you destroyed the file."""
    with open_gateway(home) as gateway:
        gateway.keys.forget_backup(sha256)
        record(gateway, "key-backup-forgotten", count=1)
    console.print("struck off the list", highlight=False)


@keys.command("export-public")
def keys_export_public(
    file: Annotated[Path, typer.Argument(help="JSON file to write.")],
    pem: Annotated[
        bool, typer.Option("--pem", help="Only the key in use for restore certificates, as PEM, for openssl.")
    ] = False,
    home: Home = None,
) -> None:
    """Write the public keys with which others check signatures in archived images, and restore certificates.

    No secret is in it.
    """
    with open_gateway(home) as gateway:
        gateway.keys.export_public(file, pem=pem)
        record(gateway, "key-exported", kind="public")
    console.print(str(file), highlight=False, soft_wrap=True)


# --- recipients ---


@recipients.command("list")
def recipients_list(home: Home = None) -> None:
    """Name, kind and fingerprint (SHA-256 of the public key) of every recipient."""
    from hashlib import sha256

    with open_gateway(home) as gateway:
        table = Table("name", "kind", "recovery", "fingerprint")
        for each in gateway.keys.recipients():
            table.add_row(each.name, each.kind, "yes" if each.recovery else "", sha256(each.public).hexdigest()[:32])
        console.print(table)


@recipients.command("add")
def recipients_add(
    name: Annotated[str, typer.Argument(help="As the policy file names it.")],
    file: Annotated[
        Path,
        typer.Argument(help="Public key: PEM or DER (RSA, X25519, or a certificate), raw or base64 (X25519, X-Wing)."),
    ],
    recovery: Annotated[
        bool, typer.Option("--recovery", help="An offline key of your own: pixel keys are wrapped to it, too.")
    ] = False,
    home: Home = None,
) -> None:
    """Add a recipient. Compare the fingerprint with the owner by another way before you trust it."""
    from hashlib import sha256

    from gateway.errors import PolicyRefused
    from gateway.keyrecipients import read_public
    from gateway.keystate import Recipient
    from stego.recipients import check_public

    kind, public = read_public(file)
    try:
        check_public(kind, public)
    except ValueError as error:
        raise PolicyRefused("bad-recipient", f"{file} holds no usable public key: {error}") from None
    with open_gateway(home) as gateway:
        gateway.keys.add_recipient(Recipient(name, kind, public, recovery))
        record(gateway, "recipient-added", kind=kind, key_id=name)
    console.print(f"{name}: {kind}, fingerprint {sha256(public).hexdigest()}", highlight=False, soft_wrap=True)


@recipients.command("generate")
def recipients_generate(
    private_file: Annotated[Path, typer.Argument(help="New file for the private key; keep it offline.")],
    public_file: Annotated[Path, typer.Argument(help="New file for the public key, for `recipients add`.")],
    kind: Annotated[str, typer.Option(help="xwing (for decades), x25519 or rsa.")] = "xwing",
) -> None:
    """Make a key pair, for an offline recovery key or a partner without tools. RSA is DER, the others are base64."""
    import base64

    from gateway import keyfile
    from gateway.errors import PolicyRefused
    from stego.recipients import KINDS, generate

    chosen = next((known for known in KINDS if known == kind), None)
    if chosen is None:
        raise typer.BadParameter(f"one of {', '.join(KINDS)}", param_hint="--kind")
    for path in (private_file, public_file):  # both, before one of them is written
        if path.exists():
            raise PolicyRefused("file-exists", f"{path} exists already; keys are never overwritten")
    for path, key in zip((private_file, public_file), generate(chosen), strict=True):
        try:
            keyfile.write_new(path, key if chosen == "rsa" else base64.b64encode(key) + b"\n")
        except OSError:
            raise PolicyRefused("file-unwritable", f"{path} cannot be written") from None
    console.print(f"{private_file} opens what is shared with {public_file}", highlight=False, soft_wrap=True)


@recipients.command("remove")
def recipients_remove(
    name: Annotated[str, typer.Argument(help="As `recipients list` shows it.")],
    home: Home = None,
) -> None:
    """Remove a recipient: nothing new is shared. What was shared before stays readable to the owner."""
    with open_gateway(home) as gateway:
        gateway.keys.remove_recipient(name)
        record(gateway, "recipient-removed", key_id=name)
    console.print(f"{name} removed", highlight=False)
