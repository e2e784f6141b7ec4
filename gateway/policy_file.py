"""Reading the policy file (TOML): every problem is found, and named with its line, its rule and what to do.

There is no falling back: a file that is named and missing, or there and wrong, stops whoever wanted to start.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from gateway.errors import BadPolicy
from gateway.keystate import Recipient
from gateway.policy import ANY, NO_POLICY, ArchiveRule, DeliveryRule, Policy, RouteRule, Rule, did_you_mean

POLICY_FILE: Final = "policy.toml"
_HEADER: Final = re.compile(r"\s*\[\[?\s*([A-Za-z_-]+)\s*\]\]?\s*(#.*)?$")
_KEY: Final = re.compile(r"""\s*["']?([A-Za-z0-9_-]+)["']?\s*=""")
_TABLES: Final[Mapping[str, type[Rule]]] = {
    "archive": ArchiveRule, "route": RouteRule, "delivery": DeliveryRule
}  # fmt: skip
_HINTS: Final = {
    "missing": "is missing: add it",
    "bool_type": "is true or false, without quotes",
    "string_type": "is text in quotes",
    "tuple_type": "is a list, such as ['CT', 'MR']",
}
_TABLE_HINT: Final = "is a list of rules: head each with [[...]] in double brackets"

Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. reason: a machine word; line: 1 is the first, 0 unknown; where: the rule, or ''."""

    reason: str
    line: int
    where: str
    text: str

    def __str__(self) -> str:
        return "".join((f"line {self.line}: " if self.line else "", f"{self.where}: " if self.where else "", self.text))


def policy_path(path: Path | None, home: Path) -> Path:
    """The file that is read: the one that the settings name, or the one in the home folder."""
    return path or home / POLICY_FILE


def load_policy(path: Path | None, home: Path, destinations: Sequence[str] = ()) -> Policy:
    """The policy in force: the file at `path`, else `<home>/policy.toml` if it exists, else the defaults.

    destinations: names of those configured; rules that name others are refused (none given: not checked, for nothing
    can be sent from here). Raises BadPolicy.
    """
    file = policy_path(path, home)
    try:
        if path is None and not os.path.lexists(file):  # a link that leads nowhere is no missing file
            return NO_POLICY
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = Problem("unreadable", 0, "", f"cannot be read ({type(error).__name__}); mend it or unset policy_file")
        raise _bad(file, [problem]) from None
    policy, problems = parse_policy(text)
    if policy is not None:
        problems += _unknown_destinations(policy, text, destinations)
    if policy is None or problems:
        raise _bad(file, problems)
    return policy


def parse_policy(text: str) -> tuple[Policy | None, list[Problem]]:
    """The policy, or None and all that is wrong with it."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"at line (\d+)", str(error))
        return None, [Problem("toml", int(found[1]) if found else 0, "", f"not TOML: {error}")]
    lines = _lines(text)
    try:
        policy = Policy.model_validate(data)
    except ValidationError as error:
        return None, [_problem(dict(one), data, lines) for one in error.errors(include_url=False)]
    problems = [*_twice(policy, lines), *_unreachable(policy, lines), *_mixed(policy, lines)]
    return (None if problems else policy), problems


def check_recipients(policy: Policy, file: Path, known: Iterable[Recipient]) -> None:
    """Raise BadPolicy for recipients that the key ring (`known`) does not have, or that cannot do what a rule wants."""
    kinds = {one.name: one.kind for one in known}
    problems = []
    for rule in policy.archive:
        for word, names in (("recipients", rule.recipients), ("cms", rule.cms)):
            for name in names:
                if name not in kinds:
                    text = f"{word} names '{name}': the key ring has no such recipient (palimpsest keys recipients add)"
                    problems.append(Problem("unknown-recipient", 0, _where("archive", rule.name), text))
                elif word == "cms" and kinds[name] != "rsa":
                    text = f"cms names '{name}', a recipient of kind {kinds[name]}: CMS needs one of kind rsa"
                    problems.append(Problem("cms-recipient", 0, _where("archive", rule.name), text))
    if problems:
        raise _bad(file, problems)


def policy_schema() -> str:
    """JSON Schema of the file (draft 2020-12), as text."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Policy.model_json_schema()}
    return json.dumps(schema, indent=2)


def _bad(file: Path, problems: Sequence[Problem]) -> BadPolicy:
    reason = problems[0].reason if len(problems) == 1 else "policy"
    lines = "\n".join(f"  {problem}" for problem in problems)
    return BadPolicy(reason, f"the policy file {file} is not in order:\n{lines}\nSee `palimpsest policy check`.")


# --- lines ---


def _lines(text: str) -> dict[Place, int]:
    """(table, number) and (table, number, key) -> line. A guide for people: nothing is decided by it."""
    found: dict[Place, int] = {}
    counts: dict[str, int] = {}
    place: Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = header[1]
            place = (table, counts.get(table, 0))
            counts[table] = counts.get(table, 0) + 1
            found.setdefault((table,), number)
            found.setdefault(place, number)
        elif key := _KEY.match(line):
            found.setdefault((*place, key[1]), number)
    return found


def _line(lines: Mapping[Place, int], place: Place) -> int:
    """The line of a place, or of the smallest thing around it."""
    return next((lines[place[:size]] for size in range(len(place), 0, -1) if place[:size] in lines), 0)


# --- problems ---


def _problem(error: Mapping[str, Any], data: Mapping[str, Any], lines: Mapping[Place, int]) -> Problem:
    place: Place = tuple(error["loc"])
    rule = place[0] if place and place[0] in _TABLES and len(place) > 1 else None
    where = _where(str(rule), _name_at(data, place)) if rule else ""
    field = next((str(part) for part in place[2 if rule else 0 :] if isinstance(part, str)), "")
    kind, context = error["type"], error.get("ctx", {})
    if kind == "refused":
        return Problem(context["reason"], _line(lines, place), where, context["message"])
    if kind == "extra_forbidden":
        known = _TABLES[str(rule)].model_fields if rule else Policy.model_fields
        text = f"'{field}' is not known{did_you_mean(field, known)}"
    elif field in _TABLES:
        text = f"{field} {_TABLE_HINT}"
    elif kind in _HINTS:
        text = f"{field} {_HINTS[kind]}"
    else:
        text = f"{field}: {error['msg'][0].lower()}{error['msg'][1:]}"
    return Problem(kind.replace("_", "-"), _line(lines, place), where, text)


def _name_at(data: Mapping[str, Any], place: Place) -> str:
    """The name of the rule at a place, or its number counted from 1."""
    rules, number = data.get(str(place[0])), place[1]
    if isinstance(rules, list) and isinstance(number, int) and isinstance(rules[number], dict):
        name = rules[number].get("name")
        if isinstance(name, str):
            return name
    return f"number {number + 1}" if isinstance(number, int) else ""


def _where(table: str, name: str) -> str:
    return f"[[{table}]] rule '{name}'"


def _rules(policy: Policy) -> Iterator[tuple[str, Sequence[Rule]]]:
    yield "archive", policy.archive
    yield "route", policy.route
    yield "delivery", policy.delivery


def _twice(policy: Policy, lines: Mapping[Place, int]) -> Iterator[Problem]:
    for table, rules in _rules(policy):
        names = [rule.name for rule in rules]
        for number, name in enumerate(names):
            if name in names[:number] or name == "default":
                text = "this name is taken (of another rule, or of what holds without one): choose another"
                yield Problem("name-taken", _line(lines, (table, number, "name")), _where(table, name), text)


def _unreachable(policy: Policy, lines: Mapping[Place, int]) -> Iterator[Problem]:
    for table, rules in _rules(policy):
        for number, rule in enumerate(rules):
            earlier = next((other for other in rules[:number] if other.covers(rule)), None)
            if earlier is not None:
                text = f"is never reached: rule '{earlier.name}' above matches all of it. Move it up, or take it out"
                yield Problem("unreachable", _line(lines, (table, number)), _where(table, rule.name), text)


def _mixed(policy: Policy, lines: Mapping[Place, int]) -> Iterator[Problem]:
    """Rules that would send one destination identified and pseudonymous objects: of one study it could get both."""
    named = {name for rule in policy.delivery for name in rule.destination}
    for name in sorted(named):  # '*' stands for those that no rule names
        rules = policy.delivery_rules(name)
        first = next((rule for rule in rules if rule.identified), None)
        other = next((rule for rule in rules if not rule.identified), None)
        if first is None or other is None:
            continue
        place = "every other destination" if name == ANY else f"'{name}'"
        text = (
            f"sends {place} the identified original, and rule '{other.name}' sends it the rest under a pseudonym: one "
            "study must not have two patients. Give this destination one kind of rule, without other conditions at the "
            "end"
        )
        line = _line(lines, ("delivery", policy.delivery.index(first)))
        yield Problem("mixed-identity", line, _where("delivery", first.name), text)


def _unknown_destinations(policy: Policy, text: str, known: Sequence[str]) -> list[Problem]:
    if not known:
        return []
    problems, lines = [], _lines(text)
    named = [("delivery", "destination", at, rule.name, rule.destination) for at, rule in enumerate(policy.delivery)]
    named += [("route", "destinations", at, rule.name, rule.destinations) for at, rule in enumerate(policy.route)]
    for table, field, number, rule, names in named:
        for name in names:
            if name != ANY and name not in known:
                line = _line(lines, (table, number, field))
                words = f"no destination '{name}' is configured; there are: {', '.join(known)}"
                problems.append(Problem("unknown-destination", line, _where(table, rule), words))
    return problems
