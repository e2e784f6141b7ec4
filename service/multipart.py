"""multipart/related (RFC 2387, framing of RFC 2046 5.1), both ways, with bounded memory.

`RelatedParser` is a push parser: bytes go in as they arrive, events come out, and no more than one header block or one
delimiter's length of body is ever held back.  Body bytes are passed on as they come, so a 3 GB part costs no more
memory than a 3 kB one.  `frame_part` and `close_delimiter` are its inverse for answers.

RFC 2046 5.1.1 as used here:
    multipart := [preamble CRLF] "--" boundary LWS CRLF part *(CRLF "--" boundary LWS CRLF part) CRLF "--" boundary "--"
    LWS [epilogue]
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

__all__ = [
    "Event",
    "Limits",
    "MediaType",
    "MultipartError",
    "PartBegin",
    "PartData",
    "PartEnd",
    "RelatedParser",
    "close_delimiter",
    "frame_part",
    "parse_media_type",
]

#: RFC 2046 5.1.1: characters of this set, not ending in a space. The RFC allows 70; Orthanc 1.10 sends 73.
BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,199}[0-9A-Za-z'()+_,\-./:=?]")


class MultipartError(ValueError):
    """The body is not multipart/related as declared. `reason` is a machine word; the message never quotes the body."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class MediaType:
    """A parsed media type: lower-case `essence` ("application/dicom") and parameters with lower-case names."""

    essence: str
    parameters: Mapping[str, str]


#: One parameter (RFC 9110 5.6.6), its value a token or a quoted string; lenient about what a bare value holds.
_PARAMETER = re.compile(
    r';\s*(?P<name>[!#-+\-.0-9A-Za-z^_`|~]+)\s*=\s*(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^;"]*))'
)
_ESSENCE = re.compile(r"[!#-.0-9A-Za-z^-z|~*]+/[!#-.0-9A-Za-z^-z|~*]+")


def parse_media_type(text: str) -> MediaType:
    """Parse a Content-Type or one Accept element (RFC 9110 8.3.1); a value that is none gives essence ''.

    Of equal parameters the first counts. Not by the standard library: its RFC 2231 parsing raises on hostile names.
    """
    essence = text.split(";", 1)[0].strip().lower()
    parameters: dict[str, str] = {}
    for match in _PARAMETER.finditer(text):
        quoted = match["quoted"]
        value = match["bare"].strip() if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        parameters.setdefault(match["name"].lower(), value)
    return MediaType(essence if _ESSENCE.fullmatch(essence) else "", parameters)


@dataclass(frozen=True)
class Limits:
    """What one request may cost: bytes of one part's header block, number of parts, bytes before the first
    delimiter.
    """

    header_bytes: int = 16 << 10
    parts: int = 20_000
    preamble_bytes: int = 64 << 10


@dataclass(frozen=True)
class PartBegin:
    """A part starts; header names are lower case, the first of equal names wins."""

    headers: Mapping[str, str]


@dataclass(frozen=True)
class PartData:
    """A run of body bytes, never empty."""

    data: bytes


@dataclass(frozen=True)
class PartEnd:
    """The part that began last is complete."""


Event = PartBegin | PartData | PartEnd


class _At(Enum):
    PREAMBLE = "preamble"
    HEADERS = "headers"
    BODY = "body"
    EPILOGUE = "epilogue"


