"""Decoders against hostile bytes, checksums out of the way: a typed error or a result, in bounded memory and time.

`make fuzz` (FUZZ_SECONDS=60) runs this: with atheris, guided by coverage, where it is installed (extra `fuzz`), else by
random changes of the seeds. Kernels are compiled code without bounds of their own: a crash is a finding, like any other
error than the typed ones, memory above the limit, or two decoders that differ. What was being read lies in
tests/fuzz/findings/ then; `python -m tests.fuzz.decoders FILE` reads it again.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from codec import groupstack, weights
from codec.bitplane import Words
from codec.errors import CodecError
from codec.frame import decode_frame, encode_frame
from codec.groupstack import Shape, decode_stack, encode_stack
from codec.limits import Limits
from codec.pixelformat import PixelFormat
from codec.plainstack import PlainStack
from codec.reference import decode_frame_reference
from codec.wire import Reader
from gateway.errors import PalimpsestError
from tests.unit.codec_networks import weight_file
from tests.unit.test_codec_vae import random_weights
from worker import container
from worker.envelope import parse_envelope
from worker.framechain import RUN, FrameChain, RunStacks
from worker.opener import objects
from worker.opener.errors import OpenError
from worker.opener.zstd import decompress

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
FINDINGS = Path(__file__).parent / "findings"
TYPED = (CodecError, PalimpsestError, OpenError)
LIMITS = Limits(max_samples=1 << 14)
BOTH_UP_TO = 300  # samples: the plain decoder reads about 5000 a second
MEMORY = 1 << 30  # bytes beyond what the process holds when it begins
FMT = PixelFormat(17, 13, 1, 16, 12, 11, False)
TEXT_BYTES = 3000
SIDES = [Shape(9, 8, 15), Shape(9, 8, 3)]


def picture(seed: int, fmt: PixelFormat = FMT) -> Words:
    """A slope with noise, of `fmt`."""
    rng = np.random.default_rng(seed)
    slope = np.add.outer(np.arange(fmt.rows) * 9, np.arange(fmt.columns) * 5)
    words = (slope[..., None] + rng.integers(0, 24, (fmt.rows, fmt.columns, fmt.samples))) & (1 << fmt.bits_stored) - 1
    return words.astype(fmt.dtype).reshape(fmt.shape)


PREVIOUS = picture(1)


def read_frame(data: bytes) -> None:
    """Both decoders of frames, which must agree."""
    outcomes = []
    for decode in (decode_frame, decode_frame_reference):
        try:
            frame = decode(data, previous=PREVIOUS, limits=LIMITS)
            outcomes.append((frame.fmt, frame.words.tobytes()))
            if frame.words.size > BOTH_UP_TO:
                return
        except CodecError:
            outcomes.append(None)
            if _samples(data) > BOTH_UP_TO:
                return
    if outcomes[0] != outcomes[1]:
        raise AssertionError("the fast and the plain decoder differ")


def _samples(data: bytes) -> int:
    from codec.header import read_header

    try:
        fmt = read_header(Reader(data), LIMITS).fmt
    except CodecError:
        return 0
    return fmt.rows * fmt.columns * fmt.samples


def read_stack(data: bytes) -> None:
    """A group's stack."""
    from codec.bitsback import BitsBack

    planes = decode_stack(data, SIDES, BitsBack)[0]
    if any(int(plane.min()) < 0 or int(plane.max()) > side.highest for plane, side in zip(planes, SIDES, strict=True)):
        raise AssertionError("a sample outside its range")


