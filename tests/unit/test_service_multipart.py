"""The multipart/related parser: whatever the chunking, parts come out as they went in, and nothing crashes it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.multipart import (
    Limits,
    MultipartError,
    PartBegin,
    PartData,
    PartEnd,
    RelatedParser,
    close_delimiter,
    frame_part,
    parse_media_type,
)

BOUNDARY = "0f3cf5c0-70e0"


def parse(
    chunks: list[bytes], boundary: str = BOUNDARY, limits: Limits | None = None
) -> list[tuple[dict[str, str], bytes]]:
    parser = RelatedParser(boundary, limits or Limits())
    parts: list[tuple[dict[str, str], bytearray]] = []
    ended = 0
    for chunk in chunks:
        for event in parser.feed(chunk):
            match event:
                case PartBegin(headers):
                    assert ended == len(parts)
                    parts.append((dict(headers), bytearray()))
                case PartData(data):
                    assert data
                    parts[-1][1].extend(data)
                case PartEnd():
                    ended += 1
    parser.close()
    assert ended == len(parts)
    return [(headers, bytes(body)) for headers, body in parts]


def build(bodies: list[bytes], boundary: str = BOUNDARY) -> bytes:
    framed = [
        frame_part(boundary, {"Content-Type": "application/dicom"}, first=i == 0) + body
        for i, body in enumerate(bodies)
    ]
    return b"".join(framed) + close_delimiter(boundary)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks, at = [], 0
    while at < len(data):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(data[at : at + size])
        at += size
    return chunks


# Bodies made of pieces of delimiters: the nastiest content there is.
PIECES = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b"-", b"--", b"\r\n--", BOUNDARY.encode(), BOUNDARY[:5].encode(), b"x", b"\0"]
    ),
    max_size=12,
).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(
    bodies=st.lists(st.one_of(st.binary(max_size=80), PIECES), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
)
def test_parts_come_back_whatever_the_chunking(bodies: list[bytes], sizes: list[int]) -> None:
    bodies = [body for body in bodies if b"\r\n--" + BOUNDARY.encode() not in b"\r\n" + body + b"\r\n"]
    if not bodies:
        bodies = [b"x"]
    data = build(bodies)
    assert [body for _, body in parse(cut(data, sizes))] == bodies


def test_a_longer_boundary_is_content_not_a_delimiter() -> None:
    body = b"\r\n--" + BOUNDARY.encode() + b"0 still content \r\n--" + BOUNDARY.encode() + b"-x"
    assert [part for _, part in parse([build([body, b"next"])])] == [body, b"next"]
    assert [part for _, part in parse(cut(build([body, b"next"]), [1]))] == [body, b"next"]


def test_preamble_epilogue_padding_and_folded_headers_are_tolerated() -> None:
    data = b"preamble\r\n--B  \t\r\nContent-Type:\r\n application/dicom\r\nX: 1\r\n\r\nbody"
    data += b"\r\n--B\r\n\r\nbare\r\n--B--\r\nepilogue\r\n--B\r\n"
    assert parse([data], "B") == [({"content-type": "application/dicom", "x": "1"}, b"body"), ({}, b"bare")]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"--B\r\nA: b\r\n\r\nbody", "truncated"),
        (b"--B\r\nA: b\r\n\r\nbody\r\n--B\r\n", "truncated"),
        (b"--B\r\nnot a header\r\n\r\nbody\r\n--B--", "bad-header"),
        (b"--B\r\n" + b"A: b\r\n" * 4000 + b"\r\nbody\r\n--B--", "header-too-long"),
        (b"x" * 100_000, "no-boundary"),
        (b"--B\r\n\r\na\r\n" * 4 + b"--B--", "too-many-parts"),
    ],
)
def test_what_is_not_multipart_is_refused_by_name(data: bytes, reason: str) -> None:
    for chunks in ([data], cut(data, [997])):
        with pytest.raises(MultipartError) as caught:
            parse(chunks, "B", Limits(parts=3))
        assert caught.value.reason == reason


@pytest.mark.parametrize("boundary", ["", " ", "a" * 201, "ends-in-space ", "a\r\nb", "ü", 'a"b'])
def test_bad_boundaries_are_refused(boundary: str) -> None:
    with pytest.raises(MultipartError):
        RelatedParser(boundary)


@settings(max_examples=150, deadline=None)
@given(
    data=st.one_of(st.binary(max_size=300), PIECES),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    sizes=st.lists(st.integers(1, 64), min_size=1, max_size=4),
)
def test_noise_ends_in_parts_or_in_a_named_error(data: bytes, flips: list[tuple[int, int]], sizes: list[int]) -> None:
    noisy = bytearray(build([data, b"second"]))
    for at, value in flips:
        noisy[at % len(noisy)] = value
    try:
        parts = parse(cut(bytes(noisy), sizes))
    except MultipartError as error:
        assert error.reason
        return
    assert sum(len(body) for _, body in parts) <= len(noisy)


def test_memory_stays_bounded_inside_a_long_part() -> None:
    parser = RelatedParser("B")
    list(parser.feed(b"--B\r\n\r\n"))
    for _ in range(64):
        passed = sum(len(event.data) for event in parser.feed(b"\r\n--" * 4096) if isinstance(event, PartData))
        assert passed > 0
        assert len(parser._buffer) < 64


def test_media_types() -> None:
    parsed = parse_media_type('multipart/related; TYPE="application/dicom"; boundary="a;b"; transfer-syntax=*')
    assert (parsed.essence, parsed.parameters["type"], parsed.parameters["boundary"]) == (
        "multipart/related",
        "application/dicom",
        "a;b",
    )
    assert parsed.parameters["transfer-syntax"] == "*"
    assert parse_media_type("nonsense").essence == ""
    assert parse_media_type("").essence == ""
