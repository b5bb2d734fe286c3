"""Files with sd-scripts' keys, read by the rules of the programs that they are for.

The factors of a stem act as `alpha / rank * lora_up @ lora_down` on the layer of its name; of a fused layer, each part
gets its own output rows. What the names mean is looked up among all names of the base's layers, not in the table that
files are written by, and a program's own list of layers decides whether it is one that the program has.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from adapterline.deltas import NAMES, LowRank, reshaped, tucker
from adapterline.families import Component
from adapterline.families.base import Base, load_call
from adapterline.families.kohya import Kohya, kohya_of
from adapterline.families.names import Piece, look_up, names
from adapterline.families.skeleton import targets
from adapterline.validation.consumers.base import Loaded, LoadedLayer
from adapterline.validation.files import tensors_of
from adapterline.values import WEIGHT_NAME, LoadCall

if TYPE_CHECKING:
    import torch

Program = Literal["comfyui", "sd-scripts", "musubi-tuner"]

#: How keys of this kind begin, whatever the base.
_PREFIX = re.compile(r"lora_(unet|te\d?|prior_\w+|transformer)_|lycoris_")
_PARTS = {"lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid", "alpha": "alpha"}


class KohyaRules:
    """Reads files with sd-scripts' keys as one program does. Not for files of which it has not all layers."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.name = f"{program}-rules"

    def load(
        self, folder: Path, files: tuple[str, ...], loads: tuple[LoadCall, ...], base: Base, needed: Collection[str]
    ) -> Loaded | None:
        """See `Consumer.load`."""
        known = kohya_of(base)
        layers = self._layers(known) if known else ""
        if known is None or not layers:
            return None
        read = read_kohya(folder, files, loads, base)
        if read is None or any(not re.fullmatch(layers, stem) for stem in read.placed):
            return None
        if self.program == "comfyui":
            return read.loaded
        if read.with_core:
            return None
        # networks/lora.py takes a missing alpha for the rank, as ComfyUI does; the other modules look it up.
        if read.without_alpha and not known.hands_on:
            return Loaded(error=f"KeyError: {read.without_alpha[0]!r} has no alpha")
        return read.loaded

    def _layers(self, known: Kohya) -> str:
        if self.program == "comfyui":
            return known.comfyui
        return known.trained if known.trainer == self.program else ""


@dataclass
class Read:
    """What files with sd-scripts' keys say.

    `placed` are the stems that name a layer of the base, whichever program has it by this name; `with_core` those that
    have LyCORIS's Tucker core besides.
    """

    placed: list[str] = field(default_factory=list)
    without_alpha: list[str] = field(default_factory=list)
    with_core: list[str] = field(default_factory=list)
    components: dict[str, dict[str, LoadedLayer]] = field(default_factory=dict)
    written: dict[str, int] = field(default_factory=dict)
    arrived: dict[str, int] = field(default_factory=dict)

    @property
    def loaded(self) -> Loaded:
        """As a consumer has it."""
        return Loaded(self.components, self.written, self.arrived)


def read_kohya(folder: Path, files: Iterable[str], loads: Iterable[LoadCall], base: Base) -> Read | None:
    """Every layer of the files but those of zeros. None for tensors that are not plain LoRA's, and an unknown base.

    None, too, for keys of components that the base has no rules for (T5 beside FLUX).
    """
    known, read = kohya_of(base), Read()
    if known is None:
        return None
    for path in files:
        parts = _parts(tensors_of(folder / path))
        if parts is None:
            return None
        opened = _Opened(folder / path)
        for stem, keys in parts.items():
            component, name = component_of_stem(stem, base, known, path, loads)
            if not component and _PREFIX.match(stem):
                return None
            read.written[component] = read.written.get(component, 0) + len(keys)
            pieces = look_up(names(base, component), name) if component in base.models else None
            if pieces is None or not {"down", "up"} <= set(keys):
                continue
            read.placed.append(stem)
            if "alpha" not in keys:
                read.without_alpha.append(stem)
            if "mid" in keys:
                read.with_core.append(stem)
            tensors = {part: opened.read(key) for part, key in keys.items()}
            read.arrived[component] = read.arrived.get(component, 0) + len(tensors)
            read.components.setdefault(component, {}).update(_layers_of(tensors, pieces, base, component))
    return read