def read_run(data: bytes) -> None:
    """Sections FRAMES, STACK and CARRIER, packed like frames: runs of frames and their stacks."""
    parts = container.unpack_frames(memoryview(data))
    if len(parts) != 3:
        return
    blobs = container.unpack_frames(parts[0])
    stacks = container.unpack_stacks(parts[1], -(-len(blobs) // RUN))
    carrier = container.unpack_carrier(parts[2])
    if len(blobs) > 2 * RUN or any(_samples(bytes(blob)) > LIMITS.max_samples for blob in blobs):
        return
    chain = FrameChain(blobs, partial(decode_frame, limits=LIMITS), None, RunStacks(blobs, stacks))
    for index in range(len(blobs)):
        chain.frame(index)
    if carrier.mode is container.CarrierMode.INITIAL:
        chain.initial(carrier.frame)


def read_envelope(data: bytes) -> None:
    """Envelope, container and every section body, ours and the opener's."""
    with contextlib.suppress(OpenError):
        for member in objects.members(objects.read_sections(objects.find_container(data))):
            if objects.FRAMES in member:
                objects.read_span(member, len(objects.read_frames(member)))
                objects.read_frames(member, objects.STACK if objects.STACK in member else objects.FRAMES)
                objects.read_carrier(member)
    sections = container.parse(parse_envelope(data).container)
    for kind, body in sections.items():
        if kind is container.SectionType.FRAMES:
            list(container.unpack_frames(body))
        elif kind is container.SectionType.CARRIER:
            container.unpack_carrier(body)
        elif kind in (container.SectionType.WRAPS, container.SectionType.PIXEL_WRAPS):
            container.unpack_wraps(body)


TARGETS: dict[str, Callable[[bytes], object]] = {
    "frame": read_frame,
    "stack": read_stack,
    "run": read_run,
    "weights": weights.find,
    "envelope": read_envelope,
    "zstd": lambda data: decompress(data, TEXT_BYTES),
}


@dataclass(frozen=True)
class Seed:
    """Bytes that a target reads without complaint."""

    target: str
    data: bytes


def seeds() -> list[Seed]:
    """Golden blobs and objects, and what this version makes."""
    out = [Seed("frame", path.read_bytes()) for path in sorted(GOLDEN.glob("codec_v*/*.bin"))]
    out += [Seed("envelope", path.read_bytes()) for path in sorted((GOLDEN / "archive-object").glob("*.dcm"))]
    colour = PixelFormat(7, 6, 3, 8, 8, 7, False)
    for number, (fmt, previous) in enumerate(((FMT, None), (FMT, PREVIOUS), (colour, None))):
        for name in ("learned", "dual", "raw"):
            coded = encode_frame(picture(number + 2, fmt), fmt, coders=(name,), previous=previous, prove=False)
            out.append(Seed("frame", coded.blob))
    model = random_weights(5)
    planes = [np.random.default_rng(4).integers(0, side.highest + 1, (9, 8)).astype(np.int32) for side in SIDES]
    out.append(Seed("stack", encode_stack(planes, SIDES, weights.parse(model), PlainStack, seed=1).data))
    out += [Seed("run", run_of(GOLDEN / "archive-object" / name)) for name in ("stack-3.dcm", "group-3.dcm")]
    out.append(Seed("weights", weight_file()))
    import zstandard

    text = (ROOT / "docs" / "payload-format.md").read_bytes()[:TEXT_BYTES]
    out += [Seed("zstd", zstandard.ZstdCompressor(level=level).compress(text)) for level in (1, 19)]
    return out


def run_of(path: Path) -> bytes:
    """The sections that `read_run` reads, of a golden object."""
    sections = container.parse(parse_envelope(path.read_bytes()).container)
    one = (container.unpack_members(sections) or [sections])[0]
    kinds = (container.SectionType.FRAMES, container.SectionType.STACK, container.SectionType.CARRIER)
    return container.pack_frames([bytes(one[kind]) for kind in kinds])


class Anything(bytes):
    """A checksum that is right."""

    def __eq__(self, _: object) -> bool:
        return True

    def __ne__(self, _: object) -> bool:
        return False

    __hash__ = bytes.__hash__


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Checksums hold whatever they say: else no changed byte would get any further."""
    kept, kept_sum = Reader.check_crc, groupstack._checksum
    groupstack._checksum = lambda data, shapes: Anything(4)
    Reader.check_crc = lambda self, start, what: self.take(4) and None  # type: ignore[method-assign]
    known = [weights.add(weight_file()), weights.add(random_weights(5))]
    try:
        yield
    finally:
        Reader.check_crc = kept  # type: ignore[method-assign]
        groupstack._checksum = kept_sum
        for each in known:
            weights.drop(each)


def changed(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A few changes: bits, bytes, numbers that are large, pieces cut out, doubled or taken from another seed."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))
        elif kind == 2:
            out[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xff\xff\xff\x7f", bytes(4)))
        elif kind == 3:
            del out[at : at + rng.randrange(1, 40)]
        elif kind == 4:
            out[at:at] = out[at : at + rng.randrange(1, 40)]
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at : at + 20] = other[start : start + rng.randrange(60)]
        else:
            out[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(out)


def read(target: str, data: bytes) -> None:
    """One input: what is typed is an answer, anything else is raised."""
    with contextlib.suppress(*TYPED):
        TARGETS[target](data)


def note(target: str, data: bytes) -> Path:
    """Keep what is about to be read, under its target's name, so that a crash leaves it behind."""
    FINDINGS.mkdir(exist_ok=True)
    path = FINDINGS / f"{target}-now"
    path.write_bytes(data)
    return path


def limit_memory() -> None:
    """At most MEMORY more than now."""
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, resource.RLIM_INFINITY))


