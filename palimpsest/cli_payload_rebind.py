"""`palimpsest payload rebind`: an orphaned or header-damaged object gets its identity and its original file back."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


def payload_rebind(
    file: Annotated[Path, typer.Argument(help="A stego object, an archive object, or what is left of one.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New file for the original; never overwritten.")],
    restoration: Annotated[
        Path | None,
        typer.Option(
            "--restoration", help="The restoration record, if it is kept outside the archive.", metavar="FILE"
        ),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, max=65535, help="Rows, where the file does not say.")] = None,
    columns: Annotated[int | None, typer.Option(min=1, max=65535, help="Columns, where the file does not say.")] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of raw pixels. Default: 1.")] = None,
    allocated: Annotated[int | None, typer.Option(help="Bits allocated, 8 or 16. Default: both are tried.")] = None,
    stored: Annotated[int | None, typer.Option(min=8, max=16, help="Bits stored. Default: all are tried.")] = None,
    signed: Annotated[
        bool | None, typer.Option("--signed/--unsigned", help="Pixel representation. Default: both are tried.")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="Folder that holds all state.", metavar="DIR")] = None,
) -> None:
    """Find who an orphan is by its pixels (or what is left of its container) and write the original file.

    Needs the key ring, and the archive for what the file does not carry itself; the gateway need not run, and a lost
    database only makes it slower. Every try is in the audit trail.
    """
    from gateway.bootstrap import build
    from gateway.settings import load_settings
    from palimpsest.payload_files import check_free, read_file, write_result
    from worker.orphan import Shape
    from worker.rebind import audited_rebind

    check_free(out, force=None)
    if allocated not in (None, 8, 16):
        raise typer.BadParameter("bits allocated are 8 or 16")
    data, apart = read_file(file), None if restoration is None else read_file(restoration)
    shape = Shape(rows, columns, frames, allocated, stored, signed)
    gateway = build(load_settings(**({"home": home} if home else {})))
    try:
        found = audited_rebind(gateway, data, f"cli:{getpass.getuser()}", shape, apart)
    finally:
        gateway.close()
    write_result(out, found.data, force=None)
    exactly = "byte for byte as received" if found.exact else "in its native form, every pixel as received"
    console.print(
        f"{out}: {exactly}; found by {found.found}, restored from the {found.restored_from}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
