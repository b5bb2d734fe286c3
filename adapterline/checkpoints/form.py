"""What a form is: one way in which the tensors of a layer state the change of its weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from adapterline.deltas import Delta

Shapes = Mapping[str, tuple[int, ...]]
Tensors = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class Layer:
    """What is known of a layer besides its tensors.

    `shape` is that of the base's weight, [out, in / groups, *kernel], for forms that ask for it (`Form.on_base`);
    `largest` are the most outputs and the most inputs of the component's adapted layers. `config` is the PEFT
    configuration, empty without one, and `where` is where it was found.
    """

    scale: float
    shape: tuple[int, ...] = ()
    largest: tuple[int, int] = (0, 0)
    config: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""


@dataclass(frozen=True)
class Form:
    """One way of storing a change.

    `needs` must all be there, `may` can be. `rank` is the number by which alpha is divided, read off the shapes; None
    where no shape tells it. `outputs` is how many outputs the layer has; None where no shape tells it. `build` raises
    ValueError, IndexError or RuntimeError for tensors that do not fit.
    """

    name: str
    needs: frozenset[str]
    rank: Callable[[Shapes], int | None]
    outputs: Callable[[Shapes], int | None]
    build: Callable[[Tensors, Layer], Delta]
    may: frozenset[str] = frozenset()
    #: Parts that lie in a file once and belong to every layer of the component.
    shared: frozenset[str] = frozenset()
    #: Parts that are no floating point numbers.
    integers: frozenset[str] = frozenset()
    #: Does `build` use the shape of the base's layer?
    on_base: bool = False
    #: Can the rank be 0, because all of it was pruned away?
    prunable: bool = False


def first(part: str, dimension: int = 0) -> Callable[[Shapes], int]:
    """The size of a part."""
    return lambda shapes: shapes[part][dimension]


def untold(shapes: Shapes) -> None:
    """For a number that no shape tells."""
    return
