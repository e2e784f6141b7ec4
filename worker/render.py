"""A frame of an object as PNG or JPEG: modality LUT, VOI LUT or window, MONOCHROME1 inversion (PS3.3 C.11, C.7.6.3).

For looking at, not for reading: the grey range is 8 bit. Input is the original object, lossy compressed ones included.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

from codec.bitplane import split_words
from gateway.errors import InvalidInstance, NotFound, Unsupported
from worker.pixels import open_pixels
from worker.restore import ExactImage
from worker.splice import read_object

MAX_PIXELS = 1 << 27  # rows x columns of one frame
FORMATS = {"png": "PNG", "jpeg": "JPEG"}
JPEG_QUALITY = 90
#: what pydicom and the decoders behind it raise on damaged or unusual pixel data
_FAILURES = (ValueError, RuntimeError, NotImplementedError, AttributeError, TypeError, KeyError, IndexError, OSError)


def render(data: bytes, frame: int = 1, image_format: str = "png") -> bytes:
    """Frame `frame` (from 1) as 'png' or 'jpeg'.

    Raises Unsupported ``no-pixels``, ``not-renderable``, ``too-large``; NotFound ``no-such-frame``; InvalidInstance.
    """
    if image_format not in FORMATS:
        raise Unsupported("image-format", "only PNG and JPEG are rendered")
    header = _read_header(data)
    _check(header, frame)
    try:
        shown = _displayed(_pixels(data, header, frame - 1), header, frame - 1)
    except (Unsupported, InvalidInstance, *_FAILURES) as error:
        raise Unsupported("not-renderable", "the pixel data cannot be shown") from error
    return _encoded(shown, image_format)


def render_image(image: ExactImage, frame: int = 1, image_format: str = "png") -> bytes:
    """Frame `frame` (from 1) of an image that has no header any more: its whole range of values as 0..255.

    Raises as `render`.
    """
    if image_format not in FORMATS:
        raise Unsupported("image-format", "only PNG and JPEG are rendered")
    if not 1 <= frame <= image.count:
        raise NotFound("no-such-frame", "the object has no frame of that number")
    if image.photometric == "PALETTE COLOR" or (image.fmt.samples == 3 and image.photometric != "RGB"):
        raise Unsupported("not-renderable", "the colours of this image were in its header")
    values = split_words(image.frame(frame - 1), image.fmt)[0]
    low, high = (0.0, float((1 << image.fmt.bits_stored) - 1)) if values.ndim == 3 else (values.min(), values.max())
    shown = _to_bytes(values, float(low), float(high))
    return _encoded(np.invert(shown) if image.photometric == "MONOCHROME1" else shown, image_format)


def _encoded(shown: npt.NDArray[np.uint8], image_format: str) -> bytes:
    out = io.BytesIO()
    options = {"quality": JPEG_QUALITY} if image_format == "jpeg" else {"compress_level": 3}
    Image.fromarray(shown).save(out, FORMATS[image_format], **options)
    return out.getvalue()


def _read_header(data: bytes) -> Dataset:
    try:
        return pydicom.dcmread(io.BytesIO(data))
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


def _pixels(data: bytes, header: Dataset, index: int) -> npt.NDArray[Any]:
    """Sample values of one frame, colour as RGB: by pydicom, which shows more than we code, else by our reader."""
    try:
        return pixel_array(header, index=index)
    except _FAILURES:
        source = open_pixels(read_object(data), viewing=True)
        if source.fmt.samples == 3 and source.photometric != "RGB":
            raise
        return _values(source.frame(index), header)


def _values(words: npt.NDArray[Any], header: Dataset) -> npt.NDArray[Any]:
    """Stored words as sample values: unused bits cleared, sign repeated (PS3.5 8.1.1)."""
    stored, high = int(header.BitsStored), int(header.HighBit)
    values = (words.astype(np.int32) >> (high + 1 - stored)) & ((1 << stored) - 1)
    if int(header.PixelRepresentation):
        sign = 1 << (stored - 1)
        return ((values ^ sign) - sign).astype(np.int32)
    return values.astype(words.dtype)


def _displayed(values: npt.NDArray[Any], header: Dataset, index: int) -> npt.NDArray[np.uint8]:
    photometric = str(header.get("PhotometricInterpretation", ""))
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(values, header)
        return _to_bytes(colours, 0.0, float(np.iinfo(colours.dtype).max))
    if values.ndim == 3:
        return _to_bytes(values[..., :3], 0.0, float((1 << int(header.BitsStored)) - 1))
    grey = np.asarray(apply_modality_lut(values, _functional(header, "PixelValueTransformationSequence", index)))
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


def _windowed(
    grey: npt.NDArray[Any], values: npt.NDArray[Any], header: Dataset, voi: Dataset
) -> npt.NDArray[np.uint8]:
    """VOI LUT, else the first window, else the range of the image without its padding value, as 0..255."""
    if voi.get("VOILUTSequence"):
        top = (1 << int(voi.VOILUTSequence[0].LUTDescriptor[2])) - 1
        return _to_bytes(np.asarray(apply_voi_lut(grey, voi)), 0.0, float(top))
    window = _window(voi)
    if window is not None:
        return _to_bytes(grey, *window)
    padding = header.get("PixelPaddingValue")
    counted = grey[values != padding] if isinstance(padding, int) else grey
    counted = counted if counted.size else grey
    return _to_bytes(grey, float(counted.min()), float(counted.max()))


def _window(voi: Dataset) -> tuple[float, float] | None:
    """(black, white) of the first window; PS3.3 C.11.2.1.2 and C.11.2.1.3. A sigmoid is drawn as its linear window."""
    centre, width = (_first(voi.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width < 1:
        return None
    if str(voi.get("VOILUTFunction", "LINEAR")) == "LINEAR_EXACT":
        return centre - width / 2, centre + width / 2
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def _first(value: Any) -> float | None:
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else None
    return None if value is None or value == "" else float(value)


def _to_bytes(values: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Linear from low to high; a window of one value is a threshold."""
    scale = 255.0 / (high - low) if high > low else 255.0
    return np.clip((values.astype(np.float64) - low) * scale + 0.5, 0, 255).astype(np.uint8)
