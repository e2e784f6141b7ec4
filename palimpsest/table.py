"""What a person sees: a live table of journeys, and one line per file when there are too many for a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gateway.instance import Form, ForwardState, State
from palimpsest.journey import IN_ARCHIVE, Journey
from palimpsest.scan import Skipped

COLUMNS = (
    ("instance", "left"),
    ("state", "left"),
    ("bytes in", "right"),
    ("archived", "right"),
    ("ratio", "right"),
    ("coder", "left"),
    ("payload", "right"),
    ("verified", "center"),
    ("forwarded", "center"),
    ("restored", "center"),
)
STATE_STYLE = {
    State.RECEIVED: "yellow",
    State.CANDIDATE: "yellow",
    State.VERIFIED: "cyan",
    State.ARCHIVED: "green",
    State.RELEASED: "bold green",
}
YES, NO, WAITING = Text("yes", "green"), Text("NO", "bold red"), Text("...", "dim")


def journeys_table(journeys: Sequence[Journey], title: str) -> Table:
    """The table of `make run`: one row per instance."""
    table = Table(title=title, title_justify="left", header_style="bold", expand=False)
    for name, justify in COLUMNS:
        table.add_column(name, justify=justify, no_wrap=name != "instance")  # type: ignore[arg-type]
    for journey in journeys:
        table.add_row(*_cells(journey))
    return table


def _cells(journey: Journey) -> list[Text | str]:
    row = journey.row
    archived = row.archived_size if row is not None else None
    return [
        escape(journey.found.path.name),
        _state(journey),
        f"{journey.found.size:,}",
        f"{archived:,}" if archived else "",
        f"{journey.found.size / archived:.2f}" if archived else "",
        _coder(journey),
        f"{row.payload_bytes:,}" if row is not None and row.payload_bytes else "",
        YES if row is not None and row.verified_at else WAITING,
        _forwarded(journey),
        _restored(journey),
    ]


def _state(journey: Journey) -> Text:
    if journey.refused:
        return Text("REFUSED", "bold red")
    if journey.row is None:
        return Text("sent" if journey.answer else "waiting", "dim")
    return Text(str(journey.row.state), STATE_STYLE[journey.row.state])


def _coder(journey: Journey) -> str:
    row = journey.row
    if row is None or row.form is None:
        return ""
    if row.form is Form.PASSTHROUGH:
        return f"whole ({row.reason})" if row.reason else "whole"
    return row.coder or ""


def _forwarded(journey: Journey) -> Text | str:
    if journey.row is None or journey.row.state not in IN_ARCHIVE:
        return WAITING
    if not journey.forwards:
        return Text("-", "dim")
    if any(f.state is ForwardState.DEAD for f in journey.forwards):
        return NO
    return YES if journey.forwarded else WAITING


def _restored(journey: Journey) -> Text:
    if journey.fetch_error or (journey.verdict is not None and not journey.verdict.equal):
        return NO
    return YES if journey.restored else WAITING


def print_line(console: Console, journey: Journey) -> None:
    """One line for one settled file: its fate, and the reason if it is not the best one."""
    problem = journey.problem()
    row, size = journey.row, journey.found.size
    path = escape(str(journey.found.path))
    if problem:
        label = "refused " if journey.refused else "failed  "
        text = escape(problem.removeprefix("refused: "))
        console.print(f"[red]{label}[/red]  {path}: {text}", highlight=False, soft_wrap=True)
        return
    archived = row.archived_size if row is not None and row.archived_size else 0
    ratio = f"{size:,} -> {archived:,} bytes ({size / archived:.2f})" if archived else f"{size:,} bytes"
    notes = [_coder(journey)] + [word for word, true in _notes(journey) if true]
    fate = "restored" if journey.restored else "archived"
    console.print(f"[green]{fate}[/green]  {path}: {ratio}, {', '.join(notes)}", highlight=False, soft_wrap=True)


def _notes(journey: Journey) -> Iterable[tuple[str, bool]]:
    yield "known before", journey.known_before
    yield "an older version, fetched by digest", journey.superseded


def print_skipped(console: Console, skipped: Skipped) -> None:
    """One line for a file that was not sent."""
    path = escape(str(skipped.path))
    console.print(
        f"[red]refused[/red]   {path}: {skipped.reason}: {escape(skipped.message)}", highlight=False, soft_wrap=True
    )


def shorten(path: Path, width: int = 40) -> str:
    """A path that fits a progress bar, its end kept."""
    text = str(path)
    return text if len(text) <= width else "..." + text[3 - width :]
