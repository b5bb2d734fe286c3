"""RandLoRA: random matrices that all layers share, with trained weights; of full rank by construction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterline.checkpoints.form import Form, Layer, Tensors, first, untold
from adapterline.checkpoints.peft_types.base import PeftType, linear, shared_by_all
from adapterline.checkpoints.scales import Config, check_rank, check_settings, number
from adapterline.deltas import Delta, Full
from adapterline.errors import CheckpointError

if TYPE_CHECKING:
    from adapterline.checkpoints.dialects.base import ScaleRule

_HARMLESS = frozenset(
    {
        *("r", "randlora_alpha", "projection_prng_key", "save_projection", "sparse", "very_sparse"),
        *("randlora_dropout", "init_weights"),
    }
)


def _rule(config: Config, where: str) -> ScaleRule:
    check_settings(config, where, "a plain RandLoRA", _HARMLESS)
    stated, alpha = number(config, "r", where), number(config, "randlora_alpha", where)

    def rule(module: str, rank: int | None) -> float:
        if rank is not None:
            check_rank(module, rank, stated, where)
        return alpha / stated

    return rule


def _build(tensors: Tensors, layer: Layer) -> Delta:
    """The sum over bases n and ranks r of B[:, n, r] times lambda[r, n] * A[r, 0] * gamma[n], or its transpose.

    PEFT flattens B by (base, rank) and A by (rank, base) before it multiplies them
    (peft.tuners.randlora.layer.Linear.get_scaled_bases); so it is done here.
    """
    bases_a, bases_b = shared_by_all(tensors, "bases_A"), shared_by_all(tensors, "bases_B")
    if bases_a is None or bases_b is None:
        raise CheckpointError(
            "The checkpoint lacks randlora_A or randlora_B, the matrices that all its layers share.",
            expected="both: drawn again from their key, they would not be the same on every machine",
            remedy="Save it again with save_projection=True.",
        )
    out, width = linear(layer.shape)
    least, most = min(out, width), max(out, width)
    weights, gamma = tensors["weights"].double(), tensors["gamma"].double()
    rank, bases = map(int, weights.shape)
    a, b = bases_a[:, :bases, :least].double(), bases_b[:most, :bases].double()
    if gamma.shape != (bases, least) or a.shape != (rank, 1, least) or b.shape != (most, bases, rank):
        raise ValueError
    product = b.flatten(1) @ (weights[:, :, None] * a * gamma[None]).flatten(0, 1)
    return Full((product if least == width else product.T).float().contiguous(), layer.scale)


_SHARED = frozenset({"shared bases_A", "shared bases_B"})
RANDLORA = PeftType(
    name="RANDLORA",
    suffixes={
        "randlora_lambda": "weights",
        "randlora_gamma": "gamma",
        "randlora_A": "bases_A",
        "randlora_B": "bases_B",
    },
    shared={"randlora_A": "shared bases_A", "randlora_B": "shared bases_B"},
    rule=_rule,
    forms=(
        Form(
            name="randlora",
            needs=frozenset({"weights", "gamma"}),
            may=_SHARED | {"bases_A", "bases_B"},
            shared=_SHARED,
            rank=first("weights"),
            outputs=untold,
            build=_build,
            on_base=True,
        ),
    ),
)
