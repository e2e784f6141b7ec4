"""The command line `palimpsest`. Every command loads only the rooms it needs, when it runs."""

from __future__ import annotations

import signal
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from gateway.errors import PalimpsestError
from palimpsest import (
    cli_access,
    cli_audit,
    cli_care,
    cli_certify,
    cli_codec,
    cli_hosts,
    cli_keys,
    cli_ledger,
    cli_payload,
    cli_policy,
    cli_probe,
    cli_selftest,
    cli_shadow,
    cli_viewer,
    cli_watch,
    cli_wayback,
)

if TYPE_CHECKING:
    from gateway.bootstrap import Gateway
    from gateway.settings import Settings

HELP = """Palimpsest: a DICOM gateway between your scanners and your archive.

It takes images in (C-STORE, STOW-RS), compresses them without loss, seals the patient's data inside the image,
proves that the original can be restored, archives and forwards the result, and gives originals back (DICOMweb).

New here? `palimpsest run` starts everything on this machine and sends itself a sample study.
Then, in another terminal, `palimpsest send FOLDER` does the same with your own files.
"""

Home = Annotated[
    Path | None, typer.Option(help="Folder that holds all state. Default: PALIMPSEST_HOME, else ./var.", metavar="DIR")
]
console = Console(width=None if sys.stdout.isatty() else 150)  # a log file has no width; the table wants this much


