"""The model card of trained weights, filled in by the run itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from codec.train.bank import LEAST_GAIN, RANK, Entry

SIZES = ("inputs", "first hidden", "second hidden", "logistics", "codes")
CURVE_LINES = 12


@dataclass(frozen=True)
class Trained:
    """A weight file: its name, SHA-256, size, profile, and what training says of its networks."""

    file: str
    sha256: str
    size: int
    profile: str
    facts: Mapping[str, Any]
    banks: Mapping[str, Sequence[Entry]] = field(default_factory=dict)


def model_card(
    sources: Sequence[tuple[str, str, str, int]],
    held: frozenset[str],
    skipped: Mapping[str, int],
    trained: Sequence[Trained],
) -> str:
    """The card as Markdown. `sources`: source, licence, Modality, frames."""
    lines = [
        "# Model card: weights of the learned coder",
        "",
        "Written by `palimpsest codec train`; figures are those of the run. The networks predict the next sample of a",
        "frame from samples already coded, for lossless compression and nothing else: they never change an image, and",
        "every coded frame is decoded and compared before it is kept. They learned from few sources (below), mostly CT",
        "and MR; what they have not seen costs bytes, never exactness. No image can be read out of them: they hold",
        "weights of a few thousand units of local statistics. The same data, seed and machine give the same arrays",
        "(the file's SHA-256 also covers the seconds that training took); `--device cuda` trains by torch with the",
        "same draws and steps (docs/gpu.md).",
        "",
        "## Data",
        "",
        "| source | licence, as the manifest says | Modality | frames | used for |",
        "|---|---|---|---|---|",
    ]
    for source, licence, modality, frames in sources:
        used = "early stopping only" if source in held else "training"
        lines.append(f"| {source} | {licence.replace('|', '/') or 'not stated'} | {modality} | {frames} | {used} |")
    left = ", ".join(f"{reason} {count}" for reason, count in sorted(skipped.items())) or "none"
    lines += ["", f"Files left out, by reason: {left}. The split is by whole sources.", ""]
    for one in trained:
        lines += _network_lines(one)
    return "\n".join(lines) + "\n"


def _network_lines(one: Trained) -> list[str]:
    lines = [f"## {one.file}", "", f"Profile {one.profile}, {one.size} bytes, SHA-256 `{one.sha256}`.", ""]
    for name in ("frame", "volume"):
        if name not in one.facts:
            continue
        facts = one.facts[name]
        sizes = ", ".join(f"{label} {size}" for label, size in zip(SIZES, facts["sizes"], strict=True))
        lines += [
            f"### Network `{name}`",
            "",
            f"{sizes}. Seed {one.facts['seed']}; {facts['steps']} steps of {facts['samples_a_step']} samples, out of "
            f"{facts['samples']} samples of {facts['images']} views of images; {facts['seconds']} s on "
            f"{one.facts['device']}. Kept: step {facts['best_step']}, by the mean log2 of bits a sample (+ 0.15) over "
            f"{facts['held_images']} images of the sources held out: {facts['held_log2_bits']}.",
            "",
            "| step | training images | held-out images |",
            "|---|---|---|",
        ]
        curve = facts["curve"]
        every = max(1, -(-len(curve) // CURVE_LINES))
        lines += [f"| {step} | {own} | {other} |" for step, own, other in curve[every - 1 :: every]]
        lines.append("")
        lines += _bank_lines(name, one.banks.get(name, ()))
    return lines


def _bank_lines(name: str, entries: Sequence[Entry]) -> list[str]:
    """The entries of a network's bank; nothing without any."""
    if not entries:
        return []
    lines = [
        f"Bank of `{name}`: low-rank deltas (rank {RANK}) and a code by anatomical prior. Gain: bits saved, the last",
        "layer learning, on images that the entry was not learned from: of other sources where there are several, else",
        "of the same scanner (often the same subject). The network itself has seen all of them. Entries that gained",
        f"less than {LEAST_GAIN:.2%} were dropped.",
        "",
        "| Modality | body part | scanner | images | sources | gain |",
        "|---|---|---|---|---|---|",
    ]
    for each in entries:
        key = " | ".join(part or "any" for part in each.key)
        lines.append(f"| {key} | {each.images} | {each.sources} | {each.gain:.2%} |")
    return [*lines, ""]
