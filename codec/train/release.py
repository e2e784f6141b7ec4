"""From trained parameters to a weight file: whole numbers, and code centres by anatomical prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from codec.adapter import FRAME, VOLUME, Adapter, materialise
from codec.train.bank import Entry, bank_arrays, bank_facts
from codec.train.gradient import Floats, Sizes
from codec.train.trainer import Parameters, Sampled, rounded, rounded_codes
from codec.weights import parse, write_weights

#: inputs of the kernel: 62 own, 6 of adaptive contexts, 6 of the global part, 16 of the previous frame
OWN_INPUTS, FRAME_INPUTS, VOLUME_INPUTS = 62, 74, 90
#: networks for frames by profile; those for frames with a previous one take VOLUME_INPUTS
SIZES: Final[dict[str, Sizes]] = {
    "fast": Sizes(OWN_INPUTS, 24, 16, 3, 16),
    "default": Sizes(FRAME_INPUTS, 64, 48, 4, 24),
    "max": Sizes(FRAME_INPUTS, 96, 64, 5, 32),
}
#: profiles that a file may encode for: `max` has the default's weights until it has its own
SERVES: Final = {"fast": ("fast",), "default": ("default", "max"), "max": ("max",)}
LEAST_IMAGES: Final = 4  # of a prior that gets a centre of its own
CLUSTERS: Final = 8  # centres of no prior
ROUNDS: Final = 30
MOST_CENTRES: Final = 48

Key = tuple[str, str, str]


def centres(codes: Floats, images: Sequence[Sampled]) -> tuple[list[Key], NDArray[np.int8]]:
    """Mean codes (int8, 1/32) of images that share Modality, then body part, then model; and clusters of all codes.

    `codes` [images, codes] in real units. Keys: '' for what a centre says nothing about.
    """
    groups: dict[Key, list[int]] = {}
    for place, image in enumerate(images):
        parts = [*image.kind.split("|"), "", ""][:3]
        for depth in range(1, 4):
            if parts[depth - 1]:
                key = (parts[0], *(part if number < depth else "" for number, part in enumerate(parts[1:], 1)))
                groups.setdefault((key[0], key[1], key[2]), []).append(place)
    largest = sorted(groups, key=lambda key: (-len(groups[key]), key))
    keys = [key for key in largest if len(groups[key]) >= LEAST_IMAGES][: MOST_CENTRES - CLUSTERS]
    means = [codes[groups[key]].mean(0) for key in keys]
    found = clusters(codes)
    whole = rounded_codes(np.array([*means, *found], np.float32))
    return [*keys, *[("", "", "")] * len(found)], whole.astype(np.int8)


def clusters(codes: Floats) -> list[Floats]:
    """Centres of all codes by k-means, begun at the codes farthest from each other."""
    chosen = [codes[int(np.argmax((codes**2).sum(1)))]]
    while len(chosen) < min(CLUSTERS, len(codes)):
        near = np.min([((codes - one) ** 2).sum(1) for one in chosen], axis=0)
        chosen.append(codes[int(np.argmax(near))])
    middle = np.array(chosen)
    for _ in range(ROUNDS):
        owner = np.argmin(((codes[:, None] - middle[None]) ** 2).sum(2), axis=1)
        middle = np.array(
            [codes[owner == one].mean(0) if (owner == one).any() else middle[one] for one in range(len(middle))]
        )
    return list(middle)


def network_arrays(name: str, values: Parameters, found: NDArray[np.int8]) -> dict[str, NDArray[Any]]:
    """A network's arrays of a weight file. Raises ValueError when a number does not fit."""
    layers = rounded(values)
    kinds = {"w": np.int8, "b": np.int32, "g": np.uint8}
    arrays: dict[str, NDArray[Any]] = {}
    for part in ("w1", "b1", "g1", "w2", "b2", "g2", "w3", "b3"):
        whole = getattr(layers, part)
        arrays[f"{name}.{part}"] = whole.astype(kinds[part[0]])
        if (arrays[f"{name}.{part}"] != whole).any():
            raise ValueError(f"{part} of {name} does not fit its type")
    arrays[f"{name}.basis"] = layers.basis.astype(np.int8)
    arrays[f"{name}.centres"] = found
    return arrays


def weight_file(
    profile: str,
    networks: Mapping[str, tuple[Parameters, Sequence[Sampled]]],
    facts: Mapping[str, Any],
    banks: Mapping[str, Sequence[Entry]] | None = None,
) -> bytes:
    """A profile's weight file: networks 'frame' and 'volume' with their parameters and the images of their codes, and
    their banks. Raises CorruptBitstream when an entry makes a network that could overflow."""
    arrays: dict[str, NDArray[Any]] = {}
    keys: dict[str, list[Key]] = {}
    for name in (FRAME, VOLUME):
        if name in networks:
            values, images = networks[name]
            keys[name], found = centres(values["code"], images)
            arrays |= network_arrays(name, values, found) | bank_arrays(name, (banks or {}).get(name, ()))
    told = {**facts, "centres": keys, **bank_facts(banks or {})}
    made = write_weights(profile, SERVES[profile], arrays, told)
    weights = parse(made)
    for name, entries in (banks or {}).items():
        for place in range(len(entries)):
            materialise(
                weights, Adapter(name == VOLUME, None, np.zeros(0, np.int8), entry=place).pack(), name == VOLUME
            )
    return made