class _Commands(TyperGroup):
    """Turns our errors into one line and exit status 1, instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        from palimpsest.client import FetchError
        from palimpsest.dimse import SendError

        try:
            return super().invoke(ctx)
        except (PalimpsestError, SendError, FetchError) as error:
            Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    name="palimpsest", help=HELP, cls=_Commands, no_args_is_help=True, rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
cli_keys.register(app)
cli_audit.register(app)
cli_access.register(app)
cli_codec.register(app)
cli_policy.register(app)
cli_payload.register(app)
cli_probe.register(app)
cli_ledger.register(app)
cli_certify.register(app)
cli_selftest.register(app)
cli_hosts.register(app)
cli_viewer.register(app)
cli_watch.register(app)
cli_shadow.register(app)
cli_wayback.register(app)


def _settings(home: Path | None) -> Settings:
    """Settings of this command; a home folder given on the command line counts for child processes too."""
    from gateway.settings import load_settings, use_home

    if home is not None:
        use_home(home)
    return load_settings()


def _gateway(home: Path | None) -> Gateway:
    from gateway.bootstrap import build

    return build(_settings(home))


@app.command(rich_help_panel="Start here")
def run(
    once: Annotated[
        bool, typer.Option("--once", help="Send the samples through, judge, stop. Exit 0 if all is well.")
    ] = False,
    no_samples: Annotated[bool, typer.Option("--no-samples", help="Do not send the sample study.")] = False,
    limit: Annotated[float, typer.Option(help="With --once: give up after so many seconds.")] = 900.0,
    home: Home = None,
) -> None:
    """Start everything on this machine: broker, DICOM listener, web side, workers, sweep.

    On the first start a sample study is sent by C-STORE and followed until every original has come back. Ctrl-C stops
    everything. Ports: PALIMPSEST_DICOM_PORT (11112), PALIMPSEST_HTTP_PORT (8080).
    """
    from palimpsest.main_job import run_everything

    raise typer.Exit(run_everything(_settings(home), console, once=once, samples=not no_samples, limit_seconds=limit))


@app.command(rich_help_panel="Start here")
def send(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files, or folders that hold some.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write a report of every file there.", metavar="FILE")
    ] = None,
    no_fetch: Annotated[bool, typer.Option("--no-fetch", help="Do not get the originals back and compare.")] = False,
    standards: Annotated[
        bool, typer.Option("--standards", help="Also weigh the files as JPEG XL and JPEG-LS DICOM objects (slow).")
    ] = False,
    associations: Annotated[int, typer.Option(min=1, max=16, help="Associations at once.")] = 2,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="One line per file only where something is wrong.")
    ] = False,
    patience: Annotated[float, typer.Option(help="Give up when nothing changed for so many seconds.")] = 900.0,
    tls: Annotated[bool, typer.Option("--tls", help="To the TLS port; always so where no other is open.")] = False,
    tls_name: Annotated[
        str, typer.Option(help="Name in the listener's certificate. Default: the address called.", metavar="NAME")
    ] = "",
    tls_cert: Annotated[Path | None, typer.Option(help="PEM; default: the listener's own.", metavar="FILE")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM; goes with --tls-cert.", metavar="FILE")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM; default: the listener's own.", metavar="FILE")] = None,
    calling: Annotated[str, typer.Option(help="AE title, where a certificate binds it.", metavar="AE")] = "",
    home: Home = None,
) -> None:
    """Send files to the running gateway, wait until they are archived and forwarded, get them back and compare.

    Files that the gateway has already are not sent again, so a broken run is resumed by repeating it. Files that
    are not DICOM are named with the reason. Exit 0 if something was accepted, and all of that came back equal.
    """
    from palimpsest.addresses import Secure
    from palimpsest.report import as_json, print_standards, print_summary, write_json
    from palimpsest.send import default_plan, send_paths
    from palimpsest.standards import measure_all

    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("--tls-cert and --tls-key go together")
    asked = tls or any((tls_name, tls_cert, tls_ca, calling))
    secure = Secure(tls_name, tls_cert, tls_key, tls_ca, calling) if asked else None
    gateway = _gateway(home)
    try:
        plan = default_plan(gateway, secure)
        plan = replace(plan, associations=associations, fetch=not no_fetch, quiet_seconds=patience)
        summary, tracker = send_paths(gateway, paths, console, _stop_event(), plan, quiet=quiet)
    finally:
        gateway.close()
    print_summary(console, summary)
    if not plan.wait_release:
        console.print("the spool, which this proof used, keeps the originals until the next `palimpsest keys backup`")
    report = as_json(summary, tracker.journeys, tracker.skipped)
    if standards:
        sums = measure_all(tracker.journeys)
        print_standards(console, sums)
        report["standards"] = {name: asdict(one) for name, one in sums.items()}
    if json_file is not None:
        write_json(json_file, report)
    raise typer.Exit(0 if summary.accepted and summary.clean else 1)


@app.command(rich_help_panel="Start here")
def fetch(
    study: Annotated[str | None, typer.Argument(help="Study Instance UID.")] = None,
    series: Annotated[str | None, typer.Argument(help="Series Instance UID.")] = None,
    instance: Annotated[str | None, typer.Argument(help="SOP Instance UID.")] = None,
    digest: Annotated[
        str | None, typer.Option(help="One version: SHA-256 of the file as received.", metavar="HEX")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("."),
    url: Annotated[str | None, typer.Option(help="Another gateway's address, e.g. http://gateway:8080.")] = None,
    token: Annotated[str | None, typer.Option(help="A bearer token for it.", envvar="PALIMPSEST_TOKEN")] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="PEM: who signed its certificate. Default: those Python trusts.", metavar="FILE")
    ] = None,
    home: Home = None,
) -> None:
    """Get originals back by WADO-RS: a study, a series, one instance, or one version by its digest."""
    from palimpsest import fetch as fetching

    if (study is None) == (digest is None):
        raise typer.BadParameter("name a study (and series, and instance), or a digest")
    written = fetching.fetch_files(
        fetching.web_client(lambda: _gateway(home), url, token, ca_file),
        fetching.route(study, series, instance, digest),
        out,
    )
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True, markup=False)


@app.command(rich_help_panel="Start here")
def status(
    json_out: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    home: Home = None,
) -> None:
    """What runs, what is waiting, what is archived, what failed and why."""
    from palimpsest.status import print_status

    gateway = _gateway(home)
    try:
        print_status(gateway, console, as_json=json_out)
    finally:
        gateway.close()


@app.command(rich_help_panel="Start here")
def token(
    role: Annotated[
        str, typer.Option(help="clinician (find, read), admin (run), auditor (trail), service (store, read).")
    ] = "clinician",
    subject: Annotated[str, typer.Option(help="Whose token it is; goes into the audit trail.")] = "local",
    hours: Annotated[float, typer.Option(help="How long it is valid.")] = 12.0,
    home: Home = None,
) -> None:
    """Print a bearer token for the web side (only someone who can read the key ring can make one)."""
    from gateway.tokens import mint_token

    gateway = _gateway(home)
    try:
        minted = mint_token(gateway, role, subject, hours * 3600)
        cli_care.record(gateway, "token-minted", role=role, subject=subject, seconds=int(hours * 3600))
        typer.echo(minted)
    finally:
        gateway.close()


@app.command(rich_help_panel="Single processes")
def listen(home: Home = None) -> None:
    """Run only the DICOM listener (C-STORE, C-ECHO, C-FIND, C-MOVE, C-GET)."""
    _settings(home)
    from service.listener import main

    main()


@app.command(rich_help_panel="Single processes")
def serve(home: Home = None) -> None:
    """Run only the web side: DICOMweb, health, admin page."""
    _settings(home)
    from service.api import main

    main()


@app.command(rich_help_panel="Single processes")
def work(
    queues: Annotated[str, typer.Option(help="From: index, encode, forward, retrieve, gpu.")] = "index,encode",
    concurrency: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    name: Annotated[str, typer.Option(help="Name in logs and leases.")] = "worker",
    device: Annotated[int | None, typer.Option(min=0, help="CUDA device to code on; default: this processor.")] = None,
    home: Home = None,
) -> None:
    """Run only workers, for the queues named."""
    _settings(home)
    from worker.process import main

    on_device = [] if device is None else ["--device", str(device)]
    main(["--queues", queues, "--concurrency", str(concurrency), "--name", name, *on_device])


@app.command(rich_help_panel="Single processes")
def sweep(home: Home = None) -> None:
    """Run only the sweep: sends what is due, adopts what was orphaned, releases what is proven."""
    _settings(home)
    from worker.sweep import main

    main([])


def _stop_event() -> threading.Event:
    """Set by Ctrl-C, so that a report is still printed; the second Ctrl-C ends at once."""
    stopping = threading.Event()

    def on_interrupt(*_: object) -> None:
        stopping.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, on_interrupt)
    return stopping
