"""A frame of an object as a picture: modality LUT, VOI LUT or window, MONOCHROME1 inversion (PS3.3 C.11, C.7.6.3).

For looking at, not for reading: the grey range is 8 bit. Input is the original object, lossy compressed ones included.
What follows the grey values (cut, size, text, colour profile, file format) is worker/picture.py's.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

from codec.bitplane import split_words
from gateway.errors import InvalidInstance, NotFound, Unsupported
from gateway.rendering import FUNCTIONS, Rendering, Window
from worker.picture import finish
from worker.pixels import open_pixels
from worker.restore import ExactImage
from worker.splice import read_object

MAX_PIXELS = 1 << 27  # rows x columns of one frame
DEFER_BYTES = 1 << 20  # pixel data are not read with the header
#: what pydicom and the decoders behind it raise on damaged or unusual pixel data
_FAILURES = (ValueError, RuntimeError, NotImplementedError, AttributeError, TypeError, KeyError, IndexError, OSError)


def render(file: BinaryIO, how: Rendering) -> bytes:
    """One frame of the object in an open file, read without the others.

    Raises Unsupported ``no-pixels``, ``not-renderable``, ``too-large``; NotFound ``no-such-frame``; InvalidInstance
    (``bad-viewport``: its region lies outside the image).
    """
    header = _read_header(file)
    _check(header, how.frame)
    try:
        shown = _displayed(_pixels(file, header, how.frame - 1), header, how)
    except (Unsupported, InvalidInstance, *_FAILURES) as error:
        raise Unsupported("not-renderable", "the pixel data cannot be shown") from error
    return finish(shown, how, header)


def render_image(image: ExactImage, how: Rendering = Rendering("png")) -> bytes:  # noqa: B008 (frozen)
    """A frame of an image that has no header any more: its whole range of values, or the window, as 0..255.

    Raises as `render`.
    """
    if not 1 <= how.frame <= image.count:
        raise NotFound("no-such-frame", "the object has no frame of that number")
    if image.photometric == "PALETTE COLOR" or (image.fmt.samples == 3 and image.photometric != "RGB"):
        raise Unsupported("not-renderable", "the colours of this image were in its header")
    values = split_words(image.frame(how.frame - 1), image.fmt)[0]
    if values.ndim == 3:
        shown = _to_bytes(values, 0.0, float((1 << image.fmt.bits_stored) - 1))
    elif how.window is not None:
        shown = _by_function(values, how.window)
    else:
        shown = _to_bytes(values, float(values.min()), float(values.max()))
    return finish(np.invert(shown) if image.photometric == "MONOCHROME1" else shown, how, Dataset())


def _read_header(file: BinaryIO) -> Dataset:
    try:
        file.seek(0)
        return pydicom.dcmread(file, defer_size=DEFER_BYTES)
    except (InvalidDicomError, *_FAILURES) as error:
        raise InvalidInstance("unreadable", "the object cannot be read as DICOM") from error


def _check(header: Dataset, frame: int) -> None:
    if not any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise Unsupported("no-pixels", "the object holds no pixel data")
    frames, rows, columns = (_count(header, name) for name in ("NumberOfFrames", "Rows", "Columns"))
    if rows * columns > MAX_PIXELS:
        raise Unsupported("too-large", "the frame is too large to be shown")
    if not 1 <= frame <= frames:
        raise NotFound("no-such-frame", "the object has no frame of that number")


def _count(header: Dataset, name: str) -> int:
    try:
        return int(header.get(name) or 1)
    except (TypeError, ValueError) as error:
        raise Unsupported("not-renderable", "the image attributes are not numbers") from error


def _pixels(file: BinaryIO, header: Dataset, index: int) -> npt.NDArray[Any]:
    """Sample values of one frame, colour as RGB: by pydicom, which shows more than we code, else by our reader."""
    try:
        file.seek(0)
        return pixel_array(file, index=index)
    except _FAILURES:
        source = open_pixels(read_object(_whole(file)), viewing=True)
        if source.fmt.samples == 3 and source.photometric not in ("RGB", "YBR_RCT"):
            raise
        return _values(source.frame(index), header)


def _whole(file: BinaryIO) -> bytes | mmap.mmap:
    """The file's bytes, mapped where it is one of the disk."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError:
        file.seek(0)
        return file.read()


