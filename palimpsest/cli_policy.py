"""`palimpsest policy`: is the policy file in order, what may stand in it, what would it do to a file or an instance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from gateway.policy import Rule
    from gateway.settings import Settings
    from worker.dryrun import DryRun, Passed, Tried

Home = Annotated[Path | None, typer.Option(help="Folder that holds all state.", metavar="DIR")]
console = Console(width=120)

policy = typer.Typer(
    help="The policy: how archive objects are made, and in which form copies go to which destination. One TOML file, "
    "`<home>/policy.toml` unless `PALIMPSEST_POLICY_FILE` names another; docs/policy-example.toml explains it.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the command group to the command line."""
    app.add_typer(policy, name="policy", rich_help_panel="Care")


def _settings(home: Path | None, file: Path | None) -> Settings:
    from gateway.settings import load_settings

    given = {"home": home, "policy_file": file}
    return load_settings(**{name: value for name, value in given.items() if value is not None})


@policy.command("check")
def policy_check(
    file: Annotated[Path | None, typer.Argument(help="Policy file; default: the one in force.")] = None,
    home: Home = None,
) -> None:
    """Check the policy as every start does: each problem with its line, its rule and what to do. Exit 1 if any."""
    from gateway.bootstrap import checked_policy
    from gateway.policy_file import policy_path

    settings = _settings(home, file)
    found, path = checked_policy(settings), policy_path(settings.policy_file, settings.home)
    if not path.exists():
        console.print(f"there is no policy file ({path}): the defaults hold", highlight=False, soft_wrap=True)
        return
    for kind, rules in (("archive", found.archive), ("route", found.route), ("delivery", found.delivery)):
        if rules:
            console.print(_table(kind, rules))
    count = f"{len(found.archive)} archive rules, {len(found.route)} route rules, {len(found.delivery)} delivery rules"
    line = f"{escape(str(path))} is [green]in order[/green]: {count}, then the defaults"
    console.print(line, highlight=False, soft_wrap=True)


@policy.command("schema")
def policy_schema() -> None:
    """Print the JSON Schema of the policy file, for editors and other checkers."""
    from gateway.policy_file import policy_schema

    typer.echo(policy_schema())


def _table(kind: str, rules: tuple[Rule, ...]) -> Table:
    table = Table("rule", "for", "does", title=f"{kind} rules, first match wins", title_justify="left")
    for rule in rules:
        table.add_row(rule.name, escape(_conditions(rule)), escape(_effects(rule)))
    return table


def _conditions(rule: Rule) -> str:
    parts = []
    for field in rule.conditions:
        values = getattr(rule, field)
        if "*" not in values:
            parts.append(f"{field}: {', '.join(_keyword(value) for value in values)}")
    return "\n".join(parts) or "anything"


def _keyword(uid: str) -> str:
    from gateway.sop_classes import STORAGE_CLASSES

    return next((keyword for keyword, known in STORAGE_CLASSES.items() if known == uid), uid)


def _effects(rule: Rule) -> str:
    """What a rule says beyond its conditions; what it leaves out is not repeated."""
    said = rule.model_dump(mode="json", exclude_unset=True, exclude={"name", *rule.conditions})
    return "\n".join(f"{field} = {json.dumps(value)}" for field, value in said.items()) or "the defaults"


