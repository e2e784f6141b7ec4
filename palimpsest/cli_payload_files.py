"""`palimpsest payload capacity|embed|extract|inspect`: single files, with a key ring and no running gateway."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.errors import InvalidInstance, NotFound, PolicyRefused, Unavailable, Unsupported

if TYPE_CHECKING:
    from gateway.keys import KeyRing
    from gateway.policy import DeliveryRule
    from gateway.settings import Settings
    from palimpsest.payload_files import Embedded, Mode
    from worker.capacity import Capacity
    from worker.deid_profile import Profile
    from worker.stegoseries import StegoSeries

Home = Annotated[Path | None, typer.Option(help="Folder that holds a gateway's state.", metavar="DIR")]
Keys = Annotated[
    Path | None, typer.Option("--keys", help="Folder of the key ring. Default: the gateway's own.", metavar="DIR")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.", metavar="FILE")]
Force = Annotated[bool, typer.Option("--force", help="Replace existing files.")]
Restoration = Annotated[
    Path | None,
    typer.Option("--restoration", help="The object's restoration record, where it lies apart.", metavar="FILE"),
]
MODES = ("auto", "segmented", "self-contained", "hidden")
console = Console(width=120)


def _settings(home: Path | None, policy: Path | None = None) -> Settings:
    from gateway.settings import load_settings

    given = {"home": home, "policy_file": policy}
    return load_settings(**{name: value for name, value in given.items() if value is not None})


# --- capacity ---


def payload_capacity(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files, or folders that hold some.")],
    payload_bytes: Annotated[
        int, typer.Option("--payload", min=64, max=1 << 16, help="Bytes to predict for; a usual capsule has 768.")
    ] = 768,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures there.", metavar="FILE")] = None,
    force: Force = False,
) -> None:
    """What each image can carry in each mode: bits, predicted PSNR and largest change, and if not, why not."""
    from palimpsest.payload_files import check_free, write_result
    from palimpsest.scan import find_files

    if json_file is not None:
        check_free(json_file, force=force)
    report: list[dict[str, Any]] = []
    for path in find_files(paths):
        report.append(_measured(path, payload_bytes))
    if json_file is not None:
        write_result(json_file, json.dumps(report, indent=1, allow_nan=False).encode() + b"\n", force=force)
    raise typer.Exit(0 if any("modes" in row for row in report) else 1)


def _measured(path: Path, payload_bytes: int) -> dict[str, Any]:
    from palimpsest.payload_files import read_file
    from worker.capacity import measure_capacity

    try:
        found = measure_capacity(read_file(path), payload_bytes)
    except (InvalidInstance, NotFound, Unavailable, Unsupported) as error:
        console.print(f"{path}: {error.reason}: {error.message}", markup=False, highlight=False, soft_wrap=True)
        return {"path": str(path), "reason": error.reason}
    console.print(_capacity_table(path, found))
    return {"path": str(path), **asdict(found), "suggested": found.suggested()}


def _capacity_table(path: Path, found: Capacity) -> Table:
    sign = "signed" if found.signed else "unsigned"
    title = f"{path.name}: {found.rows} x {found.columns}, {found.frames} frame(s), {found.bits_stored} bits {sign}"
    table = Table(title=escape(title), title_justify="left")
    for name in (
        "mode",
        "bits",
        "bit/sample",
        f"{found.payload_bytes} bytes",
        "PSNR dB",
        "change",
        "samples",
        "why not",
    ):
        table.add_column(name, justify="left" if name in ("mode", "why not") else "right")
    for each in found.modes:
        figures = (f"{each.psnr:.1f}" if each.psnr is not None else "", _text(each.max_change), _text(each.changed))
        rate = f"{each.bits / (found.rows * found.columns):.3f}"
        why = escape(f"{each.reason}: {each.why}") if each.reason else ""
        table.add_row(each.mode, f"{each.bits:,}", rate, "fit" if each.suited else "NO", *figures, why)
    return table


def _text(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


# --- embed ---


def payload_embed(
    file: Annotated[
        Path, typer.Argument(help="A DICOM file; with --mode hidden also a folder: its series shares one payload.")
    ],
    out: Out,
    mode: Annotated[
        str,
        typer.Option(
            help="segmented: the archive object. self-contained: a de-identified image that restores itself. "
            "hidden: one that does not show it carries anything. auto: what policy or the image says."
        ),
    ] = "auto",
    destination: Annotated[
        str | None, typer.Option(help="With auto: as the policy says for this destination.", metavar="NAME")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file; default: the gateway's.", metavar="FILE")] = None,
    restoration: Annotated[
        Path | None,
        typer.Option("--restoration", help="Write what restores the image there, not into its header.", metavar="FILE"),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="De-identification option (repeat), such as retain-uids.", metavar="NAME")
    ] = None,
    keys: Keys = None,
    create_keys: Annotated[bool, typer.Option("--create-keys", help="Make a key ring if there is none.")] = False,
    force: Force = False,
    home: Home = None,
) -> None:
    """Seal a file's identity into its image. The result was opened again and compared before it is written."""
    from palimpsest.payload_files import attempts, embed, open_ring, read_file, record_use, write_embedded

    chosen = _mode(mode, destination)
    if chosen == "hidden" and restoration is None:
        raise typer.BadParameter("hidden shows nothing in the image, so what restores it needs a place: --restoration")
    _check_places(None if file.is_dir() else out, out, restoration, force=force)
    settings = _settings(home, policy)
    if file.is_dir():
        if chosen != "hidden" or restoration is None:
            raise typer.BadParameter("a folder's series shares one payload with --mode hidden only")
        _embed_folder(settings, file, out, restoration, keys, _profile(option, None), create=create_keys, force=force)
        return
    data = read_file(file)
    rules, rule = _policy(settings, destination, data)
    ring = open_ring(settings, keys, create=create_keys, write=True)
    tries = attempts(chosen, rule)
    if "hidden" in tries and restoration is None:
        raise typer.BadParameter("the policy may choose hidden here, which needs --restoration FILE")
    made = embed(data, ring, rules, tries, _profile(option, rule), restoration_apart=restoration is not None)
    use = {"representation": made.representation, "key_id": str(made.facts["patient key"])}
    record_use(settings, keys, "payload-embedded", {**use, "bytes": len(made.data)})
    write_embedded(out, made, restoration, force=force)
    _print_embedded(out, restoration, made, len(data))


