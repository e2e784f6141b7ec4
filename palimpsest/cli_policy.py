"""`palimpsest policy`: is the policy file in order, what may stand in it, and what would it do to a given file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from gateway.policy import Rule
    from gateway.settings import Settings

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

    settings = _settings(home, file)
    found = checked_policy(settings)
    for kind, rules in (("archive", found.archive), ("delivery", found.delivery)):
        if rules:
            console.print(_table(kind, rules))
    count = f"{len(found.archive)} archive rules, {len(found.delivery)} delivery rules"
    console.print(f"[green]in order[/green]: {count}, then the defaults", highlight=False)


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
    from gateway.sop_classes import STORAGE_CLASSES

    keywords = {uid: keyword for keyword, uid in STORAGE_CLASSES.items()}
    parts = []
    for field in rule.conditions:
        values = getattr(rule, field)
        if "*" not in values:
            parts.append(f"{field}: {', '.join(keywords.get(value, value) for value in values)}")
    return "\n".join(parts) or "anything"


def _effects(rule: Rule) -> str:
    """What a rule says beyond its conditions; what it leaves out is not repeated."""
    said = rule.model_dump(mode="json", exclude_unset=True, exclude={"name", *rule.conditions})
    return "\n".join(f"{field} = {json.dumps(value)}" for field, value in said.items()) or "the defaults"
