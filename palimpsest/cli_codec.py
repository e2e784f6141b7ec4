"""`palimpsest codec`: the image codec by itself."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from worker.bench_plan import Plan

console = Console(stderr=True)  # progress only: figures go to standard output
codec = typer.Typer(help="The image codec by itself.", no_args_is_help=True)


class Profile(StrEnum):
    """How hard the codec tries."""

    FAST = "fast"
    DEFAULT = "default"
    MAX = "max"


class Device(StrEnum):
    """What networks are trained on."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Adapt(StrEnum):
    """What weights are fitted to."""

    NONE = "none"
    IMAGE = "image"
    SERIES = "series"


def register(app: typer.Typer) -> None:
    """Add the command group to the command line."""
    app.add_typer(codec, name="codec", rich_help_panel="Care")


@codec.callback()
def _kernels() -> None:
    from gateway.settings import use_numba_cache

    use_numba_cache()


@codec.command("bench")
def codec_bench(
    paths: Annotated[list[Path], typer.Argument(help="DICOM, NIfTI or PNG files, or folders that hold some.")],
    profile: Annotated[Profile, typer.Option(help="How hard our coder tries.")] = Profile.DEFAULT,
    adapt: Annotated[
        Adapt, typer.Option(help="Fit nothing, to each image, or to each series (files of one SeriesInstanceUID).")
    ] = Adapt.NONE,
    threads: Annotated[int, typer.Option(min=1, help="Threads of our coder; the others run in one.")] = 1,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write all figures there; '-': only them, to standard output.", metavar="FILE"),
    ] = None,
    ablation: Annotated[
        bool, typer.Option("--ablate", help="Our coder without one of its parts at a time, instead of the standards.")
    ] = False,
    without: Annotated[
        str, typer.Option(help="Parts that are left out all along, by commas (as --ablate names).")
    ] = "",
    max_frames: Annotated[int, typer.Option(min=0, help="Frames of a file at most, from its middle; 0: all.")] = 0,
    grey_rgb: Annotated[
        bool, typer.Option("--grey-rgb", help="NIfTI, PNG: colour of three equal parts is grey.")
    ] = False,
    manifest: Annotated[
        Path | None, typer.Option(help="CSV with path, use, source_repo, modality: measure what it lists.")
    ] = None,
    use: Annotated[str, typer.Option(help="Values of `use` in the manifest that are measured, by commas.")] = "",
    objects: Annotated[bool, typer.Option("--objects/--no-objects", help="Also archive whole objects.")] = True,
    weights: Annotated[
        list[Path] | None, typer.Option(help="A weight file that is not released, for profiles that have none.")
    ] = None,
    fit_seconds: Annotated[float, typer.Option(min=0.1, help="That one fit may take.")] = 4.0,
) -> None:
    """Measure our coder against JPEG XL (efforts 9 and 7), JPEG-LS and HTJ2K on your files: bytes and speed.

    Sends nothing.
    """  # fmt: skip
    from worker.bench_inputs import Choice
    from worker.bench_plan import Plan

    choice = Choice(max_frames, grey_rgb, manifest, _listed(use))
    plan = Plan(profile.value, adapt.value, threads, frozenset(_listed(without)), objects, fit_seconds, choice)
    _checked(plan)
    _add_weights(weights or [])
    text, table, found = _ablation(paths, plan) if ablation else _bench(paths, plan)
    if json_file is not None and str(json_file) != "-":
        json_file.write_text(text, encoding="utf-8")
    typer.echo(text if str(json_file) == "-" else table, nl=str(json_file) != "-")
    raise typer.Exit(0 if found else 1)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _checked(plan: Plan) -> None:
    from worker.bench_ablation import PARTS

    unknown = sorted(plan.without - set(PARTS))
    if unknown:
        raise typer.BadParameter(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")


def _add_weights(files: list[Path]) -> None:
    from codec.errors import CodecError
    from codec.weights import add

    for file in files:
        try:
            add(file.read_bytes())
        except (OSError, CodecError) as error:
            raise typer.BadParameter(f"{file}: {error}") from error


def _bench(paths: list[Path], plan: Plan) -> tuple[str, str, bool]:
    from worker.bench import bench
    from worker.bench_table import format_table

    with console.status("measuring") as status:
        report = bench(paths, plan, lambda row: status.update(f"measured {Path(row.path).name}#{row.frame}"))
    table = [format_table(report), *(f"skipped {path}: {reason}" for path, reason in report.skipped.items())]
    return report.as_json(), "\n".join(table), bool(report.frames)


def _ablation(paths: list[Path], plan: Plan) -> tuple[str, str, bool]:
    from worker.bench_ablation import ablate, format_ablation

    with console.status("measuring") as status:
        found = ablate(paths, plan, lambda path, frame: status.update(f"measured {Path(path).name}#{frame}"))
    return (
        json.dumps(found, indent=1) + "\n",
        format_ablation(found),
        any(each["n"] for each in found["parts"].values()),
    )


@codec.command("escrow")
def codec_escrow(
    out: Annotated[Path, typer.Argument(help="New folder; best beside each copy of the archive.", metavar="OUT")],
) -> None:
    """Write a folder that opens archived objects with Python and NumPy alone: formats, decoder, weights, vectors.

    Check it anywhere with `python3 OUT/verify.py`. No key is in it, and no patient data.
    """
    from worker.escrow import write_escrow

    made = write_escrow(out)
    typer.echo(f"{out}: {made.files} files, {made.size / 1e6:.1f} MB, {len(made.weights)} released weight files")
    typer.echo(f"check it:  python3 {out / 'verify.py'}")


@codec.command("train")
def codec_train(
    data: Annotated[Path, typer.Option(help="Folder of DICOM, NIfTI, PNG files; MANIFEST.csv: only use = train.")],
    out: Annotated[Path, typer.Option(help="Folder of the weight files, the model card, and what resuming needs.")],
    profile: Annotated[
        list[Profile] | None, typer.Option(help="What is trained (again for more); all of them.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of a profile's first network; fewer with early stopping.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, data and machine give the same weights.")] = 1,
    device: Annotated[
        Device, typer.Option(help="cpu: NumPy; cuda: torch on the first CUDA device; auto: cuda where there is one.")
    ] = Device.AUTO,
) -> None:
    """Train the learned coder's networks on your images, on a GPU or one core; run it again to resume. Sends nothing.

    What comes out is not released: archives only take weights that a release lists (docs/model-card.md).
    """
    from codec.gpu import NoDevice
    from codec.train.machine import open_machine
    from worker.training_run import Recipe, train

    chosen = tuple(one.value for one in profile or list(Profile))
    try:
        machine = open_machine(device.value)
    except NoDevice as error:
        raise typer.BadParameter(str(error)) from error
    for path in train(data, out, Recipe(chosen, steps, seed=seed), console.print, machine):
        typer.echo(path)
