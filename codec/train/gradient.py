"""The law's network and mixture in float32, with gradients: whole numbers as the kernels have them, exactly.

Arrays of whole numbers in float32 are exact below 2^24, whatever order BLAS adds in; so the forward pass is the coded
law, and its rounding is passed straight through in the backward pass. Training and fitting share it. What a function
does is the same for both libraries that `lib` may be: NumPy (module numpy, fitting and training on the processor) and
torch (module torch, its tensors standing for arrays: codec.train.device); only names that both have are used.

Samples come in G groups of S that share an adapter code (one image each): inputs float32 [G, S, I].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]  # float32 all along

LIMIT: Final = 1023.0  # of inputs and hidden values
WEIGHT_UNIT: Final = 64.0
SUM_UNIT: Final = 4096.0  # of sums: weights times inputs
GAIN_UNIT: Final = 64.0
CODE_UNIT: Final = 32.0
GAIN_SHIFT: Final = 1 / 64  # code times basis to gains
BIAS_SCALE: Final = 2.0  # code times basis to biases
HIGHEST_GAIN: Final = 255.0
OFFSET_LIMIT: Final = 1023.0
HIGHEST_SCALE: Final = 399.0
SCALE_BIAS: Final = -8.0
ONE_SYMBOL: Final = 2.0**-25  # what the law adds to every symbol, against the heaviest component's mass
LN2: Final = float(np.log(2.0))


class Sizes(NamedTuple):
    """Inputs, hidden units of both layers, mixture components, numbers of an adapter code."""

    inputs: int
    first: int
    second: int
    components: int
    codes: int

    @property
    def outputs(self) -> int:
        """Of the last layer: weights, offsets and widths of the components."""
        return 3 * self.components

    @property
    def modulated(self) -> int:
        """Columns of the adapter basis: gains and biases of both hidden layers, biases of the outputs."""
        return 2 * (self.first + self.second) + self.outputs


@dataclass(frozen=True)
class Layers:
    """Whole numbers as float32: weights [out, in] (1/64), biases (1/4096), gains (1/64), basis [codes, modulated].

    The last layer's inputs are the hidden values of the first layer, then those of the second. In a pass over groups w3
    may be [G, out, in], a last layer for each group; its gradient is still that of what they have in common.
    """

    w1: Floats
    b1: Floats
    g1: Floats
    w2: Floats
    b2: Floats
    g2: Floats
    w3: Floats
    b3: Floats
    basis: Floats


@dataclass(frozen=True)
class Facts:
    """What the law of N samples starts from, float32[N], in 1/64 level: the sample, the blended mean, the local scale,
    the edges of the interval that G leaves (below its first level, above its last) and the plane's highest level."""

    sample: Floats
    mean: Floats
    scale: Floats
    low: Floats
    high: Floats
    top: Floats

    def take(self, places: NDArray[Any]) -> Facts:
        """Those of some samples."""
        return Facts(*(part[places] for part in (self.sample, self.mean, self.scale, self.low, self.high, self.top)))


def facts_of(table: NDArray[np.int32]) -> Facts:
    """From int32[N, 6]: level, mean, s0, lowest and highest level of G's interval, highest level of the plane."""
    level, mean, scale, low, high, top = (table[:, column].astype(np.float32) for column in range(6))
    return Facts(level * 64, mean, scale, low * 64 - 32, high * 64 + 32, top * 64)


@dataclass
class Pass:
    """What the backward pass needs of a forward pass, and its outputs [G, S, O]."""

    x: Floats
    gains1: Floats
    gains2: Floats
    sums1: Floats
    sums2: Floats
    hidden: Floats  # of both layers
    inside1: NDArray[np.bool_]
    inside2: NDArray[np.bool_]
    gain_inside: NDArray[np.bool_]
    outputs: Floats


def parted(array: Floats, sizes: Sizes) -> list[Floats]:
    """Views of [G, modulated] columns: gains and biases of the first hidden layer, of the second, biases of the
    outputs."""
    widths = (sizes.first, sizes.first, sizes.second, sizes.second, sizes.outputs)
    ends = [sum(widths[: place + 1]) for place in range(5)]
    return [array[:, end - width : end] for width, end in zip(widths, ends, strict=True)]


