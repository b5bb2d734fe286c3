"""Factors (A, B) of what a trainer stores otherwise: a Tucker decomposition, a matrix as a whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def tucker(core: torch.Tensor, b: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(A [rank, in, *kernel], B [out, rank]) of a Tucker decomposition, in float64.

    `core` is [rank of outputs, rank of inputs, *kernel], `b` [out, rank of outputs], `a` [rank of inputs, in]. The core
    folds into A (lycoris.functional.general.rebuild_tucker: "i j ..., i p, j r -> p r ..."). ValueError if they do not
    fit.
    """
    import torch

    if core.shape[:2] != (b.shape[1], a.shape[0]):
        raise ValueError("the core has other ranks")  # einsum would broadcast a rank of 1
    return torch.einsum("ij...,jr->ir...", core.double(), a.double()), b.double()


def whole(factor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(A, B) of a matrix or kernel [out, in, *kernel] that is stored whole: itself and an identity."""
    import torch

    out, width = int(factor.shape[0]), math.prod(factor.shape[1:])
    identity = torch.eye(min(out, width), dtype=factor.dtype)
    if out <= width:
        return factor, identity
    return identity.reshape(width, *factor.shape[1:]), factor.flatten(1)
