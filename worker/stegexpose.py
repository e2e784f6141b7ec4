"""StegExpose (Boehm, arXiv 1410.6656), where its jar and a Java are given: the share of 8-bit exports that it flags.

It knows 8-bit RGB files only. Tiles are therefore exported first (linear, least to greatest value onto 0..255) and the
carriers embed into the export: exporting afterwards would wipe the message out, and the figure would mean nothing.
"""

from __future__ import annotations

import csv
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from codec.pixelformat import PixelFormat
from gateway.errors import Unsupported
from stego.cover import Cover
from stego.errors import CarrierError
from worker.payload_modes import make_job, run
from worker.payload_tiles import Tile

COVER = "cover"
TIMEOUT_S = 3600
_HEAD = "File name"


@dataclass(frozen=True)
class Flagged:
    """Of `files` exports that carry `payload` by `mode` ('cover': that carry nothing), StegExpose flagged `flagged`."""

    mode: str
    payload: float
    files: int
    flagged: int


@dataclass(frozen=True)
class StegExpose:
    """jar: the file; java: the program that runs it; threshold: StegExpose's own default."""

    jar: Path
    java: str = "java"
    threshold: float = 0.2

    def flag(self, chosen: Sequence[Tile], modes: Sequence[str], payloads: Sequence[float]) -> list[Flagged]:
        """Export, embed, run, count. Raises Unsupported ``stegexpose`` when it does not run or judge every file."""
        with tempfile.TemporaryDirectory() as folder:
            labels = _write_all([eight_bits(tile) for tile in chosen], modes, payloads, Path(folder))
            verdicts = self._run(Path(folder))
        if set(verdicts) != set(labels):
            raise Unsupported("stegexpose", "StegExpose did not judge every file")
        counts: dict[tuple[str, float], list[bool]] = {}
        for name, label in labels.items():
            counts.setdefault(label, []).append(verdicts[name])
        return [Flagged(*label, len(found), sum(found)) for label, found in counts.items()]

    def _run(self, folder: Path) -> dict[str, bool]:
        """File name -> flagged."""
        out = folder.with_suffix(".csv")
        command = [self.java, "-jar", str(self.jar), str(folder), "default", str(self.threshold), str(out)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT_S)
            lines = out.read_text("utf-8").splitlines()
        except (OSError, subprocess.SubprocessError) as error:
            raise Unsupported("stegexpose", "StegExpose did not run") from error
        finally:
            out.unlink(missing_ok=True)
        rows = [row for row in csv.reader(lines) if len(row) > 1 and row[0] != _HEAD]
        return {row[0]: row[1] == "true" for row in rows}


def eight_bits(tile: Tile) -> Tile:
    """The tile's export."""
    values = tile.cover.values.astype(np.int64)
    span = max(1, int(values.max() - values.min()))
    small = ((values - values.min()) * 255 // span).astype(np.int32)
    fmt = PixelFormat(tile.fmt.rows, tile.fmt.columns, 1, 8, 8, 7, False)
    return replace(tile, cover=Cover(small, 0, 255), fmt=fmt, extended=False)


def _write_all(
    exports: Sequence[Tile], modes: Sequence[str], payloads: Sequence[float], folder: Path
) -> dict[str, tuple[str, float]]:
    """Files of covers and of all that the carriers take: name -> (mode, payload)."""
    labels: dict[str, tuple[str, float]] = {}

    def write(values: NDArray[np.int32], mode: str, payload: float) -> None:
        name = f"{len(labels):06d}.png"
        Image.fromarray(values.astype(np.uint8)).convert("RGB").save(folder / name)
        labels[name] = (mode, payload)

    for tile in exports:
        write(tile.cover.values, COVER, 0.0)
        for mode in modes:
            for payload in payloads:
                try:
                    outcome = run(mode, make_job(tile, mode, payload))
                except CarrierError:
                    continue  # counted in the bench's own rows by reason; here fewer files stand for the mode
                write(outcome.values, mode, payload)
    return labels