def modulation(layers: Layers, codes: Floats, sizes: Sizes, lib: Any = np) -> tuple[list[Floats], NDArray[np.bool_]]:
    """Gains and biases [G, units] of every group under its code [G, codes] (1/32); which gains lie inside 0..255."""
    gains1, biases1, gains2, biases2, biases3 = parted(codes @ layers.basis, sizes)
    raw1, raw2 = layers.g1 + lib.floor(gains1 * GAIN_SHIFT), layers.g2 + lib.floor(gains2 * GAIN_SHIFT)
    inside = lib.concatenate([(raw1 >= 0) & (raw1 <= HIGHEST_GAIN), (raw2 >= 0) & (raw2 <= HIGHEST_GAIN)], axis=1)
    parts = [
        lib.clip(raw1, 0, HIGHEST_GAIN), layers.b1 + biases1 * BIAS_SCALE,
        lib.clip(raw2, 0, HIGHEST_GAIN), layers.b2 + biases2 * BIAS_SCALE,
        layers.b3 + biases3 * BIAS_SCALE,
    ]  # fmt: skip
    return parts, inside


def squash(sums: Floats, gains: Floats, lib: Any = np) -> tuple[Floats, NDArray[np.bool_]]:
    """Hidden values clamp(((sum >> 3) * gain) >> 9, 0, 1023), and where neither bound was met."""
    hidden = sums * 0.125
    lib.floor(hidden, out=hidden)
    hidden *= gains[:, None, :] * (1 / 512)
    lib.floor(hidden, out=hidden)
    inside = (hidden > 0) & (hidden < LIMIT)
    lib.clip(hidden, 0, LIMIT, out=hidden)
    return hidden, inside


def forward(layers: Layers, x: Floats, codes: Floats, sizes: Sizes, lib: Any = np) -> Pass:
    """Outputs (1/4096) of the network for inputs [G, S, I] under codes [G, codes]."""
    (gains1, biases1, gains2, biases2, biases3), inside = modulation(layers, codes, sizes, lib)
    sums1 = x @ layers.w1.T
    sums1 += biases1[:, None, :]
    hidden1, inside1 = squash(sums1, gains1, lib)
    sums2 = hidden1 @ layers.w2.T
    sums2 += biases2[:, None, :]
    hidden2, inside2 = squash(sums2, gains2, lib)
    hidden = lib.concatenate([hidden1, hidden2], axis=2)
    outputs = hidden @ lib.swapaxes(layers.w3, -1, -2)
    outputs += biases3[:, None, :]
    return Pass(x, gains1, gains2, sums1, sums2, hidden, inside1, inside2, inside, outputs)


def backward_modulation(
    layers: Layers, done: Pass, slope: Floats, lib: Any = np
) -> tuple[Floats, tuple[Floats, Floats]]:
    """Gradients by gains and biases [G, modulated] and by the sums of both hidden layers [G, S, units].

    `slope`: gradient by the outputs [G, S, O]. All in the integers' units.
    """
    first = layers.w1.shape[0]
    into2 = (slope @ layers.w3[..., first:]) * done.inside2
    gain2 = lib.einsum("gsh,gsh->gh", into2, done.sums2) * (1 / SUM_UNIT)
    into2 *= done.gains2[:, None, :] * (1 / SUM_UNIT)
    into1 = (into2 @ layers.w2 + slope @ layers.w3[..., :first]) * done.inside1
    gain1 = lib.einsum("gsh,gsh->gh", into1, done.sums1) * (1 / SUM_UNIT)
    into1 *= done.gains1[:, None, :] * (1 / SUM_UNIT)
    inside1, inside2 = done.gain_inside[:, :first], done.gain_inside[:, first:]
    parts = [gain1 * inside1, into1.sum(1), gain2 * inside2, into2.sum(1), slope.sum(1)]
    return lib.concatenate(parts, axis=1), (into1, into2)


def by_basis(modulated: Floats, sizes: Sizes) -> Floats:
    """The gradient by code times basis [G, modulated] from that by gains and biases, in place."""
    factors = (GAIN_SHIFT, BIAS_SCALE, GAIN_SHIFT, BIAS_SCALE, BIAS_SCALE)
    for part, factor in zip(parted(modulated, sizes), factors, strict=True):
        part *= factor
    return modulated


def flat(array: Floats) -> Floats:
    """Groups and samples as one axis."""
    return array.reshape(-1, array.shape[-1])


def backward(
    layers: Layers, done: Pass, codes: Floats, slope: Floats, sizes: Sizes, lib: Any = np
) -> tuple[dict[str, Floats], Floats]:
    """Gradients by every array of `layers`, and by the codes [G, codes], in the integers' units."""
    modulated, (into1, into2) = backward_modulation(layers, done, slope, lib)
    h1 = sizes.first
    gain1, bias1, gain2, bias2, bias3 = parted(modulated, sizes)
    gradient = {
        "w1": flat(into1).T @ flat(done.x), "b1": bias1.sum(0), "g1": gain1.sum(0),
        "w2": flat(into2).T @ flat(done.hidden[..., :h1]), "b2": bias2.sum(0), "g2": gain2.sum(0),
        "w3": flat(slope).T @ flat(done.hidden), "b3": bias3.sum(0),
    }  # fmt: skip
    mixed = by_basis(modulated, sizes)
    gradient["basis"] = codes.T @ mixed
    return gradient, mixed @ layers.basis.T


