"""What can be said of an adapter that is read and refused, because no LoRA file can do what it does, or may not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from adapterline.checkpoints.containers.base import NotMyKindError
from adapterline.checkpoints.dialects import DIALECTS, dialect_named, identify
from adapterline.checkpoints.dialects.base import BASE_WEIGHT, DENOISER, Dialect, Entry, Readable
from adapterline.checkpoints.dialects.flat import COMPONENTS, is_flat
from adapterline.checkpoints.dialects.peft import SUFFIXES as PEFT_SUFFIXES
from adapterline.checkpoints.forms import SUFFIXES
from adapterline.errors import CheckpointError, ConversionError
from adapterline.families import COMPONENT_NAMES
from adapterline.values import Source, TensorInfo

#: The type that a tensor's last name tells; PEFT states it in its configuration.
_TYPES = {
    "boft": r"boft_\w+$", "oft": r"((?<!b)oft_(blocks|diag|R)|rescale)\b", "ia3": r"(on_input|ia3_l)$",
    "glora": r"\.[ab][12]\.weight$", "norm": r"[wb]_norm$",
}  # fmt: skip
_FLAT = re.compile(rf"({'|'.join(sorted(COMPONENTS, key=len, reverse=True))}|oft_unet|oft_te\d?)_([^.]+)\.(.+)")
_DOTTED = re.compile(
    rf"(?:(?:model\.)?(?P<denoiser>diffusion_model)\.|text_encoders\.(?P<role>\w+)\.(?:transformer\.)?"
    rf"|(?P<component>{'|'.join(sorted(COMPONENT_NAMES, key=len, reverse=True))})\.)?"
    r"(?:base_model\.model\.)?(?P<rest>[^.]+\..+)"
)
#: What is no module although it has a `weight` or a `bias`: a part of the layer, or the layer under an adapter.
_NO_MODULE = re.compile(r"lora_|oft_|^base_layer$|^[ab][12]$")
#: The layer's own parameters, which are the base's or were trained whole.
_WHOLE = frozenset({"weight", "bias", "base_layer.weight", "base_layer.bias"})
_PARTS = {**PEFT_SUFFIXES, **SUFFIXES}


def refusing_dialect(readable: Readable) -> Dialect:
    """The dialect that says "mine, and not to be exported", or "mine, and broken"; the one that reads it if none does.

    A file without tensors is any dialect's.
    """
    if not readable.tensors:
        return DIALECTS[0]
    if readable.header.get("ss_network_module", "").startswith("lycoris."):
        return dialect_named("lycoris")  # with none of its other suffixes the keys look like sd-scripts' own
    refusing: dict[type[Exception], Dialect] = {}
    for dialect in DIALECTS:
        try:
            dialect.entries(readable)
        except NotMyKindError:
            continue
        except (CheckpointError, ConversionError) as refusal:
            refusing.setdefault(type(refusal), dialect)
    return refusing.get(ConversionError) or refusing.get(CheckpointError) or identify(readable)[0]


def refused_entries(source: Source) -> dict[str, Entry]:
    """The component and the module of every tensor whose key has the form of one.

    Parts are those of `forms` where there is one of that name, else the ends of the keys. The own parameters of a layer
    of a form are BASE_WEIGHT; modules with nothing but their own are left out, unless there are no others.
    """
    found = {key: entry for key in source.tensors if (entry := _entry(key))}
    layers = {(entry.component, entry.module) for entry in found.values() if entry.part not in _WHOLE}
    known = {(entry.component, entry.module) for entry in found.values() if entry.part in _PARTS}
    entries = {}
    for key, entry in found.items():
        place = (entry.component, entry.module)
        if place in layers or not layers:
            own = entry.part in _WHOLE and place in known
            part = BASE_WEIGHT if own else _PARTS.get(entry.part, entry.part)
            entries[key] = Entry(*place, part)
    return entries


def types_told(keys: Iterable[str]) -> set[str]:
    """The types that the names of these tensors tell."""
    keys = list(keys)
    return {kind for kind, mark in _TYPES.items() if any(re.search(mark, key) for key in keys)}


def types_stated(source: Source) -> set[str]:
    """The types that PEFT's configurations state."""
    return {str(config["peft_type"]).lower() for config in source.configs.values() if config.get("peft_type")}


def block_size(info: TensorInfo, key: str) -> int | None:
    """The side of the blocks of a rotation; None for another tensor.

    They lie in the file as squares [..., size, size], or as what is above the diagonal, [blocks, size * (size - 1) / 2]
    (peft.tuners.oft).
    """
    if not types_told([key]) & {"oft", "boft"} or len(info.shape) < 2:
        return None
    if len(info.shape) > 2:
        return info.shape[-1] if info.shape[-1] == info.shape[-2] else None
    size = (1 + math.isqrt(1 + 8 * info.shape[1])) // 2
    return size if size * (size - 1) == 2 * info.shape[1] else None


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
    *names, last = match["rest"].split(".")
    if last in ("weight", "bias") and len(names) > 1 and _NO_MODULE.search(names[-1]):
        last = f"{names.pop()}.{last}"
    return Entry(component, ".".join(names), last)
