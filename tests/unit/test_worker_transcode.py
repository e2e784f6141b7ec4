"""Transcoding: the same UIDs, header and pixels in another transfer syntax, or a refusal."""

from __future__ import annotations

import io
import itertools
import struct
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID

from gateway import transfer_syntaxes as ts
from gateway.errors import InvalidInstance, PalimpsestError, Unsupported
from gateway.part10 import EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE, read_meta
from tests.object_makers import header, packaged
from worker import framecoders, jpeg_lossless
from worker.pixels import little_endian, open_pixels
from worker.splice import read_object
from worker.transcode import TARGETS, transcode

ENCAPSULATED = tuple(uid for uid in ts.MADE if uid not in ts.NATIVE)
FORCED = {"PixelData", "PhotometricInterpretation", "PlanarConfiguration", "ExtendedOffsetTable"}


def built(pixels: npt.NDArray[Any], syntax: str = EXPLICIT_LE, **changes: object) -> bytes:
    """A file with those stored words, (frames, rows, columns[, 3]), and attributes of their kind."""
    ds = header(**changes)
    frames, rows, columns, *colour = pixels.shape
    ds.Rows, ds.Columns, ds.NumberOfFrames = rows, columns, frames
    if colour and "PlanarConfiguration" not in changes:
        ds.PlanarConfiguration = 0
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = changes.get("PhotometricInterpretation", "RGB" if colour else "MONOCHROME2")
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored = changes.get("BitsStored", ds.BitsAllocated)
    ds.HighBit = changes.get("HighBit", ds.BitsStored - 1)
    raw = pixels.astype(pixels.dtype.newbyteorder(">" if syntax == EXPLICIT_BE else "<")).tobytes()
    ds.PixelData = raw + b"\0" * (len(raw) & 1)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    return saved(ds, syntax)


def saved(ds: Dataset, syntax: str) -> bytes:
    out = io.BytesIO()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def words_of(data: bytes) -> list[bytes]:
    """The stored words of each frame, little endian and by pixel, read by two decoders where coded."""
    if read_meta(data)[0] == ts.JPEG_XL:
        ds = pydicom.dcmread(io.BytesIO(data))
        return [
            imagecodecs.jpegxl_decode(frame).tobytes()
            for frame in generate_frames(ds.PixelData, number_of_frames=int(ds.get("NumberOfFrames") or 1))
        ]
    return [little_endian(words) for words in open_pixels(read_object(data), viewing=True)]


def noise(shape: tuple[int, ...], bits: int, signed: bool, seed: int = 3) -> npt.NDArray[Any]:
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    kind = f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}"
    values: npt.NDArray[Any] = np.random.default_rng(seed).integers(low, high, shape).astype(kind)
    return values


def test_what_can_be_made_is_what_the_service_is_told() -> None:
    assert frozenset(ts.MADE) == TARGETS
    assert set(framecoders.CODERS) == set(ENCAPSULATED)
    assert not set(ts.LOSSY) & TARGETS


PACKAGED = (
    "CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "examples_overlay.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "examples_palette.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle_16bit_2frame.dcm",
    "SC_rgb_small_odd_big_endian.dcm", "GDCMJ2K_TextGBR.dcm", "ExplVR_BigEnd.dcm", "image_dfl.dcm",
)  # fmt: skip


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_files_in_every_syntax_keep_pixels_and_header(name: str) -> None:
    data = packaged(name)
    plain = transcode(data, EXPLICIT_LE)
    expected, before = words_of(plain), pydicom.dcmread(io.BytesIO(data))
    assert np.array_equal(pydicom.dcmread(io.BytesIO(plain)).pixel_array, before.pixel_array)
    refused = set()
    for syntax in ts.MADE:
        try:
            made = transcode(data, syntax)
        except Unsupported as error:
            assert error.reason == "not-transcodable"
            refused.add(syntax)
            continue
        assert read_meta(made)[0] == syntax
        after = pydicom.dcmread(io.BytesIO(made))
        if syntax == ts.DEFLATED_LE:
            assert transcode(made, EXPLICIT_LE)[132:] == plain[132:]
        else:
            assert words_of(made) == expected
        for element in before:
            if element.keyword not in FORCED and element.tag.element:
                assert after[element.tag] == element, element.tag
        assert {e.tag for e in after} - {e.tag for e in before} == set()
        meta = {e.tag: e.value for e in before.file_meta if e.tag not in (0x00020000, 0x00020010)}
        assert {e.tag: e.value for e in after.file_meta if e.tag not in (0x00020000, 0x00020010)} == meta
    assert refused <= {ts.JPEG_XL}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 5, 7, 8, 9, 12, 15, 16])
