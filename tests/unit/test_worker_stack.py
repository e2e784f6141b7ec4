"""Archive objects with a stack of global parts: the record as its first bits, pixels without a key, hostile stacks.

The encoder's own choice of k leaves nearly no image a global part, so k is forced; the rest is as always: the released
networks, a real image (pydicom's MR_small), and the encoder's own decision that the stack is the shorter side.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codec.bitplane import LevelTable, Words
from codec.errors import CodecError
from codec.frame import EncodedFrame, encode_frame
from codec.header import Header, write_header
from codec.learnedformat import CodedFrame, CodedPlane, Preface, Tile, write_learned
from codec.pixelformat import PixelFormat
from codec.weights import load
from gateway.bootstrap import Gateway, build
from gateway.errors import Gone, IntegrityError
from gateway.instance import Form, State
from gateway.jobs import MemoryQueue
from gateway.keys import KeyRing
from gateway.policy import ArchiveRule
from gateway.settings import Settings
from palimpsest.payload_files import extract
from palimpsest.payload_inspect import inspect
from tests.object_makers import FACTS, image, noisy, packaged
from tests.unit.test_worker_grouping import OWNER, POLICY, envelope_of, take_in
from tests.unit.test_worker_object_golden import PATIENT_KEY, GoldenRing
from worker import container as box
from worker import framechain, stacking
from worker.candidate import Candidate, build_candidate
from worker.container import Carrier, CarrierMode, SectionType
from worker.dryrun import dry_run
from worker.envelope import Source, build_envelope, parse_envelope
from worker.framechain import RUN
from worker.grouping import process_series
from worker.indexing import index_instance
from worker.opener.errors import OpenError
from worker.opener.keys import Keys
from worker.opener.restore import open_object
from worker.pipeline import process_instance
from worker.pixels import open_pixels
from worker.rebind import rebind
from worker.render import render_image
from worker.restore import exact_image, restore
from worker.retrieve import retrieve
from worker.shred import find_patient, shred
from worker.splice import read_object
from worker.verify import Verifier, check_envelope
from worker.weightobject import needed_weights

SPLIT = 6


class Ring(GoldenRing):
    """The published keys, one key for any patient."""

    def patient_key(self, label: str) -> tuple[str, bytes]:
        return PATIENT_KEY, self.patient


RING: KeyRing = Ring()  # type: ignore[assignment]
KEYS = Keys({PATIENT_KEY: RING.patient})  # type: ignore[attr-defined]


@dataclass
class Splitting:
    """The encoder with so many bits of G (None: its own choice), by the learned coder alone."""

    bits: int | None = SPLIT

    def encode(self, *arguments: Any, **options: Any) -> EncodedFrame:
        return encode_frame(*arguments, **{**options, "coders": ("learned",), "split": self.bits})


@pytest.fixture
def splitting(monkeypatch: pytest.MonkeyPatch) -> Splitting:
    found = Splitting()
    monkeypatch.setattr(framechain, "encode_frame", found.encode)
    return found


def slices(count: int, rows: int = 64) -> list[Words]:
    """Cuts of a real image, each moved a little."""
    whole = open_pixels(read_object(packaged("MR_small.dcm"))).frame(0).astype(np.uint16)
    top = (64 - rows) // 2
    return [np.roll(whole, (at, -at), (0, 1))[top : top + rows, top : top + rows].copy() for at in range(count)]


def file_of(frames: list[Words], **changes: object) -> bytes:
    return image(frames, stored=16, **changes)  # type: ignore[arg-type]


def sections_of(envelope: bytes) -> dict[SectionType, bytes]:
    return {kind: bytes(body) for kind, body in box.parse(parse_envelope(envelope).container).items()}


def rebuilt(sections: dict[SectionType, bytes]) -> bytes:
    """An envelope of changed sections, its checksums in order."""
    return build_envelope(box.build(sections, 2), Source("00" * 32, "", "", "", ""), "", bytes(32), version=2)


def carrier_of(envelope: bytes) -> Carrier:
    return box.unpack_carrier(memoryview(sections_of(envelope)[SectionType.CARRIER]))


def causal(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Candidate]) -> Candidate:
    """The same with G in the frames."""
    with monkeypatch.context() as patched:
        patched.setattr("codec.group.shorter", lambda stacked, causal: False)
        return make()


# --- what is written ---


@pytest.mark.parametrize("carrier", ["auto", "initial-bits"])
def test_the_record_is_the_first_bits_of_a_shorter_stack(
    carrier: str, splitting: Splitting, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, rule = file_of(slices(1, 48)), ArchiveRule(name="stack", carrier=carrier)  # type: ignore[arg-type]
    built = build_candidate(data, FACTS, RING, rule=rule)
    beside = causal(monkeypatch, lambda: build_candidate(data, FACTS, RING, rule=rule))
    assert (built.form, built.coder, built.carrier, beside.carrier) == (Form.CODED, "learned", "initial-bits", "beside")
    assert built.size < beside.size
    sections, where = sections_of(built.envelope), carrier_of(built.envelope)
    assert (where.mode, where.frame, where.start, where.bitmap) == (CarrierMode.INITIAL, 0, 0, b"")
    assert where.nbits > 0 and where.nbits // 8 + len(sections[SectionType.RECORD]) == 512
    facts = built.global_part
    assert facts["record_bytes"] == where.nbits // 8 and facts["frames"] == 1
    assert facts["stack_bytes"] < facts["causal_bytes"] == beside.global_part["causal_bytes"]
    assert built.codec_bytes + where.nbits // 8 == sum(
        len(sections[kind]) for kind in (SectionType.FRAMES, SectionType.STACK)
    )
    assert built.payload_bytes == beside.payload_bytes
    assert set(needed_weights(built.envelope)) == {load("default"), load("vae")}

    assert restore(built.envelope, RING).data == data
    shown = exact_image(built.envelope)  # no key
    assert np.array_equal(next(shown.frames()), slices(1, 48)[0]) and len(render_image(shown)) > 0
    assert check_envelope(built.envelope, RING).ok
    report = check_envelope(built.envelope, RING, reference=True)
    assert (report.ok, report.sha256) == (True, built.file_sha256)
    assert [each.data for each in open_object(built.envelope, KEYS)] == [data]
    told = inspect(built.envelope, None, identity=False)["without a key"]
    assert (told["carrier"], told["record bytes in a stack"]) == ("initial-bits", where.nbits // 8)


def test_rules_that_place_the_record_elsewhere_hold(splitting: Splitting) -> None:
    data = file_of(slices(1))
    for carrier, seal in (("beside", False), ("segmented", False), ("auto", True)):
        rule = ArchiveRule(name="other", carrier=carrier, seal_bitmap=seal)  # type: ignore[arg-type]
        built = build_candidate(data, FACTS, RING, rule=rule)
        assert built.carrier in ("beside", "segmented", "sealed-bitmap", "initial-bits")
        assert (built.carrier == "initial-bits") <= seal  # no room in the pixels: what `auto` does then
        assert restore(built.envelope, RING).data == data


def test_without_a_global_part_nothing_is_tried_and_the_rule_falls_back(
    splitting: Splitting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a stack was tried")

    monkeypatch.setattr(stacking, "stack_group", never)
    splitting.bits = None
    for carrier in ("auto", "initial-bits"):
        rule = ArchiveRule(name="stack", carrier=carrier)  # type: ignore[arg-type]
        built = build_candidate(file_of([noisy()]), FACTS, RING, rule=rule)
        assert (built.carrier, built.global_part) == ("segmented", {})


def test_a_record_in_the_pixels_gives_way_to_a_stack(splitting: Splitting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lowest planes could carry, but G is shorter on a stack: then the record goes there."""
    fine = np.random.default_rng(1).integers(0, 16, (128, 128))
    words = open_pixels(read_object(packaged("CT_small.dcm"))).frame(0).astype(np.int64) * 16 + fine
    data = file_of([words.astype(np.uint16)])
    splitting.bits = 6
    built = build_candidate(data, FACTS, RING)
    assert built.carrier == "initial-bits" and restore(built.envelope, RING).data == data
    monkeypatch.setattr("worker.candidate.waits_for_stack", lambda rule, plain: False)
    assert build_candidate(data, FACTS, RING).carrier == "segmented"


