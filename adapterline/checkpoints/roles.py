"""Which component of a base the keys of a checkpoint are about, where they do not say its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from adapterline.checkpoints.dialects.base import DENOISER
from adapterline.checkpoints.forms import form_of
from adapterline.checkpoints.placing import misfit_of
from adapterline.errors import CheckpointError, FamilyError
from adapterline.families.base import Base
from adapterline.families.names import look_up, names
from adapterline.values import ExportOptions, Source

#: ComfyUI's names of text encoders (comfy.sd1_clip and its siblings) and the classes of transformers that they are.
TEXT_ENCODERS: dict[str, tuple[str, ...]] = {
    "clip_l": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "clip_g": ("CLIPTextModelWithProjection",),
    "clip_h": ("CLIPTextModel",),
    "t5xxl": ("T5EncoderModel",),
}


def component_for(
    spelled: str | None, layers: Mapping[str, Mapping[str, str]], source: Source, base: Base, options: ExportOptions
) -> str:
    """The base's component that the keys call `spelled`.

    A name that the family has stands as it is. For everything else it is the one component that has all these modules,
    with their shapes. FamilyError if none has, CheckpointError if several have and nothing tells which.
    """
    if spelled is not None and base.family.component(spelled) is not None:
        return spelled
    candidates = _candidates(spelled, base)
    shapes = _shapes(layers, source)
    model_class = _stated_class(source)
    reasons, fitting = [], []
    for name in candidates:
        config = base.models[name]
        if model_class and model_class != config.model_class:
            reasons.append(f"{name} is a {config.model_class}, and the adapter's configuration says {model_class}")
        elif misfit := misfit_of(shapes, base, name) or _unknown(layers, base, name):
            reasons.append(f"{name}: {misfit}")
        else:
            fitting.append(name)
    if len(fitting) > 1 and options.components is not None:
        fitting = [name for name in fitting if name in options.components] or fitting
    if len(fitting) > 1 and spelled in _FIRST:
        fitting = fitting[:1] if _FIRST[spelled] == 0 else fitting[-1:]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise CheckpointError(
            f"The keys do not say whether {' or '.join(fitting)} was trained; the modules of both fit.",
            expected="a component that can be told",
            remedy=f"Pass --components with {' or '.join(fitting)}, or put the adapter into a folder of that name.",
        )
    raise FamilyError(
        f"The adapter fits no component of {base.pipeline} ({'; '.join(reasons) or 'it has none of that kind'}).",
        expected="an adapter that was trained on this base",
        remedy="Pass the --base that it was trained on.",
    )


#: CLIP-L comes before OpenCLIP in every pipeline that has both.
_FIRST = {"clip_l": 0, "clip_g": -1}


def _candidates(spelled: str | None, base: Base) -> list[str]:
    denoisers = [name for name in base.models if not name.startswith("text_encoder")]
    if spelled is None:
        return list(base.models)
    if spelled == DENOISER:
        return denoisers
    encoders = [name for name in base.models if name not in denoisers]
    classes = TEXT_ENCODERS.get(spelled)
    return [name for name in encoders if classes is None or base.models[name].model_class in classes]


def _unknown(modules: Iterable[str], base: Base, component: str) -> str:
    """For layers whose shapes are not told by those of their parts: are they there at all?"""
    table = names(base, component)
    missing = sorted(module for module in modules if look_up(table, module) is None)
    return f"{len(missing)} adapted modules are not in it ({missing[0]})" if missing else ""


def _shapes(layers: Mapping[str, Mapping[str, str]], source: Source) -> dict[str, tuple[int, ...]]:
    """The shape of each change, as far as the shapes of its parts tell it: enough to tell components apart."""
    shapes = {}
    for module, parts in layers.items():
        found = {part: source.tensors[key].shape for part, key in parts.items()}
        form = form_of(frozenset(parts), module)
        if form.name == "lora" and len(found["a"]) > 1 and len(found["b"]) > 1:
            shapes[module] = (found["b"][0], *found["a"][1:])
    return shapes


def _stated_class(source: Source) -> str | None:
    mapping = source.configs.get("", {}).get("auto_mapping")
    return mapping.get("base_model_class") if isinstance(mapping, dict) else None