def test_every_depth_and_sign_with_the_precision_declared(bits: int, signed: bool) -> None:
    allocated = noise((2, 37, 21), bits, signed)
    data = built(allocated, PixelRepresentation=int(signed), BitsStored=bits)
    expected = [frame.tobytes() for frame in allocated]
    for syntax in ENCAPSULATED:
        if signed and syntax == ts.JPEG_XL:
            with pytest.raises(Unsupported, match="signed"):
                transcode(data, syntax)
            continue
        if bits < 8 and syntax == ts.JPEG_LOSSLESS:
            with pytest.raises(Unsupported, match="few bits"):
                transcode(data, syntax)
            continue
        made = transcode(data, syntax)
        assert words_of(made) == expected, syntax
        if syntax in (ts.JPEG_LOSSLESS, ts.JPEG_LS, ts.JPEG_2000, ts.HTJ2K, ts.HTJ2K_RPCL):
            ds = pydicom.dcmread(io.BytesIO(made))
            for frame in generate_frames(ds.PixelData, number_of_frames=2):
                pair = framecoders.CODERS[syntax].pair
                assert pair.read is not None
                assert (pair.read(frame).precision, ds.BitsStored, ds.BitsAllocated) == (bits, bits, ds.BitsAllocated)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize(("bits", "photometric"), [(8, "RGB"), (8, "YBR_FULL"), (16, "RGB")])
def test_colour_stays_what_it_was_by_pixel_or_by_plane(planar: int, bits: int, photometric: str) -> None:
    pixels = noise((2, 9, 11, 3), bits, False)
    stored = pixels.transpose(0, 3, 1, 2).copy() if planar else pixels
    data = built(pixels, PlanarConfiguration=planar, PhotometricInterpretation=photometric)
    data = data.replace(pixels.tobytes(), stored.tobytes())
    for syntax in (*ENCAPSULATED, IMPLICIT_LE):
        if syntax == ts.JPEG_XL and photometric != "RGB":
            continue
        made = transcode(data, syntax)
        assert words_of(made) == [frame.tobytes() for frame in pixels], syntax
        ds = pydicom.dcmread(io.BytesIO(made))
        by_plane = syntax in (IMPLICIT_LE, ts.RLE)
        assert (ds.PhotometricInterpretation, ds.PlanarConfiguration) == (photometric, planar if by_plane else 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 1), (2, 3), (65, 64), (200, 130)])
