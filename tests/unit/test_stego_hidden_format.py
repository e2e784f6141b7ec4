"""A reader of the hidden carrier in plain Python, written from docs/payload-format.md, section 11, alone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stego import hidden
from stego.cover import Cover
from stego.positions import permutation

WORD = (1 << 64) - 1


def mix(x: int) -> int:
    z = x * 0x9E3779B97F4A7C15 & WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & WORD
    return z ^ (z >> 31)


def number(bits: list[int]) -> int:
    return int("".join(map(str, bits)), 2)


def lowest_bits(body: list[int], steps: int, size: int, variant: int) -> list[int]:
    rows = -(-size // 32)
    lead = min(4 * steps // (rows + 4), steps - rows)
    starts = [0, *(lead + i * (steps - lead) // rows for i in range(1, rows + 1))]
    width = max(b - a for a, b in zip(starts[1:], starts[2:], strict=False)) if rows > 1 else starts[1]
    order = sorted(range(256), key=lambda i: mix(i + 1 + 65536 * (16 * width + variant)))
    columns = [2 * c + 513 for c in order[: min(width, 128)]]
    states, bits = [0] * 32, []
    for row in range(rows):
        for step in range(starts[row], starts[row + 1]):
            for lane in range(32):
                if body[32 * step + lane] & 1:
                    states[lane] ^= columns[(step - starts[row]) % len(columns)]
        bits += [state & 1 for state in states]
        states = [state >> 1 for state in states]
    return bits[:size]


def directions(block: list[int], size: int) -> list[int]:
    words = [0] * -(-size // 64)
    for element, sample in enumerate(block):
        if sample >> 1 & 1:
            for k in range(len(words)):
                words[k] ^= mix(1024 * element + k + 1)
    return [words[i // 64] >> i % 64 & 1 for i in range(size)]


def read(values: NDArray[np.int32], nbytes: int, key: bytes, salt: bytes) -> bytes:
    size = 8 * nbytes
    blocks = -(-size // 4096)
    head_bits = 4 + 12 * blocks
    rows, columns = values.shape
    free = [int(values[r, c]) for r in range(rows) for c in range(columns) if not (r % 4 == 2 and c % 4 == 2)]
    group = min(64, len(free) // (8 * head_bits))
    steps = (len(free) - group * head_bits) // 32
    stream = [free[i] for i in permutation(len(free), stego_key=key, salt=salt)]
    head = [sum(x & 1 for x in stream[i * group : (i + 1) * group]) & 1 for i in range(head_bits)]
    counts = [
        min(number(head[4 + 12 * b : 16 + 12 * b]), 4095, size * (b + 1) // blocks - size * b // blocks)
        for b in range(blocks)
    ]
    body = stream[group * head_bits :][: 32 * steps]
    bits = lowest_bits(body, steps, size - sum(counts), number(head[:4]))
    for b, count in enumerate(counts):
        bits += directions(body[32 * (steps * b // blocks) : 32 * (steps * (b + 1) // blocks)], count)
    return np.packbits(bits).tobytes()


@pytest.mark.parametrize("nbytes", [9, 300, 900])
def test_the_format_is_what_its_description_says(nbytes: int) -> None:
    rng = np.random.default_rng(nbytes)
    values = np.rint(-100 + 9 * rng.normal(size=(130, 150))).astype(np.int32)
    key, salt, message = rng.bytes(32), rng.bytes(32), rng.bytes(nbytes)
    done = hidden.embed(Cover(values, -2048, 2047), message, stego_key=key, salt=salt)
    assert read(done.values, nbytes, key, salt) == message
