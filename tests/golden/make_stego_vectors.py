"""Writes the golden vectors of the pixel carriers and of whole stego objects:
`python -m tests.golden.make_stego_vectors LABEL`. What is there is never rewritten; a new format version adds its own.

`NAME-LABEL.xz` is a frame's samples or a Part 10 file, compressed by LZMA; expected.json says what comes out of it.
All keys are published here.
"""

from __future__ import annotations

import json
import lzma
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stego import errortables, hidden, selfcontained
from tests.object_makers import FACTS, image
from tests.unit.test_stego_selfcontained_format import CASES, Case
from tests.unit.test_worker_object_golden import GoldenRing
from worker.candidate import Secrets
from worker.stegoframe import Mode
from worker.stegoobject import Side, make_stego

FOLDER = Path(__file__).parent / "stego"
EXPECTED = FOLDER / "expected.json"
#: method -> cases of the format test that are kept for ever
SELF_CONTAINED = {
    "recursive": (
        "8-range-ends", "8-upper-end", "12-signed-air", "12-barred-inside",
        "14-region", "16-signed-wide",
    ),
    "plain_pee": ("8-unsigned", "12-fuller", "12-barred-inside"),
}  # fmt: skip
_PACKED = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]
HIDDEN = {
    "signed": (Case(16, True, -100, 3, 60, shape=(90, 100), slope=0.0), "mipod"),
    "unsigned": (Case(12, False, 900, 4, 9, shape=(70, 94), slope=0.0), "hill"),
    "two-blocks": (Case(8, False, 90, 3, 600, shape=(140, 130), slope=0.0), "mipod"),
}


@dataclass(frozen=True)
class StegoRing(GoldenRing):
    """The published ring, with its stego keys: an older one made the objects, so a reader has to try."""

    stego: bytes = bytes(range(7, 39))

    def stego_key(self) -> tuple[str, bytes]:
        return "stego-golden", self.stego

    def stego_keys(self) -> tuple[tuple[str, bytes], ...]:
        return ("stego-newer", bytes(32)), self.stego_key()