def test_odd_sizes_and_the_thumbnail_of_htj2k(shape: tuple[int, int]) -> None:
    pixels = noise((1, *shape), 12, False)
    data = built(pixels, BitsStored=12)
    for syntax in ENCAPSULATED:
        assert words_of(transcode(data, syntax)) == [pixels.tobytes()], syntax
    frame = next(generate_frames(pydicom.dcmread(io.BytesIO(transcode(data, ts.HTJ2K_RPCL))).PixelData))
    cod = frame.index(b"\xff\x52")
    progression, halvings = frame[cod + 5], frame[cod + 9]
    assert (progression, b"\xff\x55" in frame) == (2, True)  # RPCL and TLM (PS3.5 10.18)
    assert -(-max(shape) // (1 << halvings)) <= 64


@pytest.mark.parametrize("sign", [0, 1])
def test_bits_beside_the_pixels_stay_or_the_syntax_is_refused(sign: int) -> None:
    """An overlay in a high bit, or a signed value without its sign repeated: only whole words keep them."""
    pixels = noise((1, 16, 16), 12, False)
    pixels[0, 3, 3] |= 0x1000
    data = built(pixels, BitsStored=12, PixelRepresentation=sign)
    for syntax in ts.MADE:
        if syntax in ts.NATIVE or syntax == ts.RLE:
            kept = transcode(data, syntax)
            assert words_of(transcode(kept, EXPLICIT_LE) if syntax == ts.DEFLATED_LE else kept) == [pixels.tobytes()]
        else:
            with pytest.raises(Unsupported, match="overlay|signed"):
                transcode(data, syntax)
    high = built(noise((1, 8, 8), 16, False), BitsStored=12, HighBit=15)
    assert words_of(transcode(high, ts.RLE)) == words_of(high)
    with pytest.raises(Unsupported, match="high bit"):
        transcode(high, ts.HTJ2K)


def test_what_only_native_syntaxes_hold() -> None:
    wide = header(Rows=4, Columns=4, BitsAllocated=32, BitsStored=32, HighBit=31)
    wide.PixelData = noise((32,), 16, False).tobytes()
    single = header(Rows=4, Columns=4, BitsAllocated=1, BitsStored=1, HighBit=0, PixelData=b"\x5a\xa5")
    floating = header(Rows=2, Columns=2, BitsAllocated=32, FloatPixelData=np.arange(4, dtype="<f4").tobytes())
    text = header(Modality="SR", TextValue="report")
    for ds, name in ((wide, "PixelData"), (single, "PixelData"), (floating, "FloatPixelData"), (text, "TextValue")):
        data = saved(ds, EXPLICIT_LE)
        for syntax in ts.MADE:
            if syntax in ts.NATIVE:
                made = pydicom.dcmread(io.BytesIO(transcode(data, syntax)))
                assert made[name].value == ds[name].value
            else:
                with pytest.raises(Unsupported) as caught:
                    transcode(data, syntax)
                assert caught.value.reason == "not-transcodable"


def test_a_lossy_source_is_given_as_it_is_or_not_at_all() -> None:
    data = packaged("JPGExtended.dcm")
    assert transcode(data, read_meta(data)[0]) == data
    for syntax in ts.MADE:
        with pytest.raises(Unsupported, match="lossy"):
            transcode(data, syntax)


def nested() -> Dataset:
    deep = Dataset()
    deep.CodeValue, deep.CodeMeaning = "T-D1100", "K\u00f6pf"
    deep.add_new(0x00091001, "UN", b"private bytes...")
    middle = Dataset()
    middle.PurposeOfReferenceCodeSequence = [deep, Dataset()]
    middle.ReferencedSOPInstanceUID = "1.2.3"
    ds = header(SpecificCharacterSet="ISO_IR 192", SmallestImagePixelValue=0, PixelRepresentation=0)
    ds.SourceImageSequence = [middle, middle]
    ds.ReferencedImageSequence = []
    ds.LongCodeValue = "x" * 70_000
    ds.RedPaletteColorLookupTableDescriptor = [16, 0, 16]
    ds.add_new(0x00090010, "LO", "MAKER")
    ds.add_new(0x00091002, "UN", b"more private bytes")
    ds.DoubleFloatRealWorldValueFirstValueMapped = 0.5
    ds.SelectorATValue = [0x00100010, 0x00100020]
    return ds


@pytest.mark.parametrize("undefined", [False, True])
def test_sequences_and_private_elements_survive_every_way(undefined: bool) -> None:
    ds = nested()
    ds["SourceImageSequence"].is_undefined_length = undefined
    for item in ds.SourceImageSequence:
        item.is_undefined_length_sequence_item = undefined
    for source, target in itertools.permutations((EXPLICIT_LE, IMPLICIT_LE, ts.DEFLATED_LE), 2):
        made = pydicom.dcmread(io.BytesIO(transcode(saved(ds, source), target)))
        assert made.to_json() == pydicom.dcmread(io.BytesIO(saved(ds, source))).to_json()
    del ds.LongCodeValue  # of a short VR in big endian nothing is said
    for target in (EXPLICIT_LE, IMPLICIT_LE):
        assert pydicom.dcmread(io.BytesIO(transcode(saved(ds, EXPLICIT_BE), target))).to_json() == ds.to_json()


def test_bytes_are_untouched_where_nothing_forces_a_change() -> None:
    """Odd encodings of other elements are copied as they stand, group lengths of changed groups are not."""
    data = packaged("CT_small.dcm")
    made = transcode(data, ts.JPEG_LS)
    pixels = data.index(b"\xe0\x7f\x10\x00OW")
    offset, changed = read_meta(data)[1], read_meta(made)[1]
    assert made[changed : changed + pixels - offset] == data[offset:pixels]
    assert made.endswith(data[pixels + 12 + 128 * 128 * 2 :])
    with_length = data[:pixels] + struct.pack("<HH2sHI", 0x7FE0, 0, b"UL", 4, 99) + data[pixels:]
    assert transcode(with_length, ts.JPEG_LS) == made


@pytest.mark.parametrize("precision", [2, 7, 8, 12, 16])
def test_jpeg_lossless_of_noise_of_one_value_and_of_odd_counts(precision: int) -> None:
    """Read by a decoder that shares no code with ours; a table of 17 very different counts stays short."""
    rng, kind = np.random.default_rng(4), np.uint8 if precision <= 8 else np.uint16
    for shape in ((1, 1), (1, 9), (9, 1), (37, 21), (16, 5, 3)):
        for values in (rng.integers(0, 1 << precision, shape), np.zeros(shape), np.full(shape, (1 << precision) - 1)):
            samples = values.astype(kind)
            found = imagecodecs.jpegsof3_decode(jpeg_lossless.encode_jpeg_lossless(samples, precision))
            assert np.array_equal(found.reshape(shape), samples)
    steep = np.array([2**n for n in range(17)])
    lengths = jpeg_lossless.code_lengths(steep)
    assert lengths.max() <= 16 and (2.0**-lengths).sum() < 1  # the code of all ones is left over
    for samples, bits in ((np.full((2, 2), 4, np.uint8), 2), (np.zeros((2, 2, 5), np.uint8), 8), (np.zeros((2, 2)), 1)):
        with pytest.raises(ValueError, match="JPEG lossless|bits"):
            jpeg_lossless.encode_jpeg_lossless(samples, bits)


def test_a_jpeg_lossless_of_few_bits_does_not_end_the_process() -> None:
    """GDCM aborts at fewer than 8 bits: such a stream must not reach it."""
    pixels = noise((1, 8, 8), 5, False)
    ds = pydicom.dcmread(io.BytesIO(built(pixels, BitsStored=5)))
    ds.file_meta.TransferSyntaxUID = UID(ts.JPEG_LOSSLESS)
    ds.PixelData = encapsulate([jpeg_lossless.encode_jpeg_lossless(pixels[0], 5)])
    out = io.BytesIO()
    ds.save_as(out)
    with pytest.raises(Unsupported, match="undecodable"):
        transcode(out.getvalue(), EXPLICIT_LE)


def test_a_frame_that_comes_back_different_is_never_given(monkeypatch: pytest.MonkeyPatch) -> None:
    real = framecoders.encode_jpegls
    monkeypatch.setattr(framecoders, "encode_jpegls", lambda words, precision: real(words ^ 1, precision=precision))
    with pytest.raises(Unsupported, match="comes back different"):
        transcode(packaged("CT_small.dcm"), ts.JPEG_LS)


def test_hostile_files_are_refused_and_nothing_else_happens() -> None:
    for name in ("MR_small_RLE.dcm", "image_dfl.dcm", "MR_small_implicit.dcm", "examples_jpeg2k.dcm"):
        data, rng = packaged(name), np.random.default_rng(7)
        for round_ in range(24):
            broken = bytearray(data[: len(data) * 3 // 4] if round_ % 3 == 0 else data)
            for at in rng.integers(132, len(broken), 6):
                broken[at] = int(rng.integers(0, 256))
            for syntax in (EXPLICIT_LE, ts.HTJ2K):
                try:
                    transcode(bytes(broken), syntax)
                except PalimpsestError as error:
                    assert error.http_status in (400, 415)  # noqa: PT017
    with pytest.raises(Unsupported, match="made here"):
        transcode(packaged("CT_small.dcm"), "1.2.840.10008.1.2.4.50")
    with pytest.raises(InvalidInstance):
        transcode(b"no DICOM at all", EXPLICIT_LE)
