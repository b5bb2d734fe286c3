"""Does a model with its real weights compute with the file what the source says, and without it what it did before?

Each adapted model is run on its own, on small inputs drawn from a seed (`inputs.py`), in float32: as it is, with the
source's changes (`source_effect.py`), with the file loaded by diffusers, with it switched off, on again, and unloaded.
Only where the base's weights lie in a local folder, and are few enough or a GPU has room for them; nothing is claimed
of what was not run. It shows what comparing weights cannot: DoRA on real weights, and that loading leaves no trace.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.errors import CheckpointError
from adapterline.families.base import Base
from adapterline.families.control import layers_for
from adapterline.families.skeleton import build_model, build_pipeline, quiet_libraries
from adapterline.parallel import each_value
from adapterline.validation import tolerances
from adapterline.validation.consumers.base import Loaded
from adapterline.validation.findings import Findings
from adapterline.validation.inputs import inputs_for
from adapterline.validation.source_effect import changed_by, rounded_otherwise
from adapterline.validation.weights import has_weights, load_model, parameters_of
from adapterline.values import FORWARD, Adapter, LoadCall

if TYPE_CHECKING:
    import torch

    from adapterline.validation.effect import Allowed

#: Of the adapted models in float32, in 1e9 bytes: what is run without a GPU. Stable Diffusion 1.5 with its text encoder
#: is just below it.
MOST_GB = 4.0
#: What a GPU has to have free, as a multiple of the same.
_ROOM = 1.3
_ADAPTER = "adapterline"

Outputs = Mapping[str, "torch.Tensor"]  # of each model, all in one row


def check_forward(
    findings: Findings,
    folder: Path,
    loads: Sequence[LoadCall],
    base: Base,
    adapter: Adapter | None,
    loaded: Loaded,
    allowed: Allowed,
) -> None:
    """Runs every component that `loaded` has layers for. What was not run is noted in `findings.not_run`, and why.

    `loads` are executed on the files in `folder`. Without `adapter` (the source) it shows that the file acts and that
    it goes without a trace, and no more. Never raises for a finding.
    """
    components = [name for name in base.models if loaded.components.get(name)]
    device = _device()
    if reason := _obstacle(base, components, loaded, device):
        findings.not_run[FORWARD] = reason
        return
    try:
        models = {name: load_model(base, name).to(device) for name in components}
    except Exception as error:  # whatever the libraries say of a base: the file is not to blame
        findings.not_run[FORWARD] = f"the base's weights cannot be loaded ({_said(error)})"
        return
    inputs = _inputs(models, device, findings.not_run)
    if not inputs:
        return
    with _exactly():
        runs = _run(folder, loads, base, models, inputs, adapter)
    findings.not_run.update({_of(name): reason for name, reason in runs.unable.items()})
    for name in [name for name in inputs if name not in runs.unable]:
        told = _judge(findings, name, runs)
        if told and adapter is not None and (why := _judge_effect(findings, name, runs, loaded, allowed)):
            findings.not_run[f"{_of(name)}, effect of the source"] = why


# --- may it be run? ---------------------------------------------------------------------------------------------------


def _obstacle(base: Base, components: Sequence[str], loaded: Loaded, device: str) -> str:
    """Why nothing is run; empty if it can be."""
    if loaded.error:
        return "the file does not load"
    layers = [layer for name in components for layer in loaded.components[name].values()]
    if without := [name for name in components if not has_weights(base, name)]:
        return f"no weights: the base has none of {', '.join(without)} in a local folder"
    if not layers or any(part.is_meta for layer in layers for part in layer.parts):
        return "not every layer has data"
    if any(loaded.norms.values()) or any(_widens(base, name, loaded) for name in components):
        return "the adapter changes the model itself: its first layer, or its norms"
    try:
        needed = 4 * parameters_of(base, components)
    except CheckpointError as error:
        return str(error)
    if device == "cpu":
        if needed > MOST_GB * 1e9:
            return f"{needed / 1e9:.1f} GB of weights in float32, and more than {MOST_GB:g} GB need a GPU"
    elif needed * _ROOM > (free := _free(device)):
        return f"{needed / 1e9:.1f} GB of weights in float32, and the GPU has {free / 1e9:.1f} GB free"
    return ""


def _widens(base: Base, component: str, loaded: Loaded) -> bool:
    """A control adapter, whose loader makes the model's first layer wider, whatever the pipeline is."""
    inputs = {module: layer.delta.shape[1] for module, layer in loaded.components[component].items()}
    return layers_for(base, component, inputs)[1] is not None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _free(device: str) -> int:
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def _inputs(models: Mapping[str, Any], device: str, not_run: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The inputs of each model that has some."""
    inputs = {}
    for name, model in models.items():
        kind = type(model).__name__
        try:
            made = inputs_for(model)
        except (AttributeError, TypeError, IndexError) as error:
            not_run[_of(name)] = f"no inputs can be made for this {kind} ({_said(error)})"
            continue
        if made is None:
            not_run[_of(name)] = f"what {kind} takes is not known"
        else:
            inputs[name] = _moved(made, device)
    return inputs


def _moved(value: Any, device: str) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: _moved(each, device) for name, each in value.items()}
    return [_moved(each, device) for each in value] if isinstance(value, list) else value


# --- running ----------------------------------------------------------------------------------------------------------


@dataclass
class _Runs:
    """What each model gave, twice where it has to be the same, and the digests of its weights before and after.

    `unable`: it does not run as it is. `untold`: it cannot be told what the source would do. `error`: what the loader,
    or a model with the file loaded, raised.
    """

    base: tuple[Outputs, Outputs] = field(default=({}, {}))
    source: Outputs = field(default_factory=dict)
    rounded: Outputs = field(default_factory=dict)  # the base, with other last bits in the adapted modules
    on: tuple[Outputs, Outputs] = field(default=({}, {}))
    off: Outputs = field(default_factory=dict)
    on_again: Outputs = field(default_factory=dict)
    unloaded: Outputs = field(default_factory=dict)
    before: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    after: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unable: dict[str, str] = field(default_factory=dict)
    untold: dict[str, str] = field(default_factory=dict)
    error: str = ""


def _run(
    folder: Path,
    loads: Sequence[LoadCall],
    base: Base,
    models: Mapping[str, Any],
    inputs: Mapping[str, Mapping[str, Any]],
    adapter: Adapter | None,
) -> _Runs:
    """Every state that the judgement needs, in the order in which a user would meet them."""
    runs = _Runs()
    first = _outputs(models, inputs, runs.unable)
    inputs = {name: inputs[name] for name in first}

    def outputs() -> Outputs:
        return _outputs(models, inputs)

    runs.base = first, outputs()
    runs.before = {name: _digests(model) for name, model in models.items()}
    if adapter is not None:
        _run_source(models, inputs, adapter, runs)
    try:
        with quiet_libraries():
            pipeline = _loaded(folder, loads, base, models)
            runs.on = outputs(), outputs()
            _call(pipeline, models, "disable_lora")
            runs.off = outputs()
            _call(pipeline, models, "enable_lora")
            runs.on_again = outputs()
            _call(pipeline, models, "unload_lora_weights", of_model="unload_lora")
            runs.unloaded = outputs()
    except Exception as error:  # whatever it is, the consumer would meet it too
        runs.error = _said(error)
    runs.after = {name: _digests(model) for name, model in models.items()}
    return runs


def _loaded(folder: Path, loads: Sequence[LoadCall], base: Base, models: Mapping[str, Any]) -> Any:
    """The pipeline around these models, with the file in them. The loaders call the denoiser, adapted or not."""
    denoiser = base.family.components[0].name
    parts = dict(models)
    if denoiser in base.models and denoiser not in parts:
        parts[denoiser] = build_model(base.models[denoiser])
    pipeline = build_pipeline(base, parts, base.pipeline)
    for load in loads:
        arguments = {"weight_name": load.weight_name, "adapter_name": _ADAPTER, **load.kwargs}
        attrgetter(load.method)(pipeline)(str(folder), **arguments)
    return pipeline


def _call(pipeline: Any, models: Mapping[str, Any], method: str, of_model: str = "") -> None:
    """The pipeline's method; aMUSEd's has none, there each model has its own."""
    if hasattr(pipeline, method):
        getattr(pipeline, method)()
        return
    for model in models.values():
        getattr(model, of_model or method)()


def _outputs(
    models: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]], unable: dict[str, str] | None = None
) -> Outputs:
    import torch

    found = {}
    for name, given in inputs.items():
        try:
            with torch.no_grad():
                rows = [tensor.float().flatten() for tensor in _tensors(models[name](**given))]
            found[name] = torch.cat(rows).cpu()
        except Exception as error:
            if unable is None:
                raise
            unable[name] = f"{type(models[name]).__name__} does not run on these inputs ({_said(error)})"
            continue
        if unable is not None and not bool(found[name].isfinite().all()):
            unable[name] = "the base's own output is not finite"
            del found[name]
    return found


def _tensors(output: Any) -> list[torch.Tensor]:
    """All floating point tensors of a model's output."""
    import torch

    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, Mapping) else output
    return [tensor for part in parts if part is not None for tensor in _tensors(part)]


