"""LoRA, with rsLoRA and DoRA, AdaLoRA and DeLoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapterline.checkpoints.form import Form, Layer, Tensors, first
from adapterline.checkpoints.peft_types.base import PeftType, low_rank
from adapterline.checkpoints.scales import (
    Config,
    brief,
    check_rank,
    check_settings,
    from_peft_config,
    unit_of_rank,
    whole_number,
)
from adapterline.deltas import Delta
from adapterline.errors import CheckpointError

if TYPE_CHECKING:
    from adapterline.checkpoints.dialects.base import ScaleRule

LORA = PeftType(
    name="LORA",
    suffixes={
        "lora_A.weight": "a",
        "lora_B.weight": "b",
        "lora_B.bias": "bias",
        "lora_magnitude_vector": "magnitude",
        "lora_magnitude_vector.weight": "magnitude",
    },
    rule=from_peft_config,
)

#: AdaLoraConfig is a LoraConfig, of which AdaLoRA ignores r, alpha_pattern and use_rslora.
_HARMLESS = frozenset(
    {
        *("init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
        *("r", "lora_alpha", "rank_pattern", "init_lora_weights", "lora_dropout", "runtime_config", "megatron_core"),
        "qalora_group_size",
    }
)


def _rule(config: Config, where: str) -> ScaleRule:
    """lora_alpha / (init_r + 1e-5) for every layer: pruning leaves `ranknum` as it was, and so does loading
    (peft.tuners.adalora.model.AdaLoraModel.resize_modules_by_rank_pattern)."""
    check_settings(config, where, "a plain AdaLoRA", _HARMLESS)
    initial = whole_number(config, "init_r", where, least=1)
    alpha = whole_number(config, "lora_alpha", where)
    kept = _kept(config, where)

    def rule(module: str, rank: int | None) -> float:
        if rank is not None:
            check_rank(module, rank, kept.get(module, initial), where)
        return (alpha or initial) / (initial + 1e-5)

    return rule


def _kept(config: Config, where: str) -> dict[str, int]:
    """How many ranks of a layer were not pruned away, by module: rank_pattern has a list of booleans for each."""
    pattern: Any = config.get("rank_pattern") or {}
    lists = pattern.values() if isinstance(pattern, dict) else [None]
    if not all(isinstance(each, list) and all(isinstance(flag, bool) for flag in each) for each in lists):
        raise CheckpointError(f"{where} has a rank_pattern that is not one of AdaLoRA: {brief(pattern)}.")
    return {name.removesuffix(".lora_E"): sum(flags) for name, flags in pattern.items()}


def _build(tensors: Tensors, layer: Layer) -> Delta:
    """B @ (A * E): E scales the rows of A."""
    a, b, e = tensors["svd_A"], tensors["svd_B"], tensors["svd_E"]
    if a.dim() != 2 or b.dim() != 2 or tuple(e.shape) != (a.shape[0], 1) or b.shape[1] != a.shape[0]:
        raise ValueError
    if a.shape[0] == 0:  # all of it was pruned away
        return low_rank(a.new_zeros(1, a.shape[1]), b.new_zeros(b.shape[0], 1), layer.scale)
    return low_rank(a.double() * e.double(), b, layer.scale)


#: Parts of their own: what lacks its E is no LoRA.
_SVD = {"lora_A": "svd_A", "lora_B": "svd_B", "lora_E": "svd_E"}
ADALORA = PeftType(
    name="ADALORA",
    suffixes=_SVD,
    rule=_rule,
    forms=(Form("adalora", frozenset(_SVD.values()), first("svd_A"), first("svd_B"), _build, prunable=True),),
)

# --- DeLoRA -----------------------------------------------------------------------------------------------------------


def _delora_rule(config: Config, where: str) -> ScaleRule:
    harmless = {"r", "delora_lambda", "rank_pattern", "lambda_pattern", "module_dropout", "init_weights"}
    check_settings(config, where, "a plain DeLoRA", frozenset(harmless))
    return unit_of_rank(config, where)


def _delora(tensors: Tensors, layer: Layer) -> Delta:
    """B @ diag(lambda / r / (|A_i| |B_i|)) @ A, times the norms of the base weight's columns, which lie in the file."""
    a, b = tensors["delora_A"].double(), tensors["delora_B"].double()
    strength, norms = tensors["delora_lambda"].double(), tensors["delora_norms"].double()
    if a.dim() != 2 or a.shape[0] != b.shape[1] or strength.numel() != 1 or norms.shape != (a.shape[1],):
        raise ValueError
    sizes = a.norm(dim=1).clamp(min=1e-4) * b.norm(dim=0).clamp(min=1e-4)
    return low_rank(a * norms, b * (strength / a.shape[0] / sizes), layer.scale)


_DELORA_SUFFIXES = {
    "delora_A": "delora_A",
    "delora_B": "delora_B",
    "delora_lambda": "delora_lambda",
    "delora_w_norm": "delora_norms",
}
DELORA = PeftType(
    name="DELORA",
    suffixes=_DELORA_SUFFIXES,
    rule=_delora_rule,
    forms=(Form("delora", frozenset(_DELORA_SUFFIXES.values()), first("delora_A"), first("delora_B"), _delora),),
)