def test_a_stack_that_does_not_prove_is_not_used(splitting: Splitting, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise CodecError("a stack does not reproduce its frames")

    monkeypatch.setattr("codec.group._prove", fails)
    data = file_of(slices(1))
    built = build_candidate(data, FACTS, RING)
    assert (built.form, built.carrier) == (Form.CODED, "beside")
    assert SectionType.STACK not in sections_of(built.envelope) and restore(built.envelope, RING).data == data


def test_a_multi_frame_object_has_a_stack_for_every_run(splitting: Splitting) -> None:
    made = slices(RUN + 2, 24)
    data = file_of(made)
    built = build_candidate(data, FACTS, RING)
    sections, where = sections_of(built.envelope), carrier_of(built.envelope)
    stacks = box.unpack_stacks(memoryview(sections[SectionType.STACK]), 2)
    assert (built.carrier, where.frame, len(stacks[0]) > 0) == ("initial-bits", 0, True)
    assert len(sections[SectionType.RECORD]) == 512 - where.nbits // 8
    assert restore(built.envelope, RING).data == data
    assert [each.data for each in open_object(built.envelope, KEYS)] == [data]
    found = exact_image(built.envelope)
    assert all(np.array_equal(one, other) for one, other in zip(found.frames(), made, strict=True))
    assert np.array_equal(found.frame(RUN + 1), made[RUN + 1])


def test_explain_tells_both_lengths(splitting: Splitting, tmp_path: Path) -> None:
    from gateway.policy import NO_POLICY

    made = dry_run(file_of(slices(1)), NO_POLICY, ())
    assert made.archived.carrier == "initial-bits"
    assert 0 < made.archived.global_part["stack_bytes"] < made.archived.global_part["causal_bytes"]


# --- a group, all the way ---


@pytest.fixture
def gw(tmp_path: Path) -> Iterator[Gateway]:
    (tmp_path / "policy.toml").write_text(POLICY, encoding="utf-8")
    gateway = build(Settings(home=tmp_path, watermark_bytes=0), queue=MemoryQueue())
    yield gateway
    gateway.close()


def test_a_group_shares_its_stacks_and_each_slice_keeps_its_record(gw: Gateway, splitting: Splitting) -> None:
    files: dict[int, bytes] = {}
    for number, words in enumerate(slices(RUN + 2, 32)):
        place = {"ImagePositionPatient": [0, 0, 2.5 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        named = {"SOPInstanceUID": f"1.2.3.4.{number + 1}", "InstanceNumber": number + 1}
        data = file_of([words], **place, **named)
        files[take_in(gw, data)] = data
    for each in files:
        index_instance(gw, each)
    with Verifier(gw.settings.keys_dir, settings=gw.settings) as verifier:  # another process proves it
        assert process_series(gw, verifier, 1, OWNER) == dict.fromkeys(files, "ARCHIVED")
        assert verifier.check(envelope_of(gw, 1), 3).ok
    rows, envelope = {each: gw.index.get(each) for each in files}, envelope_of(gw, 1)
    assert len({row.archive_digest for row in rows.values()}) == 1
    assert sum(row.archived_size or 0 for row in rows.values()) == len(envelope)
    carriers = {row.carrier for row in rows.values()}
    assert "initial-bits" in carriers and carriers <= {"initial-bits", "beside"}
    assert gw.index.facts(1)["global_part"]["record_bytes"] > 0
    members = box.unpack_members(box.parse(parse_envelope(envelope).container))
    taken = [box.unpack_carrier(each[SectionType.CARRIER]) for each in members]
    riding = [each for each in taken if each.mode is CarrierMode.INITIAL and each.frame == 0]
    assert [each.start for each in riding] == [sum(one.nbits for one in riding[:at]) for at in range(len(riding))]
    for each, data in files.items():
        member = rows[each].member
        assert restore(envelope, gw.keys, member=member).data == data
        gw.spool.remove(rows[each].digest)
        found = retrieve(gw, each, "original")
        assert (gw.settings.cache_dir / found["path"]).read_bytes() == data

    assert extract(envelope, gw.keys, None, (rows[1].member or 0) + 1).data == files[1]
    patient = find_patient(gw, "PID-77120-X")
    assert shred(gw, patient, actor="admin", reason="erasure-request").instances == len(files)
    for each in (1, RUN + 1):
        with pytest.raises(Gone):
            retrieve(gw, each, "original")
        assert retrieve(gw, each, "rendered:png:1")["size"] > 0
        words = open_pixels(read_object(files[each])).frame(0)
        assert np.array_equal(next(exact_image(envelope, member=rows[each].member).frames()), words)


def test_an_instance_alone_goes_all_the_way_and_finds_its_owner_again(gw: Gateway, splitting: Splitting) -> None:
    from tests.proving import InProcess

    data = file_of(slices(1), Modality="MR")
    number = take_in(gw, data)
    assert process_instance(gw, InProcess(gw.keys), number, OWNER) == State.ARCHIVED
    assert gw.index.get(number).carrier == "initial-bits"
    assert gw.index.facts(number)["global_part"]["frames"] == 1
    envelope = envelope_of(gw, number)
    assert rebind(gw, b"\0" * 7 + envelope[300:]).data == data


# --- hostile objects ---


@pytest.fixture(scope="module")
def made() -> dict[SectionType, bytes]:
    """Sections of an object of two runs, each with a stack."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(framechain, "encode_frame", Splitting().encode)
        patched.setattr("codec.group.shorter", lambda stacked, causal: True)
        return sections_of(build_candidate(file_of(slices(RUN + 1, 16)), FACTS, RING).envelope)


def stacks_of(made: dict[SectionType, bytes]) -> list[bytes]:
    return [bytes(each) for each in box.unpack_stacks(memoryview(made[SectionType.STACK]), 2)]


def refused(sections: dict[SectionType, bytes], *reasons: str) -> None:
    """By every reader: typed, and without more memory than such an object takes."""
    envelope = rebuilt(sections)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError) as caught:
            restore(envelope, RING)
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()
    assert caught.value.reason in reasons
    with pytest.raises(OpenError):
        list(open_object(envelope, KEYS))


def test_the_untouched_sections_still_open(made: dict[SectionType, bytes]) -> None:
    assert restore(rebuilt(made), RING).data == file_of(slices(RUN + 1, 16))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("none", lambda one, two: [], "bitstream-damaged"),
        ("one", lambda one, two: [one], "container-damaged"),
        ("three", lambda one, two: [one, two, b""], "container-damaged"),
        ("first missing", lambda one, two: [b"", two], "bitstream-damaged"),
        ("second missing", lambda one, two: [one, b""], "bitstream-damaged"),
        ("swapped", lambda one, two: [two, one], "bitstream-damaged"),
        ("cut off", lambda one, two: [one[:-1], two], "bitstream-damaged"),
        ("longer", lambda one, two: [one + b"\0", two], "bitstream-damaged"),
        ("checksum", lambda one, two: [one[:-1] + bytes([one[-1] ^ 1]), two], "bitstream-damaged"),
        ("word", lambda one, two: [one[:30] + bytes([one[30] ^ 1]) + one[31:], two], "bitstream-damaged"),
        ("other weights", lambda one, two: [one[:2] + load("default").id + one[6:], two], "bitstream-damaged"),
    ],
)
def test_hostile_stacks_are_refused(
    name: str, change: Callable[[bytes, bytes], list[bytes]], reason: str, made: dict[SectionType, bytes]
) -> None:
    stacks = change(*stacks_of(made))
    kept = {kind: body for kind, body in made.items() if kind is not SectionType.STACK}
    refused({**kept, SectionType.STACK: box.pack_frames(stacks)} if stacks else kept, reason)


@pytest.mark.parametrize(
    ("carrier", "reasons"),
    [
        (Carrier(CarrierMode.INITIAL, 2, 0, 8 * 512), ("container-damaged",)),
        (Carrier(CarrierMode.INITIAL, 0, 1 << 40, 8 * 512), ("container-damaged",)),
        (Carrier(CarrierMode.INITIAL, 0, 0, 1 << 31), ("container-damaged",)),
        (Carrier(CarrierMode.INITIAL, 1, 0, 8 * 64), ("context-mismatch", "seal-refused", "container-damaged")),
        (Carrier(CarrierMode.INITIAL, 0, 8, 8 * 2), ("seal-refused",)),
    ],
)
def test_carriers_that_name_other_bits_are_refused(
    carrier: Carrier, reasons: tuple[str, ...], made: dict[SectionType, bytes]
) -> None:
    refused({**made, SectionType.CARRIER: box.pack_carrier(carrier)}, *reasons)


def test_a_stack_for_frames_that_left_nothing_to_it_is_refused(made: dict[SectionType, bytes]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(framechain, "encode_frame", Splitting(0).encode)
        plain = sections_of(build_candidate(file_of(slices(RUN + 1, 16)), FACTS, RING).envelope)
    refused({**plain, SectionType.STACK: made[SectionType.STACK]}, "bitstream-damaged")


def test_frames_that_claim_to_be_huge_cost_no_memory(made: dict[SectionType, bytes]) -> None:
    fmt = PixelFormat(1 << 13, 1 << 13, 1, 16, 16, 15, False)
    plane = CodedPlane(0, 65535, 15, 0, 1 << 13, tiles=(Tile(0, np.zeros(0, np.uint32), np.zeros(1, np.uint32)),))
    frame = CodedFrame(Preface(load("default").id, 1, stacked=True), None, (plane,))
    blob = write_header(Header(fmt, LevelTable(0, 65536), "learned", 0, None)) + write_learned(frame)
    kept = {**made, SectionType.FRAMES: box.pack_frames([blob] * (RUN + 1))}
    refused(kept, "bitstream-damaged")
