"""Module names with nothing in front, and alpha or LyCORIS's tensors beside them: OneTrainer's ORIGINAL format.

    double_blocks.0.img_attn.qkv.lora_A.weight, .lora_B.weight, .alpha, .dora_scale     LoRA and DoRA
    joint_blocks.0.x_block.attn.qkv.lokr_w1, .lokr_w2_a, .lokr_w2_b, .alpha             LoKr; LoHa
    input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight, .alpha              Stable Diffusion
    net.blocks.0.self_attn.q_proj.lora_A.weight, .alpha                                 Anima's DiT lies in `net`

It holds the denoiser alone, by the original implementation's names, which some models share with diffusers. Its scale
is alpha / rank.

A state dict without alpha is not read here. `double_blocks.0.img_attn.qkv.lora_A.weight` alone is just as well PEFT's,
whose scale nobody has said: `lora_B.bias` (PEFT's lora_bias) and a widened `img_in` (any control LoRA) do not tell the
two apart, nor does `base_model.model.`, which fal's trainer leaves in front. Such files are `peft`'s, and need --alpha.

Black Forest Labs' depth and canny LoRAs have no alpha either, and mean scale 1. They are known by the norms that were
trained with them (`.norm.query_norm.scale`), as diffusers knows them.
"""

from __future__ import annotations

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects.base import (
    DENOISER,
    NORM,
    Entry,
    Readable,
    ScaleRule,
    Stated,
    alpha_rule,
    collect,
    refusal_of,
)
from adapterline.checkpoints.dialects.dotted import split
from adapterline.checkpoints.dialects.peft import SUFFIXES as PEFT_SUFFIXES
from adapterline.checkpoints.scales import unit
from adapterline.families import COMPONENT_NAMES
from adapterline.families.norms import norm_weight

#: What other dialects put before a module's name; sd-scripts and LyCORIS begin a flattened one with it.
_PREFIXES = frozenset({*COMPONENT_NAMES, "base_model", "diffusion_model", "model", "text_encoders"})
_FLAT = ("lora_", "lycoris_", "oft_")
_NET = "net."


class Original:
    """Reads files of OneTrainer's ORIGINAL format."""

    name = "original"

    def entries(self, readable: Readable) -> dict[str, Entry]:
        """See `Dialect.entries`."""
        keys = sorted(readable.tensors)
        if readable.configs:
            raise NotMyKindError("an adapter_config.json is PEFT's")
        if prefixed := next((key for key in keys if _is_prefixed(key)), None):
            raise NotMyKindError(f"{prefixed!r} has something in front of the module's name")
        layers = [key for key in keys if split(key)]
        if not layers:
            if why := refusal_of(keys):
                raise why
            raise NotMyKindError("no key is {module}.lora_A.weight, {module}.alpha or the like")
        if not any(map(_is_norm, keys)) and all(key.endswith(tuple(PEFT_SUFFIXES)) for key in layers):
            raise NotMyKindError("nothing but lora_A and lora_B, and no alpha: it may be PEFT's, of any scale")
        return collect(readable, _entry)

    def scale_rule(self, readable: Readable, component: str | None) -> ScaleRule | None:
        """See `Dialect.scale_rule`. Differences of whole weights have no alpha; anything else without one says none."""
        entries = self.entries(readable)
        parts = {entry.part for entry in entries.values()}
        if not parts & {"alpha", NORM} and not parts <= {"diff", "bias_diff"}:
            return None
        return alpha_rule(readable, entries, component, without=unit)

    def stated(self, readable: Readable, component: str | None) -> Stated | None:
        """None: alpha is in the tensors."""
        return None


def _is_prefixed(key: str) -> bool:
    return key.startswith(_FLAT) or key.partition(".")[0] in _PREFIXES


def _is_norm(key: str) -> bool:
    return key.endswith(".scale") and norm_weight(key) is not None


def _entry(key: str) -> Entry | None:
    if _is_norm(key):
        return Entry(DENOISER, key, NORM)
    found = split(key.removeprefix(_NET))
    return Entry(DENOISER, *found) if found else None
