"""Teach the region network and write its weights: `python -m tests.acceptance.region_training MANIFEST.csv`.

Needs torch and scipy (extra `bench`). Only images whose `use` is `train` in the manifest are learnt from; those with
`use` `measure` are looked at afterwards, for the figures alone. Repeatable: one thread, seeded, no chance elsewhere.

Teacher: the body's mask at full resolution. CT: smoothed Hounsfield value above -300, opened (couch, clothing), parts
of at least 1 %, holes filled. Others: smoothed value above half of Otsu's threshold (photometric interpretation
respected), the same clean-up. The network sees none of it: one sample in sixteen, no header.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from codec.bitplane import split_words
from codec.errors import CodecError
from gateway.errors import PalimpsestError
from stego import region, regionnet
from stego.lattice import lattice, reserved
from worker.payload_tiles import patient_of
from worker.pixelrules import GREY, value_range
from worker.pixels import open_pixels
from worker.splice import read_object

SEED, STEPS, BATCH, SIDE, RATE = 7, 900, 8, 96, 4e-3
HELD_OUT = 4  # one patient in so many is kept for the figures
ANATOMY_WEIGHT = 2.0  # marking anatomy as non-interest costs so much more than the reverse
BODY_HU, SMALL_PART = -300.0, 0.01


@dataclass(frozen=True)
class Example:
    """path, patient, use; values int32; interest: the teacher's mask, bool, of the same shape."""

    path: str
    modality: str
    patient: str
    use: str
    values: NDArray[np.int32]
    interest: NDArray[np.bool_]

    def cells(self) -> NDArray[np.bool_]:
        """The teacher's non-interest on the lattice: cells (4 x 4 samples) without any anatomy."""
        rows, columns = lattice(self.values).shape
        padded = np.zeros((4 * rows, 4 * columns), np.bool_)
        part = self.interest[: 4 * rows, : 4 * columns]
        padded[: part.shape[0], : part.shape[1]] = part
        return ~padded.reshape(rows, 4, columns, 4).any(axis=(1, 3))


def examples(manifest: Path, uses: tuple[str, ...], per_series: int) -> list[Example]:
    """First frames of the manifest's grey DICOM images, at most `per_series` of a folder."""
    found: list[Example] = []
    taken: dict[str, int] = {}
    for row in csv.DictReader(manifest.open(encoding="utf-8")):
        folder = str(Path(row["path"]).parent)
        if row["use"] not in uses or row["modality"] not in ("CT", "MR", "MG", "CR", "PT"):
            continue
        if taken.get(folder, 0) >= per_series:
            continue
        try:
            found.append(_example(manifest.parent / row["path"], row))
        except (PalimpsestError, CodecError):
            continue
        taken[folder] = taken.get(folder, 0) + 1
    return found


def _example(path: Path, row: dict[str, str]) -> Example:
    spans = read_object(path.read_bytes())
    source = open_pixels(spans)
    header = spans.dataset
    if source.photometric not in GREY:
        raise PalimpsestError("colour")
    words = source.frame(0)
    values = np.ascontiguousarray(split_words(words, source.fmt)[0], dtype=np.int32)
    low, high = value_range(source.fmt)
    bright = high + low - values if source.photometric == "MONOCHROME1" else values
    hounsfield = None
    if row["modality"] == "CT" and header.raw(0x00281052):
        slope, intercept = (float((header.raw(tag) or b"0").decode().strip("\0 ")) for tag in (0x00281053, 0x00281052))
        hounsfield = values * slope + intercept
    interest = teach(bright.astype(np.float64), hounsfield)
    return Example(row["path"], row["modality"], patient_of(spans, path), row["use"], values, interest)