def _run_source(
    models: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]], adapter: Adapter, runs: _Runs
) -> None:
    for name, given in inputs.items():
        deltas = adapter.components.get(name, {})
        try:
            with changed_by(models[name], deltas):
                runs.source = {**runs.source, **_outputs(models, {name: given})}
            with rounded_otherwise(models[name], deltas):
                runs.rounded = {**runs.rounded, **_outputs(models, {name: given})}
        except Exception as error:  # a form, a layer or an input that the hooks do not know
            runs.untold[name] = f"it cannot be told what the source would do ({_said(error)})"


def _digests(model: Any) -> dict[str, str]:
    """sha256 of each weight, by name."""
    import torch

    def digest(tensor: torch.Tensor) -> str:
        return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()

    return each_value(digest, model.state_dict())


@contextlib.contextmanager
def _exactly() -> Iterator[None]:
    """float32 is float32, also in a GPU's convolutions, and the same kernel each time."""
    import torch

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32 = False, True, False, False
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, matmul.allow_tf32 = before


# --- judging ----------------------------------------------------------------------------------------------------------


def _judge(findings: Findings, component: str, runs: _Runs) -> bool:
    """The checks of one component. False where nothing else can be told: its runs differ among themselves."""

    def check(name: str, passed: bool, observed: float | str, limit: float | str) -> bool:
        return findings.that(f"{FORWARD}: {name}", passed, observed=observed, limit=limit, component=component)

    def same(name: str, found: Outputs, wanted: Outputs) -> bool:
        off_by = _differing(found[component], wanted[component])
        return check(name, off_by == 0, f"{off_by} of {len(wanted[component])} values differ", "bit for bit")

    if not check("runs", not runs.error, runs.error or "no exception", "no exception"):
        return False
    base, on = runs.base[0], runs.on[0]
    repeated = sum(_differing(first[component], second[component]) for first, second in (runs.base, runs.on))
    if not check("the same twice", repeated == 0, f"{repeated} values differ", "bit for bit"):
        return False
    infinite = int((~on[component].isfinite()).sum())
    check("finite", infinite == 0, f"{infinite} of {len(on[component])} values are not", "0")
    acts = _differing(on[component], base[component])
    source = runs.source.get(component)
    if source is None or _differing(source, base[component]):
        check("on differs from off", acts > 0, f"{acts} of {len(on[component])} values", "at least 1")
    same("off is the base", runs.off, base)
    same("on again is on", runs.on_again, on)
    same("unloaded is the base", runs.unloaded, base)
    changed = _changed(runs.before[component], runs.after[component])
    check("weights after unloading", not changed, f"{len(changed)} of {len(runs.before[component])} changed", "0")
    return True