@dataclass
class RelatedParser:
    """Push parser: `feed` bytes, get events; `close` at the end of the body, which fails unless the last delimiter was
    seen.
    """

    boundary: str
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not BOUNDARY.fullmatch(self.boundary):
            raise MultipartError("bad-boundary", "the boundary parameter is missing or not allowed by RFC 2046 5.1.1")
        self._delimiter = b"\r\n--" + self.boundary.encode("ascii")
        # Invariant: the first delimiter may stand at the very start of the body; a CRLF put before it makes it like the
        # others.
        self._buffer = bytearray(b"\r\n")
        self._at = _At.PREAMBLE
        self._parts = 0
        self._skipped = 0
        self._steps = {_At.PREAMBLE: self._preamble, _At.HEADERS: self._headers, _At.BODY: self._body}

    @property
    def parts(self) -> int:
        """Parts begun so far."""
        return self._parts

    def feed(self, data: bytes) -> Iterator[Event]:
        """Take the next bytes of the body and yield what they complete; raises MultipartError.

        The iterator must be run to its end before `feed` is called again.
        """
        self._buffer += data
        while self._at is not _At.EPILOGUE:
            before = (self._at, len(self._buffer))
            yield from self._steps[self._at]()
            if before == (self._at, len(self._buffer)):
                return
        self._buffer.clear()

    def close(self) -> None:
        """The body has ended; raises MultipartError when the closing delimiter never came."""
        if self._at is not _At.EPILOGUE:
            raise MultipartError("truncated", "the body ends before its closing delimiter")

    def _preamble(self) -> Iterator[Event]:
        at = self._buffer.find(self._delimiter)
        passed = max(0, len(self._buffer) - len(self._delimiter) + 1) if at < 0 else at
        self._skipped += passed
        if self._skipped > self.limits.preamble_bytes:
            raise MultipartError("no-boundary", "no delimiter within the first bytes of the body")
        del self._buffer[:passed]
        if at >= 0:
            self._delimiter_line(in_body=False)
        return iter(())

    def _body(self) -> Iterator[Event]:
        at = self._buffer.find(self._delimiter)
        if at < 0:
            # The last bytes may be the start of a delimiter: hold them back.
            passed = max(0, len(self._buffer) - len(self._delimiter) + 1)
        else:
            passed = at
        if passed:
            yield PartData(bytes(self._buffer[:passed]))
            del self._buffer[:passed]
        if at >= 0:
            outcome = self._delimiter_line(in_body=True)
            if outcome is True:
                yield PartEnd()
            elif outcome is False:  # the boundary was only the start of a longer text: it is content
                yield PartData(bytes(self._buffer[: len(self._delimiter)]))
                del self._buffer[: len(self._delimiter)]

    def _delimiter_line(self, *, in_body: bool) -> bool | None:
        """Read the rest of the delimiter's line at the start of the buffer.

        True: it is one, and the state moved on. None: more bytes are needed. False: it is content that only looks like
        one.
        """
        rest = bytes(self._buffer[len(self._delimiter) : len(self._delimiter) + 1024])
        if rest[:2] == b"--":
            self._at = _At.EPILOGUE
            return True
        line = re.match(rb"[ \t]*(\r\n)?", rest)
        padding = line.end() if line else 0
        if line and line.group(1):
            del self._buffer[: len(self._delimiter) + padding]
            self._begin_headers()
            return True
        undecided = rest in (b"", b"-") or (padding == len(rest)) or rest[padding:] == b"\r"
        if undecided and padding < 512:
            return None
        if in_body:
            return False
        del self._buffer[: len(self._delimiter)]  # in the preamble anything else is just skipped
        return False

    def _begin_headers(self) -> None:
        self._parts += 1
        if self._parts > self.limits.parts:
            raise MultipartError("too-many-parts", f"more than {self.limits.parts} parts in one request")
        # Invariant: a header block ends at CRLF CRLF; an empty one is a lone CRLF: with a CRLF put before it, it ends
        # so too.
        self._buffer[:0] = b"\r\n"
        self._at = _At.HEADERS

    def _headers(self) -> Iterator[Event]:
        at = self._buffer.find(b"\r\n\r\n")
        if at > self.limits.header_bytes or (at < 0 and len(self._buffer) > self.limits.header_bytes):
            raise MultipartError("header-too-long", "a part's header block is too long")
        if at < 0:
            return
        headers = _parse_headers(bytes(self._buffer[2 : max(2, at)]))
        del self._buffer[: at + 4]
        self._at = _At.BODY
        yield PartBegin(headers)


def _parse_headers(block: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    unfolded = re.sub(rb"\r\n[ \t]+", b" ", block)
    for line in unfolded.split(b"\r\n"):
        if not line:
            continue
        name, colon, value = line.partition(b":")
        if not colon or not re.fullmatch(rb"[!-9;-~]+", name.strip()):
            raise MultipartError("bad-header", "a part's header line is not 'name: value'")
        headers.setdefault(name.strip().decode("ascii").lower(), value.strip().decode("latin-1"))
    return headers


def frame_part(boundary: str, headers: Mapping[str, str], *, first: bool) -> bytes:
    """The bytes before a part's body: delimiter line and header block."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{'' if first else chr(13) + chr(10)}--{boundary}\r\n{lines}\r\n".encode("ascii")


def close_delimiter(boundary: str) -> bytes:
    """The bytes after the last part's body."""
    return f"\r\n--{boundary}--\r\n".encode("ascii")
