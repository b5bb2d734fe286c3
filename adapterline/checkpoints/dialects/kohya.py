"""sd-scripts' keys, and those of all who took them up: musubi-tuner, OneTrainer, ai-toolkit's for SD.

    lora_unet_down_blocks_0_attentions_0_..._attn1_to_q.lora_down.weight / .lora_up.weight / .alpha

LoRA, LoCon, LoRA-FA and sd-scripts' own DyLoRA write the same. A key without alpha means scale 1 to whoever loads it
(networks/lora.py: `alpha = dim if alpha is None`), and so it does here, unless the header says another alpha.

With split_qkv (networks/lora_flux.py) each part of a fused layer is trained on its own, at alpha / rank. The file has
`lora_down` of the parts one under the other, and alpha as it was: its rank is three or four times that of a part.
"""

from __future__ import annotations

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects.base import Entry, Readable, ScaleRule, Stated, alpha_rule, collect
from adapterline.checkpoints.dialects.dylora import is_dylora
from adapterline.checkpoints.dialects.flat import flat_entry, is_flat
from adapterline.checkpoints.scales import unit
from adapterline.checkpoints.stated import json_of
from adapterline.errors import CheckpointError

#: What a layer of this dialect can have; anything else is LyCORIS's.
PARTS = frozenset({"a", "b", "mid", "alpha"})


class Kohya:
    """Reads LoRA and LoCon files of sd-scripts and musubi-tuner."""

    name = "kohya"

    def entries(self, readable: Readable) -> dict[str, Entry]:
        """See `Dialect.entries`."""
        if not any(map(is_flat, readable.tensors)):
            raise NotMyKindError("no key begins with lora_unet_, lora_te_ or the like")
        if mark := mark_of_lycoris(readable):
            raise NotMyKindError(f"{mark} is LyCORIS's")
        return collect(readable, flat_entry)

    def scale_rule(self, readable: Readable, component: str | None) -> ScaleRule | None:
        """See `Dialect.scale_rule`."""
        entries = self.entries(readable)
        rule = alpha_rule(readable, entries, component, without=_without_alpha(readable, entries))
        return _of_parts(rule) if _is_split(readable) else rule

    def stated(self, readable: Readable, component: str | None) -> Stated | None:
        """None: alpha is in the tensors."""
        return None


def mark_of_lycoris(readable: Readable) -> str | None:
    """What LyCORIS alone writes, if it is there: a key, or that it trained DyLoRA."""
    for key in sorted(readable.tensors):
        entry = flat_entry(key)
        if key.startswith("lycoris_") or (entry is not None and entry.part not in PARTS):
            return repr(key)
    return "DyLoRA, as the header says," if is_dylora(readable) else None


def _is_split(readable: Readable) -> bool:
    """Was it trained with split_qkv? resize_lora.py decomposes the file as it is, and keeps the header."""
    if "resize" in readable.header.get("ss_training_comment", ""):
        return False
    return json_of(readable.header.get("ss_network_args", "")).get("split_qkv") == "True"


def _of_parts(rule: ScaleRule) -> ScaleRule:
    def scale(module: str, rank: int | None) -> float:
        parts = 3 if "qkv" in module else 4 if "single" in module and "linear1" in module else 1
        if rank is not None and rank % parts:
            raise CheckpointError(
                f"The header says split_qkv, and {module} has rank {rank}.",
                expected=f"{parts} parts of one rank",
                remedy="The file was changed since; export the one that the trainer wrote.",
            )
        return rule(module, None if rank is None else rank // parts)

    return scale


def _without_alpha(readable: Readable, entries: dict[str, Entry]) -> ScaleRule:
    stated, dim = readable.header.get("ss_network_alpha"), readable.header.get("ss_network_dim")
    if any(entry.part == "alpha" for entry in entries.values()) or stated in (None, "None", dim):
        return unit  # the other component has them: diffusers' convert_state_dict_to_kohya writes them for CLIP alone

    def refuse(module: str, rank: int | None) -> float:
        raise CheckpointError(
            f"{module} has no alpha tensor, and the header says ss_network_alpha={stated} for rank {dim}.",
            expected="an alpha tensor for every layer, as sd-scripts writes it",
            remedy="They were lost; export the file that the trainer wrote.",
        )

    return refuse
