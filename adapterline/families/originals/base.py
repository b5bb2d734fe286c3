"""How a module of a model's original implementation is called in diffusers, as data.

ComfyUI, sd-scripts, musubi-tuner and the model's authors name modules as the original code does; diffusers renamed
them, and split what was fused. A `Rename` says so for one module; it serves reading and writing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rename:
    """`original` became `modules`. `{}` stands for a number, the same ones in the same order on both sides.

    Several modules: the original is one fused layer, and its output rows are theirs, one after the other, each as many
    as the module has outputs. `swapped`: the two halves of the output rows changed places (diffusers computes
    `scale, shift` where the original computes `shift, scale`).
    """

    original: str
    modules: tuple[str, ...]
    swapped: bool = False


def rename(original: str, *modules: str, swapped: bool = False) -> Rename:
    """A `Rename`, in the words of a table."""
    return Rename(original, modules, swapped)


def within(original: str, module: str, inner: Iterable[Rename]) -> tuple[Rename, ...]:
    """The renames of a part's `inner` modules, for the part that is `original` there and `module` in diffusers."""
    return tuple(
        Rename(f"{original}.{item.original}", tuple(f"{module}.{name}" for name in item.modules), item.swapped)
        for item in inner
    )
