"""The layers of the real models by name and size, so that an adapter can be compared with them without torch.

`outlines.json` has a line for each configuration that comes with adapterline, and one for each other model class, of
what its own defaults make. It is made from the skeletons: `python -m adapterline.families.outlines` writes it anew.

A likeness is evidence of the family that an adapter is of, not proof: the export compares with the model itself.
"""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.families import FAMILIES
from adapterline.families.originals import renames
from adapterline.families.shipped import SHIPPED, shipped

if TYPE_CHECKING:
    from adapterline.families.base import ModelConfig

FILE = Path(__file__).parent / "outlines.json"
#: (outputs, inputs) of a layer; a convolution's kernel does not count.
Size = tuple[int, int]
#: A number between dots or underscores, which is that of a block or of a position.
_NUMBER = re.compile(r"(?<![^_])\d+(?![^_])")
_BLOCK = "{}_"


@dataclass(frozen=True)
class Outline:
    """The layers of one model.

    `bases` are the aliases of the shipped bases that have it; none: it is what the class makes by default. `sizes` are
    by `place` of diffusers' names and of the original implementation's. Blocks may differ in size.
    """

    model: str
    bases: tuple[str, ...]
    sizes: Mapping[str, frozenset[Size]]

    def has(self, modules: Iterable[str]) -> bool:
        """Has the model a layer of each of these names?"""
        return all(place(module) in self.sizes for module in modules)

    def of_size(self, sizes: Mapping[str, Size]) -> int:
        """How many of these layers, by name, have the size that they have in the model."""
        return sum(size in self.sizes.get(place(module), ()) for module, size in sizes.items())

    def in_proportion(self, sizes: Mapping[str, Size]) -> int:
        """How many of these layers have outputs for each input as in the model, which may be of another width."""
        return sum(
            any(out * its_inputs == its_out * inputs for its_out, its_inputs in self.sizes.get(place(module), ()))
            for module, (out, inputs) in sizes.items()
        )


def place(module: str) -> str:
    """A layer's name with underscores for dots, `{}` for every number, and without `text_model.`."""
    return _NUMBER.sub("{}", module.replace(".", "_").removeprefix("text_model_"))


def in_blocks(sizes: Mapping[str, Size]) -> dict[str, Size]:
    """Those of the layers that lie in a block: only these have proportions that a model of another size has too."""
    return {module: size for module, size in sizes.items() if _BLOCK in place(module)}


@functools.cache
def outlines_of(model: str) -> tuple[Outline, ...]:
    """Every outline of a model class; none of a class that is not known."""
    return tuple(
        Outline(model, tuple(row["bases"]), _with_originals(model, row)) for row in _rows() if row["model"] == model
    )


@functools.cache
def _rows() -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(FILE.read_bytes()))


def _with_originals(model: str, row: Mapping[str, Any]) -> dict[str, frozenset[Size]]:
    sizes: dict[str, set[Size]] = defaultdict(set)
    for module, found in row["layers"].items():
        sizes[place(module)] |= {(out, inputs) for out, inputs in found}
    own = {module: sorted(found) for module, found in sizes.items()}
    for original in renames(model, _config(model, row["bases"])):
        pieces = [own.get(place(module), []) for module in original.modules]
        for fused in zip(*pieces, strict=False):
            sizes[place(original.original)].add((sum(out for out, _ in fused), fused[0][1]))
    return {module: frozenset(found) for module, found in sizes.items()}


def _config(model: str, bases: Iterable[str]) -> Mapping[str, Any]:
    """The configuration of a shipped base's model of this class; empty without one."""
    folder = next(filter(None, map(shipped, bases)), None)
    if folder is None:
        return {}
    index = json.loads((folder / "model_index.json").read_bytes())
    component = next(name for name, entry in index.items() if isinstance(entry, list) and entry[1] == model)
    config: dict[str, Any] = json.loads((folder / component / "config.json").read_bytes())
    return config


# --- how they are made ------------------------------------------------------------------------------------------------


def outlines_bytes() -> bytes:
    """What `outlines.json` has to be, from the installed diffusers and transformers: half a minute's work."""
    models: dict[tuple[str, str], list[str]] = defaultdict(list)
    for alias, config in _models():
        models[config.model_class, json.dumps(layers_of(config), separators=(",", ":"))] += [alias] if alias else []
    lines = [
        f'{{"model":"{model}","bases":{json.dumps(list(dict.fromkeys(bases)))},"layers":{layers}}}'
        for (model, layers), bases in sorted(models.items())
    ]
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode()


def layers_of(config: ModelConfig) -> dict[str, list[Size]]:
    """The sizes of a model's layers by name, with `{}` for every number. FamilyError if it cannot be built."""
    from adapterline.families.skeleton import build_model, targets_of

    found: dict[str, set[Size]] = defaultdict(set)
    for module, target in targets_of(build_model(config)).items():
        out, inputs, *_ = target.change
        found[re.sub(r"(?<![^.])\d+(?![^.])", "{}", module)].add((out, inputs))
    return {module: sorted(sizes) for module, sizes in sorted(found.items())}


def _models() -> Iterator[tuple[str | None, ModelConfig]]:
    """(alias, configuration) of every shipped model; without an alias those of which none is shipped."""
    from adapterline.families.base import read_base

    seen = set()
    for base in SHIPPED:
        folder = shipped(base.alias)
        assert folder is not None  # it is one of SHIPPED
        for config in read_base(folder).models.values():
            seen.add(config.model_class)
            yield base.alias, config
    for model in sorted({model for family in FAMILIES for each in family.components for model in each.models} - seen):
        yield None, _by_default(model)


def _by_default(model: str) -> ModelConfig:
    import diffusers
    import transformers

    from adapterline.families.base import ModelConfig

    libraries = {"diffusers": diffusers, "transformers": transformers}
    having = next((name for name, library in libraries.items() if hasattr(library, model)), "diffusers.pipelines.ltx2")
    return ModelConfig(having, model, {})


if __name__ == "__main__":
    FILE.write_bytes(outlines_bytes())