def _values(words: npt.NDArray[Any], header: Dataset) -> npt.NDArray[Any]:
    """Stored words as sample values: unused bits cleared, sign repeated (PS3.5 8.1.1)."""
    stored, high = int(header.BitsStored), int(header.HighBit)
    values = (words.astype(np.int32) >> (high + 1 - stored)) & ((1 << stored) - 1)
    if int(header.PixelRepresentation):
        sign = 1 << (stored - 1)
        return ((values ^ sign) - sign).astype(np.int32)
    return values.astype(words.dtype)


def _displayed(values: npt.NDArray[Any], header: Dataset, how: Rendering) -> npt.NDArray[np.uint8]:
    photometric, index = str(header.get("PhotometricInterpretation", "")), how.frame - 1
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(values, header)
        return _to_bytes(colours, 0.0, float(np.iinfo(colours.dtype).max))
    if values.ndim == 3:
        return _to_bytes(values[..., :3], 0.0, float((1 << int(header.BitsStored)) - 1))
    grey = np.asarray(apply_modality_lut(values, _functional(header, "PixelValueTransformationSequence", index)))
    if how.window is not None:
        picture = _by_function(grey, how.window)
    else:
        picture = _windowed(grey, values, header, _functional(header, "FrameVOILUTSequence", index))
    return np.invert(picture) if photometric == "MONOCHROME1" else picture


def _functional(header: Dataset, macro: str, index: int) -> Dataset:
    """The item of a functional group macro for this frame (PS3.3 C.7.6.16); the data set itself where there is none."""
    for groups, item in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        found = header.get(groups)
        if found and item < len(found) and found[item].get(macro):
            chosen: Dataset = found[item].get(macro)[0]
            return chosen
    return header


def _windowed(grey: npt.NDArray[Any], values: npt.NDArray[Any], header: Dataset, voi: Dataset) -> npt.NDArray[np.uint8]:
    """VOI LUT, else the first window, else the range of the image without its padding value, as 0..255."""
    if voi.get("VOILUTSequence"):
        top = (1 << int(voi.VOILUTSequence[0].LUTDescriptor[2])) - 1
        return _to_bytes(np.asarray(apply_voi_lut(grey, voi)), 0.0, float(top))
    window = _window(voi)
    if window is not None:
        return _by_function(grey, window)
    padding = header.get("PixelPaddingValue")
    counted = grey[values != padding] if isinstance(padding, int) else grey
    counted = counted if counted.size else grey
    return _to_bytes(grey, float(counted.min()), float(counted.max()))


def _window(voi: Dataset) -> Window | None:
    """The first window of the header."""
    centre, width = (_first(voi.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width < 1:
        return None
    function = str(voi.get("VOILUTFunction") or "LINEAR").lower().replace("_", "-")
    return Window(centre, width, function if function in FUNCTIONS else "linear")


def _by_function(grey: npt.NDArray[Any], window: Window) -> npt.NDArray[np.uint8]:
    """PS3.3 C.11.2.1.2 (linear) and C.11.2.1.3 (linear exact, sigmoid)."""
    if window.function == "sigmoid":
        slope = np.clip(-4.0 * (grey.astype(np.float64) - window.centre) / window.width, -700, 700)
        return (255.0 / (1.0 + np.exp(slope)) + 0.5).astype(np.uint8)
    if window.function == "linear-exact":
        return _to_bytes(grey, window.centre - window.width / 2, window.centre + window.width / 2)
    return _to_bytes(grey, window.centre - 0.5 - (window.width - 1) / 2, window.centre - 0.5 + (window.width - 1) / 2)


def _first(value: Any) -> float | None:
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return None if value is None or value == "" else float(value)


def _to_bytes(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Linear from low to high; a window of one value is a threshold."""
    scale = 255.0 / (high - low) if high > low else 255.0
    return np.clip((values.astype(np.float64) - low) * scale + 0.5, 0, 255).astype(np.uint8)
