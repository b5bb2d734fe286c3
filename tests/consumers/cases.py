"""The exports that every version is tried on: each family as LoRA, and the forms that versions treat differently."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adapterline.errors import RefusedError
from adapterline.families.base import Base
from adapterline.families.kohya import kohya_of, stems
from adapterline.families.skeleton import Target, targets
from adapterline.validation import tolerances
from adapterline.validation.consumers.versions import traits_of
from adapterline.validation.files import by_layout
from tests.line import Exported
from tests.mutants.adapters import EVERY_FAMILY, Good


@dataclass(frozen=True)
class _Attention(Good):
    """Of the attention of every block of the denoiser, and of nothing else: what most adapters are."""

    def _write_component(self, base: Base, component: str, folder: Path) -> None:
        if self._layers(base, component):
            super()._write_component(base, component, folder)

    def _layers(self, base: Base, component: str) -> dict[str, Target]:
        if component.startswith("text_encoder"):
            return {}
        known = targets(base, component).items()
        linear = {name: target for name, target in known if target.kind == "Linear"}
        return {name: target for name, target in linear.items() if re.search(r"attn.*(to_|proj|qkv|out)", name)}


@dataclass(frozen=True)
class InKohya(Good):
    """Of those layers alone whose sd-scripts' keys diffusers reads."""

    def _write_component(self, base: Base, component: str, folder: Path) -> None:
        if self._layers(base, component):
            super()._write_component(base, component, folder)

    def _layers(self, base: Base, component: str) -> dict[str, Target]:
        known = kohya_of(base)
        if known is None or component not in known.prefixes:
            return {}
        carried = {
            piece.module
            for stem, pieces in stems(base, known, component).items()
            if known.carries(known.diffusers, [stem])
            for piece in pieces
        }
        return {name: target for name, target in super()._layers(base, component).items() if name in carried}


#: In the layout diffusers: with the scale in the factors, and in the header.
_MODES = (("diffusers", "portable"), ("diffusers", "header"), ("kohya", "portable"), ("peft", "portable"))
_MORE = (
    *(Good(family, "mixed ranks", mixed=True) for family in ("sd15", "sdxl", "sd3", "flux", "wan", "qwenimage")),
    *(Good(family, "DoRA", dora=True) for family in ("sd15", "sdxl", "flux", "wan", "qwenimage")),
    *(Good(family, "biases", bias=True) for family in ("sd15", "flux")),
    Good("flux", "control", control=True),
)


@dataclass(frozen=True)
class Tried:
    """An export in one layout, what it is for the table, and what its environment needs to know."""

    name: str
    pipeline: str
    layout: str
    traits: tuple[str, ...]
    document: dict[str, Any]


def cases(folder: Path, only: str = "") -> Iterator[Tried]:
    """Exports them into `folder`, one after the other. A layout that is refused is left out."""
    attention = (_Attention(good.family, "attention") for good in EVERY_FAMILY)
    for good in (*EVERY_FAMILY, *_MORE, *attention):
        for layout, mode in _MODES:
            name = f"{good.name} ({layout}{', header' if mode == 'header' else ''})"
            if only in name and (found := _case(good, layout, mode, name, folder / str(abs(hash(name))))):
                yield found


def _case(good: Good, layout: str, mode: str, name: str, folder: Path) -> Tried | None:
    folder.mkdir(parents=True)
    try:
        if layout == "kohya" and not isinstance(good, _Attention):
            good = InKohya(**vars(good))
        exported = replace(good, options={**good.options, "layouts": (layout,)}).export(mode, folder)
    except RefusedError:
        return None
    report = exported.report()
    assert report.passed, (name, report.failures)
    (files,) = by_layout(exported.bundle.files, exported.plan.loads)
    if not files.loads:  # diffusers does not read this family's sd-scripts keys
        return None
    save_file(_expected(exported), folder / "expected.safetensors")
    loads = [load.model_dump(mode="json") for load in files.loads]
    document = {
        "name": name,
        "base": str(folder / "base"),
        "models": {n: [m.library, m.model_class] for n, m in exported.base.models.items()},
        "pipeline": exported.base.pipeline,
        "folder": str(exported.folder),
        "loads": loads,
        "expected": str(folder / "expected.safetensors"),
        "limit": tolerances.FOLD,
    }
    return Tried(name, files.loads[0].pipeline, layout, traits_of(exported.folder, files), document)


def _expected(exported: Exported) -> dict[str, torch.Tensor]:
    """By `component|module|part`, as `load.changes` gives them."""
    found: dict[str, torch.Tensor] = {}
    for component, deltas in exported.adapter.components.items():
        for module, delta in deltas.items():
            width = 1
            for size in delta.shape[1:]:
                width *= size
            stem = f"{component}|{module}"
            found[stem] = delta.apply(torch.eye(width, dtype=torch.float64)).contiguous()
            if delta.bias is not None:
                found[f"{stem}|bias"] = delta.bias.double() * delta.scale
            if delta.magnitude is not None:
                found[f"{stem}|magnitude"] = delta.magnitude.double().flatten().contiguous()
    return found
