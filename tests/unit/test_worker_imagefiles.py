"""NIfTI and PNG readers: every kind that is read, and typed errors for what is broken, hostile or of another kind."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidInstance, PalimpsestError, Unsupported
from worker.imagefiles import open_image

KINDS = {2: "u1", 256: "i1", 4: "i2", 512: "u2"}


def nifti(volume: np.ndarray, kind: int, *, version: int = 1, order: str = "<", offset: int | None = None) -> bytes:
    """A single-file NIfTI of `volume` (.., slices, rows, columns), whose first axis on disk is the columns."""
    dims = [volume.ndim - (kind == 128), *reversed(volume.shape[: volume.ndim - (kind == 128)])]
    dims += [1] * (8 - len(dims))
    size = 348 if version == 1 else 540
    head = bytearray(size + 4)
    struct.pack_into(f"{order}i", head, 0, size)
    start = size + 4 if offset is None else offset
    if version == 1:
        struct.pack_into(f"{order}8h", head, 40, *dims)
        struct.pack_into(f"{order}h", head, 70, kind)
        struct.pack_into(f"{order}f", head, 108, start)
        head[344:348] = b"n+1\x00"
    else:
        struct.pack_into(f"{order}8q", head, 16, *dims)
        struct.pack_into(f"{order}h", head, 12, kind)
        struct.pack_into(f"{order}q", head, 168, start)
        head[4:12] = b"n+2\x00\r\n\x1a\n"
    return bytes(head) + volume.astype(volume.dtype.newbyteorder(order)).tobytes()


def ramp(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return (np.arange(np.prod(shape)) * 37 % 251 - (100 if dtype[0] == "i" else 0)).astype(dtype).reshape(shape)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
def test_nifti(tmp_path: Path, version: int, order: str, kind: int, packed: bool) -> None:
    volume = ramp((3, 5, 7), KINDS[kind])
    data = nifti(volume, kind, version=version, order=order)
    path = tmp_path / "a.nii"
    path.write_bytes(gzip.compress(data) if packed else data)
    with open_image(path) as image:
        assert (image.frames, image.fmt.shape, image.fmt.signed) == (3, (5, 7), KINDS[kind][0] == "i")
        for index in (0, 2, 1):  # back, too
            words = image.frame(index)
            assert words.dtype == np.dtype(image.fmt.dtype)
            assert np.array_equal(words.view(KINDS[kind]), volume[index])


def test_nifti_of_more_axes_and_of_colour(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(nifti(ramp((2, 3, 4, 6), "i2"), 4))
    with open_image(path) as image:
        assert (image.frames, image.fmt.shape) == (6, (4, 6))
    colour = ramp((2, 4, 6, 3), "u1")
    path.write_bytes(nifti(colour, 128))
    with open_image(path) as image:
        assert (image.frames, image.fmt.shape) == (2, (4, 6, 3))
        assert np.array_equal(image.frame(1), colour[1])


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d[:200], InvalidInstance),
        (lambda d: b"plain text, and more of it" * 40, InvalidInstance),
        (lambda d: d[:-1], InvalidInstance),
        (lambda d: d[:344] + b"ni1\x00" + d[348:], Unsupported),
        (lambda d: d[:70] + struct.pack("<h", 16) + d[72:], Unsupported),  # float32
        (lambda d: d[:40] + struct.pack("<h", 9) + d[42:], InvalidInstance),
        (lambda d: d[:42] + struct.pack("<h", -4) + d[44:], InvalidInstance),
        (lambda d: d[:42] + struct.pack("<3h", 32767, 32767, 32767) + d[48:], Unsupported),
        (lambda d: d[:108] + struct.pack("<f", float("nan")) + d[112:], InvalidInstance),
        (lambda d: d[:108] + struct.pack("<f", 1e30) + d[112:], InvalidInstance),
        (lambda d: gzip.compress(d, mtime=0)[:-30], InvalidInstance),
        (lambda d: gzip.compress(d, mtime=0)[:60] + b"\xff" * 40, InvalidInstance),
    ],
)
def test_nifti_that_is_refused(tmp_path: Path, change: object, error: type[PalimpsestError]) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(change(nifti(ramp((3, 9, 31), "i2"), 4)))  # type: ignore[operator]
    with pytest.raises(error), open_image(path) as image:
        image.frame(image.frames - 1)


def test_a_small_file_that_inflates_to_more_than_it_declares(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(nifti(ramp((1, 5, 7), "i2"), 4))
        for _ in range(64):
            file.write(bytes(1 << 20))
    with open_image(path) as image:
        assert image.frames == 1
        assert image.frame(0).shape == (5, 7)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("samples", [1, 3])
def test_png(tmp_path: Path, dtype: str, samples: int) -> None:
    pixels = ramp((6, 9, 3)[: 2 + (samples == 3)], dtype)
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(pixels))
    with open_image(path) as image:
        assert (image.frames, image.fmt.shape, image.fmt.bits_allocated) == (1, pixels.shape, 8 * int(dtype[1]))
        assert np.array_equal(image.frame(0), pixels)


def test_grey_that_was_written_as_colour_is_grey_only_if_told(tmp_path: Path) -> None:
    grey = ramp((6, 9), "u1")
    path = tmp_path / "a.png"
    path.write_bytes(imagecodecs.png_encode(np.stack([grey] * 3, axis=-1)))
    with open_image(path) as image:
        assert image.fmt.samples == 3
    with open_image(path, grey_rgb=True) as image:
        assert image.fmt.samples == 1
        assert np.array_equal(image.frame(0), grey)
    colour = np.stack([grey, grey, grey ^ 1], axis=-1)
    path.write_bytes(imagecodecs.png_encode(colour))
    with open_image(path, grey_rgb=True) as image:
        assert np.array_equal(image.frame(0), colour)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(columns: int, rows: int, bits: int, colour: int, body: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (png(60000, 60000, 16, 0, bytes(100)), Unsupported),  # 7 GB declared in 90 bytes
        (png(1 << 20, 2, 8, 0, bytes(100)), Unsupported),
        (png(8, 8, 8, 0, bytes(20)), InvalidInstance),
        (png(8, 8, 8, 6, bytes(8 * 33)), Unsupported),
        (png(8, 8, 4, 0, bytes(8 * 5)), Unsupported),
        (png(0, 8, 8, 0, bytes(8)), Unsupported),
        (png(8, 8, 8, 0, bytes(72))[:50], InvalidInstance),
        (b"\x89PNG\r\n\x1a\n", InvalidInstance),
    ],
)
def test_png_that_is_refused(tmp_path: Path, data: bytes, error: type[PalimpsestError]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(error), open_image(path):
        pass


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInstance), open_image(tmp_path / "none.png"):
        pass


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_give_frames_or_typed_errors(tmp_path: Path, data: st.DataObject) -> None:
    whole = data.draw(
        st.sampled_from(
            [
                nifti(ramp((2, 5, 7), "i2"), 4),
                gzip.compress(nifti(ramp((2, 5, 7), "u1"), 2, version=2), mtime=0),
                bytes(imagecodecs.png_encode(ramp((6, 9), "u2"))),
            ]
        )
    )
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzzed"
    path.write_bytes(bytes(broken[: data.draw(st.integers(0, len(broken)))]))
    try:
        with open_image(path) as image:
            for index in range(min(image.frames, 3)):
                assert image.frame(index).shape == image.fmt.shape
    except PalimpsestError:
        pass
