"""The proof: an exported file is loaded by its consumer's own code, and its effect is compared with the source's.

Nothing here knows how a file was made. The source is read through the dialects, the file through diffusers and the
safetensors library.
"""

from __future__ import annotations

import tempfile
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from adapterline.checkpoints import load_checkpoint, sha256_of
from adapterline.checkpoints.extract import extract
from adapterline.deltas import NAMES
from adapterline.errors import ValidationFailedError
from adapterline.families.base import Base
from adapterline.validation.consumers import CONSUMERS
from adapterline.validation.consumers.kohya import read_kohya
from adapterline.validation.consumers.versions import proven_by_table
from adapterline.validation.effect import Allowed, check_effect, check_norms
from adapterline.validation.embeddings import METHOD, check_embeddings, loads_beside
from adapterline.validation.files import Exhibit, LayoutFiles, by_layout, check_digests, exhibit_at
from adapterline.validation.findings import Findings
from adapterline.validation.forward import check_forward
from adapterline.validation.misfits import misfits
from adapterline.validation.structure import check_loaded
from adapterline.values import (
    Adapter,
    Bundle,
    Check,
    ExportOptions,
    Source,
    ValidationReport,
    digest_of,
)

#: Libraries whose version decides what a file does; with the digests they are the key of a cached report.
_DECISIVE = ("adapterline", "torch", "diffusers", "transformers", "peft", "safetensors")
#: Why a file has no proof at all.
_NOBODY = "no program whose rules are known has all of its layers by these keys"


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
    check_digests(findings, folder, bundle.files)
    adapter = extract(source, base, options)
    exhibit = Exhibit(folder, by_layout(bundle.files, bundle.loads))
    consumers = _prove(findings, exhibit, base, adapter, _allowed(options, own=True))
    loads = tuple(load for load in bundle.loads if load.method == METHOD)
    check_embeddings(findings, folder, loads, base, adapter.embeddings)
    consumers |= {load.weight_name: ("diffusers",) for load in loads}
    return ValidationReport(
        bundle_digest=bundle.digest,
        source_digest=source.digest,
        checks=tuple(findings.checks),
        not_run=findings.not_run,
        consumers=consumers,
        versions=tool_versions(),
    )


def validate_file(
    path: Path, base: Base, against: Source | None = None, options: ExportOptions | None = None
) -> ValidationReport:
    """The proof of a file or a folder, whoever wrote it. See `files.exhibit_at` for what is looked at.

    Without `against` it proves that it loads whole, finite and alive, and no more. Where a manifest lies beside it, its
    bytes must be those that it says. CheckpointError if it is no safetensors file.
    """
    options = options or ExportOptions()
    findings = Findings()
    exhibit = exhibit_at(path, base)
    if exhibit.manifest:
        shown = {load.weight_name for load in exhibit.manifest.loads} if path.is_dir() else set()
        files = [f for f in exhibit.manifest.files if f.path in {*exhibit.paths, *shown}]
        check_digests(findings, exhibit.folder, files)
    adapter = extract(against, base, options) if against else None
    consumers = _prove(findings, exhibit, base, adapter, _allowed(options, own=exhibit.manifest is not None))
    if adapter and adapter.embeddings:
        beside = loads_beside(exhibit.folder, base)
        check_embeddings(findings, exhibit.folder, beside, base, adapter.embeddings)
    return ValidationReport(
        bundle_digest=exhibit.manifest.digest if exhibit.manifest else _digest_of(exhibit),
        source_digest=against.digest if against else None,
        checks=tuple(findings.checks),
        not_run=findings.not_run,
        consumers=consumers,
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
    by = f" with {check.consumer}" if check.consumer else ""
    where = f" in {check.component}" if check.component else ""
    which = f" ({', '.join(check.modules[:3])}{', ...' if len(check.modules) > 3 else ''})" if check.modules else ""
    why = f": {check.detail}" if check.detail and check.detail not in check.modules else ""
    return f"{check.name}{by}{where}: {check.observed}, limit {check.limit}{which}{why}"


def _prove(
    findings: Findings, exhibit: Exhibit, base: Base, adapter: Adapter | None, allowed: Allowed
) -> dict[str, tuple[str, ...]]:
    """Loads each layout with everything that loads it; gives what each file was loaded with."""
    needed = set(adapter.components) if adapter else set()
    proven: dict[str, tuple[str, ...]] = {}
    for layout in exhibit.layouts:
        for consumer in CONSUMERS[layout.layout]:
            loaded = consumer.load(exhibit.folder, layout.files, layout.loads, base, needed)
            if loaded is None:
                continue
            shown = findings.by(consumer.name)
            # Only diffusers' converters make other tensors than the files have.
            one_to_one = consumer.name != "diffusers" or (allowed.own and layout.layout != "kohya")
            meant = None if one_to_one else partial(_meant, exhibit.folder, layout, base)
            check_loaded(shown, loaded, base, meant, partial(misfits, exhibit.folder, layout, base, loaded))
            if adapter is not None and not loaded.error:
                check_effect(shown, adapter, loaded, allowed)
                check_norms(shown, adapter, loaded)
            if layout.layout == consumer.name == "diffusers":
                check_forward(shown, exhibit.folder, layout.loads, base, adapter, loaded, allowed)
            proven |= {path: (*proven.get(path, ()), consumer.name) for path in layout.files}
        # Of what somebody else wrote, the kind is not known: the table was made with files of this tool.
        others = proven_by_table(exhibit.folder, layout, tool_versions()) if allowed.own else ()
        proven |= {path: (*proven[path], *others) for path in layout.files if path in proven}
        unread = [path for path in layout.files if path not in proven]
        if unread:
            findings.that(
                "something reads it", False, observed="nothing", limit="at least 1", detail=f"{unread[0]}: {_NOBODY}"
            )
    return proven


def _meant(folder: Path, layout: LayoutFiles, base: Base) -> dict[str, set[str]]:
    """The layers that the files of a layout have, as the dialects read them, or the rules of sd-scripts' keys."""
    if layout.layout == "kohya":
        read = read_kohya(folder, layout.files, layout.loads, base)
        if read and read.written == read.arrived:
            return {component: set(layers) for component, layers in read.components.items()}
    meant: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory(prefix="adapterline-") as work:
        for path in layout.files:
            source = load_checkpoint(str(folder / path), ExportOptions(), Path(work))
            for component, deltas in extract(source, base, ExportOptions()).components.items():
                meant.setdefault(component, set()).update(deltas)
    return meant


def _allowed(options: ExportOptions, own: bool) -> Allowed:
    return Allowed(NAMES[options.dtype] if options.dtype else None, options.approximate, own)


def _digest_of(exhibit: Exhibit) -> str:
    """A file's own; of several, of their paths and digests."""
    digests = [[path, sha256_of(exhibit.folder / path)] for path in exhibit.paths]
    return digests[0][1] if len(digests) == 1 else digest_of(digests)
