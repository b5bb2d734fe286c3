"""The files that are proven, before any consumer sees them: which there are, of which layout, and how they load."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from adapterline.checkpoints.containers.peft_folder import read_config
from adapterline.digests import sha256_of_file
from adapterline.errors import CheckpointError
from adapterline.families.base import Base, load_call, peft_call
from adapterline.families.skeleton import Target, plain_name, targets
from adapterline.validation.embeddings import METHOD
from adapterline.validation.findings import Findings
from adapterline.values import WEIGHT_NAME, ExportedFile, LoadCall, Manifest, TensorInfo

MANIFEST_NAME = "manifest.json"
#: PEFT's names (peft.utils.constants): the configuration that makes a folder an adapter, and its weights.
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KOHYA = re.compile(r"lora_(unet|te\d?|prior_\w+|transformer)_|lycoris_")


@dataclass(frozen=True)
class LayoutFiles:
    """The files of one layout, relative to their folder, and the calls that load them."""

    layout: str
    files: tuple[str, ...]
    loads: tuple[LoadCall, ...]


@dataclass(frozen=True)
class Exhibit:
    """What is to be proven: files in `folder`, by layout, and the manifest that lies beside them, if one does."""

    folder: Path
    layouts: tuple[LayoutFiles, ...]
    manifest: Manifest | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """All files."""
        return tuple(path for layout in self.layouts for path in layout.files)


def by_layout(files: Iterable[ExportedFile], loads: Iterable[LoadCall]) -> tuple[LayoutFiles, ...]:
    """The weights of an export with their calls. Embeddings are loaded by calls of their own."""
    weights = [file for file in files if file.role != "embedding"]
    calls = [load for load in loads if load.method != METHOD]
    found = []
    for layout in dict.fromkeys(file.layout for file in weights):
        own = tuple(file.path for file in weights if file.layout == layout)
        found.append(LayoutFiles(layout, own, tuple(call for call in calls if any(map(call.loads, own)))))
    return tuple(found)


def exhibit_at(path: Path, base: Base) -> Exhibit:
    """What a file or a folder shows. CheckpointError if it has no adapter, or several that are not one export.

    A folder with a manifest shows all of its files. Elsewhere a file that has one of the names that its family's files
    have is proven with the others that lie beside it: an adapter of both of Wan's experts takes two. A folder with PEFT
    folders of several components shows all of them.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.", expected="a safetensors file, or a folder with one")
    folder = path if path.is_dir() else path.parent
    manifest = _manifest_in(folder)
    if manifest and (path.is_dir() or any(file.path == path.name for file in manifest.files)):
        layouts = by_layout(manifest.files, manifest.loads)
        if not path.is_dir():
            layouts = tuple(layout for layout in layouts if path.name in layout.files)
        return Exhibit(folder, layouts, manifest)
    if (folder / PEFT_CONFIG).is_file() and (path.is_dir() or path.name == PEFT_WEIGHTS):
        folder = folder.absolute()
        return Exhibit(folder.parent, (_peft([folder], base),))
    several = sorted(config.parent for config in path.glob(f"*/{PEFT_CONFIG}")) if path.is_dir() else []
    if several and not any(path.glob("*.safetensors")):
        return Exhibit(path, (_peft(several, base),))
    file = _one_in(path) if path.is_dir() else path
    if any(map(_KOHYA.match, tensors_of(file))):
        loads: tuple[LoadCall, ...] = (load_call(base, base.family.components[0], file.name),)
        return Exhibit(folder, (LayoutFiles("kohya", (file.name,), loads),))
    loads = _loads_of(file, base)
    return Exhibit(folder, (LayoutFiles("diffusers", tuple(load.weight_name for load in loads), loads),))


def check_digests(findings: Findings, folder: Path, files: Iterable[ExportedFile]) -> None:
    """Every file has the bytes that its manifest or its bundle says."""
    for file in files:
        path = folder / file.path
        digest = sha256_of_file(path) if path.is_file() else "no such file"
        findings.that(f"{file.path} has its digest", digest == file.sha256, observed=digest, limit=file.sha256)


def tensors_of(file: Path) -> dict[str, TensorInfo]:
    """What the safetensors library finds in a file, by key. CheckpointError if it does not read it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118  (not a dict)
            return {key: TensorInfo(str(part.get_dtype()), tuple(part.get_shape())) for key, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file.name} is not a valid safetensors file: {error}.") from error


def _manifest_in(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
    except (OSError, ValidationError):
        return None  # none, or another tool's


def _one_in(folder: Path) -> Path:
    found = [folder / WEIGHT_NAME] if (folder / WEIGHT_NAME).is_file() else sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise CheckpointError(
            f"{folder.name} has {len(found)} safetensors files ({names}).",
            expected=f"one, or {WEIGHT_NAME}, or a PEFT folder, or an export with its {MANIFEST_NAME}",
            remedy="Name the file.",
        )
    return found[0]


def _loads_of(file: Path, base: Base) -> tuple[LoadCall, ...]:
    """The calls that load this file, and those of its export that lie beside it."""
    calls = {component.file: load_call(base, component) for component in base.family.components if component.loads}
    if file.name not in calls:
        return (load_call(base, base.family.components[0], file.name),)
    return tuple(call for name, call in calls.items() if (file.parent / name).is_file())


def _peft(folders: list[Path], base: Base) -> LayoutFiles:
    """PEFT folders that lie side by side, each of one model. CheckpointError if two are of the same."""
    calls = {folder: peft_call(base, _component_of(folder, base), folder.name) for folder in folders}
    of = [call.attributes["model"] for call in calls.values()]
    if twice := {component for component in of if of.count(component) > 1}:
        raise CheckpointError(
            f"{folders[0].parent.name} has several adapters of {min(twice)}: {', '.join(f.name for f in folders)}.",
            expected="one for each component",
            remedy="Name the folder of one of them.",
        )
    files = tuple(f"{folder.name}/{name}" for folder in folders for name in (PEFT_CONFIG, PEFT_WEIGHTS))
    return LayoutFiles("peft", files, tuple(calls.values()))


def _component_of(folder: Path, base: Base) -> str:
    """The model that a PEFT folder is for: the one that its name says, else the one whose class its configuration says,
    else the one that its tensors fit. Where that leaves several, or none, the first of them: the proof shows the rest.
    """
    if folder.name in base.models:
        return folder.name
    mapping = read_config(folder / PEFT_CONFIG).get("auto_mapping")
    stated = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    of_class = [name for name, model in base.models.items() if model.model_class == stated]
    tensors = tensors_of(folder / PEFT_WEIGHTS)
    fitting = [name for name in of_class or base.models if _fit(tensors, targets(base, name))]
    return next(iter((*fitting, *of_class, *base.models)))


def _fit(tensors: Mapping[str, TensorInfo], layers: Mapping[str, Target]) -> bool:
    """Are the tensors of a PEFT file for layers that there are, with as many inputs and outputs?"""
    for key, tensor in tensors.items():
        if not (match := re.fullmatch(r"base_model\.model\.(.+?)\.((?:lora|lokr)_.+)", key)):
            continue
        if not (layer := layers.get(plain_name(match[1]))):
            return False
        ends = {
            "lora_A.weight": (tensor.shape[1:], layer.change[1:]),
            "lora_B.weight": (tensor.shape[:1], layer.change[:1]),
        }
        own, there = ends.get(match[2], ((), ()))
        if own != there:
            return False
    return True
