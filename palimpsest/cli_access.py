"""`palimpsest sessions`: browsers that signed in, and ending what they may do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[
    Path | None, typer.Option(help="Folder that holds all state. Default: PALIMPSEST_HOME, else ./var.", metavar="DIR")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(rich_help_panel="Care")(sessions)


def sessions(
    end: Annotated[str | None, typer.Option(help="End all sessions of this subject.")] = None,
    end_all: Annotated[bool, typer.Option(help="End everybody's.")] = False,
    home: Home = None,
) -> None:
    """Who is signed in by browser, until when; --end and --end-all sign out at once (the identity provider knows of
    nothing: withdraw the account or its groups there, too).
    """
    from gateway.bootstrap import build
    from gateway.settings import load_settings

    gateway = build(load_settings(**({"home": home} if home else {})))
    try:
        if end is not None or end_all:
            typer.echo(f"ended: {gateway.index.sessions_end(None if end_all else end, 'command-line')}")
            return
        for each in gateway.index.sessions():
            times = (each.created_at, each.expires_at)
            began, until = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(at)) for at in times)
            typer.echo(f"{each.subject:<64} {','.join(each.roles):<30} {began} to {until} UTC")
    finally:
        gateway.close()
