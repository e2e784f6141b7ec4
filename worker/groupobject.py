"""One archive object of several instances of a series: their frames in one chain, all else of each by itself.

Which instances belong together, and in which order, is `worker.slices`'s to say; what happens when one of them fails,
`worker.grouping`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from codec.bitplane import Words
from codec.pixelformat import PixelFormat
from gateway.errors import Unsupported
from gateway.instance import Form
from gateway.keys import KeyRing
from gateway.policy import ArchiveRule
from worker import container as box
from worker.adapting import fitted, known, sample
from worker.attributes import Data
from worker.candidate import (
    Candidate,
    CodedImage,
    SealedImage,
    Sealer,
    candidate_of,
    code_image,
    frame_sections,
    payload_bytes,
    seal_images,
    wrap,
)
from worker.container import SectionType
from worker.envelope import Source, build_envelope, envelope_uid, group_name
from worker.framechain import ChainCoder
from worker.identity import Provenance
from worker.pixels import open_pixels
from worker.sealing import Wraps
from worker.splice import read_object
from worker.stacking import global_part

MAX_GROUP_BYTES = 64 << 20  # of the envelope: what giving back one slice reads
FIT_BUDGET = 240.0  # seconds for all fits of a group whose slices are fitted one by one
MEMBER_ROOM = 4 << 10  # bytes that an instance's seals may take beside what was received of it


@dataclass(frozen=True)
class GroupFile:
    """A received file; `read` gives its bytes when its turn comes."""

    read: Callable[[], Data]
    facts: Provenance


@dataclass(frozen=True)
class _Member:
    made: SealedImage
    wraps: Wraps
    key_ids: tuple[str, ...]
    first: int


def build_group(
    files: Sequence[GroupFile],
    ring: KeyRing,
    *,
    rule: ArchiveRule,
    threads: int = 1,
) -> list[Candidate]:
    """Code the files in this order; one candidate each, all with the same envelope.

    Raises what one of them alone would be sealed whole for (Unsupported, InvalidInstance, CodecError, CarrierError,
    MemoryError): none of them is archived like this then; Unsupported ``group-patients``, ``group-size``; Unavailable.
    """
    coder = ChainCoder(threads, rule.profile or "default")
    if rule.adapt == "series":
        coder.shared = _fitted(files, rule, threads)
    images = [_coded(each, ring, rule, coder, FIT_BUDGET / len(files)) for each in files]
    members = [_member(*each) for each in zip(images, seal_images(images, coder), strict=True)]
    if len({each.wraps.patient_key for each in members}) != 1:
        raise Unsupported("group-patients", "the files belong to different patients")
    sections = frame_sections(coder)
    sections[SectionType.MEMBERS] = box.pack_members([each.made.sections for each in members])
    container = box.build(sections, box.CONTEXT_VERSION)
    source, pseudonyms = _source(members), ring.pseudonym_key()
    envelope = build_envelope(container, source, "", pseudonyms, version=box.CONTEXT_VERSION)
    if len(envelope) > MAX_GROUP_BYTES:
        raise Unsupported("group-size", "the group's envelope is larger than one may be")
    uid = envelope_uid(source.file_sha256, pseudonyms, source.sealed_to)
    return _candidates(members, coder, envelope, uid)


def _fitted(files: Sequence[GroupFile], rule: ArchiveRule, threads: int) -> bytes | None:
    """One adapter for all slices, from a sample of them; None if none pays."""

    def frame(number: int) -> tuple[Words, PixelFormat]:
        source = open_pixels(read_object(files[number].read()))
        return source.frame(0), source.fmt

    header = open_pixels(read_object(files[0].read())).spans.dataset
    return fitted(sample(len(files), frame), header, rule, threads, stands_for=len(files)) or None


def _coded(file: GroupFile, ring: KeyRing, rule: ArchiveRule, coder: ChainCoder, most_seconds: float) -> CodedImage:
    data = file.read()
    source = open_pixels(read_object(data))
    if rule.adapt == "image":
        before = coder.context(source.fmt)
        frame = (source.frame(0), source.fmt, None if before is None else before.words)
        found = fitted([frame], source.spans.dataset, rule, coder.threads, most_seconds)
        coder.adapters = (found,) if found else ()
    else:
        coder.adapters = known(source.spans.dataset, rule)
    return code_image(data, source, file.facts, Sealer.of(ring, None, rule), coder)


def _member(image: CodedImage, made: SealedImage) -> _Member:
    made.sections[SectionType.SPAN] = box.pack_span(image.first, image.frames)
    wraps = wrap(made, image.sealer)
    return _Member(made, wraps, (*wraps.key_ids, image.sealer.signer[0]), image.first)


def _source(members: Sequence[_Member]) -> Source:
    records = [each.made.record for each in members]
    first = records[0]
    return Source(
        group_name([record.file_sha256 for record in records]),
        first.patient_id,
        first.study_uid,
        first.series_uid,
        first.sop_uid,
        first.sop_class,
        members[0].wraps.patient_key,
        tuple((record.sop_class, record.sop_uid) for record in records[1:]),
    )


def _candidates(members: Sequence[_Member], coder: ChainCoder, envelope: bytes, uid: str) -> list[Candidate]:
    """Each with its share of the envelope: its own parts, and evenly of what all need."""
    own = [sum(map(len, each.made.sections.values())) for each in members]
    spans = [range(each.first, each.first + each.made.frames) for each in members]
    coded = [sum(len(coder.blobs[at]) for at in span) for span in spans]
    rest = len(envelope) - sum(own) - sum(coded)
    even, left = divmod(rest, len(members))
    stacks = (sum(map(len, coder.stacks.values())) - sum(each.made.in_stack for each in members)) // len(members)
    return [
        candidate_of(
            each.made, each.wraps, envelope=envelope, envelope_uid=uid, form=Form.CODED, reason="",
            coder="+".join(name for name, _ in Counter(coder.coders[at] for at in spans[number]).most_common()),
            codec_bytes=coded[number] + stacks, payload_bytes=payload_bytes(each.made), key_ids=each.key_ids,
            member=number, share=own[number] + coded[number] + even + (left if number == 0 else 0),
            global_part=global_part(coder),
        )
        for number, each in enumerate(members)
    ]  # fmt: skip
