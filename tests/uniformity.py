"""A battery of tests for uniform bits, after NIST SP 800-22 rev. 1a, and what passing it means.

Each test gives a p-value; under uniformity every p is itself uniform on 0..1. Of k tests on uniform bits, k/100 are
expected below .01, so single p-values above .01 cannot be demanded of many tests: `verdict` controls the chance that
uniform bits are called otherwise at .01 over the whole family, by Holm's step-down procedure (S. Holm, 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc, gammaincc

Bits = NDArray[np.uint8]
ALPHA = 0.01
PATTERN = 5  # bits of a serial or entropy pattern
LEAST_BITS = 4096


def bits_of(data: bytes) -> Bits:
    """Bytes as bits, highest first."""
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8))


def monobit(bits: Bits) -> float:
    """2.1: as many ones as zeros."""
    excess = abs(2 * int(bits.sum()) - bits.size)
    return float(erfc(excess / np.sqrt(2.0 * bits.size)))


def runs(bits: Bits) -> float:
    """2.3: as many changes between neighbours as chance gives. 0 where the monobit test has failed already."""
    share = float(bits.mean())
    if abs(share - 0.5) >= 2 / np.sqrt(bits.size):
        return 0.0
    changes = 1 + int(np.count_nonzero(bits[1:] != bits[:-1]))
    spread = 2 * np.sqrt(2.0 * bits.size) * share * (1 - share)
    return float(erfc(abs(changes - 2 * bits.size * share * (1 - share)) / spread))


def bytes_chi2(bits: Bits) -> float:
    """Pearson's chi-squared over the 256 values of bytes: 255 degrees of freedom."""
    values = np.packbits(bits[: bits.size // 8 * 8])
    expected = values.size / 256
    statistic = float(((np.bincount(values, minlength=256) - expected) ** 2).sum() / expected)
    return float(gammaincc(255 / 2, statistic / 2))


def serial(bits: Bits) -> float:
    """2.11: overlapping patterns of PATTERN bits (the first of its two p-values)."""
    return float(gammaincc(2 ** (PATTERN - 2), (_psi(bits, PATTERN) - _psi(bits, PATTERN - 1)) / 2))


def approximate_entropy(bits: Bits) -> float:
    """2.12: how well PATTERN bits foretell the next."""
    rate = np.log(2) - (_phi(bits, PATTERN) - _phi(bits, PATTERN + 1))
    return float(gammaincc(2 ** (PATTERN - 1), bits.size * rate))


TESTS: Mapping[str, Callable[[Bits], float]] = {
    "monobit": monobit,
    "runs": runs,
    "chi2": bytes_chi2,
    "serial": serial,
    "approximate entropy": approximate_entropy,
}


@dataclass(frozen=True)
class Verdict:
    """rejected: the tests that Holm's procedure rejects at ALPHA over the family. lowest: the smallest p of `tests`."""

    tests: int
    rejected: tuple[str, ...]
    lowest: float
    below: int

    def __str__(self) -> str:
        limit = ALPHA / self.tests
        return (
            f"{self.tests} tests, {self.below} with p <= {ALPHA} ({self.tests * ALPHA:.2f} expected of uniform bits), "
            f"smallest p {self.lowest:.4f} (rejected below {limit:.5f}): "
            + (f"NOT uniform: {', '.join(self.rejected)}" if self.rejected else "uniform")
        )


def battery(streams: Mapping[str, bytes]) -> dict[str, float]:
    """p-value of every test on every named stream. Raises ValueError for a stream that is too short to say anything."""
    found = {}
    for name, data in streams.items():
        bits = bits_of(data)
        if bits.size < LEAST_BITS:
            raise ValueError(f"{name}: {bits.size} bits, at least {LEAST_BITS}")
        found.update({f"{name}: {test}": run(bits) for test, run in TESTS.items()})
    return found


def verdict(p_values: Mapping[str, float]) -> Verdict:
    """Holm's procedure over the whole family."""
    ordered = sorted(p_values.items(), key=lambda item: item[1])
    rejected: list[str] = []
    for place, (name, p) in enumerate(ordered):
        if p >= ALPHA / (len(ordered) - place):
            break
        rejected.append(name)
    below = sum(p <= ALPHA for p in p_values.values())
    return Verdict(len(ordered), tuple(rejected), ordered[0][1], below)


def _counts(bits: Bits, length: int) -> NDArray[np.int64]:
    """How often each pattern of `length` bits stands in `bits`, the end joined to the start."""
    wide = bits.astype(np.int64)
    joined = np.concatenate([wide, wide[: length - 1]]) if length > 1 else wide
    value = np.zeros(bits.size, dtype=np.int64)
    for shift in range(length):
        value = value * 2 + joined[shift : shift + bits.size]
    return np.bincount(value, minlength=1 << length)


def _psi(bits: Bits, length: int) -> float:
    counts = _counts(bits, length).astype(np.float64)
    return float((counts**2).sum() * (1 << length) / bits.size - bits.size)


def _phi(bits: Bits, length: int) -> float:
    shares = _counts(bits, length) / bits.size
    shares = shares[shares > 0]
    return float((shares * np.log(shares)).sum())
