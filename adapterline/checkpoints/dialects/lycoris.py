"""LyCORIS's keys: sd-scripts' spelling of modules, with LyCORIS's own ways of storing a change.

    lora_unet_mid_block_..._to_q.hada_w1_a  ...        LoHa        hada_t1, hada_t2 with a Tucker core
    lora_unet_mid_block_..._to_q.lokr_w1, lokr_w2_a    LoKr        lokr_t2 with a Tucker core
    lora_unet_mid_block_..._to_q.diff, diff_b          full
    lora_unet_mid_block_..._to_q.dora_scale            DoRA, [out, 1] or [1, in]
    lycoris_transformer_blocks_0_attn_to_q....         the LyCORIS wrapper on its own, as SimpleTuner uses it

rsLoRA is in the alpha that is stored (`alpha * lora_dim / sqrt(lora_dim)`), so the scale is alpha / rank as ever.
DyLoRA, which has sd-scripts' keys alone, is found by the header: see `dylora`.
"""

from __future__ import annotations

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects.base import Entry, Readable, ScaleRule, Stated, alpha_rule, collect
from adapterline.checkpoints.dialects.dylora import ARGUMENTS_KEY, CONFIG_KEY, by_blocks, is_dylora
from adapterline.checkpoints.dialects.flat import flat_entry, is_flat
from adapterline.checkpoints.dialects.kohya import mark_of_lycoris
from adapterline.checkpoints.stated import json_of
from adapterline.errors import CheckpointError


class Lycoris:
    """Reads files of LyCORIS, whichever trainer used it."""

    name = "lycoris"

    def entries(self, readable: Readable) -> dict[str, Entry]:
        """See `Dialect.entries`."""
        if not any(map(is_flat, readable.tensors)):
            raise NotMyKindError("no key begins with lora_unet_, lora_te_, lycoris_ or the like")
        if mark_of_lycoris(readable) is None:
            raise NotMyKindError("all keys are sd-scripts' own")
        return collect(readable, flat_entry)

    def scale_rule(self, readable: Readable, component: str | None) -> ScaleRule | None:
        """See `Dialect.scale_rule`."""
        _check_multiplier(readable)
        rule = alpha_rule(readable, self.entries(readable), component, without=_only_whole)
        if is_dylora(readable):
            return by_blocks(readable, rule)
        if not _rank_stabilized(readable):
            return rule

        def stabilized(module: str, rank: int | None) -> float:
            if rank is None:
                # lycoris.modules.lokr: with both factors whole, alpha is lora_dim and the scale alpha / sqrt(lora_dim),
                # but lora_dim is in no shape.
                raise CheckpointError(
                    f"The header says rs_lora, and both factors of {module} are whole: nothing tells its scale.",
                    expected="a decomposed factor, or no rs_lora",
                    remedy="Train it without rs_lora: it has no use for whole factors.",
                )
            return rule(module, rank)

        return stabilized

    def stated(self, readable: Readable, component: str | None) -> Stated | None:
        """None: alpha is in the tensors."""
        return None


def _only_whole(module: str, rank: int | None) -> float:
    """`full` has no alpha, and no use for it."""
    if rank is not None:
        raise CheckpointError(
            f"{module} has no alpha tensor.", expected="one, as LyCORIS writes it", remedy="Save the adapter again."
        )
    return 1.0


def _rank_stabilized(readable: Readable) -> bool:
    settings = (json_of(readable.header.get(name, "")).get("rs_lora", "") for name in (ARGUMENTS_KEY, CONFIG_KEY))
    return any(str(value).lower() in ("true", "1", "yes") for value in settings)


def _check_multiplier(readable: Readable) -> None:
    """SimpleTuner's own model has the multiplier of its configuration; whoever loads the file has 1."""
    multiplier = json_of(readable.header.get(CONFIG_KEY, "")).get("multiplier", 1)
    if multiplier != 1:
        raise CheckpointError(
            f"The header's {CONFIG_KEY} says multiplier={str(multiplier)[:40]}: trained at that, it loads at 1.",
            expected="a multiplier of 1",
            remedy="Train it with a multiplier of 1, which SimpleTuner's default is.",
        )
