"""Train the networks of the global path's VAE (torch, one core, minutes), with the rounding of weights in the loop.

    python -m codec.train.vae PLANES.npz OUT.bin [--steps N] [--seed N]

PLANES.npz holds arrays `plane_<i>` (planes of G, integers from 0), all of images that may be trained on. What is
trained is the bound itself: bits of a block of 32 x 32 samples given latents drawn from q, plus what q says beyond
the prior. Weights are rounded to int8 in every step, activations are not; codec/vae.py then computes in integers only.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.globalpath import code_global
from codec.lattice import FIRST_LATENT, INPUTS
from codec.rans import COUNT, IO_FIELDS, MODE
from codec.train.vae_data import LATENT_STRIDES, STRIDES, Blocks, Source, collect
from codec.vae import GRID, LARGEST_LATENT, LATENTS, LAYERS, PARTS, SHAPES, SHARES, network_of
from codec.weights import write_weights

UNIT = 64.0
BATCH = 40
WANTED = 10  # blocks of a plane
FLOOR_BITS = 16.0  # as codec.bitsback: this share of every law is uniform
REACH = LARGEST_LATENT / GRID
Arrays = dict[str, NDArray[np.int8] | NDArray[np.int32]]


class Networks(torch.nn.Module):
    """All networks, as real numbers that are rounded to int8 / 64 where they are used."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        for name, sizes in SHAPES.items():
            for layer in range(LAYERS):
                last = layer == LAYERS - 1
                matrix = torch.randn(sizes[layer + 1], sizes[layer]) * (0.1 if last else math.sqrt(1.0 / sizes[layer]))
                bias = torch.zeros(sizes[layer + 1])
                if last and name[-1] in "012":
                    bias = torch.tensor([2.0, 0.0, 0.0] + [-2.0] * 4 + [0.0, -0.3, 0.3] + [-2.5, -0.5, 0.5])
                self.register_parameter(f"{name}_m{layer}", torch.nn.Parameter(matrix))
                self.register_parameter(f"{name}_c{layer}", torch.nn.Parameter(bias))
        self.top = torch.nn.Parameter(torch.zeros(LATENTS))  # log2 of the scales of the upper latents' prior

    def forward(self, name: str, inputs: Tensor) -> Tensor:
        """Outputs of one network; inputs and hidden units in octaves (integer / 64)."""
        value = inputs
        for layer in range(LAYERS):
            matrix = getattr(self, f"{name}_m{layer}")
            rounded = torch.clamp(torch.round(matrix * UNIT), -127, 127) / UNIT
            value = torch.nn.functional.linear(
                value, matrix + (rounded - matrix).detach(), getattr(self, f"{name}_c{layer}")
            )
            if layer < LAYERS - 1:
                value = torch.clamp(value, 0, 1023 / UNIT)
        return value


