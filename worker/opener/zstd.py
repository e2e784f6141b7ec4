"""One Zstandard frame without a dictionary (RFC 8878), in plain Python. Section numbers are those of the RFC.

Checksums are not compared: what is opened here was authenticated before.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.opener.errors import Damaged

MAGIC = 0xFD2FB528
MAX_BLOCK = 1 << 17
Table = list[tuple[int, int, int]]  # (symbol, bits to read, base of the next state) of each state

LITERAL_LENGTHS = [(value, 0) for value in range(16)] + [
    (16, 1), (18, 1), (20, 1), (22, 1), (24, 2), (28, 2), (32, 3), (40, 3), (48, 4), (64, 6), (128, 7), (256, 8),
    (512, 9), (1024, 10), (2048, 11), (4096, 12), (8192, 13), (16384, 14), (32768, 15), (65536, 16),
]  # fmt: skip
MATCH_LENGTHS = [(value, 0) for value in range(3, 35)] + [
    (35, 1), (37, 1), (39, 1), (41, 1), (43, 2), (47, 2), (51, 3), (59, 3), (67, 4), (83, 4), (99, 5), (131, 7),
    (259, 8), (515, 9), (1027, 10), (2051, 11), (4099, 12), (8195, 13), (16387, 14), (32771, 15), (65539, 16),
]  # fmt: skip
LITERAL_DEFAULT = [4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1] + [
    -1, -1, -1, -1,
]  # fmt: skip
MATCH_DEFAULT = [1, 4, 3, 2, 2, 2, 2, 2, 2] + [1] * 37 + [-1] * 7
OFFSET_DEFAULT = [1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1] + [-1] * 5


class _Backward:
    """A stream that is read from its end (4.1.1)."""

    def __init__(self, data: bytes) -> None:
        if not data or not data[-1]:
            raise Damaged("a compressed part is broken")
        self._bits = int.from_bytes(data, "little")
        self.left = self._bits.bit_length() - 1

    def read(self, count: int) -> int:
        """The next `count` bits; beyond the beginning there are zeros."""
        self.left -= count
        if self.left >= 0:
            return self._bits >> self.left & (1 << count) - 1
        return self._bits << -self.left & (1 << count) - 1


@dataclass
class _State:
    """What lasts from block to block: output, Huffman table, the three FSE tables, the last offsets."""

    out: bytearray = field(default_factory=bytearray)
    huffman: tuple[int, list[tuple[int, int]]] | None = None
    tables: list[Table | None] = field(default_factory=lambda: [None, None, None])
    offsets: list[int] = field(default_factory=lambda: [1, 4, 8])


def decompress(data: bytes, size: int) -> bytes:
    """Exactly `size` bytes out of one frame. Raises Damaged; never holds much more than `size` bytes."""
    try:
        at, checksum = _frame_header(data)
        state, last = _State(), False
        while not last:
            if at + 3 > len(data):
                raise Damaged("a compressed part is cut off")
            head = int.from_bytes(data[at : at + 3], "little")
            last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
            at += 3
            body = data[at : at + (1 if kind == 1 else length)]
            at += len(body)
            if kind == 3 or length > MAX_BLOCK or len(body) != (1 if kind == 1 else length):
                raise Damaged("a compressed part is broken")
            if kind == 2:
                _block(state, body)
            else:
                state.out += body * length if kind == 1 else body
            if len(state.out) > size:
                raise Damaged("a compressed part is longer than it says")
    except IndexError:
        raise Damaged("a compressed part is broken") from None
    if len(state.out) != size or at + 4 * checksum != len(data):
        raise Damaged("a compressed part has another length than it says")
    return bytes(state.out)


def _frame_header(data: bytes) -> tuple[int, bool]:
    """(where the first block begins, whether a checksum follows the last) (3.1.1.1)."""
    if int.from_bytes(data[:4], "little") != MAGIC:
        raise Damaged("no Zstandard frame")
    flags = data[4]
    single = flags >> 5 & 1
    if flags & 0x0B:
        raise Damaged("a Zstandard frame with a dictionary or reserved bits")
    return 5 + (1 - single) + (single, 2, 4, 8)[flags >> 6], bool(flags >> 2 & 1)


# --- entropy tables (4.1, 4.2) ---


def _read_table(data: bytes, at: int, most: int) -> tuple[Table, int]:
    """(FSE table, bytes used) of a table description (4.1.1). most: the highest accuracy."""
    bits, place = int.from_bytes(data[at : at + 512], "little"), 4
    accuracy = (bits & 15) + 5
    if accuracy > most:
        raise Damaged("a compressed part is broken")
    left, counts = (1 << accuracy) + 1, []
    while left > 1:
        width = left.bit_length()
        value = bits >> place & (1 << width) - 1
        low, threshold = value & (1 << width - 1) - 1, (1 << width) - 1 - left
        if low < threshold:
            place, value = place + width - 1, low
        else:
            place += width
            value -= threshold if value >= 1 << width - 1 else 0
        counts.append(value - 1)
        left -= abs(value - 1)
        while value == 1:
            repeat = bits >> place & 3
            place += 2
            counts += [0] * repeat
            if repeat < 3:
                break
        if len(counts) > 256:
            raise Damaged("a compressed part is broken")
    return _table(counts, accuracy), (place + 7) // 8


def _table(counts: list[int], accuracy: int) -> Table:
    size = 1 << accuracy
    symbols, high = [0] * size, size
    for symbol, count in enumerate(counts):
        if count == -1:
            high -= 1
            symbols[high] = symbol
    step, place = (size >> 1) + (size >> 3) + 3, 0
    for symbol, count in enumerate(counts):
        for _ in range(max(count, 0)):
            symbols[place] = symbol
            place = (place + step) % size
            while place >= high:
                place = (place + step) % size
    following = [1 if count == -1 else count for count in counts]
    table = []
    for symbol in symbols:
        state = following[symbol]
        following[symbol] += 1
        bits = accuracy - state.bit_length() + 1
        table.append((symbol, bits, (state << bits) - size))
    return table


def _read_huffman(data: bytes) -> tuple[tuple[int, list[tuple[int, int]]], int]:
    """((longest code, (symbol, bits) by the next bits), bytes used) of a Huffman tree description (4.2.1)."""
    head = data[0]
    if head >= 128:
        count, used = head - 127, 1 + (head - 126) // 2
        weights = [data[1 + place // 2] >> (0 if place & 1 else 4) & 15 for place in range(count)]
    else:
        used = 1 + head
        weights = _compressed_weights(data[1:used])
    total = sum(1 << weight >> 1 for weight in weights)
    longest = total.bit_length()
    rest = (1 << longest) - total
    if total == 0 or longest > 11 or rest & rest - 1:
        raise Damaged("a compressed part is broken")
    weights.append(rest.bit_length())
    table: list[tuple[int, int]] = []
    for weight in range(1, longest + 1):
        for symbol, each in enumerate(weights):
            if each == weight:
                table += [(symbol, longest + 1 - weight)] * (1 << weight - 1)
    if len(table) != 1 << longest:
        raise Damaged("a compressed part is broken")
    return (longest, table), used


def _compressed_weights(data: bytes) -> list[int]:
    table, used = _read_table(data, 0, 6)
    stream, accuracy = _Backward(data[used:]), len(table).bit_length() - 1
    states, weights = [stream.read(accuracy), stream.read(accuracy)], []
    turn = 0
    while len(weights) < 255:
        symbol, bits, base = table[states[turn]]
        weights.append(symbol)
        if stream.left < bits:
            weights.append(table[states[1 - turn]][0])
            return weights
        states[turn] = base + stream.read(bits)
        turn = 1 - turn
    raise Damaged("a compressed part is broken")


# --- blocks (3.1.1.2) ---


def _block(state: _State, data: bytes) -> None:
    literals, at = _literals(state, data)
    count, at = _sequence_count(data, at)
    if count == 0:
        state.out += literals
        return
    modes, at = data[at], at + 1
    kinds = ((6, 9, LITERAL_DEFAULT, 6), (4, 8, OFFSET_DEFAULT, 5), (2, 9, MATCH_DEFAULT, 6))
    for place, (shift, most, default, accuracy) in enumerate(kinds):
        mode = modes >> shift & 3
        if mode == 0:
            state.tables[place] = _table(default, accuracy)
        elif mode == 1:
            state.tables[place], at = [(data[at], 0, 0)], at + 1
        elif mode == 2:
            table, used = _read_table(data, at, most)
            state.tables[place], at = table, at + used
    _sequences(state, literals, _Backward(data[at:]), count)


def _literals(state: _State, data: bytes) -> tuple[bytes, int]:
    """(literals, where the sequences begin) (3.1.1.3.1)."""
    kind, form = data[0] & 3, data[0] >> 2 & 3
    if kind < 2:
        head, shift = ((1, 3), (2, 4), (1, 3), (3, 4))[form]
        size = int.from_bytes(data[:head], "little") >> shift
        if size > MAX_BLOCK:
            raise Damaged("a compressed part is broken")
        if kind == 1:
            return data[head : head + 1] * size, head + 1
        return data[head : head + size], head + size
    head, width = ((3, 10), (3, 10), (4, 14), (5, 18))[form]
    both = int.from_bytes(data[:head], "little") >> 4
    size, packed = both & (1 << width) - 1, both >> width
    body = data[head : head + packed]
    used = 0
    if kind == 2:
        state.huffman, used = _read_huffman(body)
    if state.huffman is None or size > MAX_BLOCK or len(body) != packed:
        raise Damaged("a compressed part is broken")
    body = body[used:]
    if form == 0:
        return _huffman(state.huffman, body, size), head + packed
    jumps = [int.from_bytes(body[at : at + 2], "little") for at in (0, 2, 4)]
    starts = [6, 6 + jumps[0], 6 + jumps[0] + jumps[1], 6 + sum(jumps), len(body)]
    share = (size + 3) // 4
    parts = [
        _huffman(state.huffman, body[starts[at] : starts[at + 1]], share if at < 3 else size - 3 * share)
        for at in range(4)
    ]
    return b"".join(parts), head + packed


def _huffman(table: tuple[int, list[tuple[int, int]]], data: bytes, size: int) -> bytes:
    longest, codes = table
    if not data or not data[-1]:
        raise Damaged("a compressed part is broken")
    # in pieces: a shift of one long number for each symbol would take time in its square
    out, left = bytearray(), 8 * len(data) - 9 + data[-1].bit_length()
    while len(out) < size:
        low = max(0, left // 8 - 64)
        window = int.from_bytes(data[low : left // 8 + 1], "little")
        floor = 8 * low + (longest if low else 0)
        while len(out) < size and left >= floor:
            shift = left - longest - 8 * low
            code = (window >> shift if shift >= 0 else window << -shift) & (1 << longest) - 1
            symbol, bits = codes[code]
            if bits > left:
                break
            out.append(symbol)
            left -= bits
        if low == 0:
            break
    if len(out) != size or left:
        raise Damaged("a compressed part is broken")
    return bytes(out)


def _sequence_count(data: bytes, at: int) -> tuple[int, int]:
    first = data[at]
    if first < 128:
        return first, at + 1
    if first < 255:
        return (first - 128 << 8) + data[at + 1], at + 2
    return data[at + 1] + (data[at + 2] << 8) + 0x7F00, at + 3


def _sequences(state: _State, literals: bytes, stream: _Backward, count: int) -> None:
    """Decode and carry out the sequences (3.1.1.3.2, 3.1.1.4)."""
    tables = [table for table in state.tables if table is not None]
    if len(tables) < 3:
        raise Damaged("a compressed part is broken")
    states = [stream.read(len(table).bit_length() - 1) for table in tables]
    taken, start = 0, len(state.out)
    for number in range(count):
        (literal, *_), (offset, *_), (match, *_) = (table[at] for table, at in zip(tables, states, strict=True))
        if literal > 35 or match > 52 or offset > 31:
            raise Damaged("a compressed part is broken")
        distance = (1 << offset) + stream.read(offset)
        base, bits = MATCH_LENGTHS[match]
        length = base + stream.read(bits)
        base, bits = LITERAL_LENGTHS[literal]
        run = base + stream.read(bits)
        if number + 1 < count:
            for place in (0, 2, 1):
                _, bits, base = tables[place][states[place]]
                states[place] = base + stream.read(bits)
        if taken + run > len(literals) or stream.left < 0:
            raise Damaged("a compressed part is broken")
        state.out += literals[taken : taken + run]
        taken += run
        _copy(state.out, _offset(state, distance, run), length)
        if len(state.out) - start > MAX_BLOCK:
            raise Damaged("a compressed part is broken")
    if stream.left:
        raise Damaged("a compressed part is broken")
    state.out += literals[taken:]


def _offset(state: _State, value: int, run: int) -> int:
    """The distance, by the last three where the value says so (3.1.1.5)."""
    recent = state.offsets
    if value > 3:
        state.offsets = [value - 3, recent[0], recent[1]]
        return value - 3
    place = value - 1 + (run == 0)
    distance = recent[place] if place < 3 else recent[0] - 1
    if place:
        state.offsets = [distance, recent[0], recent[2] if place == 1 else recent[1]]
    return distance


def _copy(out: bytearray, distance: int, length: int) -> None:
    if not 0 < distance <= len(out):
        raise Damaged("a compressed part is broken")
    start = len(out) - distance
    piece = out[start : start + length]
    out += (piece * (length // len(piece) + 1))[:length]
