"""`palimpsest viewer`: the web viewer under /viewer, which is not part of this package."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from palimpsest.cli_care import Home

console = Console()
viewer = typer.Typer(help="The web viewer (OHIF) that the gateway serves under /viewer.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the command group to the command line."""
    app.add_typer(viewer, name="viewer", rich_help_panel="Care")


@viewer.command("install")
def install(
    source: Annotated[
        Path | None, typer.Option("--from", help="The packed distribution (npm pack), instead of npm.", metavar="FILE")
    ] = None,
    home: Home = None,
) -> None:
    """Fetch OHIF by npm, at its pinned version, check its digest and unpack it. Nothing of it runs on this machine."""
    from gateway.settings import load_settings
    from gateway.viewer import PACKAGE, VERSION
    from palimpsest import viewer_install

    settings = load_settings(**({"home": home} if home else {}))
    with tempfile.TemporaryDirectory() as folder:
        archive = source or viewer_install.fetch(Path(folder))
        count = viewer_install.install(archive, settings.viewer_dir)
    console.print(
        f"{PACKAGE} {VERSION}: {count} files in {settings.viewer_dir}", highlight=False, soft_wrap=True, markup=False
    )
