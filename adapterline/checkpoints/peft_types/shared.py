"""Types whose layers share matrices or vectors: VeRA, PVeRA, VB-LoRA and Uni-LoRA."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adapterline.checkpoints.form import Form, Layer, Tensors, first, untold
from adapterline.checkpoints.peft_types.base import PeftType, linear, low_rank, shared_by_all
from adapterline.checkpoints.scales import Config, check_settings, unit_of_rank, whole_number
from adapterline.deltas import Delta
from adapterline.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from adapterline.checkpoints.dialects.base import ScaleRule

# --- VeRA -------------------------------------------------------------------------------------------------------------

_VERA = frozenset({"r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial", "init_weights"})


def _vera_rule(config: Config, where: str) -> ScaleRule:
    check_settings(config, where, "a plain VeRA", _VERA)
    return unit_of_rank(config, where)


def _vera(tensors: Tensors, layer: Layer) -> Delta:
    """(lambda_b * B) @ (lambda_d * A), of the corners of A and B that the layer needs."""
    lambda_b, lambda_d = tensors["lambda_b"].double(), tensors["lambda_d"].double()
    out, width = linear(layer.shape)
    rank = int(lambda_d.shape[0])
    a, b = _projections(tensors, layer, rank)
    if lambda_b.shape != (out,) or a.shape[0] != rank or a.shape[1] < width or b.shape[0] < out or b.shape[1] != rank:
        raise ValueError
    a, b = a[:, :width].double(), b[:out].double()
    return low_rank(lambda_d[:, None] * a, lambda_b[:, None] * b, layer.scale)


def _projections(tensors: Tensors, layer: Layer, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(A [rank, most inputs], B [most outputs, rank]): saved, or drawn again from the key as VeraModel draws them."""
    import torch

    a, b = shared_by_all(tensors, "vera_A"), shared_by_all(tensors, "vera_B")
    if a is not None and b is not None:
        return a, b
    if layer.config.get("save_projection", True) or a is not None or b is not None:
        raise CheckpointError(
            "The checkpoint lacks vera_A or vera_B, the matrices that all its layers share.",
            expected="both, or an adapter_config.json that says save_projection=False",
            remedy="Save it again with save_projection=True.",
        )
    generator = torch.Generator().manual_seed(whole_number(layer.config, "projection_prng_key", layer.where))
    out, width = layer.largest
    return _kaiming_uniform((rank, width), generator), _kaiming_uniform((out, rank), generator)


def _kaiming_uniform(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """peft.tuners.vera.model._kaiming_init, within a rounding of float32, and the same on every machine.

    `Tensor.uniform_` takes 24 bits of each number of the generator; what it does with them in float32 depends on the
    processor's instructions, so the bits are taken here and the rest is done in float64.
    """
    import torch

    bound = float(torch.tensor(math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))))
    bits = torch.empty(shape, dtype=torch.int64).random_(0, 2**24, generator=generator)
    return (bits.double() * 2.0**-24 * (2 * bound) - bound).float()


VERA = PeftType(
    name="VERA",
    suffixes={"vera_lambda_b": "lambda_b", "vera_lambda_d": "lambda_d", "vera_A": "vera_A", "vera_B": "vera_B"},
    shared={"vera_A": "shared vera_A", "vera_B": "shared vera_B"},
    rule=_vera_rule,
    forms=(
        Form(
            name="vera",
            needs=frozenset({"lambda_b", "lambda_d"}),
            may=frozenset({"vera_A", "vera_B", "shared vera_A", "shared vera_B"}),
            shared=frozenset({"shared vera_A", "shared vera_B"}),
            rank=first("lambda_d"),
            outputs=first("lambda_b"),
            build=_vera,
            on_base=True,
        ),
    ),
)

# --- PVeRA ------------------------------------------------------------------------------------------------------------


def _pvera_rule(config: Config, where: str) -> ScaleRule:
    check_settings(config, where, "a plain PVeRA", (_VERA - {"vera_dropout"}) | {"pvera_dropout", "generator_seed"})
    return unit_of_rank(config, where)


def _pvera(tensors: Tensors, layer: Layer) -> Delta:
    """VeRA with a mean and a variance: without sampling at inference, the mean alone counts, the first half."""
    a, b = shared_by_all(tensors, "pvera_A"), shared_by_all(tensors, "pvera_B")
    if a is None or b is None:
        raise CheckpointError(
            "The checkpoint lacks pvera_A or pvera_B, the matrices that all its layers share.",
            expected="both",
            remedy="Save it again with save_projection=True.",
        )
    both = tensors["pvera_lambda_d"]
    rank = both.shape[0] // 2
    if a.shape[0] != both.shape[0]:
        raise ValueError
    mean = {"lambda_b": tensors["pvera_lambda_b"], "lambda_d": both[:rank], "vera_A": a[:rank], "vera_B": b}
    return _vera(mean, layer)


_PVERA_SHARED = frozenset({"shared pvera_A", "shared pvera_B"})
PVERA = PeftType(
    name="PVERA",
    suffixes={
        "pvera_lambda_b": "pvera_lambda_b",
        "pvera_lambda_d": "pvera_lambda_d",
        "pvera_A": "pvera_A",
        "pvera_B": "pvera_B",
    },
    shared={"pvera_A": "shared pvera_A", "pvera_B": "shared pvera_B"},
    rule=_pvera_rule,
    forms=(
        Form(
            name="pvera",
            needs=frozenset({"pvera_lambda_b", "pvera_lambda_d"}),
            may=_PVERA_SHARED | {"pvera_A", "pvera_B"},
            shared=_PVERA_SHARED,
            rank=lambda shapes: shapes["pvera_lambda_d"][0] // 2,
            outputs=first("pvera_lambda_b"),
            build=_pvera,
            on_base=True,
        ),
    ),
)

