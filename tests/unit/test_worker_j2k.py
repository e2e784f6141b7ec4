"""The own JPEG 2000 decoder against OpenJPEG (through imagecodecs and Pillow), and against hostile bytes.

tests/golden/jpeg2000 holds codestreams of `scene(1, 12)` for what neither encoder offers from Python. They were made
by OpenJPEG 2.5.0's opj_compress with the options in GOLDEN; the samples expected are the scene's, not a decoder's.
"""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import generate_frames

from worker.jpeg2000_t800 import Decoded, J2kCorrupt, J2kError, J2kUnsupported, decode_reversible

GOLDEN = {
    "bypass": "-M 1",
    "reset": "-M 2",
    "termall": "-M 4",
    "causal": "-M 8",
    "predictable": "-M 20",
    "symbols": "-M 32",
    "bypass-termall": "-M 5",
    "all-styles": "-M 63 -r 20,5,1",
    "markers": "-SOP -EPH -PLT -TLM -n 4 -r 20,1 -t 40,40 -p RPCL",
    "tile-parts": "-TP R -n 4 -p RLCP -t 40,40",
    "changes": "-n 4 -r 30,10,1 -POC T1=0,0,3,2,1,RLCP/T1=2,0,3,4,1,CPRL",
    "wide-blocks": "-b 1024,4 -n 3 -M 9 -r 8,1",
    "offsets-lrcp": "-p LRCP -d 7,13 -T 2,5 -t 31,29 -n 4 -c [16,32],[16,8] -b 8,8 -r 10,1",
    "offsets-rlcp": "the same with -p RLCP, and so on",
    "offsets-rpcl": "",
    "offsets-pcrl": "",
    "offsets-cprl": "",
}
FOLDER = Path(__file__).parents[1] / "golden" / "jpeg2000"
SIZ, COD, COC, QCD, QCC, RGN, PPT, COM, SOT = 0x51, 0x52, 0x53, 0x5C, 0x5D, 0x5E, 0x61, 0x64, 0x90


def scene(count: int, depth: int, rows: int = 47, columns: int = 61) -> npt.NDArray[np.int64]:
    """(count, rows, columns) of smooth and busy samples in [0, 2**depth); integer arithmetic, the same for ever."""
    y, x = np.mgrid[:rows, :columns].astype(np.int64)
    planes = []
    for c in range(count):
        smooth = (x * x * 3 + y * y * 5 + x * y * (7 + c)) // 16
        busy = ((x * 2654435761 + y * 40503 * (c + 3) + x * y * 97) >> 7) % 11
        planes.append((smooth + busy) % (1 << depth))
    return np.stack(planes)


def golden(name: str) -> bytes:
    return (FOLDER / f"{name}.j2k").read_bytes()


def decode(data: bytes, max_pixels: int = 1 << 22) -> Decoded:
    return decode_reversible(data, max_pixels=max_pixels)


def with_pillow(samples: npt.NDArray[np.int64], **options: object) -> bytes:
    """A codestream of uint8 (1 or 3 components) or uint16 (1) samples."""
    dtype = np.uint8 if samples.max() < 256 else np.uint16
    image = Image.fromarray(np.squeeze(np.moveaxis(samples, 0, -1)).astype(dtype))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG2000", **{"no_jp2": True, "irreversible": False, **options})
    return buffer.getvalue()


def main_header(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker's low byte, start, end) of each segment between SOC and the first SOT, marker included."""
    at = 2
    while data[at + 1] != SOT:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], at, end
        at = end


def segment(data: bytes, marker: int) -> tuple[int, bytes]:
    """Where a main header segment starts, and its bytes."""
    start, end = next((start, end) for kind, start, end in main_header(data) if kind == marker)
    return start, data[start:end]


def patched(data: bytes, marker: int, offset: int, value: bytes) -> bytes:
    """`data` with bytes overwritten, at an offset from a main header segment's marker."""
    at = segment(data, marker)[0] + offset
    return data[:at] + value + data[at + len(value) :]