def latent_law(out: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and scale of latents from a network's outputs [..., 2 LATENTS]."""
    centre = torch.clamp(out[..., :LATENTS], -REACH, REACH)
    return centre, torch.exp2(torch.clamp(out[..., LATENTS:], -1, 4))


def draw(centre: Tensor, scale: Tensor, chance: torch.Generator) -> Tensor:
    """A sample of logistic laws, differentiable in both."""
    uniform = torch.rand(centre.shape, generator=chance) * 0.9998 + 0.0001
    return torch.clamp(centre + scale * torch.logit(uniform), -REACH, REACH)


def log_density(value: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """log2 of a logistic density."""
    z = (value - centre) / scale
    nats = -z - 2 * torch.nn.functional.softplus(-z) - torch.log(scale)
    return nats / math.log(2)


def sample_bits(out: Tensor, law: Tensor, highest: Tensor) -> Tensor:
    """Code length of samples (levels) under the mixture; law [..., 7]: see Blocks; `highest` broadcasts."""
    target, guess, scale = law[..., 0:1], law[..., 1:2] / UNIT, law[..., 2:3] / UNIT
    share = torch.softmax(out[..., :SHARES] * math.log(2), -1)
    spikes = (share[..., PARTS:] * (law[..., 3:] == UNIT * target)).sum(-1)
    centre = guess + torch.clamp(out[..., SHARES : SHARES + PARTS], -8, 8) * scale
    centre = torch.minimum(torch.clamp(centre, min=0), highest[..., None])
    width = torch.clamp(torch.exp2(torch.clamp(out[..., SHARES + PARTS :], -12, 6)) * scale, 1 / 64, 1e4)
    low, high = (target - 0.5 - centre) / width, (target + 0.5 - centre) / width
    turn = torch.where(low + high > 0, -1.0, 1.0)  # the tail where differences of sigmoids keep their precision
    mass = (torch.sigmoid(turn * high) - torch.sigmoid(turn * low)) * turn
    whole = torch.sigmoid((highest[..., None] + 0.5 - centre) / width) - torch.sigmoid((-0.5 - centre) / width)
    floor = 2.0**-FLOOR_BITS / (highest + 1)
    logistics = share[..., :PARTS]
    inside = (logistics * whole).sum(-1) + share[..., PARTS:].sum(-1)
    chance = ((logistics * mass).sum(-1) + spikes) / torch.clamp(inside, min=1e-6)
    return -torch.log2(torch.clamp(chance, min=1e-9) * (1 - 2.0**-FLOOR_BITS) + floor)


def bound(net: Networks, blocks: Blocks, chosen: NDArray[np.int64], chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Bits of the samples and of the latents of each chosen block."""
    lower_c, lower_s = latent_law(net("infer", torch.from_numpy(blocks.patches[chosen]).float() / UNIT))
    lower = draw(lower_c, lower_s, chance)
    upper_c, upper_s = latent_law(net("inferup", lower.flatten(1)))
    upper = draw(upper_c, upper_s, chance)
    prior_c, prior_s = latent_law(net("prior", upper))
    prior = log_density(lower, prior_c[:, None], prior_s[:, None])
    latents = (log_density(lower, lower_c, lower_s) - prior).sum((1, 2))
    wide = torch.exp2(torch.clamp(net.top, -1, 4)).expand_as(upper)
    prior = log_density(upper, torch.zeros_like(upper), wide)
    latents = latents + (log_density(upper, upper_c, upper_s) - prior).sum(1)
    highest = torch.from_numpy(blocks.highest[chosen]).float()[:, None, None]
    total = torch.zeros(len(chosen))
    for stride in STRIDES:
        for kind in range(3):
            inputs = torch.from_numpy(blocks.inputs[stride, kind][chosen]).float() / UNIT
            if stride in LATENT_STRIDES:
                told = lower[:, :, None].expand(-1, -1, inputs.shape[2], -1)
                inputs = torch.cat((inputs[..., :FIRST_LATENT], told, inputs[..., FIRST_LATENT + LATENTS :]), -1)
            law = torch.from_numpy(blocks.law[stride, kind][chosen]).float()
            total = total + sample_bits(net(network_of(stride, kind), inputs), law, highest).sum((1, 2))
    return total, latents


def train(blocks: Blocks, steps: int, seed: int, say: Callable[[str], None] = print) -> Arrays:
    """The trained arrays by name; the same on every run of the same torch, seed and blocks, with one thread."""
    torch.set_num_threads(1)
    net, chance, order = Networks(seed), torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=4e-3)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps, pct_start=0.1)
    start, seen = time.monotonic(), np.zeros(3)
    for step in range(steps):
        chosen = order.choice(len(blocks.highest), BATCH)
        samples, latents = bound(net, blocks, chosen, chance)
        warm = min(1.0, 0.1 + step / (0.3 * steps))  # latents are cheap at first, or they are never used
        weight = torch.from_numpy(blocks.weight[chosen])
        loss = ((samples + warm * latents) * weight).sum() / weight.sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 200.0)
        optimiser.step()
        plan.step()
        seen += (float(samples.detach().mean()), float(latents.detach().mean()), 1)
        if (step + 1) % 200 == 0:
            rate = seen[:2] / seen[2] / 1024
            say(f"{step + 1} {time.monotonic() - start:.0f} s: {rate[0]:.4f} + {rate[1]:.4f} bits a sample")
            seen[:] = 0
    return arrays_of(net)


def arrays_of(net: Networks) -> Arrays:
    """Integer arrays as codec/vae.py reads them."""
    out: Arrays = {}
    for name in SHAPES:
        for layer in range(LAYERS):
            matrix = getattr(net, f"{name}_m{layer}").detach().numpy()
            bias = getattr(net, f"{name}_c{layer}").detach().numpy()
            out[f"{name}.m{layer}"] = np.clip(np.rint(matrix * UNIT), -127, 127).astype(np.int8)
            out[f"{name}.c{layer}"] = np.rint(bias * UNIT * UNIT).astype(np.int32)
    scale = np.clip(np.rint(8 * (np.log2(UNIT * GRID) + net.top.detach().numpy())), 48, 88)
    out["top.scale"] = scale.astype(np.int32)
    return out


def weigh(source: Source) -> float:
    """How much a plane's blocks count: a share of what they cost the causal coder, between bits and per cent."""
    io, cost, none = np.zeros(IO_FIELDS, np.int64), np.zeros(1, np.float64), np.zeros(0, np.uint32)
    io[MODE] = COUNT
    code_global(io, none, none, none, cost, source.plane, source.highest)
    return float(1 / math.sqrt(0.02 + float(cost[0]) / source.plane.size))


def gather(planes: list[NDArray[np.int32]], seed: int) -> Blocks:
    """Blocks of many planes of G, each weighed."""
    kept = []
    weights: list[float] = []
    for plane in planes:
        source = Source(plane, int(plane.max()))
        if source.highest == 0 or min(plane.shape) < 32:
            continue
        kept.append((source, WANTED))
        weights += [weigh(source)] * min(WANTED, (plane.shape[0] // 32) * (plane.shape[1] // 32))
    blocks = collect(kept, seed)
    blocks.weight = np.array(weights, np.float32)
    return blocks


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("planes", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with np.load(options.planes) as store:
        planes = [store[name].astype(np.int32) for name in sorted(store.files)]
    blocks = gather(planes, options.seed)
    print(f"{len(planes)} planes, {len(blocks.highest)} blocks, {INPUTS} inputs")
    arrays = train(blocks, options.steps, options.seed, partial(print, flush=True))
    facts = {"steps": options.steps, "seed": options.seed, "planes": len(planes), "blocks": len(blocks.highest)}
    options.out.write_bytes(write_weights("vae", (), arrays, facts))


if __name__ == "__main__":
    main()
