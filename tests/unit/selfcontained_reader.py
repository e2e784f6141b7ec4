"""A reader of the self-contained carrier in plain Python, written from docs/payload-format.md, section 12, alone.

It shares no code with the carrier. Slow, and meant to be: every step stands here as it stands there.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Rows = Sequence[Sequence[int]]
EDGES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)


class Refused(Exception):
    """The one answer."""


def refuse_if(condition: bool) -> None:
    if condition:
        raise Refused


def hkdf(key: bytes, salt: bytes, info: str, size: int) -> bytes:
    return HKDF(SHA256(), size, salt, info.encode()).derive(key)


def chacha(key: bytes, size: int) -> bytes:
    return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(size))


def bits_of(data: bytes) -> list[int]:
    return [byte >> i & 1 for byte in data for i in range(7, -1, -1)]


def number(bits: Iterable[int]) -> int:
    value = 0
    for bit in bits:
        value = 2 * value + bit
    return value


def as_bytes(bits: list[int]) -> bytes:
    return bytes(number(bits[i : i + 8]) for i in range(0, len(bits), 8))


def permutation(n: int, key: bytes, salt: bytes) -> list[int]:
    """Section 7."""
    stream = chacha(hkdf(key, salt, "palimpsest/pos/v1", 32), 8 * n + 4096)
    at, perm = 0, list(range(n))
    for i in range(n - 1, 0, -1):
        while True:
            r = int.from_bytes(stream[at : at + 4], "little")
            at += 4
            if r < 2**32 - 2**32 % (i + 1):
                break
        j = r % (i + 1)
        perm[i], perm[j] = perm[j], perm[i]
    return perm


@dataclass
class Frame:
    """Samples and rules, 12.2 and 12.3."""

    x: list[int]
    rows: int
    columns: int
    low: int
    high: int
    barred: set[int]
    carries: list[bool] = field(default_factory=list)

    def prepare(self, region: Rows | None) -> None:
        lattice = [[self.x[r * self.columns + c] for c in range(2, self.columns, 4)] for r in range(2, self.rows, 4)]
        high, wide = len(lattice), len(lattice[0]) if lattice else 0
        cells = set()
        for a in range(high - 2):
            for b in range(wide - 2):
                nine = {(a + i, b + j) for i in range(3) for j in range(3)}
                if len({lattice[i][j] for i, j in nine}) == 1:
                    cells |= nine
        quads = [
            {lattice[a + i][b + j] for i in (0, 1) for j in (0, 1)} for a in range(high - 1) for b in range(wide - 1)
        ]
        if quads:
            for value in (min(map(min, lattice)), max(map(max, lattice))):
                if quads.count({value}) >= max(4, len(quads) // 256):
                    self.barred = self.barred | {value}
        self.carries = [
            0 < r < self.rows - 1
            and 0 < c < self.columns - 1
            and not (r % 4 == 2 and c % 4 == 2)
            and (region is None or bool(region[r][c]))
            and (r // 4, c // 4) not in cells
            for r in range(self.rows)
            for c in range(self.columns)
        ]

    def segment(self, value: int) -> tuple[int, int] | None:
        if value in self.barred or not self.low <= value <= self.high:
            return None
        first = max((b + 1 for b in self.barred if b < value), default=self.low)
        last = min((b - 1 for b in self.barred if b > value), default=self.high)
        return max(first, self.low), min(last, self.high)

    def may_flip(self, value: int) -> bool:
        even = value - value % 2
        return self.segment(even) is not None and self.segment(even) == self.segment(even + 1)

    def cross_of(self, i: int) -> tuple[int, int, int, int]:
        """U, D, L, R."""
        return self.x[i - self.columns], self.x[i + self.columns], self.x[i - 1], self.x[i + 1]


def read(
    values: Rows, low: int, high: int, barred: Iterable[int], key: bytes, salt: bytes, region: Rows | None = None
) -> tuple[bytes, list[list[int]]]:
    """(message, original frame). Raises Refused."""
    rows, columns = len(values), len(values[0])
    frame = Frame([int(v) for row in values for v in row], rows, columns, low, high, set(barred))
    frame.prepare(region)
    keys = hkdf(key, salt, "palimpsest/selfcontained/v1", 96)
    header_key, stack_key, tag_key = keys[:32], keys[32:64], keys[64:]
    places, p = header_places(frame, key, salt)
    method, body, blocks = header(frame, places, p, header_key)
    received = list(frame.x)
    for place in [i for block in places[:blocks] for i in block]:
        frame.carries[place] = False
        if frame.may_flip(frame.x[place]):
            frame.x[place] -= frame.x[place] % 2
    stack = plain_pee(frame, body) if method == 1 else recursive(frame, body)
    stack = bytes(a ^ b for a, b in zip(stack, chacha(stack_key, len(stack)), strict=True))
    saved = -(-blocks * p // 8)
    refuse_if(len(stack) < saved + 8)
    message, tag, kept = stack[: -saved - 8], stack[-saved - 8 : -saved], bits_of(stack[-saved:])
    refuse_if(any(kept[blocks * p :]))
    for b, block in enumerate(places[:blocks]):
        for i in block:
            frame.x[i] = received[i]
        turn_back(frame, block, number(kept[b * p : (b + 1) * p]))
    digest = hashlib.sha256(b"".join(v.to_bytes(4, "little", signed=True) for v in frame.x)).digest()
    refuse_if(hmac.new(tag_key, digest + message, "sha256").digest()[:8] != tag)
    return message, [frame.x[r * columns : (r + 1) * columns] for r in range(rows)]


def header_places(frame: Frame, key: bytes, salt: bytes) -> tuple[list[list[int]], int]:
    """12.4: the blocks' places, and p."""
    free = [i for i, carries in enumerate(frame.carries) if carries]
    fitting = [p for p in range(7, 0, -1) if 4 * (2**p - 1) * -(-512 // p) <= len(free)]
    refuse_if(not fitting or len(frame.x) >= 2**28)
    p = fitting[0]
    perm = permutation(len(free), key, salt)
    width = 2**p - 1
    return [[free[perm[k]] for k in range(b * width, (b + 1) * width)] for b in range(-(-512 // p))], p


def syndrome(frame: Frame, block: list[int]) -> int:
    value = 0
    for j, i in enumerate(block, 1):
        if frame.x[i] % 2:
            value ^= j
    return value


def header(frame: Frame, places: list[list[int]], p: int, key: bytes) -> tuple[int, list[int], int]:
    """12.4: (method, body, H)."""
    bits = [syndrome(frame, block) >> i & 1 for block in places for i in range(p - 1, -1, -1)]
    bits = [a ^ b for a, b in zip(bits, bits_of(chacha(key, len(bits))), strict=False)]
    method, m, first = number(bits[:2]), number(bits[2:12]), -(-12 // p)
    blocks = first + -(-m // p)
    refuse_if(method not in (1, 2) or blocks > len(places))
    refuse_if(m != 50 if method == 1 else m < 157 or (m - 157) % 14 != 0)
    refuse_if(any(bits[12 : first * p]) or any(bits[first * p + m : blocks * p]))
    return method, bits[first * p : first * p + m], blocks


def turn_back(frame: Frame, block: list[int], original: int) -> None:
    """12.6."""
    d = syndrome(frame, block) ^ original
    if not d:
        return
    free = [j for j, i in enumerate(block, 1) if frame.may_flip(frame.x[i])]
    one = [(j,) for j in free if j == d]
    two = ((j, k) for j in free for k in free if j < k and j ^ k == d)
    three = ((j, k, m) for j in free for k in free if j < k for m in free if k < m and j ^ k ^ m == d)
    chosen: tuple[int, ...] | None = next(iter(one), None) or next(two, None) or next(three, None)
    if chosen is None:
        raise Refused
    for j in chosen:
        i = block[j - 1]
        frame.x[i] += -1 if frame.x[i] % 2 else 1


class Fields:
    """Numbers out of bits, highest first."""

    def __init__(self, bits: list[int]) -> None:
        self.bits, self.at = bits, 0

    def get(self, width: int) -> int:
        self.at += width
        return number(self.bits[self.at - width : self.at])


def plain_pee(frame: Frame, body: list[int]) -> bytes:
    """12.7."""
    fields = Fields(body)
    t, limit, e, stop = fields.get(5) + 1, fields.get(16), fields.get(1), fields.get(28)
    refuse_if(t > 16)
    stack: list[int] = []
    for which in (1, 0) if e else (0,):
        found = []
        for i, carries in enumerate(frame.carries):
            if carries and sum(divmod(i, frame.columns)) % 2 == which:
                up, down, left, right = frame.cross_of(i)
                found.append((abs(up - left) + abs(left - down) + abs(down - right) + abs(right - up), i))
        order = [i for activity, i in sorted(found) if activity <= limit]
        if which == e:
            refuse_if(stop > len(order))
            order = order[:stop]
        for i in reversed(order):
            pee_sample(frame, i, t, stack)
    refuse_if(len(stack) % 8 != 0)
    return as_bytes(stack)


def pee_sample(frame: Frame, i: int, t: int, stack: list[int]) -> None:
    value = frame.x[i]
    segment = frame.segment(value)
    if segment is None or segment[1] - segment[0] < 4 * t:
        return
    first, last = segment
    if value < first + t or value > last - t:
        refuse_if(not stack)
        if stack.pop() == 0:
            return
    mean = (sum(frame.cross_of(i)) + 2) >> 2
    x = value - mean
    if x >= 2 * t:
        value -= t
    elif x < -2 * t:
        value += t
    else:
        stack.append(x % 2)
        value = mean + (x >> 1)
    refuse_if(value < first + t or value > last - t)
    frame.x[i] = value


GROUPS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((0, -1), (0, 1)),
    ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    ((0, -2), (0, 2)),
    ((-2, 0), (2, 0)),
    ((-2, -1), (-2, 1), (2, -1), (2, 1)),
    ((-1, -2), (-1, 2), (1, -2), (1, 2)),
    ((-2, -2), (-2, 2), (2, -2), (2, 2)),
)


def recursive(frame: Frame, body: list[int]) -> bytes:
    """12.8."""
    fields = Fields(body)
    weights = [fields.get(9) - 255 for _ in range(7)]
    price, most, base, c = fields.get(9), fields.get(5), fields.get(6), fields.get(5)
    spare, stop, state = fields.get(2), fields.get(28), fields.get(39)
    refuse_if(len(body) != 157 + 14 * c)
    laws = [(fields.get(7), fields.get(2), fields.get(5)) for _ in range(c)]
    refuse_if(price > 351 or not most or not c or base + c > 64 or stop > len(frame.x) or state < 2**31)
    stack = bytearray()
    moves = [moving(law, price, most) for law in laws]
    for i in reversed(range(stop)):
        row, column = divmod(i, frame.columns)
        inside = 2 <= row < frame.rows - 2 and 2 <= column < frame.columns - 2
        if not inside or not frame.carries[i]:
            continue
        kind = kind_of(frame, i)
        segment = frame.segment(frame.x[i])
        if not kind or not 0 <= kind - base < c or not moves[kind - base] or not segment or segment[0] == segment[1]:
            continue
        found = window(frame, i, weights, laws[kind - base], segment)
        if found is not None:
            state = step(frame, i, found, (laws[kind - base], price, most), state, stack)
    refuse_if(state != 2**31 or len(stack) < spare or any(stack[:spare]))
    return bytes(stack[spare:])


def kind_of(frame: Frame, i: int) -> int:
    """12.8, step 1."""
    total = 0
    for far in (-2, -1, 0, 1, 2):
        for along, across in ((1, frame.columns), (frame.columns, 1)):
            a, b, c, d, e = (frame.x[i + far * across + n * along] for n in (-2, -1, 0, 1, 2))
            if abs(far) == 2:
                total += abs(a - b) + abs(b - c) + abs(c - d) + abs(d - e)
            elif abs(far) == 1:
                total += abs(a - b) + 2 * abs(b - c) + 2 * abs(c - d) + abs(d - e)
            else:
                total += abs(a - b) + 2 * abs(b - d) + abs(d - e)
    r, o = total, 0
    while r > 3:
        r, o = r >> 1, o + 1
    return r if o == 0 else min(63, 2 * o + r - 1)


Law = tuple[int, int, int]
Cut = tuple[int, bool] | None  # lowest error, and whether first = low


@dataclass(frozen=True)
class Window:
    whole: int
    phase: int
    cut: Cut
    lo: int
    hi: int
    reach: int
    at_high: bool


def window(frame: Frame, i: int, weights: list[int], law: Law, segment: tuple[int, int]) -> Window | None:
    """12.8, steps 3 and 4."""
    first, last = segment
    near = sum(frame.cross_of(i))
    total = 256 * near
    for w, group in zip(weights, GROUPS, strict=True):
        total += w * (4 * sum(frame.x[i + r * frame.columns + c] for r, c in group) - len(group) * near)
    prediction = (total + 128) >> 8
    whole, phase = (prediction >> 2, prediction % 4) if law[0] < 40 else ((prediction + 2) >> 2, 0)
    whole = min(max(whole, first), last)
    reach = reach_of(law)
    lo, cut = -reach, None
    if whole - first < reach:
        lo = -max(edge for edge in EDGES if edge <= whole - first)
        cut = (lo, first == frame.low)
    if not lo <= frame.x[i] - whole <= reach:
        return None
    return Window(whole, phase, cut, lo, min(reach, last - whole), reach, last == frame.high)


def step(frame: Frame, i: int, seen: Window, what: tuple[Law, int, int], state: int, stack: bytearray) -> int:
    """12.8, steps 5 to 7: the coder's next state."""
    law, price, most = what
    source, output = tables(law, seen.phase, seen.cut, price, most)
    top = 65536 if seen.at_high else source[seen.hi + 1 + seen.reach]

    def place(y: int) -> int:
        return y if top == 65536 else (min(y, top) << 16) // top

    def slots(table: Sequence[int], x: int) -> tuple[int, int]:
        begin = 0 if x == seen.lo else place(table[x + seen.reach])
        end = 65536 if x == seen.hi else place(table[x + 1 + seen.reach])
        return begin, end - begin

    begin, length = slots(output, frame.x[i] - seen.whole)
    refuse_if(length <= 0 or len(stack) > 2 * len(frame.x) + 56)
    while state >= length << 23:
        stack.append(state % 256)
        state >>= 8
    state = ((state // length) << 16) + state % length + begin
    slot = state % 65536
    for x in range(seen.lo, seen.hi + 1):
        begin, length = slots(source, x)
        if begin <= slot < begin + length:
            break
    state = length * (state >> 16) + slot - begin
    while state < 2**31:
        refuse_if(not stack)
        state = 256 * state + stack.pop()
    frame.x[i] = seen.whole + x
    return state


def scale_of(law: Law) -> int:
    return (184, 201, 219, 239, 260, 284, 309, 337)[law[0] % 8] << law[0] // 8


def reach_of(law: Law) -> int:
    return min(255, 3 + (6 * scale_of(law) >> 10))


def moving(law: Law, price: int, most: int) -> bool:
    """12.8, step 8."""
    found = [tables(law, phase, None, price, most) for phase in (range(4) if law[0] < 40 else (0,))]
    return any(source != output for source, output in found)


@cache
def tables(law: Law, phase: int, cut: Cut, price: int, most: int) -> tuple[list[int], list[int]]:
    """12.9: S and O, at x + K. Below a cut both are 0."""
    whole = source_of(law, phase)
    reach = reach_of(law)
    if cut is None:
        return whole, output_of(whole, -reach, scale_of(law), price, most)
    lo, clips = cut
    before = 0 if clips else whole[lo + reach]
    source = [0] * (lo + reach + 1)
    source += [((y - before) << 16) // (65536 - before) for y in whole[lo + reach + 1 :]]
    head = [0] * (lo + reach)
    return source, head + output_of(source[lo + reach :], lo, scale_of(law), price, most)


def source_of(law: Law, phase: int) -> list[int]:
    s, exponent, bias, reach = scale_of(law), (2, 3, 5, 16)[law[1]], law[2], reach_of(law)
    centre = 4 * phase + (((bias - 16) * s) >> 11)

    def density(z: int) -> int:
        d = 2**32
        for _ in range(exponent):
            d = (d << 16) // (65536 + (z**2 << 28) // (s**2 * exponent))
        return d

    masses = [sum(density(16 * x - centre + 2 * j - 7) for j in range(8)) for x in range(-reach, reach + 1)]
    f = [1 + mass * (65536 - (2 * reach + 1)) // sum(masses) for mass in masses]
    f[f.index(max(f))] += 65536 - sum(f)
    return [sum(f[:x]) for x in range(len(f) + 1)]


def output_of(c: list[int], lo: int, s: int, price: int, most: int) -> list[int]:
    n, ratio = len(c) - 1, 65536 + ((16 + price % 16) << price // 16)
    p = [(c[i + 1] - c[i]) << 14 for i in range(n)]
    q, w = list(p), [0] * (n - 1)
    if s >= 8192:
        stretch(c, -lo, s, ratio, q, w)
    for sweep in range(160):
        moved = 0
        for i in range(n - 1) if sweep % 2 == 0 else range(n - 2, -1, -1):
            a, b = q[i] + w[i], q[i + 1] - w[i]
            new = cross(a, b, i, -1, p, ratio, most) if a >= b else -cross(b, a, i + 1, 1, p, ratio, most)
            moved += abs(new - w[i])
            w[i], q[i], q[i + 1] = new, a - new, b + new
        if moved < 2**18:
            break
    out = [0] * n + [65536]
    for i in range(1, n):
        held = max(c[i] - ((w[i - 1] + 2**13) >> 14), c[max(0, i - most)], out[i - 1])
        out[i] = min(held, c[min(n, i + most)])
    return out


def stretch(c: list[int], z: int, s: int, ratio: int, q: list[int], w: list[int]) -> None:
    n, variance = len(c) - 1, s**2 >> 5
    width = math.isqrt(variance)
    wider = (width + math.isqrt(variance + 2**33 // (ratio - 65536))) // 2
    if wider <= width:
        return
    h = [0] * n + [2**30]
    for i in range(1, n):
        at = (z << 16) + 32768 + (((i - z) << 17) - 65536) * width // (2 * wider)
        at = min(max(at, 0), n << 16)
        j = at >> 16
        h[i] = (c[j] << 14) + ((((c[j + 1] - c[j]) << 14) * (at % 65536)) >> 16 if j < n else 0)
        w[i - 1] = (c[i] << 14) - h[i]
    q[:] = [h[i + 1] - h[i] for i in range(n)]


def cross(a: int, b: int, at: int, step: int, p: list[int], ratio: int, most: int) -> int:
    done, r, g = 0, ratio, ratio**2 >> 16
    for _ in range(most):
        best = ((a << 16) - r * b) // (65536 + r)
        if best <= done or not 0 <= at < len(p):
            return done
        if best <= done + p[at]:
            return best
        done, at = done + p[at], at + step
        r, g = min((r * g) >> 16, 2**31), min(g, 2**31)
    return done
