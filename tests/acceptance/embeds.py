"""Ten thousand embeds over all carriers: random frames, depths, signs, payloads and keys, every one restored exactly.

    python -m tests.acceptance.embeds LOG [--count 10000] [--jobs 2] [--seed 1]
    python -m tests.acceptance.embeds LOG --show          the summary of a log as a section of docs/payload-bench.md

LOG gets one JSON line a case, whatever became of it, and a last one with the summary. A case follows from its number
and the seed alone, so a failure is repeated by `--only NUMBER`. A refusal (no room, unsuited) is counted apart and is
no embed. Exit 1 if anything was not restored exactly, was not refused when it had to be, or is not uniform.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.embedding_cases import Outcome, run_case, use_ring
from tests.uniformity import battery, verdict

CHUNK = 16


def run_all(count: int, seed: int, jobs: int) -> Iterator[tuple[int, Outcome]]:
    """Cases in order of number until `count` of them embedded something. Workers share one key ring."""
    with tempfile.TemporaryDirectory(prefix="palimpsest-embeds-") as folder:
        keys = Path(folder) / "keys"
        use_ring(keys, create=True)
        if jobs == 1:
            yield from ((number, run_case(number, seed)) for number in _until(count))
            return
        context = multiprocessing.get_context("spawn")
        with context.Pool(jobs, initializer=use_ring, initargs=(keys,)) as pool:
            numbers = ((number, seed) for number in _until(count))
            yield from pool.imap(_numbered, numbers, CHUNK)


def _numbered(job: tuple[int, int]) -> tuple[int, Outcome]:
    return job[0], run_case(*job)


def _until(count: int) -> Iterator[int]:
    return iter(range(count * 4))  # the caller stops when enough were embedded; refusals are a minority


class Totals:
    """What is printed at the end."""

    def __init__(self) -> None:
        self.modes: dict[str, Counter[str]] = defaultdict(Counter)
        self.reasons: Counter[str] = Counter()
        self.depths: Counter[int] = Counter()
        self.failures: list[dict[str, Any]] = []
        self.streams: dict[str, list[bytes]] = defaultdict(list)
        self.largest: Counter[str] = Counter()
        self.embedded = 0

    def add(self, number: int, outcome: Outcome) -> None:
        """Count one case."""
        self.modes[outcome.mode][outcome.result] += 1
        if outcome.result == "refused":
            self.reasons[f"{outcome.mode}: {outcome.problem}"] += 1
            return
        if outcome.result != "exact":
            self.failures.append({"number": number, **outcome.logged()})
            return
        self.embedded += 1
        self.depths[outcome.bits_stored] += 1
        self.largest[outcome.mode] = max(self.largest[outcome.mode], outcome.max_change)
        for name, data in outcome.embedded_bits.items():
            self.streams[name].append(data)

    def summary(self) -> dict[str, Any]:
        """For the log and for people."""
        streams = {name: b"".join(parts) for name, parts in self.streams.items()}
        p_values = battery(streams)
        return {
            "embedded": self.embedded,
            "failures": len(self.failures),
            "modes": {mode: dict(results) for mode, results in sorted(self.modes.items())},
            "refusals": dict(self.reasons.most_common()),
            "bits stored": {str(bits): n for bits, n in sorted(self.depths.items())},
            "largest change": dict(sorted(self.largest.items())),
            "uniformity bits": {name: 8 * len(data) for name, data in streams.items()},
            "uniformity p": {name: round(p, 5) for name, p in p_values.items()},
            "uniformity": str(verdict(p_values)),
            "uniform": not verdict(p_values).rejected,
        }


def section(log: Path) -> str:
    """The log's summary as Markdown. Raises ValueError for a log whose run did not end."""
    last = log.read_text("utf-8").splitlines()[-1]
    if "summary" not in (found := json.loads(last)):
        raise ValueError("the log has no summary: its run did not end")
    summary = found["summary"]
    lines = [
        "## Long run",
        "",
        f"`python -m tests.acceptance.embeds LOG --seed {summary['seed']}`: {summary['embedded']:,} embeds of random",
        "frames, depths (8 to 16 bits), signs, payloads and keys; each checked for payload and frame exactly back,",
        "lattice, barred values and range kept, and another key, salt or damage refused.",
        f"**{summary['failures']} failures** in {summary['seconds'] // 60} minutes.",
        "",
        "| carrier | exact | refused (no room, unsuited) | failed | largest change |",
        "|---|---|---|---|---|",
    ]
    for mode, results in summary["modes"].items():
        counts = " | ".join(f"{results.get(word, 0):,}" for word in ("exact", "refused", "failed"))
        lines.append(f"| {mode} | {counts} | {summary['largest change'].get(mode, 0)} |")
    bits = ", ".join(f"{name} {n:,} bits" for name, n in summary["uniformity bits"].items())
    lines += ["", f"Uniformity of what the stego side shows ({bits}): {summary['uniformity']}.", ""]
    lines += ["| stream: test | p |", "|---|---|"]
    lines += [f"| {name} | {p:.4f} |" for name, p in summary["uniformity p"].items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run, log, sum up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="repeat this case alone")
    parser.add_argument("--show", action="store_true", help="print the summary of an existing log")
    args = parser.parse_args(arguments)
    if args.show:
        print(section(args.log), end="")
        return 0
    if args.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            use_ring(Path(folder) / "keys", create=True)
            print(json.dumps(run_case(args.only, args.seed).logged()))
        return 0
    totals, started = Totals(), time.monotonic()
    with args.log.open("w", encoding="utf-8") as log:
        for number, outcome in run_all(args.count, args.seed, args.jobs):
            totals.add(number, outcome)
            log.write(json.dumps({"number": number, **outcome.logged()}) + "\n")
            if totals.embedded >= args.count:
                break
        summary = {"seed": args.seed, "seconds": round(time.monotonic() - started), **totals.summary()}
        log.write(json.dumps({"summary": summary}) + "\n")
    print(json.dumps(summary, indent=1))
    for failure in totals.failures[:20]:
        print("FAILED", json.dumps(failure))
    enough = totals.embedded >= args.count
    return 0 if enough and not totals.failures and summary["uniform"] else 1


if __name__ == "__main__":
    sys.exit(main())
