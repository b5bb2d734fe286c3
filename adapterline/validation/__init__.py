"""The proof: an exported file is loaded by its consumer's own code, and its effect is compared with the source's.

Nothing here knows how a file was made. The source is read through the dialects, the file through diffusers and the
safetensors library.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from adapterline.checkpoints import sha256_of
from adapterline.checkpoints.extract import extract
from adapterline.deltas import NAMES
from adapterline.errors import CheckpointError, ValidationFailedError
from adapterline.families.base import Base, component_of, load_call
from adapterline.families.norms import norm_weight
from adapterline.families.skeleton import plain_name
from adapterline.validation.consumer import load_into_skeleton
from adapterline.validation.effect import check_effect, check_norms
from adapterline.validation.embeddings import METHOD, check_embeddings, loads_beside
from adapterline.validation.findings import Findings
from adapterline.validation.structure import check_loaded
from adapterline.values import (
    Adapter,
    Bundle,
    Check,
    ExportOptions,
    LoadCall,
    Source,
    TensorInfo,
    ValidationReport,
)

#: Libraries whose version decides what a file does; with the digests they are the key of a cached report.
_DECISIVE = ("adapterline", "torch", "diffusers", "transformers", "peft", "safetensors")


def tool_versions() -> dict[str, str]:
    """Versions of this tool and of the libraries that a proof depends on, without local build tags."""
    versions = {}
    for name in _DECISIVE:
        try:
            versions[name] = version(name).partition("+")[0]
        except PackageNotFoundError:  # not installed, but imported from a checkout
            versions[name] = "unknown"
    return versions


def validate_bundle(
    bundle: Bundle, folder: Path, source: Source, base: Base, options: ExportOptions
) -> ValidationReport:
    """The whole proof of an export. Never raises for a finding: the report has every check."""
    findings = Findings()
    for file in bundle.files:
        digest = sha256_of(folder / file.path)
        findings.that(f"{file.path} has its digest", digest == file.sha256, observed=digest, limit=file.sha256)
    adapter = extract(source, base, options)
    for layout in dict.fromkeys(file.layout for file in bundle.files):
        own = {file.path for file in bundle.files if file.layout == layout and file.role != "embedding"}
        loads = tuple(load for load in bundle.loads if load.weight_name in own)
        _prove(findings, folder, loads, base, adapter, options)
    loads = tuple(load for load in bundle.loads if load.method == METHOD)
    check_embeddings(findings, folder, loads, base, adapter.embeddings)
    return ValidationReport(
        bundle_digest=bundle.digest,
        source_digest=source.digest,
        checks=tuple(findings.checks),
        versions=tool_versions(),
    )


def validate_file(
    file: Path, base: Base, against: Source | None = None, options: ExportOptions | None = None
) -> ValidationReport:
    """The proof of one file, whoever wrote it. Without `against` it proves that it loads whole, finite and alive alone.

    A file that has one of the names that its family's files have is proven with the others that lie beside it: an
    adapter of both of Wan's experts takes two. So are the embeddings in its folder, where the checkpoint has some.
    CheckpointError if it is no safetensors file.
    """
    options = options or ExportOptions()
    findings = Findings()
    adapter = extract(against, base, options) if against else None
    _prove(findings, file.parent, _loads_of(file, base), base, adapter, options)
    if adapter and adapter.embeddings:
        check_embeddings(findings, file.parent, loads_beside(file.parent, base), base, adapter.embeddings)
    return ValidationReport(
        bundle_digest=sha256_of(file),
        source_digest=against.digest if against else None,
        checks=tuple(findings.checks),
        versions=tool_versions(),
    )


def require(report: ValidationReport, name: str) -> None:
    """ValidationFailedError, naming every failed check, unless the report passed."""
    if report.passed:
        return
    raise ValidationFailedError(
        f"{name} does not do what was trained. {len(report.failures)} of {len(report.checks)} checks failed: "
        + "; ".join(map(describe, report.failures))
        + ".",
        report=report,
        remedy="Nothing was published.",
    )


def describe(check: Check) -> str:
    """One failed check in words."""
    where = f" in {check.component}" if check.component else ""
    which = f" ({', '.join(check.modules[:3])}{', ...' if len(check.modules) > 3 else ''})" if check.modules else ""
    why = f": {check.detail}" if check.detail and check.detail not in check.modules else ""
    return f"{check.name}{where}: {check.observed}, limit {check.limit}{which}{why}"


def _prove(
    findings: Findings,
    folder: Path,
    loads: tuple[LoadCall, ...],
    base: Base,
    adapter: Adapter | None,
    options: ExportOptions,
) -> None:
    written = _written(folder, loads, base)
    # The loaders call the denoiser, whether or not the file has anything for it.
    needed = {base.family.components[0].name, *written, *(adapter.components if adapter else ())}
    norms = {component: [key for key in tensors if norm_weight(key) == key] for component, tensors in written.items()}
    loaded = load_into_skeleton(folder, loads, base, tuple(name for name in base.models if name in needed), norms)
    stored = {component: _stored(tensors) for component, tensors in written.items()}
    loaded = loaded.without_padding(stored)
    check_loaded(findings, loaded, {component: len(tensors) for component, tensors in written.items()}, base)
    if adapter is not None and not loaded.error:
        requested = NAMES[options.dtype] if options.dtype else None
        check_effect(findings, adapter, loaded, stored, requested, options.approximate)
        check_norms(findings, adapter, loaded)


def _loads_of(file: Path, base: Base) -> tuple[LoadCall, ...]:
    """The calls that load this file, and those of its export that lie beside it."""
    calls = {component.file: load_call(base, component) for component in base.family.components}
    if file.name not in calls:
        return (load_call(base, base.family.components[0], file.name),)
    return tuple(call for name, call in calls.items() if (file.parent / name).is_file())


def _written(folder: Path, loads: tuple[LoadCall, ...], base: Base) -> dict[str, dict[str, TensorInfo]]:
    """The tensors of all files by the component that they are for, and by key without what stands for it there."""
    written: dict[str, dict[str, TensorInfo]] = {}
    for load in loads:
        for key, info in _tensors_of(folder / load.weight_name).items():
            written.setdefault(component_of(load, key, base.family), {})[key.partition(".")[2]] = info
    return written


def _tensors_of(file: Path) -> dict[str, TensorInfo]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118  (not a dict)
            return {key: TensorInfo(str(part.get_dtype()), tuple(part.get_shape())) for key, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file.name} is not a valid safetensors file: {error}.") from error


def _stored(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """How A of each module of a component is stored, or LoKr's right factor, by plain module name."""
    found = (re.fullmatch(r"(.+)\.(lora_A\.weight|lokr_w2|lokr_w2_a)", key) for key in tensors)
    return {plain_name(match[1]): tensors[match[0]] for match in found if match}
