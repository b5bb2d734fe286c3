"""The changes of an adapter, put onto the layers of a base: names looked up, fused layers taken apart."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from adapterline.deltas import Delta, GroupedKernel, Hadamard, Kronecker, LowRank, Rows, Ungrouped, reshaped, take_rows
from adapterline.errors import CheckpointError, ConversionError, FamilyError
from adapterline.families.base import Base
from adapterline.families.control import layers_for
from adapterline.families.names import Piece, look_up, names
from adapterline.families.skeleton import Target


def place(
    deltas: Mapping[str, Delta], base: Base, component: str, *, swaps_lora_alone: bool = False
) -> dict[str, Delta]:
    """The deltas by module of the base, sorted. FamilyError if it has no such module, or of another shape.

    `swaps_lora_alone`: the trainer renamed diffusers' layers to the original's, and where the halves of their outputs
    are swapped, it swapped those of LoRA and of magnitudes, and left LoHa's and LoKr's factors (OneTrainer).
    """
    shapes = {module: delta.shape for module, delta in deltas.items()}
    table, (layers, _) = names(base, component), layers_for(base, component, _inputs(shapes, base, component))
    if misfit := misfit_of(shapes, base, component):
        raise FamilyError(
            f"The adapter does not fit {component} of this base, a {base.models[component].model_class}: {misfit}.",
            expected=f"an adapter that was trained on this base ({base.family.title})",
            remedy="Pass the --base that it was trained on.",
        )
    placed: dict[str, tuple[str, Delta]] = {}
    for spelled, delta in deltas.items():
        for piece, part in _parts(delta, look_up(table, spelled) or (), swaps_lora_alone):
            if piece.module in placed:
                raise CheckpointError(
                    f"{placed[piece.module][0]} and {spelled} both change {component}.{piece.module}.",
                    expected="one of them",
                    remedy="Save the adapter again: some loaders would take either, and drop the other.",
                )
            placed[piece.module] = spelled, _on_layer(part, layers[piece.module], piece.module)
    return {module: placed[module][1] for module in sorted(placed)}


def pipeline_for(components: Mapping[str, Mapping[str, Delta]], base: Base) -> str | None:
    """The pipeline class that an adapter takes, where that is not the base's own."""
    for component, deltas in components.items():
        _, pipeline = layers_for(base, component, {module: delta.shape[1] for module, delta in deltas.items()})
        if pipeline is not None:
            return pipeline
    return None


def _inputs(shapes: Mapping[str, tuple[int, ...]], base: Base, component: str) -> dict[str, int]:
    """By module of the base, whatever the checkpoint calls it."""
    table = names(base, component)
    found = {module: look_up(table, module) for module in shapes}
    return {pieces[0].module: shapes[module][1] for module, pieces in found.items() if pieces and len(pieces) == 1}


def misfit_of(shapes: Mapping[str, tuple[int, ...]], base: Base, component: str) -> str:
    """Why changes of these shapes do not fit the layers of this model; empty if they do."""
    table, (layers, _) = names(base, component), layers_for(base, component, _inputs(shapes, base, component))
    missing = sorted(module for module in shapes if look_up(table, module) is None)
    if missing:
        return f"{len(missing)} of {len(shapes)} adapted modules are not in it ({missing[0]})"
    for module, shape in sorted(shapes.items()):
        pieces = look_up(table, module) or ()
        wanted = [layers[piece.module] for piece in pieces]
        outs = sum(target.shape[0] for target in wanted)
        if not (shape[0] in (outs, _outputs_alone(wanted)) and _same_inputs(shape[1:], wanted)):
            expected = [outs, *wanted[0].shape[1:]]
            return f"{module} is {expected}, and the adapter is for {list(shape)}"
    return ""


def _same_inputs(tail: tuple[int, ...], wanted: list[Target]) -> bool:
    """Flattened kernels count as the kernels that they are."""
    return all(
        tail in (target.shape[1:], _all_inputs(target))
        or (len(tail) == 1 and tail[0] == math.prod(target.shape[1:]))
        # a 1 x 1 convolution and a linear layer are the same matrix, and trainers store either
        or (math.prod(tail) == tail[0] == target.shape[1] == math.prod(target.shape[1:]))
        for target in wanted
    )


