"""What can be said of an adapter whose dialect refuses it, because no LoRA file can do what it does."""

from __future__ import annotations

import re

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects import DIALECTS, dialect_named, identify
from adapterline.checkpoints.dialects.base import DENOISER, Dialect, Entry, Readable
from adapterline.checkpoints.dialects.flat import COMPONENTS, is_flat
from adapterline.errors import ConversionError
from adapterline.families import COMPONENT_NAMES
from adapterline.values import Source

#: The type that a tensor's last name tells; PEFT states it in its configuration.
_TYPES = {
    "boft": r"boft_\w+$", "oft": r"(oft_(blocks|diag|R)|rescale)\b", "ia3": r"(on_input|ia3_l)$",
    "glora": r"\.[ab][12]\.weight$", "norm": r"[wb]_norm$",
}  # fmt: skip
_FLAT = re.compile(rf"({'|'.join(sorted(COMPONENTS, key=len, reverse=True))}|oft_unet|oft_te\d?)_([^.]+)\.(.+)")
_DOTTED = re.compile(
    rf"(?:(?:model\.)?(?P<denoiser>diffusion_model)\.|text_encoders\.(?P<role>\w+)\.(?:transformer\.)?"
    rf"|(?P<component>{'|'.join(sorted(COMPONENT_NAMES, key=len, reverse=True))})\.)?"
    r"(?:base_model\.model\.)?(?P<module>.+?)\.(?P<part>[^.]+(\.(weight|bias))?)"
)


def refusing_dialect(readable: Readable) -> Dialect:
    """The dialect that says "mine, and not to be exported"; the one that reads it if none does."""
    if readable.header.get("ss_network_module", "").startswith("lycoris."):
        return dialect_named("lycoris")  # with none of its other suffixes the keys look like sd-scripts' own
    for dialect in DIALECTS:
        try:
            dialect.entries(readable)
        except ConversionError:
            return dialect
        except NotMyKindError:
            continue
    return identify(readable)[0]


def refused_entries(source: Source) -> dict[str, Entry]:
    """The component and the module of every tensor whose key has the form of one; parts are the ends of the keys."""
    return {key: entry for key in source.tensors if (entry := _entry(key))}


def adapter_type_of(source: Source) -> str:
    """The type, by PEFT's configuration or the tensors' names; "unknown" if neither tells it."""
    stated = {str(config["peft_type"]).lower() for config in source.configs.values() if config.get("peft_type")}
    told = {kind for kind, mark in _TYPES.items() if any(re.search(mark, key) for key in source.tensors)}
    return "+".join(sorted(stated or told)) or "unknown"


def _entry(key: str) -> Entry | None:
    if is_flat(key):
        match = _FLAT.fullmatch(key)
        if match is None:
            return None
        prefix = match[1].replace("oft_", "lora_")
        return Entry(COMPONENTS.get(prefix, DENOISER), match[2], match[3])
    match = _DOTTED.fullmatch(key)
    if match is None:
        return None
    component = DENOISER if match["denoiser"] else match["role"] or match["component"]
    return Entry(component, match["module"], match["part"])
