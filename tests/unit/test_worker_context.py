"""Frames that are coded with the one before: who hands context to whom, how far it reaches, and how little is held."""

from __future__ import annotations

import gc
import io
import weakref
from collections.abc import Iterator

import numpy as np
import pydicom
import pytest

from codec.bitplane import Words
from codec.blob import Frame
from codec.errors import MissingContext
from codec.fit_adapter import FitResult
from codec.frame import EncodedFrame, decode_frame, encode_frame
from codec.pixelformat import PixelFormat
from gateway.errors import IntegrityError
from gateway.keys import KeyRing
from gateway.policy import ArchiveRule
from tests.context_codec import ContextCodec
from tests.object_makers import BIG, FACTS, image, noisy
from tests.unit.codec_networks import known, weight_file
from worker import adapting, candidate, framechain
from worker import container as box
from worker import restore as reading
from worker.candidate import Candidate, build_candidate
from worker.container import SectionType
from worker.envelope import CREATOR_VERSION_UIDS, Source, build_envelope, parse_envelope
from worker.framechain import RUN, ChainCoder, FrameChain
from worker.framepass import FramePass
from worker.pixels import open_pixels
from worker.restore import exact_image, rebuild, restore, stego_image
from worker.splice import read_object
from worker.verify import check_envelope

SEALED = ArchiveRule(name="sealed", seal_bitmap=True)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return KeyRing.load_or_create(tmp_path_factory.mktemp("context") / "keys")


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch) -> Iterator[ContextCodec]:
    codec = ContextCodec()
    monkeypatch.setattr(framechain, "encode_frame", codec.encode)
    monkeypatch.setattr(reading, "decode_frame", codec.decode)
    yield codec


def sections_of(built: Candidate) -> dict[SectionType, memoryview]:
    return box.parse(parse_envelope(built.envelope).container)


def frames(count: int, rows: int = 24, columns: int = 24) -> list[np.ndarray]:
    return [noisy(rows, columns, seed=seed) for seed in range(count)]


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", BIG])
def test_a_multi_frame_object_comes_back_and_each_frame_is_decoded_once(
    syntax: str, ring: KeyRing, codec: ContextCodec
) -> None:
    data = image(frames(2 * RUN + 3), stored=16, syntax=syntax)
    built = build_candidate(data, FACTS, ring)
    assert built.reason == ""
    assert restore(built.envelope, ring, decode=codec.decode).data == data
    assert codec.decodes == 2 * RUN + 3


def test_an_independent_frame_stands_at_every_run(ring: KeyRing, codec: ContextCodec) -> None:
    built = build_candidate(image(frames(RUN + 2), stored=16), FACTS, ring)
    blobs = box.unpack_frames(sections_of(built)[SectionType.FRAMES])
    assert [at for at, blob in enumerate(blobs) if not blob[2] & 1] == [0, RUN]


@pytest.mark.parametrize("carrying", [0, 1, 5])
@pytest.mark.parametrize("rule", [ArchiveRule(name="clear"), SEALED], ids=["clear", "sealed"])
def test_context_is_the_frame_as_coded_with_the_record_inside(
    carrying: int, rule: ArchiveRule, ring: KeyRing, codec: ContextCodec
) -> None:
    made = [np.zeros((96, 96), np.uint16)] * carrying + [noisy(seed=1), noisy(seed=2), noisy(seed=3)]
    data = image(made, stored=16)
    built = build_candidate(data, FACTS, ring, rule=rule)
    carrier = box.unpack_carrier(sections_of(built)[SectionType.CARRIER])
    assert (built.carrier != "beside", carrier.frame) == (True, carrying)
    assert restore(built.envelope, ring, decode=codec.decode).data == data
    shown = list(stego_image(built.envelope).frames())
    assert not np.array_equal(shown[carrying], made[carrying]) and np.array_equal(shown[-1], made[-1])
    for found, words in zip(exact_image(built.envelope, ring).frames(), made, strict=True):
        assert np.array_equal(found, words)


