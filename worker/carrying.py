"""Where an object's sealed record rides: proposed by an estimate, embedded, and then measured on the coded frame."""

from __future__ import annotations

from dataclasses import dataclass

from codec.bitplane import LevelTable, Words, choose_levels, split_words
from codec.frame import EncodedFrame
from codec.group import FIXED_BYTES, promises
from gateway.policy import ArchiveRule
from stego.segmented import embed, suitability
from worker.container import Carrier, CarrierMode
from worker.framechain import Before, ChainCoder, upper_bytes
from worker.pixels import PixelSource

MAX_CARRIER_TRIES = 8  # frames judged before the record goes beside: bounds the time on long multi-frame objects
LUT_DEFINED = frozenset({"PALETTE COLOR"})  # a palette index is no brightness: its lowest bit may be another colour
#: growth of the object over the sealed record's own bits up to which the record rides in the pixels; beside it costs 1
MOST_GROWTH = 1.05


@dataclass(frozen=True)
class Place:
    """A carrier before anything is in it, and the carrying frame's level table (None beside the image)."""

    carrier: Carrier
    levels: LevelTable | None = None


BESIDE = Place(Carrier(CarrierMode.BESIDE))


@dataclass(frozen=True)
class Carrying:
    """The carrying frame with the record inside. carrier: with the bitmap in clear; words: the stego frame, coded.

    context: the frame before, if it was coded with that.
    """

    carrier: Carrier
    words: Words
    coded: EncodedFrame
    context: Before | None


def choose_place(source: PixelSource, nbits: int, rule: ArchiveRule) -> Place:
    """The frame that carries, its level table and window; beside when there is none, or none may or need be.

    The first suitable grey frame. Where the rule insists on the pixels and every frame is modelled, the one in which
    that is estimated to cost least.
    """
    may_not = source.fmt.samples != 1 or source.lossy_origin or source.photometric in LUT_DEFINED
    if may_not or rule.carrier == "beside":
        return BESIDE
    mode = CarrierMode.SEALED if rule.seal_bitmap else CarrierMode.SEGMENTED
    best, best_entropy = BESIDE, 0.0
    for index in range(min(source.frames, MAX_CARRIER_TRIES)):
        words = source.frame(index)
        levels = choose_levels(split_words(words, source.fmt)[0])
        found = suitability(words, source.fmt, levels, nbits)
        place = Place(Carrier(mode, index, found.start, nbits), levels)
        if found.ok:
            return place
        if insists(rule) and found.reason == "modelled" and found.entropy > best_entropy:
            best, best_entropy = place, found.entropy
    return best


def insists(rule: ArchiveRule) -> bool:
    """Whether the rule wants the record in the pixels whatever it costs."""
    return rule.seal_bitmap or rule.carrier == "segmented"


def carry(
    source: PixelSource, place: Place, sealed: bytes, *, stego_key: bytes, salt: bytes, coder: ChainCoder
) -> Carrying | None:
    """Embed and code the carrying frame, with the cover's level table. None beside the image. Raises CarrierError.

    coder: in front of the object's first frame.
    """
    if place.levels is None:
        return None
    index, start = place.carrier.frame, place.carrier.start
    words = source.frame(index)
    done = embed(words, source.fmt, place.levels, sealed, stego_key=stego_key, salt=salt, start=start)
    carrier = Carrier(place.carrier.mode, index, done.start, done.nbits, done.bitmap)
    context = coder.context_ahead(source.frame, index, source.fmt)
    return Carrying(carrier, done.words, coder.encode(done.words, source.fmt, context, levels=place.levels), context)


def without_record(source: PixelSource, place: Place, carrying: Carrying, coder: ChainCoder) -> EncodedFrame:
    """The carrying frame with nothing in it, by the coder that took the stego frame. Not proven: for measuring only."""
    words, coders = source.frame(place.carrier.frame), (carrying.coded.coder,)
    return coder.encode(words, source.fmt, carrying.context, levels=place.levels, coders=coders, prove=False)


def growth(carrying: Carrying, plain: EncodedFrame) -> float:
    """What the coded frame and the bitmap add to the frame without the record, over the record's bits."""
    added = len(carrying.coded.blob) - len(plain.blob) + len(carrying.carrier.bitmap)
    return 8 * added / carrying.carrier.nbits


def may_ride_on_stack(rule: ArchiveRule) -> bool:
    """Whether the rule lets the record be the first bits of a stack of global parts."""
    return rule.carrier in ("auto", "initial-bits")


def waits_for_stack(rule: ArchiveRule, plain: EncodedFrame) -> bool:
    """Whether the record of an object with this frame keeps out of the pixels, as a stack may take it for nothing.

    Where the frame's global part is shorter on a stack; where the rule asks for stacks, if it has one at all.
    """
    if upper_bytes(plain) <= FIXED_BYTES or not may_ride_on_stack(rule):
        return False
    return rule.carrier == "initial-bits" or promises(plain.blob)