def inserted(data: bytes, after: int, *segments: bytes) -> bytes:
    start, old = segment(data, after)
    return data[: start + len(old)] + b"".join(segments) + data[start + len(old) :]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_codestreams_give_the_scene(name: str) -> None:
    decoded = decode(golden(name))
    assert np.array_equal(decoded.samples, scene(1, 12))
    assert (decoded.bit_depths, decoded.signed, decoded.mct_used) == ((12,), (False,), False)
    assert decoded.samples.dtype == np.int32


@pytest.mark.parametrize("order", ["LRCP", "RLCP", "RPCL", "PCRL", "CPRL"])
@pytest.mark.parametrize("colour", [False, True])
def test_progressions_with_layers_precincts_and_tiles(order: str, colour: bool) -> None:
    samples = scene(3, 8, 90, 75) if colour else scene(1, 14, 90, 75)
    data = with_pillow(
        samples, progression=order, quality_layers=[30, 8, 1], precinct_size=(32, 32), codeblock_size=(8, 16),
        num_resolutions=4, mct=int(colour), **({"tile_size": (51, 64)} if colour else {}),
    )  # fmt: skip
    decoded = decode(data)
    assert np.array_equal(decoded.samples, samples)
    assert decoded.mct_used is colour


@pytest.mark.parametrize("depth", [1, 5, 8, 10, 12, 16])
@pytest.mark.parametrize("signed", [False, True])
def test_bit_depths_and_signs(depth: int, signed: bool) -> None:
    samples = scene(1, depth)[0] - (1 << (depth - 1) if signed else 0)
    dtype = np.dtype(f"{'i' if signed else 'u'}{1 if depth <= 8 else 2}")
    data = imagecodecs.jpeg2k_encode(
        samples.astype(dtype), level=0, reversible=True, bitspersample=depth, codecformat="j2k"
    )
    decoded = decode(data)
    assert np.array_equal(decoded.samples[0], samples)
    assert (decoded.bit_depths, decoded.signed) == ((depth,), (signed,))


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (1, 70), (70, 1), (3, 5), (4, 4), (65, 129)])
@pytest.mark.parametrize("resolutions", [1, 2, 7])
def test_any_shape_and_number_of_resolutions(shape: tuple[int, int], resolutions: int) -> None:
    image = scene(1, 16, *shape)[0].astype(np.uint16)
    data = imagecodecs.jpeg2k_encode(image, level=0, reversible=True, resolutions=resolutions, codecformat="j2k")
    assert np.array_equal(decode(data).samples[0], image)


@pytest.mark.parametrize("mct", [False, True])
@pytest.mark.parametrize("codecformat", ["j2k", "jp2"])
def test_colour_and_the_jp2_wrapper(mct: bool, codecformat: str) -> None:
    image = np.ascontiguousarray(np.moveaxis(scene(3, 8), 0, -1)).astype(np.uint8)
    data = imagecodecs.jpeg2k_encode(image, level=0, reversible=True, mct=mct, codecformat=codecformat)
    decoded = decode(data)
    assert np.array_equal(np.moveaxis(decoded.samples, 0, -1), image)
    assert decoded.mct_used is mct


def test_a_palette_in_the_wrapper_is_refused() -> None:
    data = imagecodecs.jpeg2k_encode(scene(1, 8)[0].astype(np.uint8), level=0, reversible=True, codecformat="jp2")
    at = data.index(b"colr")
    with pytest.raises(J2kUnsupported) as raised:
        decode(data[:at] + b"pclr" + data[at + 4 :])
    assert raised.value.reason == "palette"


