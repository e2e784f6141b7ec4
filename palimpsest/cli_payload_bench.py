"""`palimpsest payload bench`: the carriers measured on one's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def payload_bench(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files, or folders that hold some.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures there.", metavar="FILE")] = None,
    modes: Annotated[str, typer.Option(help="Carriers, by commas; NAME+REGION keeps to a region. Default: all.")] = "",
    payloads: Annotated[str, typer.Option(help="Bits per sample, by commas. Default: .005 to .4.")] = "",
    side: Annotated[int, typer.Option(min=48, max=4096, help="Side of a tile, in samples.")] = 256,
    per_image: Annotated[int, typer.Option(min=1, help="Tiles of an image at most.")] = 4,
    per_patient: Annotated[int, typer.Option(min=1, help="Images of a patient at most.")] = 4,
    growth_every: Annotated[int, typer.Option(min=1, help="Measure file growth on every n-th tile.")] = 1,
    stegexpose: Annotated[
        Path | None, typer.Option(help="StegExpose's jar: also measure the share of 8-bit exports that it flags.")
    ] = None,
    detectors: Annotated[
        bool, typer.Option("--detectors/--no-detectors", help="AUC columns (needs the extra `bench`).")
    ] = True,
) -> None:
    """Measure every carrier at every payload on your files: exactness, distortion, growth, detectability, speed."""
    from worker.payload_bench import PAYLOADS, Plan, bench
    from worker.payload_modes import MODES, known
    from worker.payload_table import format_table
    from worker.payload_tiles import Choice
    from worker.stegexpose import StegExpose

    chosen = _listed(modes) or tuple(MODES)
    unknown = [mode for mode in chosen if not known(mode)]
    if unknown:
        raise typer.BadParameter(f"no such carrier: {', '.join(unknown)}; there are {', '.join(MODES)}")
    try:
        rates = tuple(float(part) for part in _listed(payloads)) or PAYLOADS
    except ValueError as error:
        raise typer.BadParameter("payloads are numbers, by commas") from error
    plan = Plan(
        chosen, rates, Choice(side, per_image, per_patient), growth_every, detectors,
        StegExpose(stegexpose) if stegexpose else None,
    )  # fmt: skip
    with console.status("measuring") as status:
        report = bench(paths, plan, json_file, lambda tile, n: status.update(f"tile {n}: {Path(tile.path).name}"))
    typer.echo(format_table(report))
    for path, reason in report.skipped.items():
        typer.echo(f"skipped {path}: {reason}")
    raise typer.Exit(0 if report.rows else 1)
