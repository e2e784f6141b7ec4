"""The carriers that `payload bench` measures, behind one table: each takes a tile and a message and proves itself.

A mode gives the stego samples and how many bytes must be kept elsewhere for the way back. Its `way back` is run on the
stego samples alone (and those bytes), and must give the message and every sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from codec.bitplane import LevelTable, choose_levels, split_words
from stego import hidden, region, regionnet, replacement, segmented, selfcontained
from stego.cover import Cover
from stego.errors import CarrierError
from stego.lattice import fingerprint
from worker.payload_tiles import Tile

Values = NDArray[np.int32]
Region = NDArray[np.bool_]


@dataclass(frozen=True)
class Job:
    """What a carrier gets."""

    tile: Tile
    message: bytes
    key: bytes
    region: Region | None = None

    @property
    def cover(self) -> Cover:
        return self.tile.cover

    def salt(self, mode: str) -> bytes:
        """As the product derives it: from the reserved lattice."""
        return fingerprint(self.cover.values, self.tile.fmt.bits_stored, self.tile.fmt.signed, mode)


class Hidden(NamedTuple):
    """What embedding made. way_back: (message, samples) from `values` and what is kept; beside: bytes kept."""

    values: Values
    way_back: Callable[[], tuple[bytes, Values | None]]
    beside: int = 0
    levels: LevelTable | None = None


@dataclass(frozen=True)
class Outcome:
    """values: stego samples. exact: message and all samples came back (the message alone where nothing else can).

    beside: bytes kept elsewhere. levels: the table that the dual path must code the stego samples with.
    """

    values: Values
    exact: bool
    restores: bool
    beside: int
    levels: LevelTable | None
    embed_ms: float
    extract_ms: float


def _stego_cover(job: Job, values: Values) -> Cover:
    return Cover(values, job.cover.low, job.cover.high, job.cover.barred)


def _segmented(job: Job) -> Hidden:
    tile, nbits, salt = job.tile, 8 * len(job.message), job.salt("segmented")[:16]
    levels, words = choose_levels(job.cover.values), tile.words(job.cover.values)
    fit = segmented.suitability(words, tile.fmt, levels, nbits)
    if not fit.ok:
        raise CarrierError(fit.reason)  # the product puts the record beside the pixels then
    done = segmented.embed(words, tile.fmt, levels, job.message, stego_key=job.key, salt=salt, start=fit.start)
    at = (done.start, nbits)

    def back() -> tuple[bytes, Values]:
        message = segmented.extract(done.words, tile.fmt, levels, *at, stego_key=job.key, salt=salt)
        words = segmented.exact(done.words, tile.fmt, levels, done.bitmap, *at)
        return message, split_words(words, tile.fmt)[0].astype(np.int32)

    values = split_words(done.words, tile.fmt)[0].astype(np.int32)
    return Hidden(values, back, len(done.bitmap), levels)


def _self_contained(method: str) -> Callable[[Job], Hidden]:
    def run(job: Job) -> Hidden:
        salt = job.salt("self-contained")
        done = selfcontained.embed(
            job.cover, job.message, stego_key=job.key, salt=salt, region=job.region, method=method
        )

        def back() -> tuple[bytes, Values]:
            stego = _stego_cover(job, done.values)
            return selfcontained.extract(stego, stego_key=job.key, salt=salt, region=job.region)

        return Hidden(done.values, back)

    return run


def _hidden(costs: hidden.Costs) -> Callable[[Job], Hidden]:
    def run(job: Job) -> Hidden:
        salt = job.salt("hidden")
        done = hidden.embed(job.cover, job.message, stego_key=job.key, salt=salt, costs=costs, region=job.region)

        def back() -> tuple[bytes, Values]:
            message = hidden.extract(done.values, len(job.message), stego_key=job.key, salt=salt)
            return message, hidden.restore(done.values, done.changes)

        return Hidden(done.values, back, len(done.changes))

    return run


def _replacement(method: replacement.Method) -> Callable[[Job], Hidden]:
    """Baselines: they give the message back, never the samples; they know no region."""

    def run(job: Job) -> Hidden:
        salt = job.salt(method)
        values = replacement.embed(job.cover, job.message, stego_key=job.key, salt=salt, method=method)

        def back() -> tuple[bytes, None]:
            return replacement.extract(values, len(job.message), stego_key=job.key, salt=salt), None

        return Hidden(values, back)

    return run


#: name -> carrier; the first four are the product's, the others stand beside them for comparison
MODES: dict[str, Callable[[Job], Hidden]] = {
    "segmented": _segmented,
    "self-contained": _self_contained("auto"),
    "hidden": _hidden("mipod"),
    "hidden-hill": _hidden("hill"),
    "plain-pee": _self_contained("plain_pee"),
    "lsb-replacement": _replacement("replacement"),
    "lsb-matching": _replacement("matching"),
}


#: where a carrier may write: a bench of carrier NAME inside REGION is called NAME+REGION
REGIONS: dict[str, Callable[[Values], Region]] = {"classical": region.non_interest, "network": regionnet.non_interest}
REGION_MARK = "+"


def known(mode: str) -> bool:
    """Whether `mode` is NAME or NAME+REGION."""
    name, mark, where = mode.partition(REGION_MARK)
    return name in MODES and (where in REGIONS if mark else True)


def make_job(tile: Tile, mode: str, payload: float) -> Job:
    """`payload` in bits per sample of the tile. Message and key follow from samples, mode and payload alone: where the
    files lie changes no figure.
    """
    name = sha256(tile.cover.values.tobytes()).digest() + f"/{mode}/{payload}".encode()
    nbytes = max(1, int(payload * tile.cover.values.size) // 8)
    seed = int.from_bytes(sha256(name).digest()[:8], "big")
    where = mode.partition(REGION_MARK)[2]
    mask = REGIONS[where](tile.cover.values) if where else None
    return Job(tile, np.random.default_rng(seed).bytes(nbytes), sha256(b"key" + name).digest(), mask)


def run(mode: str, job: Job) -> Outcome:
    """Embed, read back and compare. Raises CarrierError with a reason where the tile cannot carry the message."""
    started = time.perf_counter()
    done = MODES[mode.partition(REGION_MARK)[0]](job)
    embedded = time.perf_counter()
    message, original = done.way_back()
    ended = time.perf_counter()
    same = original is None or np.array_equal(original, job.cover.values)
    return Outcome(
        done.values, message == job.message and same, original is not None, done.beside, done.levels,
        1e3 * (embedded - started), 1e3 * (ended - embedded),
    )  # fmt: skip
