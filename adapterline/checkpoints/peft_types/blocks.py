"""Types whose factors are put together from blocks: GraLoRA, MiSS and C3A."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterline.checkpoints.form import Form, Layer, Shapes, Tensors, first, untold
from adapterline.checkpoints.peft_types.base import PeftType, linear, low_rank
from adapterline.checkpoints.scales import Config, brief, check_rank, check_settings, number, unit_of_rank, whole_number
from adapterline.deltas import Delta, Full
from adapterline.errors import CheckpointError, ConversionError

if TYPE_CHECKING:
    from adapterline.checkpoints.dialects.base import ScaleRule

# --- GraLoRA ----------------------------------------------------------------------------------------------------------


def _gralora_rule(config: Config, where: str) -> ScaleRule:
    """alpha / (r + hybrid_r)."""
    harmless = {"r", "hybrid_r", "alpha", "gralora_dropout", "gralora_k", "init_weights"}
    check_settings(config, where, "a plain GraLoRA", frozenset(harmless))
    stated = whole_number(config, "r", where, least=1) + whole_number(config, "hybrid_r", where)
    alpha = number(config, "alpha", where)

    def rule(module: str, rank: int | None) -> float:
        if rank is not None:
            check_rank(module, rank, stated, where)
        return alpha / stated

    return rule


def _gralora(tensors: Tensors, layer: Layer) -> Delta:
    """k x k blocks, each of r / k ranks: outputs (j, o) see inputs (n, i) by B[j, (n, s), o] and A[n, i, (j, s)]."""
    import torch

    a, b = tensors["blocks_A"], tensors["blocks_B"]  # [k, in / k, r] and [k, r, out / k]
    k, width, r = map(int, a.shape)
    if tuple(b.shape[:2]) != (k, r) or r % k or whole_number(layer.config, "gralora_k", layer.where, least=1) != k:
        raise ValueError
    out, s = int(b.shape[2]), r // k
    rows, columns = a.new_zeros(k, k, s, k, width), b.new_zeros(k, out, k, k, s)
    for n in range(k):
        rows[:, n, :, n] = a[n].reshape(width, k, s).permute(1, 2, 0)
    for j in range(k):
        columns[j, :, j] = b[j].reshape(k, s, out).permute(2, 0, 1)
    whole_a, whole_b = rows.reshape(k * r, k * width), columns.reshape(k * out, k * r)
    if "hybrid_A" in tensors:
        whole_a = torch.cat([whole_a, tensors["hybrid_A"]])
        whole_b = torch.cat([whole_b, tensors["hybrid_B"]], dim=1)
    return low_rank(whole_a, whole_b, layer.scale)


def _gralora_rank(shapes: Shapes) -> int:
    return shapes["blocks_A"][2] + (shapes["hybrid_A"][0] if "hybrid_A" in shapes else 0)


_GRALORA_PARTS = frozenset({"blocks_A", "blocks_B"})
GRALORA = PeftType(
    name="GRALORA",
    suffixes={
        "gralora_A": "blocks_A",
        "gralora_B": "blocks_B",
        "gralora_A_general.weight": "hybrid_A",
        "gralora_B_general.weight": "hybrid_B",
    },
    rule=_gralora_rule,
    forms=tuple(
        Form("gralora", _GRALORA_PARTS | hybrid, _gralora_rank, untold, _gralora)
        for hybrid in (frozenset[str](), frozenset({"hybrid_A", "hybrid_B"}))
    ),
)

# --- MiSS -------------------------------------------------------------------------------------------------------------


def _miss_rule(config: Config, where: str) -> ScaleRule:
    if config.get("init_weights", True) == "bat":
        raise ConversionError(
            f"{where} says init_weights='bat': MiSS then multiplies the base weights.",
            expected="an adapter that adds to the weights of its layers",
            remedy="Train it with init_weights=True or 'mini', or merge it into the base.",
        )
    if config.get("init_weights", True) not in (True, False, "mini"):
        raise CheckpointError(f"{where} says init_weights={brief(config['init_weights'])}.", expected="True or 'mini'")
    check_settings(config, where, "a plain MiSS", frozenset({"r", "miss_dropout", "mini_r", "init_weights"}))
    return unit_of_rank(config, where)


def _miss(tensors: Tensors, layer: Layer) -> Delta:
    """Input c is seen by row c % r of the block [r, out], which "mini" stores once for several parts of the outputs."""
    import torch

    block = tensors["block"]
    out, width = linear(layer.shape)
    r = int(block.shape[0])
    if layer.config.get("init_weights") == "mini":
        mini = whole_number(layer.config, "mini_r", layer.where, least=1)
        if block.shape[1] != mini or out % mini:
            raise ValueError
        block = block.repeat(1, out // mini)
    if tuple(block.shape) != (r, out) or r > width:
        raise ValueError
    a = torch.eye(r, dtype=torch.float32).repeat(1, -(-width // r))[:, :width]
    return low_rank(a, block.T, layer.scale)


MISS = PeftType(
    name="MISS",
    suffixes={"miss_block": "block"},
    rule=_miss_rule,
    forms=(Form("miss", frozenset({"block"}), first("block"), untold, _miss, on_base=True),),
)

# --- C3A --------------------------------------------------------------------------------------------------------------


def _c3a_rule(config: Config, where: str) -> ScaleRule:
    check_settings(config, where, "a plain C3A", frozenset({"block_size", "block_size_pattern", "init_weights"}))
    return lambda module, rank: 1.0


def _c3a(tensors: Tensors, layer: Layer) -> Delta:
    """Circulant blocks: output p of block m sees input q of block n by kernel[m, n, (q - p) % b] / in."""
    import torch

    kernel = tensors["kernel"]  # [out / b, in / b, b]
    m, n, b = map(int, kernel.shape)
    steps = torch.arange(b)
    weight = kernel[:, :, (steps[None, :] - steps[:, None]) % b]  # [m, n, p, q]
    return Full(weight.permute(0, 2, 1, 3).reshape(m * b, n * b).contiguous(), layer.scale / (n * b))


C3A = PeftType(
    name="C3A",
    suffixes={"c3a_kernel": "kernel"},
    rule=_c3a_rule,
    forms=(Form("c3a", frozenset({"kernel"}), untold, untold, _c3a),),
)