def _check_places(single: Path | None, out: Path, restoration: Path | None, *, force: bool) -> None:
    """Refuse before any work what could not be written after it. single: `out` where it is a file, not a folder."""
    from palimpsest.payload_files import check_apart, check_free

    check_apart(out, restoration)
    if single is not None:
        check_free(single, force=force)


def _embed_folder(
    settings: Settings, folder: Path, out: Path, restoration: Path, keys: Path | None, profile: Profile,
    *, create: bool, force: bool,
) -> None:  # fmt: skip
    from palimpsest.payload_files import open_ring, record_use
    from palimpsest.payload_series import embed_series

    def record(made: StegoSeries) -> None:
        count = len(made.images)
        detail: dict[str, str | int | bool] = {"representation": "hidden", "key_id": made.patient_key, "count": count}
        record_use(settings, keys, "payload-embedded", detail)

    ring = open_ring(settings, keys, create=create, write=True)
    made = embed_series(folder, out, restoration, ring, profile, force=force, record=record)
    shares = f"{min(made.shares)} to {max(made.shares)} bytes each, {min(made.changed)} to {max(made.changed)} samples"
    text = f"{out}: {len(made.images)} images share one payload: {shares}; opened again and compared"
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{restoration}: keep it, nothing else restores them", markup=False, soft_wrap=True)


def _mode(mode: str, destination: str | None) -> Mode:
    if mode not in MODES:
        raise typer.BadParameter(f"modes are {', '.join(MODES)}")
    if destination is not None and mode != "auto":
        raise typer.BadParameter("a destination's policy decides with --mode auto only")
    return cast("Mode", mode)


def _policy(settings: Settings, destination: str | None, data: bytes) -> tuple[Any, DeliveryRule | None]:
    from gateway.bootstrap import read_policy
    from gateway.part10 import peek
    from worker.rules import modality_of

    rules = read_policy(settings)
    if destination is None:
        return rules, None
    return rules, rules.delivery_rule(destination, peek(data).sop_class_uid, modality_of(data))


def _profile(option: list[str] | None, rule: DeliveryRule | None) -> Profile:
    from worker.deid_profile import Profile

    names = option or (list(rule.deidentify) if rule is not None else [])
    try:
        return Profile.of(name.replace("-", "_") for name in names)
    except ValueError as error:
        raise typer.BadParameter(str(error).replace("_", "-")) from None


