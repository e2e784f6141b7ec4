"""`palimpsest send` and the samples of `palimpsest run`: the same journey, shown in two ways."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway.bootstrap import Gateway
from palimpsest import table
from palimpsest.addresses import Secure, base_url, local_target
from palimpsest.client import WebClient
from palimpsest.journey import Journey, Plan, Tracker
from palimpsest.report import Summary, summarise
from palimpsest.scan import find_files, inspect

TOKEN_SECONDS = 3600.0 * 12


def default_plan(gateway: Gateway, secure: Secure | None = None) -> Plan:
    """Wait for the spool's release where policy lets it happen; outside the demo profile a key backup comes first.

    Raises as `local_target`.
    """
    return Plan(local_target(gateway.settings, secure), wait_release=not gateway.settings.require_key_backup)


@contextmanager
def tracker(gateway: Gateway, plan: Plan, stopping: threading.Event) -> Iterator[Tracker]:
    """A tracker with a token of its own."""
    from palimpsest.own_token import own_token

    token = own_token(gateway, "service", "palimpsest-send", TOKEN_SECONDS) if plan.fetch else ""
    web = WebClient(base_url(gateway.settings), token, ca_file=gateway.settings.http_ca_file)
    made = Tracker(gateway.index, web, plan, stopping)
    try:
        yield made
    finally:
        made.close()
        web.close()


def send_samples(gateway: Gateway, files: Sequence[Path], console: Console, stopping: threading.Event) -> Summary:
    """Send, follow, fetch, compare; a live table meanwhile (plain text at the end if this is no terminal)."""
    title = "sample study: sent by C-STORE, archived, forwarded, fetched by WADO-RS, compared"
    with tracker(gateway, replace(default_plan(gateway), associations=2), stopping) as made:
        for path in files:
            made.add(inspect(path))

        def draw() -> Table:
            return table.journeys_table(made.journeys, title)

        with Live(
            console=console, get_renderable=draw, refresh_per_second=4, transient=not console.is_terminal
        ) as live:
            made.send()
            for _ in made.follow():
                live.refresh()
        if not console.is_terminal:
            console.print(draw())
        return summarise(made.journeys, made.skipped, fetched=True)


def send_paths(
    gateway: Gateway, paths: Sequence[Path], console: Console, stopping: threading.Event, plan: Plan, *, quiet: bool
) -> tuple[Summary, Tracker]:
    """Send every file under `paths`; a progress bar and one line per file. quiet: only lines that tell of trouble."""
    with tracker(gateway, plan, stopping) as made, _progress(console) as progress:
        _look(made, paths, progress, console)
        _send(made, progress)
        _follow(made, progress, console, quiet)
    return summarise(made.journeys, made.skipped, fetched=plan.fetch), made


def _look(made: Tracker, paths: Sequence[Path], progress: Progress, console: Console) -> None:
    files = list(find_files(paths))
    task = progress.add_task("reading", total=len(files))
    for path in files:
        made.add(inspect(path))
        progress.advance(task)
    for skipped in made.skipped:
        table.print_skipped(console, skipped)


def _send(made: Tracker, progress: Progress) -> None:
    todo = [j for j in made.journeys if not j.known_before]
    task = progress.add_task("sending", total=len(todo))
    made.send(lambda journey: progress.advance(task))


def _follow(made: Tracker, progress: Progress, console: Console, quiet: bool) -> None:
    task = progress.add_task("archived" + (", fetched, compared" if made.fetches else ""), total=len(made.journeys))
    told: set[int] = set()

    def tell(journeys: Sequence[Journey]) -> None:
        for journey in journeys:
            told.add(id(journey))
            if not quiet or journey.problem():
                table.print_line(console, journey)

    for settled in made.follow():
        tell(settled)
        progress.advance(task, len(settled))
    tell([j for j in made.journeys if id(j) not in told])


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def until(seconds: float, stopping: threading.Event, then: Callable[[], None]) -> threading.Timer:
    """Set `stopping` after `seconds`, having called `then`: the overall time limit of a run. Cancel it when done."""

    def expire() -> None:
        then()
        stopping.set()

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    return timer