def _all_inputs(target: Target) -> tuple[int, ...]:
    return (target.shape[1] * target.groups, *target.shape[2:])


def _outputs_alone(wanted: list[Target]) -> int:
    """What OneTrainer's lora_up of a grouped convolution has: out / groups, which its forward spreads over all."""
    target = wanted[0]
    return target.shape[0] // target.groups if len(wanted) == 1 and target.groups == target.shape[0] else -1


def _parts(delta: Delta, pieces: tuple[Piece, ...], swaps_lora_alone: bool) -> list[tuple[Piece, Delta]]:
    """What each layer of a fused one gets. Layers whose rows are all zero were not trained, if others were."""
    if swaps_lora_alone and len(pieces) == 1 and isinstance(delta, Hadamard | Kronecker):
        rows = pieces[0].rows
        return [(pieces[0], delta if rows is None else replace(delta, magnitude=Rows(delta, rows).magnitude))]
    parts = [(piece, delta if piece.rows is None else take_rows(delta, piece.rows)) for piece in pieces]
    trained = [(piece, part) for piece, part in parts if not (isinstance(part, LowRank) and not bool(part.b.any()))]
    return trained or parts


def _on_layer(delta: Delta, target: Target, module: str) -> Delta:
    """The change with the kernel of its layer, and with B in the layer's groups."""
    if isinstance(delta, LowRank) and delta.groups not in (1, target.groups):
        raise CheckpointError(
            f"The factors of {module} do not fit: A is {list(delta.a.shape)}, B is {list(delta.b.shape)}.",
            expected=f"as many columns of B as A has rows{f', or a {target.groups}th' if target.groups > 1 else ''}",
            remedy="The checkpoint is not whole; save it again.",
        )
    if target.groups == 1:
        return _as_peft_has_it(reshaped(delta, target.shape[1:]))
    if delta.magnitude is not None:
        return _decomposed(delta, target, module)
    if isinstance(delta, LowRank) and delta.shape[1:] == _all_inputs(target):
        if delta.groups == target.groups:
            return delta
        if delta.shape[0] != target.shape[0]:
            delta = replace(delta, b=delta.b.expand(target.shape[0], *delta.b.shape[1:]))
        return Ungrouped(delta, target.groups)
    b, a = reshaped(delta, target.shape[1:]).low_rank().matrices()
    return GroupedKernel((b @ a).reshape(target.shape), delta.scale, target.groups, delta.bias)


def _decomposed(delta: Delta, target: Target, module: str) -> Delta:
    """DoRA on a grouped convolution: PEFT's own, or OneTrainer's, whose B @ A has the entries of a depthwise kernel.

    peft.tuners.lora.dora takes the norm of `B.view(-1, rank) @ A`, which is that kernel if B is all ones.
    """
    assert delta.magnitude is not None
    if isinstance(delta, LowRank) and delta.groups == target.groups:
        return _as_peft_has_it(delta)
    out = target.shape[0]
    if target.groups != out or delta.magnitude.numel() != out or math.prod(delta.shape) != math.prod(target.shape):
        raise ConversionError(
            f"{module} is a grouped convolution whose DoRA magnitude has {delta.magnitude.numel()} values.",
            expected=f"one for each of {out} outputs, each in a group of its own",
            remedy="Train it without DoRA, or leave this layer out.",
        )
    b, a = delta.low_rank().matrices()
    magnitude = delta.magnitude.reshape(1, -1, *[1] * (len(target.shape) - 2))
    return GroupedKernel((b @ a).reshape(target.shape), delta.scale, out, delta.bias, magnitude)


def _as_peft_has_it(delta: Delta) -> Delta:
    """A magnitude as [out], or [1, out, 1, ...] of a convolution (peft.tuners.lora.dora); LyCORIS has [out, 1, ...]."""
    if delta.magnitude is None or isinstance(delta, Rows):
        return delta
    kernel = len(delta.shape) - 2
    return replace(delta, magnitude=delta.magnitude.reshape(*[1, -1, *[1] * kernel][0 if kernel else 1 :]))
