"""The bench's whole objects: what the archive makes of the same files, alone or as groups of a series."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from codec.errors import CodecError
from gateway.errors import InvalidInstance, Unsupported
from gateway.keys import KeyRing
from gateway.policy import ArchiveRule
from stego.errors import CarrierError
from worker.bench_figures import ObjectRow
from worker.bench_inputs import Input
from worker.bench_plan import Plan
from worker.candidate import Candidate, build_candidate
from worker.grouping import MIN_GROUP, MOST_MATES
from worker.groupobject import MAX_GROUP_BYTES, MEMBER_ROOM, GroupFile, build_group
from worker.identity import Provenance

FACTS = Provenance("1970-01-01T00:00:00+00:00", "dimse", "BENCH", "palimpsest bench")
REFUSALS = (Unsupported, InvalidInstance, CodecError, CarrierError, MemoryError)


def archive_objects(whole: Sequence[tuple[Input, ObjectRow]], ring: KeyRing, plan: Plan) -> None:
    """Fill in `archived` and the coder of files coded together: slices of a series as groups, all else alone."""
    rule = ArchiveRule(name="bench", profile=plan.profile, adapt=plan.adapt, fit_seconds=plan.fit_seconds)
    for part in _parts(whole) if plan.adapt == "series" else ([each] for each in whole):
        made = _group([each for each, _ in part], ring, rule, plan.threads) if len(part) >= MIN_GROUP else []
        for number, (each, row) in enumerate(part):
            one = made[number] if made else _alone(each, ring, rule, plan.threads)
            row.bytes["archived"], row.coder = one.size, one.coder or one.reason


def _parts(whole: Sequence[tuple[Input, ObjectRow]]) -> Iterator[list[tuple[Input, ObjectRow]]]:
    """Files that one group takes; those that are no slices by themselves."""
    part, room = list[tuple[Input, ObjectRow]](), 0
    for each, row in whole:
        size = row.bytes["received"] + MEMBER_ROOM
        if part and (each.slice is None or part[-1][0].slice is None or len(part) > MOST_MATES or size > room):
            yield part
            part = []
        room = (room if part else MAX_GROUP_BYTES) - size
        part.append((each, row))
    if part:
        yield part


def _group(members: Sequence[Input], ring: KeyRing, rule: ArchiveRule, threads: int) -> list[Candidate]:
    files = [GroupFile(partial(each.path.read_bytes), FACTS) for each in members]
    try:
        return build_group(files, ring, rule=rule, threads=threads)
    except REFUSALS:  # each goes alone then, as in the archive
        return []


def _alone(each: Input, ring: KeyRing, rule: ArchiveRule, threads: int) -> Candidate:
    return build_candidate(each.path.read_bytes(), FACTS, ring, threads=threads, rule=rule)