# --- VB-LoRA ----------------------------------------------------------------------------------------------------------

_VBLORA = frozenset(
    {
        *("r", "num_vectors", "vector_length", "topk", "save_only_topk_weights", "vblora_dropout"),
        *("init_vector_bank_bound", "init_logits_std"),
    }
)


def _vblora_rule(config: Config, where: str) -> ScaleRule:
    check_settings(config, where, "a plain VB-LoRA", _VBLORA)
    return unit_of_rank(config, where)


def _vblora(tensors: Tensors, layer: Layer) -> Delta:
    """Rows of A and columns of B are put together from the bank's vectors, each mixed of its `topk` best."""
    if "bank" not in tensors:
        raise CheckpointError(
            "The checkpoint lacks vblora_vector_bank, which all its layers share.",
            expected="the bank of vectors",
            remedy="The checkpoint is not whole; save it again.",
        )
    topk, bank = whole_number(layer.config, "topk", layer.where, least=1), tensors["bank"].double()
    a, b = (_mixed(tensors, side, topk, bank) for side in "AB")
    return low_rank(a.flatten(1), b.transpose(1, 2).flatten(0, 1), layer.scale)


def _mixed(tensors: Tensors, side: str, topk: int, bank: torch.Tensor) -> torch.Tensor:
    """[..., length of a vector], of the logits [..., vectors] or of the best as `save_only_topk_weights` has them."""
    import torch

    if f"logits_{side}" in tensors:
        if tensors[f"logits_{side}"].shape[-1] != bank.shape[0]:
            raise ValueError
        best, chosen = tensors[f"logits_{side}"].double().topk(topk, dim=-1)
        weights = best.softmax(dim=-1)
    else:
        chosen, weights = tensors[f"indices_{side}"].long(), tensors[f"weights_{side}"].double()
        weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], dim=-1)
    if weights.shape != chosen.shape or chosen.shape[-1] != topk or int(chosen.min()) < 0:
        raise ValueError
    return (weights.unsqueeze(-1) * bank[chosen]).sum(-2)


_BANK = frozenset({"bank"})
VBLORA = PeftType(
    name="VBLORA",
    suffixes={
        "vblora_logits_A": "logits_A",
        "vblora_logits_B": "logits_B",
        "vblora_logits_A_topk_indices": "indices_A",
        "vblora_logits_A_topk_weights": "weights_A",
        "vblora_logits_B_topk_indices": "indices_B",
        "vblora_logits_B_topk_weights": "weights_B",
    },
    shared={"vblora_vector_bank": "bank"},
    rule=_vblora_rule,
    forms=(
        Form(
            name="vblora",
            needs=frozenset({"logits_A", "logits_B"}),
            may=_BANK,
            shared=_BANK,
            rank=first("logits_A"),
            outputs=untold,
            build=_vblora,
        ),
        Form(
            name="vblora",
            needs=frozenset({"indices_A", "weights_A", "indices_B", "weights_B"}),
            may=_BANK,
            shared=_BANK,
            integers=frozenset({"indices_A", "indices_B"}),
            rank=first("indices_A"),
            outputs=untold,
            build=_vblora,
        ),
    ),
)

# --- Uni-LoRA ---------------------------------------------------------------------------------------------------------


def _unilora_rule(config: Config, where: str) -> ScaleRule:
    harmless = {"r", "proj_seed", "theta_d_length", "unilora_dropout", "init_theta_d_bound", "init_weights"}
    check_settings(config, where, "a plain Uni-LoRA", frozenset(harmless | {"save_indices"}))
    if not config.get("save_indices"):
        raise CheckpointError(
            f"{where} says save_indices=False: the file does not even say which layers were trained.",
            expected="the indices and scales of every layer",
            remedy="Save it again with save_indices=True.",
        )
    return unit_of_rank(config, where)


def _unilora(tensors: Tensors, layer: Layer) -> Delta:
    """Every element of A and B is one of a single vector of all layers, times its scale."""
    if "theta" not in tensors:
        raise CheckpointError(
            "The checkpoint lacks unilora_theta_d, which all its layers share.",
            expected="that vector",
            remedy="The checkpoint is not whole; save it again.",
        )
    theta = tensors["theta"].double()
    a, b = (_picked(theta, tensors[f"theta_indices_{side}"], tensors[f"theta_scales_{side}"]) for side in "AB")
    if a.shape[0] != b.shape[1]:
        raise ValueError
    return low_rank(a, b, layer.scale)


def _picked(theta: torch.Tensor, indices: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    if indices.shape != scales.shape or indices.dim() != 2 or int(indices.min()) < 0:
        raise ValueError
    return theta[indices.long()] * scales.double()


_INDICES = frozenset({"theta_indices_A", "theta_indices_B"})
UNILORA = PeftType(
    name="UNILORA",
    suffixes={
        "unilora_indices_A": "theta_indices_A",
        "unilora_indices_B": "theta_indices_B",
        "unilora_scales_A": "theta_scales_A",
        "unilora_scales_B": "theta_scales_B",
    },
    shared={"unilora_theta_d": "theta"},
    rule=_unilora_rule,
    forms=(
        Form(
            name="unilora",
            needs=_INDICES | {"theta_scales_A", "theta_scales_B"},
            may=frozenset({"theta"}),
            shared=frozenset({"theta"}),
            integers=_INDICES,
            rank=first("theta_indices_A"),
            outputs=first("theta_indices_B"),
            build=_unilora,
        ),
    ),
)
