"""`palimpsest probe` and `palimpsest replay`: what a destination really keeps, and its dead letters once more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from palimpsest.cli_care import open_gateway, operator

if TYPE_CHECKING:
    from gateway.bootstrap import Gateway
    from gateway.probe_result import ProbeResult

Home = Annotated[Path | None, typer.Option(help="Folder that holds all state.", metavar="DIR")]
console = Console(width=120)
COLOURS = {"proven": "green", "stored": "yellow", "refused": "red", "lost": "bold red", "altered": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("probe", rich_help_panel="Care")(probe)
    app.command("replay", rich_help_panel="Care")(replay)


def probe(
    destination: Annotated[str, typer.Argument(help="Name of a configured destination.")],
    move: Annotated[
        str, typer.Option(help="Try C-MOVE, too: the title and port under which the peer knows us.", metavar="AE:PORT")
    ] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the test objects there.")] = False,
    last: Annotated[bool, typer.Option("--last", help="Send nothing: show the last result.")] = False,
    json_out: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    home: Home = None,
) -> None:
    """Send test objects to a destination, get them back by every way it offers, compare, and keep the result.

    The objects hold generated pixels and the patient PALIMPSEST-PROBE. Forms and transfer syntaxes that do not survive
    are not used for that destination from then on. Repeat after every upgrade there. Exit 1 if even envelopes fail.
    """
    from gateway.errors import NotFound
    from gateway.settings import use_numba_cache

    with open_gateway(home) as gateway:
        use_numba_cache(gateway.settings)  # before the first kernel: some syntaxes are made and read by ours
        from palimpsest.probe import run_probe

        place = gateway.settings.destination(destination)
        if place is None:
            known = ", ".join(each.name for each in gateway.settings.destinations) or "none"
            raise NotFound("unknown-destination", f"no destination '{destination}' is configured; there are: {known}")
        if last:
            result = gateway.index.probe_of(destination)
            if result is None:
                raise NotFound("not-probed", f"'{destination}' was not probed yet")
        else:
            quiet = json_out or not console.is_terminal
            result = run_probe(
                gateway.settings, place, receive=_receiver(move), keep=keep,
                note=lambda text: None if quiet else console.print(escape(text), style="dim", highlight=False),
            )  # fmt: skip
            gateway.index.probe_put(result, operator())
        chosen = _chosen(gateway, result)
    if json_out:
        typer.echo(json.dumps(asdict(result) | {"chosen": chosen}, indent=1))
    else:
        _show(result, chosen, outdated=result.place != place.place)
    if result.refutes(*_ENVELOPE):
        raise typer.Exit(1)


_ENVELOPE = ("1.2.840.10008.5.1.4.1.1.66", "1.2.840.10008.1.2.1")


def _receiver(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    title, _, port = text.rpartition(":")
    if not title or not port.isdigit() or not 0 < int(port) < 65536:
        raise typer.BadParameter("--move is AE title and port, such as PALIMPSEST:11114")
    return title, int(port)


def _chosen(gateway: Gateway, result: ProbeResult) -> dict[str, str]:
    """What is sent there from now on, by the rules of the policy for this destination."""
    from gateway.errors import Unsupported
    from worker.canaries import CLASSES, SYNTAX_NAMES
    from worker.viewable import candidates

    chosen = {}
    for rule in gateway.policy.delivery_rules(result.destination):
        for form in rule.attempts:
            label = f"{form} (rule '{rule.name}')"
            if form == "envelope":
                chosen[label] = "not sent: refuted" if result.refutes(*_ENVELOPE) else "Explicit LE"
                continue
            if form in ("self-contained", "hidden"):
                refuted = [name for name, uid in CLASSES.items() if result.refutes(uid, _ENVELOPE[1])]
                chosen[label] = "Explicit LE" + (f", not for {', '.join(refuted)}" if refuted else "")
                continue
            for name, uid in CLASSES.items():
                try:
                    order = candidates(uid, _ENVELOPE[1], rule, result)
                    words = ", ".join(SYNTAX_NAMES.get(each, each) for each in order)
                except Unsupported as error:
                    words = f"not sent: {error.reason}"
                chosen[f"{form} {name} (rule '{rule.name}')"] = words
    return chosen


def _show(result: ProbeResult, chosen: dict[str, str], *, outdated: bool) -> None:
    when = datetime.fromtimestamp(result.at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    ways = [way for way, why in result.ways.items() if not why]
    console.print(f"{result.destination}, probed {when} by {result.software}", highlight=False, markup=False)
    if result.peer:
        console.print(f"peer: {result.peer}", highlight=False, markup=False)
    if outdated:
        console.print("[bold red]its address is another now: this result does not count, probe again[/bold red]")
    table = Table("object", "taken", *ways, "verdict")
    for each in result.findings:
        colour = COLOURS[each.verdict]
        reads = [escape(each.reads.get(way, "-")) for way in ways]
        table.add_row(each.name, escape(each.stored), *reads, f"[{colour}]{each.verdict}[/{colour}]")
    console.print(table)
    for line in _lines(result, chosen):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _lines(result: ProbeResult, chosen: dict[str, str]) -> Iterator[str]:
    for way, why in result.ways.items():
        if why:
            yield f"{way}: not offered ({why})"
    if not any(not why for why in result.ways.values()):
        yield "nothing can be asked back from here, so nothing is proven: 'stored' is the destination's word alone"
    for form, words in chosen.items():
        yield f"from now on, {form}: {words}"
    if result.left:
        yield f"left there, patient PALIMPSEST-PROBE, {len(result.left)} studies: " + ", ".join(result.left)


def replay(
    forward: Annotated[list[int] | None, typer.Argument(help="Numbers of dead letters (GET /api/forwards).")] = None,
    destination: Annotated[str | None, typer.Option(help="All of this destination.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only those for this reason.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
    home: Home = None,
) -> None:
    """Send dead letters again: some by number, those of a destination or a reason, or all."""
    from gateway.errors import NotFound

    if not (forward or destination or reason or everything):
        raise typer.BadParameter("say which: numbers, --destination, --reason or --all")
    with open_gateway(home) as gateway:
        ids = forward or gateway.index.dead_letters(destination, reason)
        if not ids:
            raise NotFound("no-such-dead-letter", "there is no dead letter of that kind")
        for number in ids:
            gateway.index.forward_replay(number, operator())
    console.print(f"{len(ids)} dead letters are sent again")