def test_the_container_says_that_an_older_reader_cannot_read_it(ring: KeyRing, codec: ContextCodec) -> None:
    built = build_candidate(image(frames(2), stored=16), FACTS, ring)
    assert parse_envelope(built.envelope).container[4] == 2
    assert pydicom.dcmread(io.BytesIO(built.envelope)).CreatorVersionUID == CREATOR_VERSION_UIDS[2]


def test_objects_of_version_1_are_written_where_they_do(ring: KeyRing) -> None:
    built = build_candidate(image([noisy()], stored=16), FACTS, ring)
    blobs = box.unpack_frames(sections_of(built)[SectionType.FRAMES])
    version = max(blob[1] for blob in blobs)
    assert parse_envelope(built.envelope).container[4] == version
    assert pydicom.dcmread(io.BytesIO(built.envelope)).CreatorVersionUID == CREATOR_VERSION_UIDS[version]


def test_a_shared_adapter_stands_in_the_object_once(
    ring: KeyRing, codec: ContextCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidate, "chain_coder", lambda *_: ChainCoder(shared=b"adapter"))
    data = image(frames(3), stored=16)
    built = build_candidate(data, FACTS, ring)
    sections = {kind: bytes(body) for kind, body in sections_of(built).items()}
    assert sections[SectionType.ADAPTER] == b"adapter"
    assert restore(built.envelope, ring, decode=codec.decode).data == data
    for broken in (b"adapteR", None):
        kept = {kind: body for kind, body in sections.items() if kind is not SectionType.ADAPTER}
        changed = kept if broken is None else {**kept, SectionType.ADAPTER: broken}
        envelope = build_envelope(box.build(changed, 2), Source("00" * 32, "", "", "", ""), "", bytes(32))
        with pytest.raises(IntegrityError) as caught:
            restore(envelope, ring, decode=codec.decode)
        assert caught.value.reason == "bitstream-damaged"


# --- the chain ---


def chain_of(codec: ContextCodec, count: int) -> FrameChain:
    coder, fmt = ChainCoder(), _format()
    for words in frames(count):
        before = coder.context(fmt)
        coder.add(codec.encode(words, fmt, previous=before.words if before else None), words, fmt)
    return FrameChain([memoryview(blob) for blob in coder.blobs], codec.decode)


def _format() -> PixelFormat:
    return PixelFormat(24, 24, 1, 16, 16, 15, False)


@pytest.mark.parametrize("index", [0, 1, RUN - 1, RUN, RUN + 1, 2 * RUN + 7])
def test_one_frame_needs_at_most_fifteen_others(index: int) -> None:
    codec = ContextCodec()
    chain = chain_of(codec, 2 * RUN + 8)
    assert np.array_equal(chain.frame(index).words, noisy(24, 24, seed=index))
    assert codec.decodes == index % RUN + 1 <= RUN
    assert chain.frame(index).fmt == _format() and codec.decodes == index % RUN + 1


def test_frames_in_any_order() -> None:
    codec = ContextCodec()
    chain = chain_of(codec, RUN + 4)
    for index in np.random.default_rng(3).permutation(RUN + 4):
        assert np.array_equal(chain.frame(int(index)).words, noisy(24, 24, seed=int(index)))


def test_a_frame_at_a_run_that_needs_another_is_damage() -> None:
    codec, fmt = ContextCodec(), _format()
    words = frames(RUN + 1)
    blobs = [codec.encode(words[0], fmt).blob]
    blobs += [codec.encode(each, fmt, previous=before).blob for before, each in zip(words, words[1:], strict=False)]
    chain = FrameChain([memoryview(blob) for blob in blobs], codec.decode)
    assert np.array_equal(chain.frame(RUN - 1).words, words[RUN - 1])
    with pytest.raises(IntegrityError) as caught:
        chain.frame(RUN)
    assert caught.value.reason == "bitstream-damaged"