def component_of_stem(stem: str, base: Base, known: Kohya, path: str, loads: Iterable[LoadCall]) -> tuple[str, str]:
    """(the component of a stem, the rest of it); ("", stem) for one that begins as none does."""
    denoiser = _denoiser_of(path, base, loads).name
    for component, prefix in known.prefixes.items():
        if stem.startswith(f"{prefix}_"):
            is_denoiser = prefix == known.prefixes.get(denoiser)
            return denoiser if is_denoiser else component, stem.removeprefix(f"{prefix}_")
    return "", stem


def _denoiser_of(path: str, base: Base, loads: Iterable[LoadCall]) -> Component:
    """Of several, the one that the file's call is for, or else the one whose files end as this one's name does."""
    several = [each for each in base.family.components if each.name in base.models and "encoder" not in each.name]
    for load in loads:
        if load.weight_name == path:
            return next((each for each in several if load_call(base, each, path) == load), several[0])
    endings = {each: PurePosixPath(each.file).stem.removeprefix(PurePosixPath(WEIGHT_NAME).stem) for each in several}
    named = [each for each, ending in endings.items() if ending and PurePosixPath(path).stem.endswith(ending)]
    return named[0] if named else several[0]


def _parts(keys: Iterable[str]) -> dict[str, dict[str, str]] | None:
    """The keys of each stem by part; None if one is no part of plain LoRA."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        stem, _, suffix = key.partition(".")
        if suffix not in _PARTS:
            return None
        found.setdefault(stem, {})[_PARTS[suffix]] = key
    return found


class _Opened:
    """A safetensors file whose tensors are read one by one."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._file = safe_open(path, framework="pt")

    def read(self, key: str) -> torch.Tensor:
        """The tensor of a key that is there."""
        tensor: torch.Tensor = self._file.get_tensor(key)  # type: ignore[no-untyped-call]
        return tensor


def _layers_of(
    tensors: Mapping[str, torch.Tensor], pieces: tuple[Piece, ...], base: Base, component: str
) -> dict[str, LoadedLayer]:
    """What a stem does to each of its layers, less those whose factors are zeros."""
    down, up = tensors["down"], tensors["up"]
    rank = int(down.shape[0])
    scale = float(tensors["alpha"]) / rank if "alpha" in tensors and rank else 1.0
    dtype = NAMES.get(str(down.dtype).removeprefix("torch."), "")
    if "mid" in tensors:
        down, up = (factor.float() for factor in tucker(tensors["mid"], up.flatten(1), down.flatten(1)))
    layers = targets(base, component)
    found = {}
    for piece, a, b in _split(down, up.flatten(1), pieces):
        if bool(a.any()) or bool(b.any()):
            b = b.reshape(*b.shape, *[1] * (a.dim() - 2))
            delta = reshaped(LowRank(a, b, scale), layers[piece.module].shape[1:])
            assert isinstance(delta, LowRank)
            found[piece.module] = LoadedLayer(delta, True, False, (delta.a, delta.b), dtype)
    return found


def _split(
    a: torch.Tensor, b: torch.Tensor, pieces: tuple[Piece, ...]
) -> list[tuple[Piece, torch.Tensor, torch.Tensor]]:
    """(layer, A, B) of each part: its own rows of both, where B is block-diagonal, or else all of A.

    Among parts that share A, one whose rows of B are all zero was not adapted.
    """
    import torch

    rows = [torch.cat([b[start:stop] for start, stop in piece.rows]) if piece.rows else b for piece in pieces]
    count, rank = len(pieces), int(a.shape[0])
    if count == 1:
        return [(pieces[0], a, rows[0])]
    if rank % count == 0:
        size = rank // count
        blocks = [slice(number * size, (number + 1) * size) for number in range(count)]
        own = [part[:, block] for part, block in zip(rows, blocks, strict=True)]
        if sum(int(part.count_nonzero()) for part in own) == int(b.count_nonzero()):
            return [(piece, a[block], part) for piece, block, part in zip(pieces, blocks, own, strict=True)]
    return [(piece, a, part) for piece, part in zip(pieces, rows, strict=True) if bool(part.any())]
