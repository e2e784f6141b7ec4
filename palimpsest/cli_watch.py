"""`palimpsest exporter`: metrics of a host that runs workers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path | None, typer.Option(help="Folder that holds all state.", metavar="DIR")]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("exporter", rich_help_panel="Single processes")(exporter)


def exporter(home: Home = None) -> None:
    """Run only /metrics and /healthz of this host, for Prometheus: where no API runs that would show them.

    Address: PALIMPSEST_EXPORTER_HOST (127.0.0.1), PALIMPSEST_EXPORTER_PORT (9464); a token as for the API.
    """
    from gateway.settings import use_home

    if home is not None:
        use_home(home)
    from service.exporter import main

    main()