def test_a_pass_holds_a_few_frames_only(ring: KeyRing, codec: ContextCodec) -> None:
    built = build_candidate(image(frames(3 * RUN), stored=16), FACTS, ring)
    seen: list[weakref.ref[np.ndarray]] = []
    most = 0

    def decode(blob: bytes, **context: object) -> Frame:
        nonlocal most
        frame = codec.decode(blob, **context)  # type: ignore[arg-type]
        seen.append(weakref.ref(frame.words))
        if sum(each() is not None for each in seen) > 4:
            gc.collect()  # what hangs in cycles only is not held
        most = max(most, sum(each() is not None for each in seen))
        return frame

    rebuild(built.envelope, ring, lambda _: None, decode=decode)
    assert most <= 4
    for _ in FramePass(sections_of(built), decode).clear_frames():
        pass
    assert most <= 4


def test_a_rule_that_fits_gives_one_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool, dict[str, object]]] = []

    def fit(samples: list[tuple[object, object, object]], **options: object) -> FitResult:
        seen.append((len(samples), all(before is not None for *_, before in samples), options))
        return FitResult(b"adapter")

    monkeypatch.setattr(adapting, "fit", fit)
    plain = ArchiveRule(name="plain").coded("fast", "none", 3.0)
    fitted = ArchiveRule(name="fitted", adapt="image").coded("fast", "none", 3.0)
    many, one = (open_pixels(read_object(image(frames(count), stored=16))) for count in (40, 1))
    assert (adapting.chain_coder(many, plain, 1).shared, seen) == (None, [])
    coder = adapting.chain_coder(many, fitted, 2)
    assert (coder.profile, coder.shared, coder.adapters) == ("fast", b"adapter", ())
    coder = adapting.chain_coder(one, fitted, 2)
    assert (coder.shared, coder.adapters) == (None, (b"adapter",))
    assert [(count, chained) for count, chained, _ in seen] == [(adapting.SAMPLE_FRAMES, True), (1, False)]
    expected = {"profile": "fast", "prior": ("CT", "", ""), "seconds": 3.0, "threads": 2, "stands_for": 40}
    assert seen[0][2] == expected


# --- the real coder ---


@pytest.mark.parametrize("rule", [ArchiveRule(name="clear"), SEALED], ids=["clear", "sealed"])
def test_objects_of_the_learned_coder_come_back_and_damage_in_the_chain_is_noticed(
    rule: ArchiveRule, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learned(words: Words, fmt: PixelFormat, **options: object) -> EncodedFrame:
        return encode_frame(words, fmt, **{**options, "coders": ("learned",)})  # type: ignore[arg-type]

    monkeypatch.setattr(framechain, "encode_frame", learned)
    made = [noisy(96, 96, noise=32, seed=7) + np.uint16(at % 2) for at in range(RUN + 2)]
    data = image(made, stored=16)
    with known(weight_file()):
        built = build_candidate(data, FACTS, ring, rule=rule)
        assert (built.coder, built.carrier != "beside") == ("learned", True)
        sections = {kind: bytes(body) for kind, body in sections_of(built).items()}
        blobs = list(box.unpack_frames(memoryview(sections[SectionType.FRAMES])))
        with pytest.raises(MissingContext):
            decode_frame(bytes(blobs[1]))
        assert decode_frame(bytes(blobs[RUN])).fmt.rows == 96
        assert restore(built.envelope, ring).data == data
        assert check_envelope(built.envelope, ring).ok
        swapped = [blobs[0], blobs[2], blobs[1], *blobs[3:]]
        sections[SectionType.FRAMES] = box.pack_frames([bytes(blob) for blob in swapped])
        envelope = build_envelope(box.build(sections, 2), Source("00" * 32, "", "", "", ""), "", bytes(32))
        with pytest.raises(IntegrityError) as caught:
            restore(envelope, ring)
        assert caught.value.reason == "bitstream-damaged"
