"""The file that ComfyUI, sd-scripts, A1111, InvokeAI and diffusers load alike: sd-scripts' keys.

    {stem}.lora_down.weight    A, [rank, in, ...]
    {stem}.lora_up.weight      B, [out, rank, ...]; of a convolution [out, rank, 1, 1]
    {stem}.alpha               a number, for every stem: the change is alpha / rank * B A

What the original implementation has as one layer is one stem. Its parts keep their factors: the A lie one under the
other, the B along a diagonal, with zeros for a part that was not adapted and for what a part has less of rank than the
others, so that diffusers can take them apart again. alpha is the scale times all rows of A.

Where diffusers hands alpha on to PEFT, it knows one rank and one alpha for a whole component. If there are several,
the scale goes into the factors and zeros make all ranks one. Where it multiplies the factors by alpha / rank itself, it
does so in their dtype: a scale that is not exact in it goes into the factors here, as in the diffusers layout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from adapterline.deltas import NAMES, Kronecker, LowRank, times
from adapterline.errors import ConversionError
from adapterline.families import Component
from adapterline.families import kohya as families
from adapterline.families.base import Base, load_call
from adapterline.families.names import Piece
from adapterline.families.skeleton import Target, targets
from adapterline.layouts.base import LayoutPlan, Written
from adapterline.layouts.low_rank import tensor_plans, transforms_of
from adapterline.layouts.scale import Fold, fold, keep, torch_dtype
from adapterline.parallel import each_value
from adapterline.values import WEIGHT_NAME, ExportOptions, FilePlan, HeaderHash, TensorPlan, Transform

if TYPE_CHECKING:
    import torch

_HASHES: Mapping[str, HeaderHash] = {
    "modelspec.hash_sha256": "modelspec",
    "sshs_model_hash": "sshs",
    "sshs_legacy_hash": "sshs-legacy",
}
#: What sd-scripts says of a file whose layers differ (networks/resize_lora.py).
_SEVERAL = "Dynamic"


class Kohya:
    """Plans `kohya/{name}.safetensors`, and a second file where a pipeline has two denoisers."""

    name = "kohya"

    def plan(
        self, components: Written, base: Base, options: ExportOptions, name: str, finished_at: datetime | None
    ) -> LayoutPlan:
        """See `LayoutWriter.plan`. `options.scale` decides nothing here: the scale is in alpha as far as it can be."""
        known = families.kohya_of(base)
        if known is None:
            raise ConversionError(
                f"Adapters of {base.family.title} in sd-scripts' keys: it cannot be shown what reads them.",
                expected="a model that ComfyUI and sd-scripts or musubi-tuner have",
                remedy="Leave the kohya layout out.",
            )
        files: dict[str, list[tuple[Component, _Component]]] = {}
        for described in base.family.components:
            if written := components.get(described.name):
                done = _component(base, known, described, written, options)
                files.setdefault(_path(name, described), []).append((described, done))
        plans, loads, transforms = [], [], []
        for path, parts in files.items():
            made = [part for _, part in parts]
            plans.append(_file(path, known, made, name, finished_at))
            transforms += [transform for part in made for transform in part.transforms]
            stems = {stem: layer for part in made for stem, layer in part.stems.items()}
            if known.carries(known.diffusers, stems):
                loads.append(load_call(base, parts[0][0], path))
            transforms += _left_out(known, [part for _, part in parts])
        return LayoutPlan(tuple(plans), tuple(loads), tuple(transforms))


@dataclass(frozen=True)
class _Part:
    """A layer of the model within a stem: its output rows there, and its change, if it was adapted."""

    piece: Piece
    outputs: int
    delta: LowRank | None = None
    done: Fold | None = None

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """Where its outputs lie, in their order."""
        return self.piece.rows or ((0, self.outputs),)

    def plan(self, factor: str) -> TensorPlan | None:
        """Its own A or B, as it is stored."""
        if self.delta is None or self.done is None:
            return None
        return tensor_plans(self.delta, self.done, {factor: factor})[factor]


@dataclass(frozen=True)
class _Stem:
    """One layer of the file. `rank` is that of each part, and `scale` what is left to alpha."""

    parts: tuple[_Part, ...]
    rank: int
    scale: float
    inputs: tuple[int, ...]  # [in, *kernel]
    dtype: str = ""  # of a stem without any adapted part

    @property
    def total(self) -> int:
        """Rows of A."""
        return self.rank * len(self.parts)

    @property
    def alpha(self) -> float:
        """To the precision that it is stored with."""
        return _in_float32(self.scale * self.total)

    def tensors(self, stem: str) -> dict[str, TensorPlan]:
        """Its three, by key."""
        outputs = max(stop for part in self.parts for _, stop in part.rows)
        ones = (1,) * (len(self.inputs) - 1)
        return {
            f"{stem}.lora_down.weight": TensorPlan(
                self._dtype("a"), (self.total, *self.inputs), partial(_down, self, self._dtype("a"))
            ),
            f"{stem}.lora_up.weight": TensorPlan(
                self._dtype("b"), (outputs, self.total, *ones), partial(_up, self, self._dtype("b"), outputs)
            ),
            f"{stem}.alpha": TensorPlan("F32", (), partial(_number, self.alpha)),
        }

    def _dtype(self, factor: str) -> str:
        plans = [plan for part in self.parts if (plan := part.plan(factor))]
        return plans[0].dtype if plans else self.dtype


@dataclass(frozen=True)
class _Component:
    """What becomes of a component: its stems, and the modules of each for what is said of them."""

    name: str
    stems: Mapping[str, _Stem]
    transforms: tuple[Transform, ...]

    def modules(self, stems: list[str]) -> tuple[str, ...]:
        """The adapted layers of these stems, sorted."""
        parts = (part for stem in stems if stem in self.stems for part in self.stems[stem].parts)
        return tuple(sorted(part.piece.module for part in parts if part.delta is not None))


# --- a component ------------------------------------------------------------------------------------------------------


def _component(
    base: Base,
    known: families.Kohya,
    described: Component,
    written: Mapping[str, LowRank | Kronecker],
    options: ExportOptions,
) -> _Component:
    layers, requested = targets(base, described.name), NAMES[options.dtype] if options.dtype else None
    deltas = _plain(described.name, written, layers)
    if described.name not in known.prefixes:
        raise ConversionError(
            f"Layers of {described.name} were adapted, and sd-scripts' keys have no name for them that is read.",
            expected=f"layers of {' or '.join(known.prefixes)}",
            remedy="Leave the kohya layout out, or export the other components with --components.",
        )
    table = families.stems(base, known, described.name)
    used = {stem: pieces for stem, pieces in table.items() if any(piece.module in deltas for piece in pieces)}
    _check_carried(known, described.name, used, deltas)
    parts = {
        stem: tuple(_Part(piece, layers[piece.module].shape[0]) for piece in pieces) for stem, pieces in used.items()
    }
    decide = _whole_component if known.hands_on else partial(_each_group, multiplied=bool(known.diffusers))
    stems = decide(parts, deltas, layers, requested)
    folds = {p.piece.module: p.done for stem in stems.values() for p in stem.parts if p.done is not None}
    filled = _filled(known, table, stems, layers)
    return _Component(
        described.name,
        {**stems, **filled},
        (*transforms_of(described.name, deltas, folds, requested), *_said(described.name, stems, filled)),
    )


def _plain(
    component: str, written: Mapping[str, LowRank | Kronecker], layers: Mapping[str, Target]
) -> dict[str, LowRank]:
    """The changes, each a LoRA and nothing else. ConversionError for what these keys have no place for."""
    for what, remedy, having in (
        (
            "a DoRA magnitude. No program computes from `dora_scale` what was trained: diffusers and sd-scripts pass "
            "over it, ComfyUI divides by the norm of another weight",
            "the diffusers and peft layouts carry it",
            [module for module, delta in written.items() if delta.magnitude is not None],
        ),
        (
            "a lora_B bias",
            "the diffusers and peft layouts carry it",
            [module for module, delta in written.items() if delta.bias is not None],
        ),
        (
            "LoKr factors",
            "or leave --keep-form out: as LoRA they can be carried",
            [module for module, delta in written.items() if isinstance(delta, Kronecker)],
        ),
        (
            "a grouped convolution, whose B sd-scripts' keys have no groups for",
            "the diffusers and peft layouts carry it",
            [module for module, delta in written.items() if isinstance(delta, LowRank) and delta.groups > 1],
        ),
        (
            "another shape than the model's layer, which diffusers widens for a control adapter",
            "the diffusers layout carries it",
            [module for module, delta in written.items() if delta.shape != layers[module].change],
        ),
    ):
        if having:
            raise ConversionError(
                f"{len(having)} of {len(written)} layers of {component} have {what} ({_listed(having)}).",
                expected="plain LoRA",
                remedy=f"Leave the kohya layout out: {remedy}.",
            )
    return {module: delta for module, delta in written.items() if isinstance(delta, LowRank)}


def _check_carried(
    known: families.Kohya,
    component: str,
    used: Mapping[str, tuple[Piece, ...]],
    deltas: Mapping[str, LowRank],
) -> None:
    if lost := families.beyond(known.comfyui, used):
        modules = sorted(piece.module for stem in lost for piece in used[stem] if piece.module in deltas)
        raise ConversionError(
            f"{len(modules)} of {len(deltas)} adapted layers of {component} have no name in sd-scripts' keys that is "
            f"read: {', '.join(modules)}.",
            expected="layers that ComfyUI has by these keys",
            remedy="Leave the kohya layout out: the others carry them.",
        )


# --- how the scale is written -----------------------------------------------------------------------------------------


def _whole_component(
    parts: Mapping[str, tuple[_Part, ...]],
    deltas: Mapping[str, LowRank],
    layers: Mapping[str, Target],
    requested: str | None,
) -> dict[str, _Stem]:
    """One rank and one alpha for all: as trained, if they are one and alpha is exact; else all folded and padded."""
    settings = {(delta.rank, delta.scale) for delta in deltas.values()}
    rank, scale = max(settings)
    as_trained = len(settings) == 1 and _is_exact(scale, rank)
    folds = each_value(partial(keep if as_trained else fold, requested=requested), deltas)
    return {
        stem: _Stem(_with(found, deltas, folds), rank, scale if as_trained else 1.0, _inputs(found, layers))
        for stem, found in parts.items()
    }


def _each_group(
    parts: Mapping[str, tuple[_Part, ...]],
    deltas: Mapping[str, LowRank],
    layers: Mapping[str, Target],
    requested: str | None,
    multiplied: bool,
) -> dict[str, _Stem]:
    """Each stem by itself. `multiplied`: diffusers loads them, too."""
    adapted = {
        stem: {part.piece.module: deltas[part.piece.module] for part in found if part.piece.module in deltas}
        for stem, found in parts.items()
    }
    groups = {stem: (len(found), adapted[stem]) for stem, found in parts.items()}
    folds = each_value(partial(_one_group, requested=requested, multiplied=multiplied), groups)
    return {
        stem: _Stem(
            _with(found, deltas, folds[stem]),
            max(delta.rank for delta in adapted[stem].values()),
            next(iter(folds[stem].values())).scale,
            _inputs(found, layers),
        )
        for stem, found in parts.items()
    }


def _one_group(group: tuple[int, Mapping[str, LowRank]], requested: str | None, multiplied: bool) -> dict[str, Fold]:
    """The folds of the parts of one stem, of which there are so many: of one dtype, and with one scale left."""
    count, deltas = group
    kept = {module: keep(delta, requested) for module, delta in deltas.items()}
    scales, total = {delta.scale for delta in deltas.values()}, count * max(delta.rank for delta in deltas.values())
    as_trained = len(scales) == 1 and all(
        _is_exact(delta.scale, total) and not (multiplied and _is_rounded(delta, kept[module]))
        for module, delta in deltas.items()
    )
    folds = kept if as_trained else {module: fold(delta, requested) for module, delta in deltas.items()}
    stored = {module: _dtypes(delta, folds[module]) for module, delta in deltas.items()}
    if len(set(stored.values())) == 1:
        return folds
    return {
        module: Fold(0, done.scale, "F32", promoted=done.promoted or stored[module] != ("F32", "F32"))
        for module, done in folds.items()
    }


def _is_exact(scale: float, rank: int) -> bool:
    """Does alpha, in float32, give the scale again?"""
    return _in_float32(scale * rank) / rank == scale


def _is_rounded(delta: LowRank, done: Fold) -> bool:
    """Are the factors rounded when a program multiplies them by the scale, in their dtype?

    diffusers splits the scale, in powers of two, between the two. If each can take the whole of it and give it back,
    it can take a share of it.
    """
    import torch

    if done.scale == 1.0:
        return False
    if math.frexp(abs(done.scale))[0] != 0.5:
        return True
    stored = delta.stored(done.shift, done.scale, torch_dtype(done.dtype))
    back = (times(times(factor, done.scale), 1 / done.scale) for factor in (stored.a, stored.b))
    return not all(map(torch.equal, back, (stored.a, stored.b)))


def _in_float32(number: float) -> float:
    import torch

    return float(torch.tensor(number, dtype=torch.float32))


def _dtypes(delta: LowRank, done: Fold) -> tuple[str, str]:
    plans = tensor_plans(delta, done, {"a": "a", "b": "b"})
    return plans["a"].dtype, plans["b"].dtype


def _with(parts: tuple[_Part, ...], deltas: Mapping[str, LowRank], folds: Mapping[str, Fold]) -> tuple[_Part, ...]:
    modules = [part.piece.module for part in parts]
    return tuple(
        replace(part, delta=deltas.get(module), done=folds.get(module))
        for part, module in zip(parts, modules, strict=True)
    )


def _inputs(parts: tuple[_Part, ...], layers: Mapping[str, Target]) -> tuple[int, ...]:
    return layers[parts[0].piece.module].shape[1:]


# --- layers of zeros --------------------------------------------------------------------------------------------------


def _filled(
    known: families.Kohya,
    table: Mapping[str, tuple[Piece, ...]],
    stems: Mapping[str, _Stem],
    layers: Mapping[str, Target],
) -> dict[str, _Stem]:
    """Layers of zeros, where a program takes several layers together or none of them."""
    some = next(iter(stems.values()))
    like = some if known.hands_on else replace(some, rank=1, scale=1.0)
    dtype = some.tensors("")[".lora_down.weight"].dtype
    filled = {}
    for pattern in map(re.compile, known.together):
        groups = {stem: match[1] if pattern.groups else "" for stem in table if (match := pattern.fullmatch(stem))}
        begun = {group for stem, group in groups.items() if stem in stems}
        for stem in (stem for stem, group in groups.items() if group in begun and stem not in stems):
            parts = tuple(_Part(piece, layers[piece.module].shape[0]) for piece in table[stem])
            filled[stem] = replace(like, parts=parts, inputs=_inputs(parts, layers), dtype=dtype)
    return filled


# --- tensors ----------------------------------------------------------------------------------------------------------


def _down(stem: _Stem, dtype: str) -> torch.Tensor:
    import torch

    plans = [part.plan("a") for part in stem.parts]
    if len(plans) == 1 and plans[0] and plans[0].shape == (stem.total, *stem.inputs):
        return plans[0].make()
    down = torch.zeros(stem.total, *stem.inputs, dtype=torch_dtype(dtype))
    for number, plan in enumerate(plans):
        if plan:
            first = number * stem.rank
            down[first : first + plan.shape[0]] = plan.make()
    return down


def _up(stem: _Stem, dtype: str, outputs: int) -> torch.Tensor:
    import torch

    up = torch.zeros(outputs, stem.total, dtype=torch_dtype(dtype))
    for number, part in enumerate(stem.parts):
        if plan := part.plan("b"):
            own, taken, first = plan.make().flatten(1), 0, number * stem.rank
            for start, stop in part.rows:
                up[start:stop, first : first + own.shape[1]] = own[taken : taken + stop - start]
                taken += stop - start
    return up.reshape(*up.shape, *[1] * (len(stem.inputs) - 1))


def _number(number: float) -> torch.Tensor:
    import torch

    return torch.tensor(number, dtype=torch.float32)


# --- the file ---------------------------------------------------------------------------------------------------------


def _path(name: str, described: Component) -> str:
    """A component's file: `_2` at the end where diffusers' file has it."""
    which = PurePosixPath(described.file).stem.removeprefix(PurePosixPath(WEIGHT_NAME).stem)
    return f"{Kohya.name}/{name}{which}.safetensors"


def _file(
    path: str, known: families.Kohya, parts: list[_Component], name: str, finished_at: datetime | None
) -> FilePlan:
    stems = {stem: layer for part in parts for stem, layer in part.stems.items()}
    header = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": known.architecture,
        "modelspec.implementation": known.implementation,
        "modelspec.title": name,
        "ss_base_model_version": known.version,
        "ss_network_module": known.module,
        "ss_network_dim": _one([str(layer.total) for layer in stems.values()]),
        "ss_network_alpha": _one([str(layer.alpha) for layer in stems.values()]),
        "ss_output_name": name,
    }
    if known.v2 is not None:
        header["ss_v2"] = str(known.v2)
    if finished_at is not None:
        header["modelspec.date"] = finished_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    tensors = {key: plan for stem, layer in stems.items() for key, plan in layer.tensors(stem).items()}
    return FilePlan("weights", Kohya.name, path, tensors, header, hashes=_HASHES)


def _one(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else _SEVERAL


# --- what is said of it -----------------------------------------------------------------------------------------------


def _said(component: str, stems: Mapping[str, _Stem], filled: Mapping[str, _Stem]) -> list[Transform]:
    fused = [stem for stem, layer in stems.items() if len(layer.parts) > 1]
    padded = sorted(
        part.piece.module
        for layer in stems.values()
        for part in layer.parts
        if part.delta is not None and part.delta.rank < layer.rank
    )
    said = []
    if fused:
        detail = f"{len(fused)} layers are those of the original model, which has several of diffusers' in one"
        said.append(Transform(kind="fuse", detail=detail, component=component))
    if padded:
        detail = "zeros added to their factors, up to the largest rank beside them"
        said.append(Transform(kind="pad-rank", detail=detail, component=component, modules=tuple(padded)))
    if filled:
        modules = sorted(part.piece.module for layer in filled.values() for part in layer.parts)
        detail = "layers of zeros added, which a program takes together with those that were adapted or not at all"
        said.append(Transform(kind="fill", detail=detail, component=component, modules=tuple(modules)))
    return said


def _left_out(known: families.Kohya, parts: list[_Component]) -> list[Transform]:
    """Which program does not load the file as it is, because of which layers."""
    said = []
    for program, pattern, why in (
        ("diffusers", known.diffusers, known.why),
        (known.trainer, known.trained, "it has no target for them"),
    ):
        for part in parts:
            if pattern and (lost := families.beyond(pattern, part.stems)):
                detail = f"the file is not for {program}: {why}"
                said.append(Transform(kind="not-for", detail=detail, component=part.name, modules=part.modules(lost)))
    return said


def _listed(modules: list[str]) -> str:
    return ", ".join(sorted(modules)[:3]) + (", ..." if len(modules) > 3 else "")