# --- the mixture ---


def power(octaves: Floats, lib: Any = np) -> tuple[Floats, Floats]:
    """The law's 2^-d for d >= 0, linear between whole octaves and 0 beyond 16; and minus its slope."""
    whole = lib.floor(octaves)
    steep = lib.where(whole > 16, 0.0, lib.exp2(-1 - whole))
    return steep * (2 - (octaves - whole)), steep


def rise(upper: Floats, lower: Floats, lib: Any = np) -> tuple[Floats, Floats, Floats]:
    """sigmoid(upper) - sigmoid(lower) without cancellation, and both slopes."""
    high, low = lib.exp(-lib.abs(upper)), lib.exp(-lib.abs(lower))
    upper_side, lower_side = 1 / (1 + high), 1 / (1 + low)  # sigmoid of |z|
    s_upper = lib.where(upper >= 0, upper_side, high * upper_side)
    s_rest = lib.where(lower >= 0, low * lower_side, lower_side)  # sigmoid(-lower)
    mass = -lib.expm1(lib.clip(lower - upper, None, 0)) * s_upper * s_rest
    return mass, high * upper_side * upper_side, low * lower_side * lower_side


def mixture_bits(outputs: Floats, facts: Facts, lib: Any = np) -> tuple[Floats, Floats]:
    """Code lengths float32[N] in bits, without raw planes, and their gradients by the outputs [N, 3 K] (1/4096)."""
    k = outputs.shape[1] // 3
    u, offset, width = outputs[:, :k], outputs[:, k : 2 * k], outputs[:, 2 * k :]
    behind = lib.floor((lib.amax(u, axis=1, keepdims=True) - u) * (1 / 16)) * (1 / 256)
    weight, steep = power(behind, lib)
    weight += 2.0**-16
    shift = lib.floor(offset * (1 / 32))
    clear = lib.abs(shift) < OFFSET_LIMIT
    lib.clip(shift, -OFFSET_LIMIT, OFFSET_LIMIT, out=shift)
    scale = lib.clip(facts.scale, None, 1 << 20)[:, None]
    centre = facts.mean[:, None] + shift * scale * (1 / 128)
    clear &= (centre > 0) & (centre < facts.top[:, None])
    centre = lib.minimum(lib.clip(centre, 0, None), facts.top[:, None])
    q = lib.floor(lib.log2(facts.scale) * 16)[:, None] + lib.floor(width * (1 / 256)) + SCALE_BIAS
    wide = (q > 0) & (q < HIGHEST_SCALE)
    inverse = lib.exp2(lib.clip(q, 0, HIGHEST_SCALE) * (-1 / 16))
    edges = (facts.sample + 32, facts.sample - 32, facts.high, facts.low)
    z = [lib.clip((edge[:, None] - centre) * inverse, -24, 24) for edge in edges]
    own, own_upper, own_lower = rise(z[0], z[1], lib)
    whole, whole_upper, whole_lower = rise(z[2], z[3], lib)
    symbols = (facts.high - facts.low) * (1 / 64)
    inner = ((weight * own).sum(1) + ONE_SYMBOL)[:, None]
    outer = ((weight * whole).sum(1) + symbols * ONE_SYMBOL)[:, None]
    # d bits = (d outer / outer - d inner / inner) / ln 2
    outer_part, inner_part = 1 / (outer * LN2), 1 / (inner * LN2)
    by_weight = whole * outer_part - own * inner_part
    by_centre = weight * inverse * (inner_part * (own_upper - own_lower) - outer_part * (whole_upper - whole_lower))
    by_width = (
        weight
        * LN2
        * (inner_part * (z[0] * own_upper - z[1] * own_lower) - outer_part * (z[2] * whole_upper - z[3] * whole_lower))
    )
    by_rank = by_weight * steep  # the heaviest component weighs 1: it only moves the others
    heaviest, others = u.argmax(1), by_rank.sum(1)
    for component in range(k):
        by_rank[:, component] -= others * (heaviest == component)
    unit = 1 / SUM_UNIT
    slope = lib.concatenate([by_rank * unit, by_centre * clear * scale * unit, by_width * wide * unit], axis=1)
    return lib.log2(outer / inner)[:, 0], slope
