"""A base model that does what the source says, without its consumer: each module's output with its change added.

The change acts on what the module sees, by its own definition and in float64, and only the sum is rounded to the
model's dtype. So what differs from the consumer is in proportion to the change, not to the base's output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from adapterline.deltas import Delta
from adapterline.families.skeleton import plain_name

if TYPE_CHECKING:
    import torch

_COLUMNS = 1024


@contextmanager
def changed_by(model: Any, deltas: Mapping[str, Delta]) -> Iterator[None]:
    """In the block, `model` computes with these changes, by plain module name. ValueError for one that does not fit."""
    modules = {plain_name(name): module for name, module in model.named_modules()}
    if strange := sorted(set(deltas) - set(modules)):
        raise ValueError(f"{strange[0]} is no module of the base")
    handles = [modules[name].register_forward_hook(partial(_add, delta)) for name, delta in deltas.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def rounded_otherwise(model: Any, names: Iterable[str]) -> Iterator[None]:
    """In the block, these modules' outputs are off by the last bit, every other one up and down.

    What the model makes of that is what the order of a sum may make of it, too.
    """
    wanted = set(names)
    modules = [module for name, module in model.named_modules() if plain_name(name) in wanted]
    handles = [module.register_forward_hook(_last_bit) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _last_bit(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    import torch

    signs = torch.ones(output.numel(), dtype=output.dtype, device=output.device)
    signs[::2] = -1
    return output * (1 + torch.finfo(output.dtype).eps * signs.reshape(output.shape))


def _add(delta: Delta, module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    import torch

    added = _added(delta, module, inputs[0].detach().cpu().double())
    before = output.detach().cpu().double()
    axis = -1 if isinstance(module, torch.nn.Linear) else 1
    if delta.magnitude is not None:
        bias = 0.0 if module.bias is None else _along(module.bias.cpu().double(), before, axis)
        factor = _along(_stretch(delta, module), before, axis)
        added = (factor - 1) * (before - bias) + factor * added
    if delta.bias is not None:
        added = added + _along(delta.bias.double() * delta.scale, before, axis)
    return (before + added).to(output)


def _added(delta: Delta, module: Any, x: torch.Tensor) -> torch.Tensor:
    """What the change of the weight makes of the module's input."""
    import torch

    if isinstance(module, torch.nn.Linear):
        return delta.apply(x.reshape(-1, x.shape[-1]).T).T.reshape(*x.shape[:-1], -1)
    if module.padding_mode != "zeros":
        raise ValueError(f"a convolution that pads with {module.padding_mode}")
    convolve = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[x.dim() - 3]
    return convolve(x, _whole(delta).reshape(delta.shape), None, module.stride, module.padding, module.dilation)


def _whole(delta: Delta) -> torch.Tensor:
    """The change as a matrix [out, in * prod(kernel)], column by column of what it makes of the unit vectors."""
    import math

    import torch

    width = math.prod(delta.shape[1:])
    parts = []
    for first in range(0, width, _COLUMNS):
        count = min(_COLUMNS, width - first)
        units = torch.zeros(width, count, dtype=torch.float64)
        units[first : first + count] = torch.eye(count, dtype=torch.float64)
        parts.append(delta.apply(units))
    return torch.cat(parts, 1)


def _stretch(delta: Delta, module: Any) -> torch.Tensor:
    """DoRA: the magnitude over the norm of each output's changed weight, [out] (arXiv 2402.09353, equation 5)."""
    assert delta.magnitude is not None
    weight: torch.Tensor = module.weight.detach().cpu().double().flatten(1)
    change = _whole(delta)
    if change.shape != weight.shape:
        raise ValueError(f"DoRA on a weight of {list(weight.shape)}, trained on {list(change.shape)}")
    norms: torch.Tensor = (weight + change).norm(dim=1)
    return delta.magnitude.double().flatten() / norms


def _along(vector: torch.Tensor, like: torch.Tensor, axis: int) -> torch.Tensor:
    """A value for each output, in the shape in which it is broadcast."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return vector.flatten().reshape(shape)
