"""`palimpsest certify` and `palimpsest check`: restore certificates made, and checked by anybody."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from palimpsest.cli_care import Home, open_gateway, operator

if TYPE_CHECKING:
    from gateway.bootstrap import Gateway
    from gateway.certificate import Recheck
    from gateway.certificate_format import Certificate
    from gateway.index_certificate import Proven

console = Console(soft_wrap=True, highlight=False, markup=False)
NOT_AUTHENTIC, MISMATCH = 3, 4


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("certify", rich_help_panel="Care")(certify)
    app.command("check", rich_help_panel="Care")(check)


def certify(
    instance: Annotated[
        str | None, typer.Argument(help="SOP Instance UID, or the number of an instance as the API shows it.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="All that was received of this study.", metavar="UID")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write it there.", metavar="FILE")] = None,
    recheck: Annotated[
        bool, typer.Option("--recheck", help="Decode now, in another process, from the archive, never from the spool.")
    ] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="With --recheck: by the NumPy reference decoder, too (slow).")
    ] = False,
    home: Home = None,
) -> None:
    """Sign what was proven: that another process rebuilt the received file from the archived object.

    It names original UIDs and the SHA-256 of received files: for their owner, not to be kept with the archive.
    """
    from gateway.certificate import certify_instance, certify_study
    from gateway.settings import use_numba_cache

    if (instance is None) == (study is None):
        raise typer.BadParameter("name an instance, or --study UID")
    if reference and not recheck:
        raise typer.BadParameter("--reference goes with --recheck")
    with open_gateway(home) as gateway:
        use_numba_cache(gateway.settings)
        found = gateway.index.proven_study(study) if study else [_find(gateway, str(instance))]
        rechecks = _rechecked(gateway, found, reference) if recheck else {}
        if study:
            data = certify_study(gateway, study, actor=operator(), rechecks=rechecks)
        else:
            data = certify_instance(gateway, found[0].row.id, actor=operator(), rechecks=rechecks)
    if json_file is None:
        typer.echo(data.decode("ascii"), nl=False)
        return
    json_file.touch(mode=0o600)  # it names the received instance
    json_file.write_bytes(data)
    console.print(f"{json_file}: {len(found)} instances certified{', decoded anew' if recheck else ''}")


def _find(gateway: Gateway, name: str) -> Proven:
    from gateway.errors import NotFound

    if name.isascii() and name.isdigit() and len(name) < 18:
        return gateway.index.proven_instance(int(name))
    rows = gateway.index.versions(name)
    row = next((row for row in rows if row.current), rows[0] if rows else None)
    if row is None:
        raise NotFound("unknown-instance", "there is no such instance")
    return gateway.index.proven_instance(row.id)


def _rechecked(gateway: Gateway, found: list[Proven], reference: bool) -> dict[int, Recheck]:
    from worker.recheck import recheck as prove_anew
    from worker.verify import Verifier

    settings = gateway.settings
    with Verifier(settings.keys_dir, memory_bytes=settings.worker_memory_bytes, settings=settings) as verifier:
        return prove_anew(gateway, verifier, found, actor=operator(), reference=reference)


def check(
    certificate: Annotated[Path, typer.Argument(help="A restore certificate.")],
    public_key: Annotated[
        list[Path], typer.Option("--public-key", help="Keys you trust: `palimpsest keys export-public` (JSON), or PEM.")
    ],
    file: Annotated[
        list[Path] | None, typer.Option("--file", help="A file as received or given back, or a folder of them.")
    ] = None,
    archive: Annotated[
        list[Path] | None, typer.Option("--archive", help="An archive object, or a folder of them.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Not every certified instance must have its --file.")
    ] = False,
) -> None:
    """Check a certificate, and files against it. Needs no gateway: only the certificate and a key that you trust.

    Exit 0: authentic, and all that was given belongs to it. 3: not authentic. 4: authentic, but something given does
    not belong to it, or is missing. 1: something cannot be read.
    """
    from gateway.certificate_format import BadCertificate
    from palimpsest.check import check_archive, check_files, read_certificate

    try:
        found = read_certificate(certificate, public_key, time.time())
    except BadCertificate as error:
        console.print(f"NOT AUTHENTIC  {error.reason}: {error.message}")
        raise typer.Exit(NOT_AUTHENTIC) from None
    _tell(found)
    verdicts = [*check_archive(found, archive or []), *(check_files(found, file, partial=partial) if file else [])]
    for each in verdicts:
        console.print(f"{'ok      ' if each.ok else 'MISMATCH'}  {each.what}: {each.text}")
    if not verdicts:
        console.print("no file was held against it")
    raise typer.Exit(0 if all(each.ok for each in verdicts) else MISMATCH)


def _tell(found: Certificate) -> None:
    statement, entries = found.statement, found.instances
    console.print(f"authentic      signed by {found.signer}, trusted by {found.trusted_by}")
    console.print(f"issued         {statement['issued_at']} by {statement['issuer']}, {statement['software']}")
    console.print(f"states         {statement['subject']}, {statement['count']} instances proven by another process")
    anew = sum(1 for each in entries if each["rechecked"])
    if anew:
        console.print(f"decoded anew   {anew} of {len(entries)}")
    for each in entries:
        if each["shredded_at"]:
            remains = "its pixels" if each["archived"]["form"] == "CODED" else "nothing of it"
            console.print(
                f"shredded       instance {each['number']}, {each['shredded_at']}: the archive object and when it was "
                f"proven stand; {remains} can be restored; no received file can be named any more"
            )
