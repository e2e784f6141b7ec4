"""How the samples of a frame lie in their stored words (DICOM PS3.5 8.1.1)."""

from dataclasses import dataclass

from codec.errors import UnsupportedFrame

MAX_SIDE = 65535  # Rows and Columns are US elements (PS3.3 C.7.6.3)


@dataclass(frozen=True)
class PixelFormat:
    """Shape and bit layout of one frame.

    `bits_stored` bits of every word of `bits_allocated` bits hold the sample; its highest bit is bit `high_bit`.
    `samples` is 1 or 3 (pixel-interleaved). `signed`: the sample is in two's complement.
    Raises UnsupportedFrame when the numbers contradict each other.
    """

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool

    def __post_init__(self) -> None:
        if not (1 <= self.rows <= MAX_SIDE and 1 <= self.columns <= MAX_SIDE):
            raise UnsupportedFrame(f"frame of {self.rows} x {self.columns} is outside 1..{MAX_SIDE}")
        if self.samples not in (1, 3):
            raise UnsupportedFrame(f"{self.samples} samples per pixel; only 1 and 3 can be coded")
        if self.bits_allocated not in (8, 16):
            raise UnsupportedFrame(f"{self.bits_allocated} bits allocated; only 8 and 16 can be coded")
        if not 1 <= self.bits_stored <= self.bits_allocated:
            raise UnsupportedFrame(f"{self.bits_stored} bits stored in {self.bits_allocated} allocated")
        if not self.bits_stored - 1 <= self.high_bit < self.bits_allocated:
            raise UnsupportedFrame(f"high bit {self.high_bit} with {self.bits_stored} bits stored")

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns) or (rows, columns, 3)."""
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)

    @property
    def dtype(self) -> str:
        """NumPy name of the word type: 'uint8' or 'uint16'."""
        return "uint8" if self.bits_allocated == 8 else "uint16"

    @property
    def shift(self) -> int:
        """Number of unused bits below the sample."""
        return self.high_bit + 1 - self.bits_stored

    @property
    def mask(self) -> int:
        """The word's bits that hold the sample."""
        return ((1 << self.bits_stored) - 1) << self.shift
