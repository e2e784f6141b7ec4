"""`palimpsest selftest`: does this gateway, on this machine, lose anything when everything around it breaks?"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from palimpsest.selftest import Outcome

console = Console()


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(name="selftest", rich_help_panel="Care")(selftest)


def selftest(
    instances: Annotated[int, typer.Option(min=20, help="Generated objects that are sent, at least.")] = 2000,
    short: Annotated[bool, typer.Option("--short", help="The most telling faults only.")] = False,
    power_loss: Annotated[
        int, typer.Option("--power-loss", min=0, metavar="N", help="Instead: so many power losses on a lossy disk.")
    ] = 0,
    calm: Annotated[
        int, typer.Option(min=0, metavar="MINUTES", help="Instead: break nothing; with --memory, is it flat?")
    ] = 0,
    database: Annotated[
        str | None, typer.Option(help="An empty PostgreSQL database. Default: SQLite.", metavar="URL")
    ] = None,
    restart_database: Annotated[
        str | None, typer.Option(help="Shell command that restarts its server.", metavar="COMMAND")
    ] = None,
    memory: Annotated[bool, typer.Option("--memory", help="Sample the memory of every process.")] = False,
    seed: Annotated[int | None, typer.Option(help="Of UIDs and pixels. Default: a new one.")] = None,
    patience: Annotated[float, typer.Option(help="Stuck is what did not move for so many seconds.")] = 240.0,
    folder: Annotated[
        Path | None, typer.Option(help="An empty folder for everything; kept. Default: a temporary one.", metavar="DIR")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all of it there.", metavar="FILE")] = None,
) -> None:
    """Break a gateway of its own in every way while objects flow in, then ask for every object that was acknowledged.

    Starts a whole gateway in a folder of its own, never yours. Kills each process at each step, fails writes and
    fsyncs, fills the disk, wipes the queue, locks, deletes and rebuilds the database, cuts and resets connections, and
    turns the clock. Needs a C compiler. Exit 0 only if nothing was lost, wrong, stuck or double, and all of it struck.
    """
    from palimpsest.selftest import run_plan
    from palimpsest.selftest_plan import calm_plan, full_plan, power_plan, short_plan

    plan = short_plan() if short else full_plan(restart_database)
    if power_loss or calm:
        plan = power_plan(power_loss) + calm_plan(calm)
    place = folder or Path(tempfile.mkdtemp(prefix="palimpsest-selftest-"))
    place.mkdir(parents=True, exist_ok=True)
    chosen = random.SystemRandom().randrange(1, 10**6) if seed is None else seed
    console.print(f"{len(plan)} faults, {instances} instances, seed {chosen}, in {place}", highlight=False)
    platter = short or power_loss > 0
    outcome = run_plan(
        place, plan, instances=instances, seed=chosen, database=database, power=platter, watch_memory=memory,
        patience=patience, say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
    )  # fmt: skip
    print_outcome(outcome)
    if json_file is not None:
        json_file.write_text(json.dumps(outcome.as_json(), indent=1), encoding="utf-8")
    if outcome.clean and folder is None:
        shutil.rmtree(place)
    raise typer.Exit(0 if outcome.clean else 1)


def print_outcome(outcome: Outcome) -> None:
    """The table, one row a fault, and the reckoning."""
    table = Table(box=None, header_style="bold")
    for name in ("fault", "when", "struck", "acknowledged", "under way", "lost", "wrong", "stuck"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    for row in outcome.rows:
        struck = "not here" if row.struck is None else str(row.struck)
        table.add_row(
            f"{row.group}: {row.name}", f"{row.at:.0f} s", struck, str(row.promised), str(row.under_way),
            str(row.lost), str(row.wrong), str(row.stuck),
        )  # fmt: skip
    console.print(table)
    for line in summary(outcome):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def summary(outcome: Outcome) -> list[str]:
    """The end of the report, as lines."""
    v = outcome.verdict
    again = sum(outcome.refused.values())
    lines = [
        f"{outcome.instances} instances acknowledged in {outcome.seconds:.0f} s, {again} sendings repeated, "
        f"{outcome.reads} reads meanwhile compared ({outcome.unanswered_reads} not answered)",
        f"lost {len(v.lost)}, wrong {len(v.wrong)}, stuck {len(v.stuck)}, doubled {len(v.doubled)}, "
        f"surplus at the destination {v.surplus}, audit trail {v.audit_trail or 'whole'}",
        f"duplicates of work: {v.attempts} claims made again, {v.unnamed_objects} archive objects that no row names, "
        f"{v.went_whole} instances went on whole, {v.left_in_spool} files left in the spool",
    ]
    lines += [f"instead of Success: {', '.join(f'{words} {count}' for words, count in outcome.refused.items())}"]
    lines += [f"stuck: {count} x {reason}" for reason, count in v.reasons.items()]
    lines += [f"alerts: {v.alerts}"] if v.alerts else []
    lines += [f"did not strike: {name}" for name in outcome.missed]
    for role, samples in outcome.memory.items():
        sizes = [size >> 20 for _, size in samples if size]
        if sizes:
            third = max(1, len(sizes) // 3)
            early, late = sizes[:third], sizes[-third:]
            lines.append(
                f"memory of {role}: {sum(early) // third} MiB in the first third, {sum(late) // third} in the last, "
                f"{max(sizes)} at most"
            )
    return lines