@pytest.mark.parametrize(
    "name", ["examples_jpeg2k.dcm", "GDCMJ2K_TextGBR.dcm", "J2K_pixelrep_mismatch.dcm", "SC_rgb_gdcm_KY.dcm"]
)
def test_packaged_dicom_files_agree_with_openjpeg(name: str) -> None:
    dataset = dcmread(get_testdata_file(name, download=False))
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    expected = imagecodecs.jpeg2k_decode(frame)
    samples = decode(frame).samples
    assert np.array_equal(samples[0] if expected.ndim == 2 else np.moveaxis(samples, 0, -1), expected)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("JPEG2000.dcm", "irreversible"),
        ("693_J2KI.dcm", "cut-bit-planes"),
        ("MR_small_jp2klossless.dcm", "cut-bit-planes"),  # an old encoder left the last passes of a block out
    ],
)
def test_packaged_lossy_dicom_files_are_refused(name: str, reason: str) -> None:
    dataset = dcmread(get_testdata_file(name, download=False))
    with pytest.raises(J2kUnsupported) as raised:
        decode(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    assert raised.value.reason == reason


def test_component_segments_win_over_defaults_and_the_tile_over_the_main_header() -> None:
    samples = scene(3, 8)
    data = with_pillow(samples, mct=0, num_resolutions=3)
    cod, qcd = segment(data, COD)[1], segment(data, QCD)[1]
    coding, quantization = cod[9:], qcd[4:]
    cocs = [b"\xff\x53" + struct.pack(">HBB", 4 + len(coding), c, 0) + coding for c in range(3)]
    qccs = [b"\xff\x5d" + struct.pack(">HB", 3 + len(quantization), c) + quantization for c in range(3)]
    wrong = patched(patched(data, COD, 10, b"\x01\x01"), QCD, 4, b"\x00")  # 8 x 8 blocks, no guard bits
    with pytest.raises(J2kError):
        decode(wrong)
    by_component = inserted(wrong, QCD, *cocs, *qccs)
    assert np.array_equal(decode(by_component).samples, samples)

    sot = data.index(b"\xff\x90\x00\x0a")
    length = int.from_bytes(data[sot + 6 : sot + 10], "big") + len(cod) + len(qcd)
    head = inserted(wrong, QCD, *[coc[:6] + b"\x01\x01" + coc[8:] for coc in cocs])  # wrong, too
    head = head[: head.index(b"\xff\x90\x00\x0a")]
    in_tile = data[sot : sot + 6] + struct.pack(">I", length) + data[sot + 10 : sot + 12] + cod + qcd + data[sot + 12 :]
    assert np.array_equal(decode(head + in_tile).samples, samples)


@pytest.mark.parametrize(
    ("marker", "offset", "value", "error", "reason"),
    [
        (SIZ, 4, b"\x40\x00", J2kUnsupported, "capabilities"),
        (SIZ, 6, b"\x7f\xff\xff\xff\x7f\xff\xff\xff", J2kUnsupported, "too-large"),
        (SIZ, 6, bytes(8), J2kCorrupt, "size"),
        (SIZ, 30, struct.pack(">II", 1, 1), J2kCorrupt, "tile-grid"),
        (SIZ, 38, b"\x00\x00", J2kCorrupt, "size"),
        (SIZ, 38, b"\x40\x00", J2kUnsupported, "components"),
        (SIZ, 40, b"\x25", J2kUnsupported, "bit-depth"),
        (SIZ, 41, b"\x02\x02", J2kUnsupported, "subsampling"),
        (COD, 4, b"\x08", J2kUnsupported, "coding-style"),
        (COD, 5, b"\x05", J2kCorrupt, "coding-style"),
        (COD, 6, b"\xff\xff", J2kCorrupt, "truncated"),
        (COD, 8, b"\x01", J2kCorrupt, "component-transform"),
        (COD, 9, b"\x21", J2kCorrupt, "coding-style"),
        (COD, 12, b"\x40", J2kUnsupported, "block-style"),
        (COD, 13, b"\x00", J2kUnsupported, "irreversible"),
        (QCD, 4, b"\x42", J2kUnsupported, "quantized"),
        (QCD, 5, b"\xf8", J2kUnsupported, "bit-planes"),
        (COM, 1, b"\x5e", J2kUnsupported, "region-of-interest"),
        (COM, 1, b"\x61", J2kUnsupported, "packed-headers"),
        (COM, 1, b"\x74", J2kCorrupt, "marker"),
        (COM, 2, b"\xff\xff", J2kCorrupt, "truncated"),
    ],
)
def test_headers_that_are_refused(marker: int, offset: int, value: bytes, error: type[J2kError], reason: str) -> None:
    with pytest.raises(error) as raised:
        decode(patched(golden("symbols"), marker, offset, value))
    assert raised.value.reason == reason


def test_too_many_tiles_and_too_small_precincts_are_refused_before_they_are_planned() -> None:
    data = golden("symbols")
    with pytest.raises(J2kUnsupported, match="too-many-tiles"):
        decode(patched(patched(data, SIZ, 6, struct.pack(">II", 2000, 2000)), SIZ, 22, struct.pack(">II", 1, 1)))
    start, cod = segment(data, COD)
    tiny = cod[:2] + struct.pack(">H", 12 + 6) + b"\x01" + cod[5:6] + b"\x00\x04" + cod[8:] + b"\x11" * 6
    with pytest.raises(J2kCorrupt, match="fewer bytes in a tile"):
        decode(data[:start] + tiny + data[start + len(cod) :])


def test_a_reversible_codestream_cut_to_a_rate_is_refused() -> None:
    with pytest.raises(J2kUnsupported, match="cut-bit-planes"):
        decode(with_pillow(scene(1, 12, 128, 128), quality_layers=[12]))


def test_progression_changes_that_leave_packets_out_are_refused() -> None:
    data = golden("changes")
    at = data.index(b"\xff\x5f")
    with pytest.raises(J2kCorrupt, match="progression"):
        decode(data[: at + 6] + b"\x00\x01" + data[at + 8 :])


def test_a_wrong_segmentation_symbol_is_noticed() -> None:
    data = bytearray(golden("symbols"))
    data[-300] ^= 0x55
    with pytest.raises(J2kError):
        decode(bytes(data))


def test_padding_after_the_end_is_ignored_but_bytes_left_in_a_tile_are_not() -> None:
    data = golden("symbols")
    assert np.array_equal(decode(data + b"\x00").samples, scene(1, 12))
    sot = data.index(b"\xff\x90\x00\x0a")
    length = int.from_bytes(data[sot + 6 : sot + 10], "big") + 1
    with pytest.raises(J2kCorrupt, match="left-over"):
        decode(data[: sot + 6] + struct.pack(">I", length) + data[sot + 10 : -2] + b"\x00" + data[-2:])


@pytest.mark.parametrize("name", ["all-styles", "markers", "tile-parts"])
def test_no_truncated_codestream_gives_an_image(name: str) -> None:
    data = golden(name)
    for length in range(len(data)):
        with pytest.raises(J2kCorrupt):
            decode(data[:length])


def test_a_missing_tile_part_is_an_error() -> None:
    data = golden("tile-parts")
    last = data.rindex(b"\xff\x90\x00\x0a")
    with pytest.raises(J2kCorrupt):
        decode(data[:last] + b"\xff\xd9")


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_damaged_bytes_give_an_image_of_bounded_size_or_a_typed_error(name: str) -> None:
    dice, original, refused = random.Random(name), golden(name), 0
    for attempt in range(120):
        data = bytearray(original)
        reach = 130 if attempt % 2 else len(data)
        for _ in range(dice.choice((1, 2, 8))):
            at = dice.randrange(reach)
            data[at] = dice.choice((0, 255, dice.randrange(256), data[at] ^ (1 << dice.randrange(8))))
        try:
            assert decode(bytes(data), 1 << 18).samples.size <= 4 << 18
        except J2kError as error:
            assert error.reason
            refused += 1
    assert refused > 20
