"""Encode and decode one frame: the shortest of the dual path and the standard codecs, proven by decoding."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from codec.adapter import is_for, network_of
from codec.bitplane import LevelTable, Words, choose_levels, split_words
from codec.blob import Decoders, Frame, Given, decode_with
from codec.candidates import has_comb, is_odd, looks_odd, packing_may_win, repeats
from codec.dual import KernelEngine, encode_dual
from codec.errors import CodecError, CorruptBitstream, UnsupportedFrame
from codec.header import UNUSED_STORED, Header, classify_unused, write_header
from codec.learned import Candidate, LearnedKernels, LearnedPlan, Previous, encode_learned, plan_learned
from codec.learneddecode import Context
from codec.learnedformat import ADAPTER_INLINE, ADAPTER_SHARED, write_learned
from codec.learnedplan import Effort
from codec.limits import DEFAULT_LIMITS, Limits
from codec.memory import Memory
from codec.pixelformat import PixelFormat
from codec.plan import TILE_SAMPLES
from codec.standard import STANDARD, Plane, pack_bits
from codec.weights import BadWeights, UnknownWeights, current, silenced
from codec.wire import put_crc

log = logging.getLogger(__name__)
V1_CODERS: tuple[str, ...] = ("dual", "jpegls", "htj2k", "jxl", "raw")
ALL_CODERS: tuple[str, ...] = ("learned", *V1_CODERS)
# Coders that a profile tries. The dual coder's encoder is slow and seldom better than the learned one.
PROFILES: dict[str, tuple[str, ...]] = {
    "fast": ("learned", "jpegls", "jxl", "htj2k", "raw"),
    "default": ("learned", "jpegls", "jxl", "htj2k", "raw"),
    "max": ALL_CODERS,
}
# What the learned coder's encoder tries in a profile: rates of the head's learning; samples up to which a plane is one
# tile, two of which can be coded by two threads but cost 0.1-0.3 % more bytes; how much more than usual its
# states may cost.
LEARNING_RATES: dict[str, tuple[int, ...]] = {"fast": (0,), "default": (7,), "max": (7, 8, 9, 10)}
ALONE: dict[str, int] = {"fast": 1 << 17, "default": 1 << 17, "max": 1 << 19}
STATES: dict[str, float] = {"fast": 3.0, "default": 1.0, "max": 1.0}
FRESH_CHAIN = 0.996  # of its bits a frame takes once its chain with the previous frame is under way, at most
ABLATIONS = frozenset(("least-squares", "network", "adapters", "split", "vae", "previous"))
QUICK_EFFORT, FULL_EFFORT = 7, 9  # of JPEG XL
# JPEG XL's full effort is tried only where it could win: about the most that it gains over the quick one, and for
# large grey frames what it gains on a part of PROBE_SAMPLES, give or take PROBE_MARGIN.
FULL_GAIN_GREY, FULL_GAIN_COLOUR = 0.04, 0.30
# Under so many bits a sample a grey frame may be a screen, a palette or a drawing, where full effort was seen to gain
# 11 %: there it is always tried, but for large frames, whose part may show less than the whole.
SPARSE_BITS, PROBE_FROM, SPARSE_PROBE_FROM = 2.0, 1 << 17, 1 << 20
# An odd frame up to that size gets full effort at once: there it is nearly always the shorter one.
STRAIGHT_SAMPLES = 1 << 20
PROBE_SAMPLES, PROBE_MARGIN, SPARSE_MARGIN = 1 << 15, 0.015, 0.05


@dataclass(frozen=True)
class EncodedFrame:
    """A coded frame. `lengths`: bytes of the whole blob per candidate tried; `details`: facts about the own coders.

    `refused`: candidates that were shorter but did not decode to the frame; of an own coder that is a fault of ours.
    `memory`: what the next frame may go on from, known from the proof.
    """

    blob: bytes
    coder: str
    lengths: dict[str, int]
    details: dict[str, int] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    memory: Memory | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class _Aids:
    """What the learned coder may use beside the frame."""

    profile: str
    given: Given
    adapters: Sequence[bytes]
    without: frozenset[str]
    split: int | None


def encode_frame(
    words: Words,
    fmt: PixelFormat,
    *,
    levels: LevelTable | None = None,
    profile: str = "default",
    previous: Words | None = None,
    memory: Memory | None = None,
    shared: bytes | None = None,
    adapters: Sequence[bytes] = (),
    coders: Sequence[str] | None = None,
    threads: int = 1,
    effort: int | None = None,
    tile_samples: int = TILE_SAMPLES,
    prove: bool = True,
    without: frozenset[str] = frozenset(),
    split: int | None = None,
) -> EncodedFrame:
    """Code one frame losslessly and keep the shortest candidate that decodes to the same words.

    `levels` may be any superset of the levels used. `previous` (words of the frame before, of the same format),
    `memory` (what that frame left beside them, of no use without them),
    `shared` (an adapter that the object holds once) and `adapters` (that would travel in the blob) are used where the
    learned coder estimates that they pay. `profile`: fast, default or max. `coders`: which to try; None: the profile's
    (without weights of the profile: those of version 1). `without`: parts of the learned coder that are left out, to
    see what they are worth; `split`: bits of its global part, None: as many as pay. `effort` is JPEG XL's; None: quick,
    and full where the quick result says that it might win. `tile_samples`: about how many samples the dual coder codes
    as one independent tile. `prove` False leaves out the proof by decoding: to time the coder alone, never for what is
    stored. Raises UnsupportedFrame on a frame that the format cannot hold and CodecError when no candidate reproduces
    the words.
    """
    names = _coders(coders, profile)
    if without - ABLATIONS:
        raise UnsupportedFrame(f"nothing is called {sorted(without - ABLATIONS)}")
    if words.size > DEFAULT_LIMITS.max_samples:
        raise UnsupportedFrame(f"{words.size} samples are above the limit of {DEFAULT_LIMITS.max_samples}")
    values, unused = split_words(words, fmt)
    table = choose_levels(values) if levels is None else levels
    kind = classify_unused(values, unused, fmt)
    header = Header(fmt, table, "raw", kind, unused if kind == UNUSED_STORED else None)
    given = Given(previous, shared, memory=memory)
    race = _Race(table.rank(values), header, threads, tile_samples, _Aids(profile, given, adapters, without, split))
    estimated = coders is None and profile != "max" and names[0] == "learned"
    race.run(names, effort, estimated=estimated)
    refused: list[str] = []
    for name in sorted(race.blobs, key=lambda name: (len(race.blobs[name]), names.index(name))):
        proof = _proven(race.blobs[name], words, fmt, threads, given) if prove else None
        if proof is not None or not prove:
            lengths = {coder: len(blob) for coder, blob in race.blobs.items()}
            left = None if proof is None else proof.memory
            return EncodedFrame(race.blobs[name], name, lengths, race.details, tuple(refused), left)
        log.error("a frame that %s coded does not decode to what it was; the next shortest candidate is taken", name)
        refused.append(name)
    raise CodecError("no candidate reproduces the frame")


def _coders(coders: Sequence[str] | None, profile: str) -> Sequence[str]:
    """The coders to try. Raises UnsupportedFrame on unknown names."""
    if profile not in PROFILES:
        raise UnsupportedFrame(f"unknown profile {profile}")
    if coders is None:
        try:
            current(profile)
        except UnknownWeights:
            return V1_CODERS
        return PROFILES[profile]
    if set(coders) - set(ALL_CODERS) or not coders:
        raise UnsupportedFrame(f"unknown coders {sorted(set(coders) - set(ALL_CODERS))}")
    return coders


class _Race:
    """The candidates of one frame. A library codec that refuses the frame's shape is left out."""

    def __init__(self, index: NDArray[np.uint16], header: Header, threads: int, tile_samples: int, aids: _Aids) -> None:
        self.index, self.header, self.threads, self.tile_samples, self.aids = index, header, threads, tile_samples, aids
        self.small: Plane = index.astype(np.uint8) if header.levels.count <= 256 else index
        self.blobs: dict[str, bytes] = {}
        self.details: dict[str, int] = {}
        self._odd: bool | None = None
        self._comb = False
        self._repeats = 0.0
        self._entered: set[str] = set()

    def run(self, names: Sequence[str], effort: int | None, *, estimated: bool) -> None:
        """Enter the coders; `estimated`: only those that might win. Some may run beside the learned one."""
        with ThreadPoolExecutor(1) as pool:
            if self.threads > 1 and "learned" in names:
                scout = pool.submit(self._scout, names, effort, estimated=estimated)
                self.enter("learned", effort)
                scout.result()
            else:
                self._scout(names, effort, estimated=estimated)
        for name in names:
            if name not in self._entered and (not estimated or self.is_worth(name)):
                self.enter(name, effort)

    def _scout(self, names: Sequence[str], effort: int | None, *, estimated: bool) -> None:
        """All that need not wait for the learned coder: whether the frame is odd, and libraries that are tried anyway.

        JPEG-LS always is on grey, JPEG XL where its effort does not hang on what the learned coder makes of the frame.
        """
        if estimated:
            self._comb = has_comb(self.index)
            self._odd = True if self._comb or looks_odd(self.index) else None
            self._repeats = repeats(self.index, self.header.levels.count) if self._odd is None else 0.0
        ready = {"jpegls": self.index.ndim == 2, "jxl": self._straight_effort() is not None}
        for name in names:
            if "learned" in names and ready.get(name, False):
                self.enter(name, effort)

    def is_worth(self, name: str) -> bool:
        """Whether a coder might win against the learned one, which went first."""
        if name == "learned" or "learned" not in self.blobs:
            return True
        if name == "jpegls":
            return False  # grey: entered already
        count, shortest = self.header.levels.count, min(len(blob) for blob in self.blobs.values())
        if name == "raw":
            return packing_may_win(self.index.size, count, shortest)
        if self._odd is None:
            jpegls = len(self.blobs["jpegls"]) if "jpegls" in self.blobs else None
            self._odd = is_odd(self.index, len(self.blobs["learned"]), jpegls, self._repeats)
        return self._odd

    def enter(self, name: str, effort: int | None) -> None:
        """Code the frame by one coder and keep the blob."""
        self._entered.add(name)
        if name == "dual":
            body, facts = encode_dual(self.index, self.header.levels.count, self.threads, self.tile_samples)
            self.details = facts | self.details
            self._keep(name, body)
        elif name == "learned":
            self._learned()
        elif name == "raw":
            self._keep(name, _with_crc(pack_bits(self.index, (self.header.levels.count - 1).bit_length())))
        elif name == "jxl":
            straight = self._straight_effort() if effort is None else effort
            self._library(name, QUICK_EFFORT if straight is None else straight)
            if straight is None and self._full_may_win():
                self._library(name, FULL_EFFORT)
        else:
            self._library(name, 0)

    def _straight_effort(self) -> int | None:
        """JPEG XL's effort for an odd frame, where only one is tried; None: quick, and full if that may win."""
        if not self._odd or self.aids.profile == "max":
            return None
        if self.aids.profile == "fast":
            return QUICK_EFFORT
        return FULL_EFFORT if self._comb or self.index.size < STRAIGHT_SAMPLES else None

    def _learned(self) -> None:
        """Code the frame by the learned coder, with the previous frame where that is shorter by estimate."""
        aids = self.aids
        weights = current(aids.profile)
        if "network" in aids.without:
            weights = silenced(weights.id)
        context = aids.given.context(self.header.fmt)
        plan = self._shortest_plan(weights.id, context)
        coded, facts = encode_learned(plan, weights.id, self.threads)
        self.details = self.details | facts
        self._keep("learned", write_learned(coded))

    def _shortest_plan(self, weights: bytes, context: Context) -> LearnedPlan:
        """The plan of the least estimated length: alone, with the previous frame, going on from its memory.

        A frame that goes on could be the first of a better chain: with the previous frame, where that is close.
        """
        levels, effort, without = self.header.levels, self._effort(), self.aids.without
        alone = self._networks(weights, False)
        best = plan_learned(self.index, levels, alone, None, effort)
        if context.previous is None or "previous" in without:
            return best
        previous = Previous(context.previous, context.previous_crc)
        try:
            chained = self._networks(weights, True)
        except BadWeights:  # without a network for volumes the previous frame is of no use
            return best
        memory = context.memory
        if memory is None:
            return min(best, plan_learned(self.index, levels, chained, previous, effort), key=length)
        own, before = (chained, previous) if memory.volume else (alone, None)
        onward = plan_learned(self.index, levels, own, before, effort, memory)
        if memory.volume and onward.bits < best.bits:
            return onward
        fresh = plan_learned(self.index, levels, chained, previous, effort)
        if fresh.bits < best.bits and fresh.bits * FRESH_CHAIN < onward.bits:
            return fresh
        return min(best, onward, key=length)

    def _effort(self) -> Effort:
        """How hard the learned coder tries."""
        profile, without = self.aids.profile, self.aids.without
        split = 0 if profile == "fast" and self.aids.split is None else self.aids.split  # a look at splits takes time
        return Effort(
            fitted="least-squares" not in without,
            split=0 if "split" in without else split,
            rates=LEARNING_RATES[profile] if "network" not in without else (0,),
            alone=ALONE[profile],
            states=STATES[profile],
            threads=self.threads,
        )

    def _networks(self, weights: bytes, previous: bool) -> list[Candidate]:
        """The plain network and those under the adapters at hand."""
        out = [Candidate(network_of(weights, b"", previous))]
        if "adapters" in self.aids.without:
            return out
        shared = self.aids.given.shared
        if shared:
            out.append(Candidate(network_of(weights, shared, previous), ADAPTER_SHARED, shared))
        inline = (adapter for adapter in self.aids.adapters if is_for(adapter, previous))
        return out + [Candidate(network_of(weights, one, previous), ADAPTER_INLINE, one) for one in inline]

    def _library(self, name: str, effort: int) -> None:
        try:
            body = STANDARD[name].encode(self.small, effort)
        except (RuntimeError, ValueError):
            return
        self._keep(name, _with_crc(body))

    def _keep(self, name: str, body: bytes) -> None:
        blob = write_header(replace(self.header, coder=name)) + body
        if name not in self.blobs or len(blob) < len(self.blobs[name]):
            self.blobs[name] = blob

    def _full_may_win(self) -> bool:
        """Whether JPEG XL's full effort could beat the shortest candidate so far."""
        if "jxl" not in self.blobs:
            return False
        best, quick = min(len(blob) for blob in self.blobs.values()), len(self.blobs["jxl"])
        sparse = 8 * quick < SPARSE_BITS * self.index.size
        gain = FULL_GAIN_COLOUR if sparse or self.index.ndim == 3 else FULL_GAIN_GREY
        if quick * (1 - gain) >= best:
            return False
        if best == quick or self.index.ndim == 3 or self.index.size < (SPARSE_PROBE_FROM if sparse else PROBE_FROM):
            return True
        return quick * (self._probed_gain() - (SPARSE_MARGIN if sparse else PROBE_MARGIN)) < best

    def _probed_gain(self) -> float:
        """Full effort's length over quick effort's on the middle of the frame."""
        rows, columns = self.index.shape
        width = min(columns, 256)
        height = min(rows, PROBE_SAMPLES // width)
        top, left = (rows - height) // 2, (columns - width) // 2
        part = np.ascontiguousarray(self.small[top : top + height, left : left + width])
        lengths = [len(STANDARD["jxl"].encode(part, effort)) for effort in (FULL_EFFORT, QUICK_EFFORT)]
        return lengths[0] / lengths[1]


def length(plan: LearnedPlan) -> float:
    """About how many bits a frame takes."""
    return plan.bits


def _with_crc(body: bytes) -> bytes:
    out = bytearray(body)
    put_crc(out, 0)
    return bytes(out)


def _proven(blob: bytes, words: Words, fmt: PixelFormat, threads: int, given: Given) -> Frame | None:
    """What a blob decodes to, if that is exactly these words."""
    try:
        frame = decode_with(blob, _decoders(threads), DEFAULT_LIMITS, given)
    except CorruptBitstream:
        return None
    return frame if frame.fmt == fmt and np.array_equal(frame.words, words) else None


def decode_frame(
    blob: bytes,
    *,
    previous: Words | None = None,
    shared: bytes | None = None,
    upper: Sequence[NDArray[np.int32]] | None = None,
    memory: Memory | None = None,
    threads: int = 1,
    limits: Limits = DEFAULT_LIMITS,
) -> Frame:
    """Decode a blob of encode_frame. Raises CorruptBitstream on anything wrong, within bounded memory and time.

    `previous`, `shared`: what the blob was coded with, `memory`: the `Frame.memory` before it, `upper`: the
    planes of its global part where a group's stack has them; more than it needs does no harm, less raises
    MissingContext. Weights that a blob names and that are not known raise UnknownWeights (see codec.weights).
    """
    return decode_with(blob, _decoders(threads), limits, Given(previous, shared, upper, memory))


def _decoders(threads: int) -> Decoders:
    return Decoders(KernelEngine(threads), LearnedKernels(threads))
