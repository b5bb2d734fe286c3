"""What it looks like: the same prompt and seed with the base and with the adapter, side by side.

Everything else is proven without a picture; this is for people, and it catches what no comparison of weights shows: a
base that renders nothing, numbers that overflow in the base's own dtype, an adapter that is not seen. The base's
weights are needed, all of them: from a local folder, or from the Hub where the base was named by its id.
"""

from __future__ import annotations

import gc
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.checkpoints.containers.safetensors import read_header
from adapterline.checkpoints.stated import hub_id
from adapterline.deltas import DTYPES
from adapterline.errors import FamilyError, MachineError, UsageError, from_os_error
from adapterline.families.base import Base
from adapterline.families.skeleton import quiet_libraries
from adapterline.validation.files import by_layout
from adapterline.validation.findings import Findings
from adapterline.validation.pictures import Picture, pictures_of, save_beside
from adapterline.validation.weights import weight_files
from adapterline.values import RENDER, Bundle, Check, ExportOptions, Gallery, LoadCall

if TYPE_CHECKING:
    import torch

ADAPTER_NAME = "adapterline"
#: In the class's name: it renders from an image, also where `image` has a default.
_NEEDS_IMAGE = ("Control", "Edit", "Fill", "Inpaint", "Img2Img", "ImageToVideo", "Layered", "VideoToVideo")
_MODEL_INDEX = "model_index.json"
#: Activations and the VAE take about as much again as the weights of a small pipeline, and little of a large one.
_ROOM = 1.1
_ROOM_BYTES = 4e9


@dataclass(frozen=True)
class Rendered:
    """The images, and what was checked of them."""

    gallery: Gallery
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """True if none failed."""
        return all(check.passed for check in self.checks)


def check_render(base: Base, spec: str, options: ExportOptions) -> None:
    """Can this base, which `spec` named, render what is asked for? Nothing is loaded for the answer.

    UsageError if its weights are nowhere; FamilyError if its pipeline renders no image from a prompt alone, or takes no
    such option.
    """
    if not options.render:
        return
    if set(options.layouts) == {"peft"}:
        raise UsageError("Only the layout peft is written.", expected="for --render, one that a pipeline loads")
    _call_arguments(base.pipeline, options)
    folder = _own_folder(base)
    if folder is None and not _is_on_hub(base, spec):
        raise UsageError(
            f"Images cannot be rendered: the base {Path(spec).name} is known by its configurations, without weights.",
            expected="a pipeline folder with the weights of all its models, or a Hub id",
            remedy="Pass --base with one of them, or leave --render out.",
        )
    if folder is not None and (without := _without_weights(folder)):
        raise UsageError(
            f"Images cannot be rendered: the base {folder.name} has no safetensors weights of {', '.join(without)}.",
            expected="a pipeline folder with the weights of all its models",
            remedy="Pass --base with such a folder or a Hub id, or leave --render out.",
        )


def render(bundle: Bundle, folder: Path, base: Base, spec: str, options: ExportOptions, out: Path) -> Rendered:
    """Every prompt of the options with the base and with the files in `folder`; the images go to `out`.

    Raises nothing for a finding: the checks tell. FamilyError if the base's pipeline cannot be opened, or refuses what
    was asked for; MachineError if the disk fails.
    """
    loads = _loads(bundle)
    for load in loads:
        _call_arguments(load.pipeline, options)
    files = _own_folder(base) or _fetched(base, spec)
    with _pipeline(base, files) as pipeline, quiet_libraries():
        before = [_pictures(pipeline, prompt, options) for prompt in options.render]
        _load(pipeline, folder, loads)
        after = [_pictures(pipeline, prompt, options) for prompt in options.render]
    findings, images = Findings("diffusers"), []
    for number, (prompt, plain, adapted) in enumerate(zip(options.render, before, after, strict=True), 1):
        _check(findings, number, prompt, plain, adapted)
        try:
            images.append(save_beside(plain, adapted, out, prompt, options.render_seed))
        except OSError as error:
            raise from_os_error(error, f"Writing an image to {out}") from error
    return Rendered(Gallery(out, tuple(images)), tuple(findings.checks))


# --- the pipeline -----------------------------------------------------------------------------------------------------


