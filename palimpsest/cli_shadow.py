"""`palimpsest shadow`: what the gateway would save, without a gateway."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("shadow", rich_help_panel="Start here")(shadow)


def shadow(
    listen: Annotated[str, typer.Option(help="Where senders connect.", metavar="HOST:PORT")] = "127.0.0.1:11114",
    to: Annotated[str, typer.Option(help="Their PACS: everything goes on to it, untouched.", metavar="HOST:PORT")] = "",
    folder: Annotated[
        Path | None, typer.Option(help="Instead of traffic: the files below it, which are only read.", metavar="DIR")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="With --folder: and those that come.")] = False,
    json_file: Annotated[Path, typer.Option("--json", help="The report.", metavar="FILE")] = Path("shadow.json"),
    page: Annotated[Path, typer.Option(help="The same as a page.", metavar="FILE")] = Path("shadow.html"),
    seconds: Annotated[float, typer.Option(min=0, help="Stop after so long; 0: at Ctrl-C.")] = 0.0,
    queue: Annotated[int, typer.Option(min=1, help="Objects that may wait to be measured; more are dropped.")] = 64,
    link_mbit: Annotated[float, typer.Option(min=0.001, help="Line for which saved seconds are reckoned.")] = 100.0,
) -> None:
    """Watch traffic on its way to a PACS, change nothing, and report the bytes and seconds that would be saved.

    Senders connect here instead of to the PACS; every byte goes on both ways at once, and answers are the PACS's own.
    Copies are measured beside that by our coder, JPEG XL, JPEG-LS and HTJ2K, as far as there is time: what is dropped
    is counted. Nothing is kept but the report, which holds no patient data.
    """
    from gateway.settings import use_numba_cache
    from palimpsest.shadow import shadow_folder, shadow_traffic
    from palimpsest.shadow_plan import Limits, Plan

    if bool(to) == (folder is not None):
        raise typer.BadParameter("name a PACS (--to HOST:PORT) or a folder (--folder DIR)")
    limits = Limits(objects=queue)
    if folder is not None:
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        use_numba_cache()
        plan = Plan(json_file, page, link_mbit=link_mbit, limits=limits)
        report = shadow_folder(plan, folder, stop, follow=follow, seconds=seconds)
        typer.echo(f"{report.total().measured} objects measured: {json_file}, {page}")
        return
    plan = Plan(json_file, page, _address(listen), _address(to), link_mbit, limits=limits)
    try:
        relayed = shadow_traffic(plan, typer.echo, seconds)
    except OSError as error:
        raise typer.BadParameter(f"{listen}: {error.strerror or error}") from error
    typer.echo(f"{relayed.connections} connections, {relayed.bytes_to_server} bytes: {json_file}, {page}")


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise typer.BadParameter(f"{text}: not HOST:PORT")
    return host.strip("[]"), int(port)