def _judge_effect(findings: Findings, component: str, runs: _Runs, loaded: Loaded, allowed: Allowed) -> str:
    """Is what the file does to the output what the source would do? Why that was not compared; empty if it was.

    |on - source| / |source - base|, with room for what rounding alone makes of this model's output. Where that is as
    large as the effect, only a difference that is larger still tells something.
    """
    if allowed.approximate is not None:
        return "an approximation was asked for"
    if component not in runs.source:
        return runs.untold.get(component, "")
    base, source = runs.base[0][component].double(), runs.source[component].double()
    error, effect = float((runs.on[0][component].double() - source).norm()), float((source - base).norm())
    rounding = tolerances.ROUNDINGS * float((runs.rounded[component].double() - base).norm())
    stored = {layer.dtype or "F32" for layer in loaded.components[component].values()}
    room = rounding + effect * max(tolerances.forward(dtype, dtype == allowed.dtype) for dtype in stored)
    if error <= room and room >= effect / 2:
        return "on these inputs it is lost in the rounding of float32"
    findings.that(
        f"{FORWARD}: effect of the source (relative)",
        error <= room,
        observed=error / effect if effect else math.inf,
        limit=float(f"{room / effect:.1e}") if effect else 0.0,
        component=component,
    )
    return ""


def _differing(found: torch.Tensor, wanted: torch.Tensor) -> int:
    """How many values have other bits."""
    import torch

    if found.shape != wanted.shape:
        return max(found.numel(), wanted.numel())
    return int((found.view(torch.int32) != wanted.view(torch.int32)).sum())


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _of(component: str) -> str:
    return f"{FORWARD} of {component}"


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")