def _print_embedded(out: Path, restoration: Path | None, made: Embedded, size: int) -> None:
    for mode, reason in made.passed_over.items():
        console.print(f"not {mode}: {reason}", markup=False, highlight=False, soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    table.add_row("mode", made.representation)
    table.add_row("bytes", f"{size:,} in, {len(made.data):,} out")
    for name, value in made.facts.items():
        table.add_row(name, escape(str(value)))
    console.print(f"{out}: written, opened again and compared", markup=False, highlight=False, soft_wrap=True)
    if made.restoration is not None:
        console.print(f"{restoration}: keep it, nothing else restores this image", markup=False, soft_wrap=True)
    elif restoration is not None:
        console.print(f"{restoration}: not written, as this object needs none", markup=False, soft_wrap=True)
    console.print(table)


# --- extract, inspect ---


def payload_extract(
    file: Annotated[Path, typer.Argument(help="An archive or stego object, or a folder with one series of them.")],
    out: Out,
    restoration: Restoration = None,
    member: Annotated[int | None, typer.Option(min=1, help="Which instance of a group's archive object.")] = None,
    keys: Keys = None,
    force: Force = False,
    home: Home = None,
) -> None:
    """Get the original file back, compared with its signed digest before a byte is written. It names the patient."""
    from palimpsest.payload_files import check_free, extract, open_ring, read_file, record_use, write_result

    settings = _settings(home)
    if file.is_dir():
        _extract_folder(settings, file, out, restoration, keys, force=force)
        return
    check_free(out, force=force)
    ring = open_ring(settings, keys)
    data, apart = read_file(file), None if restoration is None else read_file(restoration)
    try:
        found = extract(data, ring, apart, member)
    except PolicyRefused as error:
        record_use(settings, keys, "payload-refused", {"reason": error.reason})
        raise
    record_use(settings, keys, "payload-extracted", {"key_id": " ".join(found.key_ids), "exact": found.exact})
    write_result(out, found.data, force=force)
    exact = "the file as received, bit for bit" if found.exact else "native pixels: the file as received was compressed"
    console.print(f"{out}: {exact}; SHA-256 {found.sha256}", markup=False, highlight=False, soft_wrap=True)


def _extract_folder(
    settings: Settings, folder: Path, out: Path, restoration: Path | None, keys: Path | None, *, force: bool
) -> None:
    from palimpsest.payload_files import open_ring, record_use
    from palimpsest.payload_series import extract_series

    if restoration is None:
        raise typer.BadParameter("a series needs its restoration record: --restoration")

    def record(count: int) -> None:
        record_use(settings, keys, "payload-extracted", {"count": count})

    written = extract_series(folder, out, open_ring(settings, keys), restoration, force=force, record=record)
    console.print(f"{out}: {len(written)} files", markup=False, highlight=False, soft_wrap=True)


def payload_inspect(
    file: Annotated[Path, typer.Argument(help="Any DICOM file.")],
    keys: Keys = None,
    no_keys: Annotated[bool, typer.Option("--no-keys", help="Only what everybody can know.")] = False,
    identity: Annotated[
        bool, typer.Option("--identity", help="Also show the patient: terminals are logged, so it must be asked for.")
    ] = False,
    json_out: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    home: Home = None,
) -> None:
    """What a file tells without a key, and with the keys: carrier, keys, signer, digests, times. Exit 1 if damaged."""
    from palimpsest.payload_files import read_file, record_use
    from palimpsest.payload_inspect import inspect

    settings, data = _settings(home), read_file(file)
    ring = None if no_keys else _ring_if_any(settings, keys)
    facts = inspect(data, ring, identity=identity)
    if ring is not None:
        record_use(settings, keys, "payload-inspected", {"kind": "identity" if identity else "facts"})
    if json_out:
        typer.echo(json.dumps(facts, indent=1))
    else:
        for title, layer in facts.items():
            console.print(f"[bold]{title}[/bold]")
            _print_facts(layer)
    raise typer.Exit(1 if facts["without a key"].get("kind") == "damaged" else 0)


def _ring_if_any(settings: Settings, keys: Path | None) -> KeyRing | None:
    """The ring, or None where none was named and the gateway has none."""
    from gateway.keyfile import RING_FILE
    from palimpsest.payload_files import open_ring

    if keys is None and not (settings.keys_dir / RING_FILE).exists():
        return None
    return open_ring(settings, keys)


def _print_facts(facts: Mapping[str, Any]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        lines = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            lines = [f"{key} {each}" for key, each in value.items()]
        table.add_row(f"  {name}", escape("\n".join(str(line) for line in lines)))
    console.print(table, highlight=False)
