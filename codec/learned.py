"""The learned coder: a frame's level indices as planes, planes as tiles; the network gives every sample's law."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from codec import color
from codec.bitplane import LevelTable
from codec.dual import code_taps, over_tiles, read_taps
from codec.errors import CorruptBitstream
from codec.globalpath import code_global
from codec.gpu_jobs import DecodeJob, EncodeJob, decode_tiles, encode_tiles
from codec.learneddecode import Job, Plane, framed, previous_planes, radius_of
from codec.learnedformat import (
    ADAPTER_INLINE,
    ADAPTER_NONE,
    ADAPTER_SHARED,
    INHERITED,
    NO_WORDS,
    CodedFrame,
    CodedPlane,
    Preface,
    Tile,
    Words,
)
from codec.learnedplan import Choice, Effort, Subject, choose, goes_on
from codec.memory import Head, Memory
from codec.network import Network
from codec.plan import count_global
from codec.rans import ENCODE, IO_FIELDS, MODE, SYMBOL, closed, flush, open_stream


@dataclass(frozen=True)
class Candidate:
    """A network that a frame may be coded with, and how the blob names its adapter (`kind` of learnedformat)."""

    network: Network
    kind: int = ADAPTER_NONE
    adapter: bytes = b""

    @property
    def cost(self) -> int:
        """Bytes that naming the adapter takes."""
        return {ADAPTER_NONE: 0, ADAPTER_INLINE: len(self.adapter) + 1, ADAPTER_SHARED: 4}[self.kind]


@dataclass(frozen=True)
class Previous:
    """The previous frame: sample values (int32, the frame's shape) and the CRC-32 of its words."""

    values: Plane
    crc: int


@dataclass(frozen=True)
class LearnedPlan:
    """A frame as planes and all that was chosen for it; `bits`: about what it takes.

    `memory_crc`: of the memory that it goes on from, if it does.
    """

    transform: int | None
    subjects: tuple[Subject, ...]
    candidate: Candidate
    choices: tuple[Choice, ...]
    previous_crc: int | None
    bits: float
    memory_crc: int | None = None


def plan_learned(
    index: NDArray[np.uint16],
    levels: LevelTable,
    candidates: Sequence[Candidate],
    previous: Previous | None,
    effort: Effort,
    memory: Memory | None = None,
) -> LearnedPlan:
    """Choose how to code level indices, (rows, columns) or (rows, columns, 3).

    `candidates`: the plain network first; the one with the least estimated code length is used. `memory`: of the frame
    before, to go on from where it fits this one.
    """
    transform = None if index.ndim == 2 else color.choose_transform(index)
    planes = [index.astype(np.int32)] if transform is None else list(color.forward(index, transform))
    before = None if previous is None else previous_planes(previous.values, levels, transform)
    subjects = []
    for number, plane in enumerate(planes):
        low, high = (0, levels.count - 1) if transform is None else (int(plane.min()), int(plane.max()))
        earlier = None if before is None else framed(before[number], low, high - low)
        shifted = plane - np.int32(low) if low else plane
        known = None if memory is None or number >= len(memory.planes) else memory.planes[number]
        subjects.append(Subject(np.ascontiguousarray(shifted), low, high - low, earlier, known))
    if memory is not None and not goes_on(subjects, memory, candidates[0].network, previous is not None, effort):
        memory, subjects = None, [replace(subject, memory=None) for subject in subjects]
    busy = [subject for subject in subjects if subject.highest]
    networks = [(candidate.cost, candidate.network) for candidate in candidates]
    plan = choose(busy, networks, effort)
    crc = None if previous is None else previous.crc
    memory_crc = None if memory is None else memory.crc
    return LearnedPlan(transform, tuple(subjects), candidates[plan.network], plan.choices, crc, plan.bits, memory_crc)


def encode_learned(plan: LearnedPlan, weights: bytes, threads: int) -> tuple[CodedFrame, dict[str, int]]:
    """Code a frame as planned; the coded frame and facts about it. `weights`: 4 bytes of the weight file's SHA-256."""
    states = plan.choices[0].setting.states if plan.choices else 1
    preface = Preface(weights, states, previous_crc=plan.previous_crc, memory_crc=plan.memory_crc)
    preface = _named(preface, plan.candidate)
    remaining = iter(plan.choices)
    coded = tuple(
        _encode_plane(subject, next(remaining), threads) if subject.highest else CodedPlane(subject.low, 0)
        for subject in plan.subjects
    )
    return CodedFrame(preface, plan.transform, coded), _facts(preface, plan.transform, coded)


def _named(preface: Preface, candidate: Candidate) -> Preface:
    """The preface with the adapter in use."""
    inline = candidate.adapter if candidate.kind == ADAPTER_INLINE else b""
    crc = zlib.crc32(candidate.adapter) if candidate.kind == ADAPTER_SHARED else 0
    return replace(preface, adapter_kind=candidate.kind, adapter=inline, shared_crc=crc)


def _facts(preface: Preface, transform: int | None, planes: Sequence[CodedPlane]) -> dict[str, int]:
    """What the encoder chose; of a colour frame's planes with their number behind the name."""
    facts = {
        "states": preface.states,
        "adapter": int(preface.adapter_kind == ADAPTER_INLINE),
        "adapter_bytes": len(preface.adapter),
        "shared": int(preface.adapter_kind == ADAPTER_SHARED),
        "previous": int(preface.previous_crc is not None),
        "memory": int(preface.memory_crc is not None),
    }
    for number, plane in enumerate(planes):
        end = "" if transform is None else str(number)
        facts |= {f"k{end}": plane.k if plane.highest else 0, f"raw{end}": plane.raw, f"tiles{end}": len(plane.tiles)}
        facts |= {f"sets{end}": plane.sets, f"side{end}": 4 * plane.taps.size}
        facts[f"global{end}"] = 4 * sum(tile.upper.size for tile in plane.tiles)
    if transform is not None:
        facts["transform"] = transform
    return facts


def _encode_plane(subject: Subject, choice: Choice, threads: int) -> CodedPlane:
    """Code all tiles of a plane."""
    setting, height = choice.setting, choice.tile_rows
    top, jobs = setting.highest >> setting.k, []
    for first in range(0, subject.samples.shape[0], height):
        samples = np.ascontiguousarray(subject.samples[first : first + height])
        before = (
            None if subject.previous is None else np.ascontiguousarray(subject.previous[first : first + height + 2])
        )
        upper = samples >> setting.k if top else None
        head = None if subject.memory is None else subject.memory.head(first)
        jobs.append(EncodeJob(samples, int(samples[0, 0]), upper, before, setting, head))
    uppers = over_tiles(lambda job: NO_WORDS if job.upper is None else encode_upper(job.upper, top), jobs, threads)
    coded = encode_tiles(jobs, threads)
    tiles = [Tile(job.anchor, upper, words) for job, upper, words in zip(jobs, uppers, coded, strict=True)]
    if subject.memory is not None:
        return CodedPlane(
            subject.low, subject.highest, setting.k, setting.raw, height, sets=INHERITED, rate=setting.rate,
            tiles=tuple(tiles),
        )  # fmt: skip
    taps, thresholds = setting.predictors.taps, setting.predictors.thresholds
    sets, directions = taps.shape[0], max(1, (taps.shape[0] - 1) // (thresholds.size + 1))
    words = code_taps(taps >> choice.precision, radius_of(subject.previous is not None)) if sets else NO_WORDS
    return CodedPlane(
        subject.low, subject.highest, setting.k, setting.raw, height, choice.precision, sets, directions, setting.rate,
        tuple(int(threshold) for threshold in thresholds), words, tuple(tiles),
    )  # fmt: skip


def encode_upper(plane: Plane, top: int) -> Words:
    """G of a tile (int32, 0..top) as rANS words."""
    room = count_global(plane, top)[1]
    starts, freqs = np.empty(room, np.uint32), np.empty(room, np.uint32)
    io, cost = np.zeros(IO_FIELDS, np.int64), np.zeros(1, np.float64)
    io[MODE] = ENCODE
    code_global(io, NO_WORDS, starts, freqs, cost, plane, top)
    words: Words = flush(starts, freqs, int(io[SYMBOL]))
    return words


def decode_upper(words: Words, rows: int, columns: int, top: int) -> Plane:
    """Inverse of encode_upper: int32 (rows, columns). Raises CorruptBitstream."""
    plane = np.zeros((rows, columns), np.int32)
    io, cost = np.zeros(IO_FIELDS, np.int64), np.zeros(1, np.float64)
    open_stream(io, words)
    code_global(io, words, NO_WORDS, NO_WORDS, cost, plane, top)
    if not closed(io, words):
        raise CorruptBitstream("global part does not end where it should")
    return plane


class LearnedKernels:
    """The fast decoder (see learneddecode.Engine): SIMD kernels, tiles spread over `threads` threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def taps(self, words: Words, sets: int, radius: NDArray[np.int64]) -> Plane:
        """See Engine."""
        return read_taps(words, sets, radius)

    def plane(self, job: Job) -> tuple[Plane, tuple[Head, ...]]:
        """See Engine."""
        setting = job.setting
        columns, top = job.shape[1], setting.highest >> setting.k

        def work(number: int) -> DecodeJob:
            tile, first = job.tiles[number], number * job.tile_rows
            rows = min(job.tile_rows, job.shape[0] - first)
            upper = None if job.upper is None else np.ascontiguousarray(job.upper[first : first + rows])
            if upper is None and top:
                upper = decode_upper(tile.upper, rows, columns, top)
            before = None if job.previous is None else np.ascontiguousarray(job.previous[first : first + rows + 2])
            head = job.heads[number] if job.heads else None
            return DecodeJob((rows, columns), tile.words, tile.anchor, upper, before, setting, head)

        jobs = over_tiles(work, range(len(job.tiles)), self._threads)
        parts = [part for part in decode_tiles(jobs, self._threads) if part is not None]
        if len(parts) < len(jobs):
            raise CorruptBitstream("tile does not end where it should")
        heads = tuple(part.head for part in parts)
        return (parts[0].samples if len(parts) == 1 else np.concatenate([part.samples for part in parts])), heads