def objects() -> dict[str, tuple[bytes, Mode, Side]]:
    """Files that become stego objects: generated pixels, the identity of tests.object_makers."""
    byte = (_scene(224, 212, 7.0, 1) // 12).astype(np.uint8)
    signed = (_scene(132, 120, 3.0, 2) - 1300).astype(np.int16)
    signed[:24] = -2000
    grainy = (_scene(262, 260, 28.0, 3) // 12).astype(np.uint8)
    return {
        "inline": (image([byte], stored=8, vr="OB"), "self-contained", "inline"),
        "archived": (
            image([signed.view(np.uint16)], stored=12, PixelRepresentation=1, PixelPaddingValue=-2000),
            "self-contained", "archive",
        ),
        "hidden": (image([grainy], stored=8, vr="OB"), "hidden", "archive"),
    }  # fmt: skip


def _scene(rows: int, columns: int, noise: float, seed: int) -> NDArray[np.float64]:
    y, x = np.mgrid[:rows, :columns]
    rng = np.random.default_rng(seed)
    return np.asarray(np.rint(1200 + 60 * np.sin(y / 41) * np.cos(x / 37) + rng.normal(0, noise, (rows, columns))))


def region_of(case: Case) -> NDArray[np.bool_] | None:
    """Where a case of a region may carry."""
    if not case.half:
        return None
    region = np.zeros(case.shape, np.bool_)
    region[:, : case.shape[1] // 2 + 12] = True
    return region


def digest(values: NDArray[np.int32]) -> str:
    """SHA-256 of samples as little-endian int32, in raster order."""
    return sha256(np.ascontiguousarray(values, "<i4").tobytes()).hexdigest()


def keys_of(name: str) -> tuple[bytes, bytes, bytes]:
    """(stego key, salt, a stream that messages are cut from)."""
    key, salt = sha256(b"key " + name.encode()).digest(), sha256(b"salt " + name.encode()).digest()
    return key, salt, b"".join(sha256(b"%d " % n + name.encode()).digest() for n in range(32))


def table_digest() -> str:
    """SHA-256 of 700 source and output tables, spread over all laws, prices and cuts."""
    found = sha256()
    for n in range(700):
        law = np.array([(n * 37) % 128 if n % 3 else n % 40, n % 4, (n * 11) % 32], np.int64)
        cut = (n * 7) % errortables.CUTS if n % 2 else 0
        if cut and errortables.EDGES[(cut - 1) % 16] >= errortables.half_width(law[0]):
            cut = 0
        tables = np.zeros((2, errortables.WIDTH), np.int32)
        ratio = errortables.price_ratio((n * 131) % 352)
        errortables.solve(law, n // 4 % 4, cut, ratio, 1 + n % 31, tables[0], tables[1])
        found.update(tables.astype("<i4").tobytes())
    return found.hexdigest()


def _frame(case: Case, stego: NDArray[np.int32], original: NDArray[np.int32], message: bytes) -> dict[str, Any]:
    return {
        "shape": list(case.shape), "low": int(case.cover().low), "high": int(case.cover().high),
        "barred": list(case.barred), "message": message.hex(), "original_sha256": digest(original),
        "stego_sha256": digest(stego),
    }  # fmt: skip


def _store(name: str, data: bytes) -> None:
    path = FOLDER / f"{name}.xz"
    if path.exists():
        raise SystemExit(f"{path.name} is there already")
    path.write_bytes(lzma.compress(data, filters=_PACKED))


def _add_frames(label: str, out: dict[str, Any]) -> None:
    for method, names in SELF_CONTAINED.items():
        for case_name in names:
            name, case = f"self-contained-{method}-{case_name}-{label}", CASES[case_name]
            key, salt, stream = keys_of(name)
            cover, message, region = case.cover(), stream[: case.size], region_of(case)
            done = selfcontained.embed(cover, message, stego_key=key, salt=salt, region=region, method=method)
            _store(name, done.values.astype("<i2").tobytes())
            found = _frame(case, done.values, cover.values, message)
            out[name] = found | ({} if region is None else {"region_columns": int(region[0].sum())})
    for kind, (case, costs) in HIDDEN.items():
        name = f"hidden-{kind}-{label}"
        key, salt, stream = keys_of(name)
        cover, message = case.cover(), stream[: case.size]
        hid = hidden.embed(cover, message, stego_key=key, salt=salt, costs=costs)  # type: ignore[arg-type]
        _store(name, hid.values.astype("<i2").tobytes())
        out[name] = _frame(case, hid.values, cover.values, message) | {"changes": hid.changes.hex()}


def _add_objects(label: str, out: dict[str, Any]) -> None:
    for kind, (data, mode, side) in objects().items():
        name = f"object-{kind}-{label}"
        secrets = Secrets(sha256(name.encode()).digest()[:16], sha256(b"key " + name.encode()).digest())
        ring: Any = StegoRing()
        made = make_stego(data, FACTS, ring, mode=mode, side=side, secrets=secrets)
        _store(name, made.part10)
        if made.restoration is not None:
            _store(f"{name}-restoration", made.restoration)
        out[name] = {
            "mode": mode, "object_id": made.object_id.hex(), "file_sha256": sha256(data).hexdigest(),
            "stego_sha256": sha256(made.part10).hexdigest(), "pixel_sha256": made.record.pixel_sha256,
        }  # fmt: skip


def main(label: str) -> None:
    """Write the vectors of this version as NAME-LABEL.xz."""
    FOLDER.mkdir(exist_ok=True)
    out: dict[str, Any] = json.loads(EXPECTED.read_text(encoding="ascii")) if EXPECTED.exists() else {}
    _add_frames(label, out)
    _add_objects(label, out)
    out[f"tables-{label}"] = {"sha256": table_digest()}
    EXPECTED.write_text(json.dumps(out, indent=1, sort_keys=True) + "\n", encoding="ascii")


if __name__ == "__main__":
    main(sys.argv[1])
