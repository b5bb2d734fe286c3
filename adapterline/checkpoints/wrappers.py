"""What training wraps around a model leaves marks in the keys; they are peeled off between container and dialect.

module.X, unet.module.X            torch.nn.parallel.DistributedDataParallel, of all or of one component
X._orig_mod.Y                      torch.compile, of the whole model or of blocks
X._fsdp_wrapped_module.Y           FullyShardedDataParallel; also _fpw_module, and Lightning's _forward_module
X._checkpoint_wrapped_module.Y     torch's activation checkpointing
X.lora_A.default.weight            the adapter's name, which PEFT takes out when it saves and state_dict() does not
net.base_model.model.X             the attribute of a LightningModule, or of whatever held the PEFT model
pipe.transformer.X                 the same, around a component

`module` is a wrapper only where one can be: in front, behind a component, behind `base_model.model`. In the middle of a
path it is the model's own name.

A component whose keys have the adapter's name is a raw state dict: its `unet.X.lora_A.weight` become PEFT's
`unet.base_model.model.X.lora_A.weight`. As they were they would be diffusers' format, in which a missing alpha means
scale 1, and nobody has said that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from adapterline.errors import CheckpointError
from adapterline.families import COMPONENT_NAMES

_ANYWHERE: Final = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module"}
)
#: The names under which PEFT's tuners keep the parameters of each adapter (`adapter_layer_names` of their layers).
_ADAPTER_NAME: Final = re.compile(
    r"(\.(?:lora_(?:A|B|E|embedding_A|embedding_B|magnitude_vector)|hada_(?:w[12]_[ab]|t[12])"
    r"|lokr_(?:w[12](?:_[ab])?|t2)|p?vera_(?:A|B|lambda_[bd])|oft_[rR]|oft_embedding_R|boft_[Rs]|ia3_l|hra_u"
    r"|randlora_(?:A|B|lambda|gamma)|fourierft_spectrum|waveft_spectrum|c3a_kernel|miss_block|bone_block|shira_weight"
    r"|vblora_(?:logits_[AB]|vector_bank)|road_(?:theta|alpha)|delora_(?:A|B|lambda)|g[lr]?a?lora_\w+"
    r"|ranknum|trainable_tokens_delta))\.([^.]+)(?=\.(?:weight|bias)$|$)"
)
_WHOLE_MODULE: Final = re.compile(r"(\.modules_to_save)\.([^.]+)(?=\.)")
_PEFT: Final = ("base_model", "model")
#: What holds a model or a pipeline in training code, and the first names inside diffusers' and transformers' models.
_HOLDERS: Final = frozenset(
    {"model", "models", "pipe", "pipeline", "net", "network", "pl_module", "app", "state_dict", "lora", "core"}
)
_FIRST_NAMES: Final = re.compile(
    r"(?:(?:down|up|transformer|single_transformer)_blocks|mid_block|text_model|blocks|noise_refiner|context_refiner"
    # Lumina 2 and Z-Image. In language models, in which `model` is a name of their own, these are self_attn and mlp.
    r"|layers\.\d+\.(?:attn|attention|feed_forward))\."
)

Parts = tuple[str, ...]


def peel(keys: Iterable[str]) -> dict[str, str]:
    """{peeled key: key as written}. CheckpointError if two keys become one, or if several adapters are in there."""
    written = list(keys)
    named = {key: _without_adapter_name(".".join(_unwrapped(tuple(key.split("."))))) for key in written}
    held = _without_holders({key: tuple(plain.split(".")) for key, (plain, _) in named.items()})
    raw = {parts[0] for key, parts in held.items() if named[key][1] and parts[0] in COMPONENT_NAMES}
    adapters = sorted({name for _, name in named.values() if name})
    peeled: dict[str, str] = {}
    for key in written:
        plain = ".".join(_as_peft(held[key]) if held[key][0] in raw else held[key])
        if plain in peeled:
            raise CheckpointError(
                f"Two tensors are the same once wrappers are taken off: {peeled[plain]!r} and {key!r}.",
                expected="one adapter" + (f", not {', '.join(adapters)}" if len(adapters) > 1 else ""),
                remedy="Save one adapter alone, from the unwrapped model.",
            )
        peeled[plain] = key
    if len(adapters) > 1:
        raise CheckpointError(
            f"The checkpoint holds several adapters: {', '.join(adapters)}.",
            expected="one",
            remedy="Save them one by one.",
        )
    return peeled


def _unwrapped(parts: Parts) -> Parts:
    parts = (*(part for part in parts[:-1] if part not in _ANYWHERE), parts[-1])
    parts = _without_module(parts, 0)
    for place in range(len(parts) - 1):
        if parts[place] in COMPONENT_NAMES and place < 3:
            parts = _without_module(parts, place + 1)
        elif parts[place : place + 2] == _PEFT:
            parts = _without_module(parts, place + 2)
    return parts


def _without_module(parts: Parts, place: int) -> Parts:
    while parts[place : place + 1] == ("module",) and len(parts) > place + 1:
        parts = (*parts[:place], *parts[place + 1 :])
    return parts


def _without_adapter_name(key: str) -> tuple[str, str | None]:
    match = _ADAPTER_NAME.search(key) or _WHOLE_MODULE.search(key)
    if match is None or match[2] in ("weight", "bias"):
        return key, None
    return key[: match.start()] + match[1] + key[match.end() :], match[2]


def _without_holders(keys: dict[str, Parts]) -> dict[str, Parts]:
    """The keys without the attributes that held the model, unless two things would get one name."""
    for cut in (_before_peft, _before_component, _before_first_name):
        holders = {parts: cut(parts) for parts in keys.values()}
        found = {holder for holder in holders.values() if holder}
        names = {holder: _kept(holder) for holder in found}
        if found and len(set(names.values())) == len(found):
            return {
                key: (*names[holder], *parts[len(holder) :]) if (holder := _holder(parts, found)) else parts
                for key, parts in keys.items()
            }
    return keys


def _holder(parts: Parts, found: set[Parts]) -> Parts:
    fitting = (holder for holder in found if parts[: len(holder)] == holder and len(parts) > len(holder))
    return max(fitting, key=len, default=())


def _kept(holder: Parts) -> Parts:
    return holder[-1:] if holder[-1] in COMPONENT_NAMES else ()


def _before_peft(parts: Parts) -> Parts:
    place = next((place for place in range(1, len(parts) - 2) if parts[place : place + 2] == _PEFT), 0)
    return parts[:place]


def _before_component(parts: Parts) -> Parts:
    """`pipe.transformer`, of a key of an adapter."""
    place = next((place for place, part in enumerate(parts) if part not in _HOLDERS), 0)
    return parts[: place + 1] if place and parts[place] in COMPONENT_NAMES and _adapts(parts) else ()


def _before_first_name(parts: Parts) -> Parts:
    """`model`, of `model.down_blocks...`, of a key of an adapter."""
    place = next((place for place, part in enumerate(parts) if part not in _HOLDERS), 0)
    return parts[:place] if place and _FIRST_NAMES.match(".".join(parts[place:])) and _adapts(parts) else ()


def _adapts(parts: Parts) -> bool:
    return any(part.startswith(("lora", "hada_", "lokr_", "oft_", "vera_")) for part in parts)


def _as_peft(parts: Parts) -> Parts:
    return parts if parts[1:3] == _PEFT else (parts[0], *_PEFT, *parts[1:])