def _own_folder(base: Base) -> Path | None:
    """The base's folder, if it has weights at all: what comes with adapterline, or was fetched, has none."""
    folder = base.folder
    if folder is None or not (folder / _MODEL_INDEX).is_file():
        return None
    return folder if any(weight_files(folder / name) for name in base.models) else None


def _is_on_hub(base: Base, spec: str) -> bool:
    return base.model is not None and not Path(spec).is_dir() and hub_id(spec) is not None


def _without_weights(folder: Path) -> list[str]:
    """The models that the index names and that have no weights; schedulers and tokenizers have no config.json."""
    index = json.loads((folder / _MODEL_INDEX).read_text())
    named = [name for name, entry in index.items() if isinstance(entry, list) and entry and entry[0] is not None]
    absent = [name for name in named if not (folder / name).is_dir()]
    empty = [name for name in named if (folder / name / "config.json").is_file() and not weight_files(folder / name)]
    return absent + empty


def _fetched(base: Base, spec: str) -> Path:
    """The Hub's pipeline, in huggingface_hub's own cache."""
    import diffusers

    from adapterline.hub import hub_errors

    model, _, revision = spec.partition("@")
    with hub_errors(f"Fetching the weights of {model}", FamilyError), quiet_libraries():
        folder = diffusers.DiffusionPipeline.download(
            model, revision=base.revision or revision or None, use_safetensors=True, trust_remote_code=False
        )
    if without := _without_weights(Path(folder)):
        raise FamilyError(f"{model} has no safetensors weights of {', '.join(without)}.", expected="some of each model")
    return Path(folder)