def at_random(seconds: float, start: int, targets: list[str]) -> None:
    """Change seeds at random until the time is up; in a process of its own."""
    with unchecked():
        all_seeds, rng = [each for each in seeds() if each.target in targets], random.Random(start)
        for seed in all_seeds:
            TARGETS[seed.target](seed.data)  # every seed is read, and every kernel is compiled before the limit
        limit_memory()
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            seed = rng.choice(all_seeds)
            data = changed(seed.data, rng, [each.data for each in all_seeds if each.target == seed.target])
            path = note(seed.target, data)
            try:
                read(seed.target, data)
            except BaseException:
                path.rename(FINDINGS / f"{seed.target}-{sha256(data).hexdigest()[:16]}")
                raise
            count += 1
        for path in FINDINGS.glob("*-now"):
            path.unlink()
        print(f"{count} inputs, seed {start}: nothing found", flush=True)


def guided(seconds: float, targets: list[str]) -> None:
    """The same by atheris: the first byte names the target."""
    import atheris

    names = sorted(targets)

    def one(data: bytes) -> None:
        if data:
            read(names[data[0] % len(names)], data[1:])

    FINDINGS.mkdir(exist_ok=True)
    corpus = FINDINGS / "corpus"
    corpus.mkdir(exist_ok=True)
    with unchecked():
        for seed in [each for each in seeds() if each.target in targets]:
            data = bytes([names.index(seed.target)]) + seed.data
            (corpus / sha256(data).hexdigest()[:16]).write_bytes(data)
            TARGETS[seed.target](seed.data)
        limit_memory()
        for module in ("codec", "worker.container", "worker.envelope", "worker.opener"):
            for name in [each for each in sys.modules if each.startswith(module)]:
                instrument(atheris, sys.modules[name])
        choices = (f"max_total_time={int(seconds)}", "max_len=16384", f"artifact_prefix={FINDINGS}/", "rss_limit_mb=0")
        atheris.Setup([sys.argv[0], *(f"-{each}" for each in choices), str(corpus)], one)
        atheris.Fuzz()


def instrument(atheris: object, module: object) -> None:
    """Coverage of the module's own plain functions; kernels are not Python any more."""
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", None) == getattr(module, "__name__", "") and type(value).__name__ == "function":
            setattr(module, name, atheris.instrument_func(value))  # type: ignore[attr-defined]


def main() -> int:
    """Exit status 1 if something was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="read one finding again")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="default: all; may be repeated")
    parser.add_argument("--engine", choices=("auto", "atheris", "random"), default="auto")
    asked = parser.parse_args()
    if asked.file is not None:
        with unchecked():
            read(asked.file.name.split("-")[0], asked.file.read_bytes())
        return 0
    engine = asked.engine
    if engine == "auto":
        engine = "atheris" if _has_atheris() else "random"
    targets = asked.target or sorted(TARGETS)
    run = multiprocessing.get_context("spawn").Process
    if engine == "atheris":
        process = run(target=guided, args=(asked.seconds, targets))
    else:
        process = run(target=at_random, args=(asked.seconds, asked.seed, targets))
    process.start()
    process.join()
    if process.exitcode:
        print(f"found something ({engine}, exit {process.exitcode}): {FINDINGS}", file=sys.stderr)
    return 1 if process.exitcode else 0


def _has_atheris() -> bool:
    try:
        import atheris  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:  # noqa: BLE001 - a finding that is read again: shown as it is
        traceback.print_exc()
        sys.exit(1)
