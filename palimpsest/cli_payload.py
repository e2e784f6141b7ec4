"""`palimpsest payload`: what hides in images, by files, without a running gateway."""

from __future__ import annotations

import typer

from palimpsest.cli_payload_bench import payload_bench
from palimpsest.cli_payload_files import payload_capacity, payload_embed, payload_extract, payload_inspect
from palimpsest.cli_payload_rebind import payload_rebind

payload = typer.Typer(help="Payloads in images, file by file, without a running gateway.", no_args_is_help=True)


@payload.callback()
def _kernels() -> None:
    from gateway.settings import use_numba_cache

    use_numba_cache()


payload.command("capacity")(payload_capacity)
payload.command("embed")(payload_embed)
payload.command("extract")(payload_extract)
payload.command("inspect")(payload_inspect)
payload.command("rebind")(payload_rebind)
payload.command("bench")(payload_bench)


def register(app: typer.Typer) -> None:
    """Add the command group to the command line."""
    app.add_typer(payload, name="payload", rich_help_panel="Care")