@policy.command("explain")
def policy_explain(
    file: Annotated[Path | None, typer.Argument(help="A DICOM file, as it would be received.")] = None,
    instance: Annotated[
        int | None, typer.Option(help="Instead of a file: an instance that was received, by its number.")
    ] = None,
    calling_ae: Annotated[str | None, typer.Option(help="Who would send it; of an instance: who did.")] = None,
    destination: Annotated[
        list[str] | None, typer.Option(help="Only this destination (repeatable); it need not be configured.")
    ] = None,
    policy_file: Annotated[
        Path | None, typer.Option("--policy", help="Policy file; default: the one in force.", metavar="FILE")
    ] = None,
    json_out: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    home: Home = None,
) -> None:
    """Dry run: which rules match this file, what they would make of it, and what each destination would get.

    Everything is really made, with throw-away keys; nothing is stored, sent or recorded. A file needs no key ring.
    """
    from gateway.bootstrap import read_policy
    from gateway.settings import use_numba_cache

    use_numba_cache()
    from worker.dryrun import dry_run

    if (file is None) == (instance is None):
        raise typer.BadParameter("name a file, or an instance by --instance")
    settings = _settings(home, policy_file)
    found = read_policy(settings)
    data, sender = _read_file(file) if file is not None else _read_instance(settings, instance or 0)
    names = destination or [each.name for each in settings.destinations if each.forward]
    made = dry_run(data, found, names, calling_ae if calling_ae is not None else sender)
    if json_out:
        typer.echo(json.dumps(asdict(made), indent=1))
        return
    for line in _explained(made, asked=bool(destination)):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _read_file(file: Path) -> tuple[bytes, str]:
    from gateway.errors import NotFound

    try:
        return file.read_bytes(), ""
    except OSError as error:
        raise NotFound("unreadable", f"{file} cannot be read ({type(error).__name__})") from None


def _read_instance(settings: Settings, number: int) -> tuple[bytes, str]:
    """The file as it is given back, and who sent it. Raises NotFound, Gone."""
    from gateway.bootstrap import build
    from worker.retrieve import original_bytes

    gateway = build(settings)
    try:
        row = gateway.index.get(number)
        return original_bytes(gateway, row), row.calling_ae
    finally:
        gateway.close()


def _explained(made: DryRun, *, asked: bool) -> Iterator[str]:
    """asked: the destinations were named by hand, and are shown though nothing would be routed to them."""
    yield f"{made.size} bytes, SOP class {_keyword(made.sop_class)}, modality {made.modality or '(none)'}"
    archived = made.archived
    yield f"archive: rule '{archived.rule}'{_passing(archived.passed)}"
    how = f"sealed whole ({archived.reason})" if archived.reason else f"coded by {archived.coder}"
    yield f"  {how}, record {archived.carrier}; {archived.size} bytes, of these {archived.payload_bytes} of payload"
    if archived.global_part:
        lengths = archived.global_part
        both = f"{lengths['causal_bytes']} bytes in the frames, {lengths['stack_bytes']} on a stack"
        kept = f"on a stack with {lengths['record_bytes']} of the record" if lengths["frames"] else "in the frames"
        yield f"  global part {both}: kept {kept}"
    if archived.not_tried:
        yield f"  and for {', '.join(archived.not_tried)}, whose keys are not used here"
    yield f"route: rule '{made.routed.rule}'{_passing(made.routed.passed)}, by {_facts(made.routed.found)}"
    for each in made.delivered:
        if not each.routed:
            yield f"not to {each.destination} (route '{made.routed.rule}')" + ("; if it were:" if asked else "")
            if not asked:
                continue
        yield f"to {each.destination}: rule '{each.rule}'{_passing(each.passed)}"
        yield from (f"  {_attempt(tried)}" for tried in each.tried)
        yield f"  would be sent: {each.sent}" if each.sent else "  would not be sent: dead letter with the first reason"
    if not made.delivered:
        yield "no destination is configured; name one with --destination"


def _attempt(tried: Tried) -> str:
    if tried.reason:
        return f"{tried.representation}: cannot be made ({tried.reason})"
    if tried.changed is None:
        return f"{tried.representation}: {tried.size} bytes" + (f", syntax {tried.syntax}" if tried.syntax else "")
    return (
        f"{tried.representation}: {tried.size} bytes; {tried.changed} samples changed by at most {tried.max_change}, "
        f"PSNR {tried.psnr:.1f} dB; opened again, and gave the file back"
    )


def _facts(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value or '(none)'}" for name, value in found.items() if name != "sop_class")


def _passing(passed: Sequence[Passed]) -> str:
    return "" if not passed else f" (not {', '.join(f'{each.rule}: other {each.condition}' for each in passed)})"