@contextmanager
def _pipeline(base: Base, folder: Path) -> Iterator[Any]:
    """In the block, the base's pipeline from `folder`, in its stored dtype, where it fits."""
    import diffusers
    import torch

    cls = getattr(diffusers, base.pipeline)
    try:
        with quiet_libraries():
            pipeline = cls.from_pretrained(
                str(folder),
                dtype=stored_dtype(folder / base.family.components[0].name),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
    except Exception as error:  # whatever the libraries say of a base
        raise FamilyError(
            f"The base's {base.pipeline} cannot be opened: {_said(error)}.", expected="a whole pipeline"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    if torch.cuda.is_available():
        if fits(_bytes(pipeline), torch.cuda.mem_get_info()[0]):
            pipeline.to("cuda")
        else:
            pipeline.enable_model_cpu_offload()
    try:
        yield pipeline
    finally:
        del pipeline
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def stored_dtype(folder: Path) -> torch.dtype:
    """What most of a model's weights are stored as: float32, float16 or bfloat16; float32 for anything else."""
    import torch

    sizes: dict[str, int] = {}
    for file in weight_files(folder):
        for info in read_header(file)[0].values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + 1
    name = max(sizes, key=sizes.__getitem__, default="F32")
    return getattr(torch, DTYPES[name]) if name in ("F16", "BF16") else torch.float32


def fits(weights: float, free: float) -> bool:
    """Is there room on a GPU for all weights at once and what a forward adds? In bytes. If not, one model at a time."""
    return weights * _ROOM + _ROOM_BYTES <= free


def _bytes(pipeline: Any) -> int:
    import torch

    models = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return sum(tensor.numel() * tensor.element_size() for model in models for tensor in model.state_dict().values())


# --- rendering --------------------------------------------------------------------------------------------------------


def _loads(bundle: Bundle) -> tuple[LoadCall, ...]:
    """The calls of diffusers' own layout, else of another that diffusers loads; and those of the embeddings."""
    layouts = {each.layout: each.loads for each in by_layout(bundle.files, bundle.loads)}
    weights = [load for loads in layouts.values() for load in loads]
    usable = [loads for loads in (layouts.get("diffusers", ()), *layouts.values()) if loads]
    usable = [loads for loads in usable if all(load.library == "diffusers" for load in loads)]
    chosen = usable[0] if usable else ()
    return (*chosen, *(load for load in bundle.loads if load not in weights))


def _load(pipeline: Any, folder: Path, loads: Sequence[LoadCall]) -> None:
    """As the card says. Whatever it raises, the proof before would have met it: it is a bug then."""
    for load in loads:
        arguments: dict[str, Any] = {"weight_name": load.weight_name, **load.kwargs}
        if load.attributes:  # a token, which has no adapter's name
            arguments |= {name: attrgetter(attribute)(pipeline) for name, attribute in load.attributes.items()}
        else:
            arguments["adapter_name"] = ADAPTER_NAME
        attrgetter(load.method)(pipeline)(str(folder), **arguments)


def _call_arguments(pipeline: str, options: ExportOptions) -> dict[str, Any]:
    """What the pipeline is called with besides the prompt. FamilyError if it cannot be."""
    import diffusers

    cls = getattr(diffusers, pipeline)
    known: Mapping[str, inspect.Parameter] = (
        {} if issubclass(cls, diffusers.ModularPipeline) else inspect.signature(cls.__call__).parameters
    )
    needed = [name for name, p in known.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if (
        not {"prompt", "output_type", "generator"} <= set(known)
        or set(needed) - {"self", "prompt"}
        or any(part in pipeline for part in _NEEDS_IMAGE)
    ):
        raise FamilyError(
            f"{pipeline} renders no image from a prompt alone.",
            expected="a text-to-image or text-to-video pipeline",
            remedy="Leave --render out, or pass the --base of such a pipeline.",
        )
    wanted = {
        "num_inference_steps": options.render_steps,
        "width": options.render_width,
        "height": options.render_height,
        "num_frames": options.render_frames,
        "guidance_scale": options.render_guidance,
    }
    given = {name: value for name, value in wanted.items() if value is not None}
    if strange := sorted(set(given) - set(known)):
        raise FamilyError(f"{pipeline} takes no {', '.join(strange)}.", remedy="Leave the option out.")
    return given


def _pictures(pipeline: Any, prompt: str, options: ExportOptions) -> list[Picture]:
    import torch

    # On the CPU, so that the noise is the same on every machine.
    generator = torch.Generator("cpu").manual_seed(options.render_seed)
    arguments = _call_arguments(type(pipeline).__name__, options)
    try:
        with torch.no_grad():
            output = pipeline(prompt=prompt, generator=generator, output_type="np", **arguments)
    except torch.OutOfMemoryError as error:
        raise MachineError(
            f"The GPU has too little memory to render this: {_said(error)}.",
            remedy="Render smaller images with --render-width and --render-height, or on a larger GPU.",
        ) from error
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise FamilyError(
            f"{type(pipeline).__name__} cannot render this: {_said(error)}.",
            remedy="Change the options of --render, or leave it out.",
        ) from error
    return pictures_of(output)


# --- judging ----------------------------------------------------------------------------------------------------------


def _check(findings: Findings, number: int, prompt: str, plain: list[Picture], adapted: list[Picture]) -> None:
    """The three checks of an image, in numbers of its 8-bit pixels."""
    import numpy as np

    def check(what: str, passed: bool, observed: str, limit: str) -> bool:
        name = f"{RENDER}: image {number}, {what}"
        return findings.that(name, passed, observed=observed, limit=limit, detail=prompt)

    infinite = {name: sum(p.infinite for p in some) for name, some in (("base", plain), ("adapted", adapted))}
    told = ", ".join(f"{name} {count}" for name, count in infinite.items())
    check("finite", not any(infinite.values()), f"{told} values are not", "0")
    ranges = {
        name: (int(p.pixels.min()), int(p.pixels.max())) for name, p in (("base", plain[0]), ("adapted", adapted[0]))
    }
    check(
        "neither black nor of one colour",
        all(high >= 4 and high - low >= 2 for low, high in ranges.values()),
        ", ".join(f"{name} from {low} to {high}" for name, (low, high) in ranges.items()),
        "of 255, at least 4, and at least 2 apart",
    )
    pairs = list(zip(plain, adapted, strict=True))
    changes = [np.abs(a.pixels.astype(int) - b.pixels.astype(int)) for a, b in pairs]
    mean = float(np.mean([change.mean() for change in changes]))
    pixels = float(np.mean([change.any(axis=-1).mean() for change in changes]))
    check(
        "is not the base's",
        any(bool(change.any()) for change in changes),
        f"{pixels:.0%} of the pixels differ, by {mean:.2g} of 255 on average",
        "some",
    )


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300].rstrip('.')}".rstrip(": ")