def teach(bright: NDArray[np.float64], hounsfield: NDArray[np.float64] | None) -> NDArray[np.bool_]:
    """The teacher's mask of anatomy."""
    smooth = ndimage.gaussian_filter(bright if hounsfield is None else hounsfield, 1.5)
    if hounsfield is not None:
        body = smooth > BODY_HU
    else:
        low, high = np.percentile(smooth, [0.5, 99.5])
        marks = np.clip((smooth - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.int64)
        body = marks > region.otsu(marks) // 2
    radius = max(1, min(bright.shape) // 100)
    body = ndimage.binary_opening(body, iterations=radius)
    parts, count = ndimage.label(body)
    if count:
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        body = np.isin(parts, np.flatnonzero(sizes >= SMALL_PART * body.size))
    return np.asarray(ndimage.binary_fill_holes(ndimage.binary_closing(body, iterations=2 * radius)))


class Network(torch.nn.Module):
    """The float twin of stego.regionnet; inputs in -1..1."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Conv2d(regionnet.CHANNELS[i], regionnet.CHANNELS[i + 1], side, padding=dilation * (side // 2),
                            dilation=dilation)
            for i, (side, dilation) in enumerate(zip(regionnet.SIDES, regionnet.DILATIONS, strict=True))
        )  # fmt: skip

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            planes = torch.relu(layer(planes))
        return self.layers[-1](planes)


def train(chosen: list[Example]) -> Network:
    """Adam on random crops; flips, turns and an inverted grey scale make the lattice's few images more."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    pairs = [(lattice(e.values), e.cells()) for e in chosen]
    series = {
        name: [i for i, e in enumerate(chosen) if e.patient == name] for name in sorted({e.patient for e in chosen})
    }
    network = Network()
    adam = torch.optim.Adam(network.parameters(), RATE)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    prepared: dict[tuple[int, bool], NDArray[np.int32]] = {}
    for step in range(STEPS):
        planes, targets = np.empty((BATCH, 3, SIDE, SIDE), np.float32), np.empty((BATCH, 1, SIDE, SIDE), np.float32)
        known = np.empty((BATCH, 1, SIDE, SIDE), np.float32)
        for b in range(BATCH):
            index = int(rng.choice(series[list(series)[rng.integers(len(series))]]))
            key = (index, bool(rng.random() < 0.3))
            if key not in prepared:
                prepared[key] = regionnet.inputs(-pairs[index][0] if key[1] else pairs[index][0])
            planes[b], targets[b, 0], known[b, 0] = _crop(prepared[key], pairs[index][1], rng)
        logits = network(torch.from_numpy(planes / 128))
        weight = torch.from_numpy(known * np.where(targets > 0.5, 1.0, ANATOMY_WEIGHT).astype(np.float32))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(targets), weight)
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
        if step % 100 == 0:
            print(f"step {step:4d}  loss {loss.item():.4f}", flush=True)
    return network


def _crop(
    planes: NDArray[np.int32], target: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """A turned, flipped piece; large lattices are thinned first, small ones stand in a corner of zeros."""
    thin = max(1, min(target.shape) // (2 * SIDE) + int(rng.integers(0, 2)) * (min(target.shape) >= 2 * SIDE))
    planes, target = planes[:, ::thin, ::thin], target[::thin, ::thin]
    y, x = (int(rng.integers(0, max(1, size - SIDE + 1))) for size in target.shape)
    planes, target = planes[:, y : y + SIDE, x : x + SIDE], target[y : y + SIDE, x : x + SIDE]
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))
    planes, target = np.rot90(planes, turns, (1, 2)), np.rot90(target, turns)
    if flip:
        planes, target = planes[:, :, ::-1], target[:, ::-1]
    out, goal, known = (np.zeros(shape, np.float32) for shape in ((3, SIDE, SIDE), (SIDE, SIDE), (SIDE, SIDE)))
    rows, columns = target.shape
    out[:, :rows, :columns], goal[:rows, :columns], known[:rows, :columns] = planes, target, 1
    return out, goal, known


def quantise(network: Network, chosen: list[Example]) -> tuple[regionnet.Layer, ...]:
    """Whole-number weights; activation scales are powers of two that the training images' largest values allow."""
    layers: list[regionnet.Layer] = []
    planes = [torch.from_numpy(regionnet.inputs(lattice(e.values))[None].astype(np.float32) / 128) for e in chosen[::8]]
    scale = 128.0  # whole number = scale * real value
    for index, layer in enumerate(network.layers):
        weights = layer.weight.detach().numpy()
        gain = 2.0 ** np.floor(np.log2(127 / max(np.abs(weights).max(), 1e-9)))
        with torch.no_grad():
            planes = [layer(p) if index == len(network.layers) - 1 else torch.relu(layer(p)) for p in planes]
        largest = max(float(p.max()) for p in planes)
        wanted = 2.0 ** np.floor(np.log2(regionnet.TOP / max(largest, 1e-9)))
        shift = int(np.log2(scale * gain / wanted)) if index < len(network.layers) - 1 else 0
        shift = max(0, min(shift, 24))
        bias = np.rint(layer.bias.detach().numpy() * scale * gain).astype(np.int32)
        whole = np.clip(np.rint(weights * gain), -127, 127).astype(np.int8)
        layers.append(regionnet.Layer(whole, bias, shift, regionnet.DILATIONS[index]))
        scale = scale * gain / 2**shift
    return tuple(layers)


def figures(name: str, chosen: list[Example], layers: tuple[regionnet.Layer, ...]) -> None:
    """Against the teacher: what of the background is found, and what of the mask lies on anatomy."""
    print(f"{name}: {len(chosen)} images, {len({e.patient for e in chosen})} patients")
    print(f"{'':>10}  {'mask':>10}  {'found':>7}  {'on anatomy':>10}  {'of that, worst image':>20}  {'usable':>7}")
    for modality in ("all", *sorted({e.modality for e in chosen})):
        some = [e for e in chosen if modality in ("all", e.modality)]
        for label, mask_of in (("classical", region.non_interest), ("network", partial(regionnet.mask, layers=layers))):
            rows = np.array([_compare(e, mask_of(e.values)) for e in some])
            found, wrong, usable = rows.mean(0)
            print(f"{modality:>10}  {label:>10}  {found:7.3f}  {wrong:10.4f}  {rows[:, 1].max():20.4f}  {usable:7.3f}")


def _compare(example: Example, mask: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Shares: of background found, of anatomy marked, of all samples both marked and not constant (usable)."""
    outside = ~example.interest
    lively = np.zeros(mask.shape, np.bool_)
    lively[:, 1:] = np.diff(example.values, axis=1) != 0
    found = (mask & outside).sum() / max(1, outside.sum())
    return (
        found,
        (mask & example.interest).sum() / max(1, example.interest.sum()),
        float((mask & lively & ~reserved(mask.shape)).mean()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, default=Path("stego") / regionnet.WEIGHTS)
    parser.add_argument("--per-series", type=int, default=12)
    arguments = parser.parse_args()
    chosen = examples(arguments.manifest, ("train",), arguments.per_series)
    patients = sorted({e.patient for e in chosen}, key=lambda name: sha256(name.encode()).digest())
    held = set(patients[::HELD_OUT])
    learnt, kept = [e for e in chosen if e.patient not in held], [e for e in chosen if e.patient in held]
    print(f"{len(learnt)} images of {len(patients) - len(held)} patients to learn from", flush=True)
    layers = quantise(train(learnt), learnt)
    data = regionnet.pack(layers)
    arguments.out.write_bytes(data)
    print(f"{arguments.out}: {len(data)} bytes, SHA-256 {sha256(data).hexdigest()}")
    figures("learnt from", learnt, layers)
    figures("train, other patients", kept, layers)
    figures("measure", examples(arguments.manifest, ("measure",), 6), layers)


if __name__ == "__main__":
    main()
