"""What the tests of the deltas draw."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from adapterline.deltas import LowRank

SHAPES = [((4, 6), (5, 4)), ((4, 6, 3, 3), (5, 4, 1, 1)), ((2, 3, 3), (7, 2, 1))]
KERNELS = st.sampled_from([(), (3,), (3, 3), (1, 2, 2)])
SIZES = st.integers(1, 5)
SEEDS = st.integers(0, 10**6)


def delta(seed: int = 0, scale: float = 1.5, shapes: tuple[tuple[int, ...], tuple[int, ...]] = SHAPES[0]) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(torch.randn(shapes[0], generator=generator), torch.randn(shapes[1], generator=generator), scale)


def normal(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """float32, as trainers store it."""
    return torch.randn(shape, generator=generator)


def from_seed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
