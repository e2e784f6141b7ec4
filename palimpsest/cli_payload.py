"""`palimpsest payload`: what hides in images, by files, without a running gateway."""

from __future__ import annotations

import typer

from palimpsest.cli_payload_bench import payload_bench

payload = typer.Typer(help="Payloads in images, file by file, without a running gateway.", no_args_is_help=True)
payload.command("bench")(payload_bench)


def register(app: typer.Typer) -> None:
    """Add the command group to the command line."""
    app.add_typer(payload, name="payload", rich_help_panel="Care")
