"""How an image is to be rendered (PS3.18 8.3.5): read from a query, checked, and carried to the worker as one word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from gateway.errors import InvalidInstance

__all__ = ["FORMATS", "PARAMETERS", "THUMBNAIL", "Rendering", "Viewport", "Window"]

FORMATS: Final = ("png", "jpeg", "gif")
ANNOTATIONS: Final = ("patient", "technique")
FUNCTIONS: Final = ("linear", "linear-exact", "sigmoid")
ICC: Final = ("no", "yes", "srgb")
MAX_SIDE: Final = 1 << 13  # pixels of a rendered image
_NUMBER: Final = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?(?:[eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True)
class Window:
    """centre and width in units behind the modality LUT (PS3.3 C.11.2)."""

    centre: float
    width: float
    function: str = "linear"


@dataclass(frozen=True)
class Viewport:
    """width, height: what the image has to fit into, pixels. region: (x, y, columns, rows) of the image, None for all.

    A negative number of columns or rows mirrors.
    """

    width: int
    height: int
    region: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Rendering:
    """format: one of FORMATS; frame: from 1; quality: of JPEG, 1 to 100; annotation: burnt in; icc: see ICC."""

    format: str
    frame: int = 1
    quality: int | None = None
    window: Window | None = None
    viewport: Viewport | None = None
    annotation: tuple[str, ...] = ()
    icc: str = "no"

    @classmethod
    def of_query(cls, image_format: str, frame: int, query: Mapping[str, str]) -> Rendering:
        """From query parameters. Raises InvalidInstance ``bad-parameter`` with the name of the one that is wrong."""
        made = cls(image_format, frame)
        for name, read in PARAMETERS.items():
            if name in query:
                made = read(made, query[name])
        return made

    def kind(self) -> str:
        """One word: 'rendered:jpeg:3', with options 'rendered:jpeg:3:quality=80;window=40,400,linear'."""
        options = []
        if self.annotation:
            options.append(f"annotation={','.join(self.annotation)}")
        if self.icc != "no":
            options.append(f"iccprofile={self.icc}")
        if self.quality is not None:
            options.append(f"quality={self.quality}")
        if self.viewport is not None:
            numbers = (self.viewport.width, self.viewport.height, *(self.viewport.region or ()))
            options.append(f"viewport={','.join(map(_short, numbers))}")
        if self.window is not None:
            named = f"{_short(self.window.centre)},{_short(self.window.width)},{self.window.function}"
            options.append(f"window={named}")
        return ":".join([f"rendered:{self.format}:{self.frame}", *filter(None, [";".join(options)])])

    @classmethod
    def parse(cls, kind: str) -> Rendering:
        """Inverse of `kind`. Raises InvalidInstance ``bad-kind``, ``bad-parameter``."""
        match = re.fullmatch(r"rendered:(png|jpeg|gif):([1-9][0-9]{0,8})(?::([a-z0-9=;,.+-]{1,400}))?", kind)
        if match is None:
            raise InvalidInstance("bad-kind", "not something that can be retrieved")
        options = dict(option.partition("=")[::2] for option in (match[3] or "").split(";") if option)
        if not set(options) <= set(PARAMETERS):
            raise InvalidInstance("bad-kind", "not something that can be retrieved")
        return cls.of_query(match[1], int(match[2]), options)


THUMBNAIL: Final = Viewport(128, 128)


def _short(number: float) -> str:
    return f"{number:.9g}"


def _bad(name: str, what: str) -> InvalidInstance:
    return InvalidInstance("bad-parameter", f"{name} is {what} (PS3.18 8.3.5)")


def _numbers(name: str, text: str, counts: tuple[int, ...], what: str) -> list[float]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in counts or not all(_NUMBER.fullmatch(part) for part in parts):
        raise _bad(name, what)
    return [float(part) for part in parts]


def _quality(made: Rendering, text: str) -> Rendering:
    (value,) = _numbers("quality", text, (1,), "a whole number from 1 to 100")
    if not 1 <= value <= 100 or value != int(value):
        raise _bad("quality", "a whole number from 1 to 100")
    return replace(made, quality=int(value))


def _window(made: Rendering, text: str) -> Rendering:
    what = f"centre,width and one of {', '.join(FUNCTIONS)}"
    numbers, _, function = text.rpartition(",")
    centre, width = _numbers("window", numbers, (2,), what)
    if function.strip() not in FUNCTIONS or width <= 0 or (width < 1 and function.strip() == "linear"):
        raise _bad("window", what)
    return replace(made, window=Window(centre, width, function.strip()))


def _viewport(made: Rendering, text: str) -> Rendering:
    what = f"width,height up to {MAX_SIDE}, and perhaps x,y,columns,rows of the image"
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 6:  # of the region the place may be left out
        parts[2:4] = [part or "0" for part in parts[2:4]]
    width, height, *region = _numbers("viewport", ",".join(parts), (2, 6), what)
    whole = width == int(width) and height == int(height)
    if not whole or not 1 <= width <= MAX_SIDE or not 1 <= height <= MAX_SIDE:
        raise _bad("viewport", what)
    if not region:
        return replace(made, viewport=Viewport(int(width), int(height)))
    x, y, columns, rows = region
    if x < 0 or y < 0 or columns == 0 or rows == 0:
        raise _bad("viewport", what)
    return replace(made, viewport=Viewport(int(width), int(height), (x, y, columns, rows)))


def _annotation(made: Rendering, text: str) -> Rendering:
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(ANNOTATIONS):
        raise _bad("annotation", f"a list of {', '.join(ANNOTATIONS)}")
    return replace(made, annotation=tuple(name for name in ANNOTATIONS if name in names))


def _icc(made: Rendering, text: str) -> Rendering:
    if text not in ICC:
        raise _bad("iccprofile", f"one of {', '.join(ICC)} here")
    return replace(made, icc=text)


PARAMETERS: Final = {
    "annotation": _annotation,
    "iccprofile": _icc,
    "quality": _quality,
    "viewport": _viewport,
    "window": _window,
}
