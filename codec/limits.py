"""What a decoder is willing to allocate."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds checked before anything is allocated. `max_samples`: rows x columns x samples of one frame."""

    max_samples: int = 1 << 27


DEFAULT_LIMITS = Limits()
