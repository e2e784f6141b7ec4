"""From the grey or colour values of a frame to a picture file: region and size, burnt-in text, colour profile, format.

PS3.18 8.3.5. Text is drawn in Pillow's own font, which has Latin letters only; others come as boxes.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageDraw, ImageFont, ImageOps
from pydicom.dataset import Dataset

from gateway.errors import InvalidInstance, Unsupported
from gateway.rendering import Rendering, Viewport

__all__ = ["finish"]

FORMATS = {"png": "PNG", "jpeg": "JPEG", "gif": "GIF"}
JPEG_QUALITY = 90
LINE_LENGTH = 48  # letters
PATIENT = (("PatientName",), ("PatientID",), ("PatientBirthDate", "PatientSex"), ("StudyDate", "StudyTime"))
TECHNIQUE = (
    ("Modality", "SeriesDescription"),
    ("KVP", "XRayTubeCurrent", "Exposure"),
    ("RepetitionTime", "EchoTime", "FlipAngle"),
    ("SliceThickness", "SpacingBetweenSlices"),
)


def finish(shown: npt.NDArray[np.uint8], how: Rendering, header: Dataset) -> bytes:
    """shown: (rows, columns) or (rows, columns, 3), 0..255. header: for texts and the colour profile, may be empty.

    Raises Unsupported ``image-format``, InvalidInstance ``bad-viewport``.
    """
    if how.format not in FORMATS:
        raise Unsupported("image-format", "only PNG, JPEG and GIF are rendered")
    picture = Image.fromarray(shown)
    if how.viewport is not None:
        picture = _fitted(picture, how.viewport)
    picture, profile = _profiled(picture, how, header)
    if how.annotation:
        _annotate(picture, how, header)
    options: dict[str, Any] = {"compress_level": 3} if how.format == "png" else {}
    if how.format == "jpeg":
        options = {"quality": how.quality or JPEG_QUALITY}
    if profile and how.format != "gif":
        options["icc_profile"] = profile
    out = io.BytesIO()
    picture.save(out, FORMATS[how.format], **options)
    return out.getvalue()


def _fitted(picture: Image.Image, viewport: Viewport) -> Image.Image:
    """The region, mirrored where its size is negative, as large as fits with its sides in proportion."""
    left, top, columns, rows = viewport.region or (0.0, 0.0, float(picture.width), float(picture.height))
    right, bottom = min(left + abs(columns), picture.width), min(top + abs(rows), picture.height)
    if right - left < 1 or bottom - top < 1:
        raise InvalidInstance("bad-viewport", "the region of the viewport lies outside the image")
    scale = min(viewport.width / (right - left), viewport.height / (bottom - top))
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    kind = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    fitted = picture.resize(size, kind, box=(left, top, right, bottom))
    fitted = ImageOps.mirror(fitted) if columns < 0 else fitted
    return ImageOps.flip(fitted) if rows < 0 else fitted


def _profiled(picture: Image.Image, how: Rendering, header: Dataset) -> tuple[Image.Image, bytes]:
    """The picture and the ICC profile to embed, b'' for none; grey pictures have none."""
    if how.icc == "no" or picture.mode != "RGB":
        return picture, b""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    own = header.get("ICCProfile") or next(
        (item.get("ICCProfile") for item in header.get("OpticalPathSequence") or () if item.get("ICCProfile")), None
    )
    if not isinstance(own, bytes):
        return picture, srgb.tobytes()
    if how.icc == "yes":
        return picture, own
    try:
        converted = ImageCms.profileToProfile(picture, io.BytesIO(own), srgb)
    except (ImageCms.PyCMSError, OSError) as error:
        raise Unsupported("icc-profile", "the object's ICC profile cannot be applied") from error
    return converted or picture, srgb.tobytes()


def _annotate(picture: Image.Image, how: Rendering, header: Dataset) -> None:
    size = max(8, min(picture.size) // 32)
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(picture)
    ink = (255, 0) if picture.mode == "L" else ((255, 255, 255), (0, 0, 0))
    for name, keywords, anchor in (("patient", PATIENT, "la"), ("technique", TECHNIQUE, "ld")):
        if name not in how.annotation:
            continue
        lines = [line for group in keywords if (line := _line(header, group))]
        for number, line in enumerate(lines):
            step = number if anchor == "la" else number - len(lines) + 1
            at = (size // 2, size // 2 if anchor == "la" else picture.height - size // 2)
            draw.text(
                (at[0], at[1] + step * (size + 2)), line, ink[0], font, anchor, stroke_width=1, stroke_fill=ink[1]
            )


def _line(header: Dataset, keywords: tuple[str, ...]) -> str:
    words = (str(header.get(keyword) or "").strip() for keyword in keywords)
    text = "  ".join(word for word in words if word)
    return "".join(char if char.isprintable() else " " for char in text)[:LINE_LENGTH]
