"""Archive objects of real files: how many have a global part, which stacks won, what the records in them saved.

    python -m tests.acceptance.global_objects PATH... [--manifest CSV --use U] [--per-source N] [--split BITS]
        [--carrier auto|initial-bits] [--largest SAMPLES]

Every file becomes an object, slices of a series up to 16 one group, as the archive makes them (default profile);
--split: with so many bits of G forced on every frame of the learned coder. NIfTI and PNG files are left out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from codec.frame import EncodedFrame, encode_frame
from gateway.errors import PalimpsestError
from gateway.keys import KeyRing
from gateway.policy import ArchiveRule
from worker import framechain
from worker.bench_inputs import Choice, Input, groups, list_inputs, open_input
from worker.bench_objects import FACTS, REFUSALS
from worker.candidate import Candidate, build_candidate
from worker.grouping import MIN_GROUP
from worker.groupobject import GroupFile, build_group
from worker.imagefiles import is_image_file


def objects_of(part: Sequence[Input], ring: KeyRing, rule: ArchiveRule) -> list[Candidate]:
    """A group of up to 16 slices, or the first file by itself."""
    if len(part) >= MIN_GROUP and all(each.slice is not None for each in part):
        try:
            files = [GroupFile(partial(each.path.read_bytes), FACTS) for each in part[:16]]
            return build_group(files, ring, rule=rule)
        except REFUSALS:
            pass
    return [build_candidate(part[0].path.read_bytes(), FACTS, ring, rule=rule)]


def fits(each: Input, choice: Choice, largest: int) -> bool:
    """Whether a file's frames can be read and are no larger than asked."""
    if is_image_file(each.path):
        return False
    try:
        with open_input(each, choice) as opened:
            return opened.fmt.rows * opened.fmt.columns * opened.fmt.samples <= largest
    except PalimpsestError:
        return False


def force(split: int) -> None:
    """Every frame by the learned coder, with so many bits of G."""

    def encode(*arguments: Any, **options: Any) -> EncodedFrame:
        return encode_frame(*arguments, **{**options, "coders": ("learned",), "split": split})

    framechain.encode_frame = encode  # type: ignore[assignment]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--manifest", type=Path)
    parser.add_argument("--use", action="append", default=[])
    parser.add_argument("--per-source", type=int, default=1)
    parser.add_argument("--split", type=int)
    parser.add_argument("--carrier", default="auto")
    parser.add_argument("--largest", type=int, default=1 << 20)
    options = parser.parse_args()
    choice = Choice(1, True, options.manifest, tuple(options.use))
    rule = ArchiveRule(name="measured", carrier=options.carrier)
    if options.split is not None:
        force(options.split)
    seen, sums = Counter[tuple[str, str]](), defaultdict[str, Counter[str]](Counter)
    with tempfile.TemporaryDirectory() as folder:
        ring = KeyRing.load_or_create(Path(folder) / "keys")
        for part in groups(list_inputs(options.paths, choice, {}), by_series=True):
            key = (part[0].modality, part[0].source)
            if seen[key] == options.per_source or not fits(part[0], choice, options.largest):
                continue
            seen[key] += 1
            made = objects_of(part, ring, rule)
            facts = made[0].global_part
            print(part[0].path.name, len(made), [each.carrier for each in made][:2], dict(facts), flush=True)
            for name in (part[0].modality, "all"):
                count = sums[name]
                count["objects"] += 1
                count["frames"] += sum(each.frames for each in made)
                count["with G"] += bool(facts)
                count["stacks won"] += bool(facts.get("frames"))
                count.update({name: facts.get(name, 0) for name in ("causal_bytes", "stack_bytes", "record_bytes")})
    columns = ("objects", "frames", "with G", "stacks won", "causal_bytes", "stack_bytes", "record_bytes")
    print("| modality | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name, count in sorted(sums.items()):
        print(f"| {name} | " + " | ".join(str(count[column]) for column in columns) + " |")


if __name__ == "__main__":
    main()
