"""The change of one module's weight, as an adapter states it, and its exact algebra.

Weights are matrices here: a convolution's kernel [out, in, *k] counts as [out, in * prod(k)], as `torch.nn.Unfold` sees
it. So A is [rank, in * prod(k)] and B is [out, rank] whatever the layer, and the change is `scale * B @ A`.

    LowRank      scale * B @ A                        LoRA, LoCon, and with a magnitude DoRA
    Hadamard     scale * (B1 @ A1) * (B2 @ A2)        LoHa: a LoRA of rank r1 * r2, by the row-wise Khatri-Rao product
    Kronecker    scale * kron(W1, W2)                 LoKr: a LoRA of rank r(W1) * r(W2)
    Full         scale * W                            a difference of whole weights: a LoRA of rank min(out, in * k)
    Rows         some rows of one of these            a layer that a checkpoint has fused with others
    Ungrouped, GroupedKernel                          LoRA and differences of grouped convolutions

A file a form; what all of them have is `Change`, in `base.py`. `delta.py` has what is done to one whatever its form,
`factors.py` how trainers' other parts become factors, `approximation.py` and `errors.py` what is not exact, and by how
much.
"""

from __future__ import annotations

from adapterline.deltas.approximation import approximate, smallest_error
from adapterline.deltas.delta import Delta, reshaped, take_rows
from adapterline.deltas.dtypes import DTYPES, NAMES, times
from adapterline.deltas.errors import exact_error, power_between, probed_error, relative_error
from adapterline.deltas.factors import tucker, whole
from adapterline.deltas.full import Full
from adapterline.deltas.groups import GroupedKernel, Ungrouped, grouped, spread
from adapterline.deltas.hadamard import Hadamard
from adapterline.deltas.kronecker import Kronecker
from adapterline.deltas.low_rank import LowRank
from adapterline.deltas.rows import Rows

__all__ = [
    "DTYPES",
    "NAMES",
    "Delta",
    "Full",
    "GroupedKernel",
    "Hadamard",
    "Kronecker",
    "LowRank",
    "Rows",
    "Ungrouped",
    "approximate",
    "exact_error",
    "grouped",
    "power_between",
    "probed_error",
    "relative_error",
    "reshaped",
    "smallest_error",
    "spread",
    "take_rows",
    "times",
    "tucker",
    "whole",
]
