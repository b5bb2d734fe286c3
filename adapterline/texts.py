"""What the command line says to a person who did not ask for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapterline.families.aliases import shipped_for
from adapterline.package.card import snippets

if TYPE_CHECKING:
    from adapterline.audits import AuditReport
    from adapterline.checkup import Finding
    from adapterline.inspection import Inspection
    from adapterline.sweeps import SweepSummary
    from adapterline.values import Check, LineageRecord, Promotion, Pruned, Pruning, ValidationReport


def record_text(record: LineageRecord, base: str | None) -> str:
    """What became of an export, and the Python that loads it; `base` is what to load it onto."""
    manifest = record.manifest
    if manifest is None:
        return f"{record.outcome}: {record.checkpoint}"
    lines = [f"{record.outcome}: {manifest.name} {manifest.digest[:12]} ({manifest.family})"]
    for name, c in manifest.components.items():
        lines.append(f"  {name}: {c.adapter_type}, rank {c.rank}, alpha {c.alpha}, {c.modules} modules, {c.dtype}")
    lines.append(f"  {len(manifest.validation.checks)} checks passed")
    for publication in record.publications:
        lines.append(f"  {publication.url} (latest {publication.latest})")
    if record.publications:
        shipped = shipped_for(base) if base and not Path(base).is_dir() else None
        known = (shipped.model if shipped else base) or (
            manifest.base.model if manifest.base.model != "unknown" else None
        )
        first = record.publications[0]
        texts = snippets(manifest, first.load, known, first.revision)
        lines += ["", "\n\n# or, with PEFT:\n".join(texts)]
    return "\n".join(lines)


def inspection_text(found: Inspection) -> str:
    """What a checkpoint is. A dash stands for a rank or an alpha that the type does not have."""
    from adapterline.inspection.components import ALPHA_UNKNOWN

    keys = f"{found.dialect} keys" if found.dialect else "no keys"
    no_alpha = "unknown" if ALPHA_UNKNOWN in found.warnings else "-"
    lines = [
        f"{found.container}, {keys}, written by {found.trainer or 'an unknown trainer'}",
        f"family: {found.family or 'unknown'}" + (f" ({found.evidence[0]})" if found.evidence else ""),
    ]
    for name, c in found.components.items():
        rank = "-" if c.rank is None else c.rank
        alpha = no_alpha if c.alpha is None else c.alpha
        lines.append(f"  {name}: {c.adapter_type}, rank {rank}, alpha {alpha}, {c.modules} modules, {c.dtype}")
    for each in found.embeddings:
        encoder = f" of {each.encoder}" if each.encoder else ""
        lines.append(f"  embedding {each.token}{encoder}: {list(each.shape)}, {each.dtype}")
    guessed = f"not named; its architecture is that of {found.architecture}" if found.architecture else "not named"
    lines.append(f"base: {found.base or guessed}")
    lines.append(f"digest: {found.digest} ({found.size:,} bytes)")
    lines += [f"warning: {warning}" for warning in found.warnings]
    return "\n".join(lines)


def report_text(report: ValidationReport) -> str:
    """Every check, a line each; under what the files were loaded with, where that is more than one thing."""
    proven = "passed" if report.passed else "FAILED"
    what = "the effect is the checkpoint's" if report.source_digest else "it loads whole, finite and alive, and no more"
    lines = [f"{proven}: {what}" if report.passed else proven]
    consumers = list(dict.fromkeys(check.consumer for check in report.checks))
    several = len({consumer for consumer in consumers if consumer}) > 1
    for consumer in consumers:
        if several:
            lines.append(f"  {f'with {consumer}' if consumer else 'files'}")
        lines += [_check_line(check) for check in report.checks if check.consumer == consumer]
    lines += [f"  --     {name}: not run, {why}" for name, why in report.not_run.items()]
    return "\n".join(lines)


def sweep_text(summary: SweepSummary) -> str:
    """Every checkpoint a line, but for what was skipped, and the counts."""
    lines = []
    for item in summary.items:
        if item.outcome != "skipped":
            at = "" if item.step is None else f" step {item.step}"
            version = f" {item.name} {item.digest[:12]}" if item.digest else ""
            lines.append(f"  {item.outcome:<10} {item.checkpoint}{at}{version}" + (f": {item.why}" if item.why else ""))
    return "\n".join([summary.line(), *lines])


def audit_text(report: AuditReport) -> str:
    """The counts, and every version that is not whole a line."""
    lines = []
    for version in report.versions:
        if version.state != "whole":
            where = f"{version.name} {version.digest[:12]} at {version.destination}"
            lines.append(f"  {version.state:<10} {where}: {'; '.join(version.found)}")
    return "\n".join([report.line(), *lines])


def doctor_text(findings: Sequence[Finding]) -> str:
    """Every finding, a line each, and what to do."""
    lines = []
    for each in findings:
        lines.append(f"  {each.status:<8} {each.name}: {each.observed}")
        if each.remedy:
            lines.append(f"           {each.remedy}")
    return "\n".join(lines)


def _check_line(check: Check) -> str:
    where = f" [{check.component}]" if check.component else ""
    observed = f"{check.observed} (limit {check.limit})"
    return f"  {'ok    ' if check.passed else 'FAILED'} {check.name}{where}: {observed}"


def promotion_text(done: Promotion) -> str:
    """Where the alias points now, a line for each destination."""
    lines = [f"{done.name} {done.alias}: {done.digest[:12]}"]
    for move in done.moves:
        before = f"moved from {move.previous}" if move.previous else "new"
        lines.append(f"  {move.destination}  {'pointed there already' if move.outcome == 'kept' else before}")
    return "\n".join(lines)


def pruning_text(done: Pruning) -> str:
    """Every version or orphan, what becomes of it, and why."""
    lines, going = [], 0
    for each in done.destinations:
        rows = _rows(each)
        going += sum(fate == "goes" for _, fate, _ in rows)
        lines.append(f"{each.destination}" if rows else f"{each.destination}: nothing there")
        lines += [f"  {what}  {fate:8}{', '.join(reasons)}".rstrip() for what, fate, reasons in rows]
    if done.dry_run:
        lines.append(f"Nothing was deleted; --yes deletes {going}." if going else "There is nothing to delete.")
    return "\n".join(lines)


def _rows(pruned: Pruned) -> list[tuple[str, str, tuple[str, ...]]]:
    versions = ((f"{v.digest[:12]} {v.published_at:%Y-%m-%d %H:%M}", v.fate, v.reasons) for v in pruned.versions)
    return [*versions, *((f"{o.place} ({o.kind})", o.fate, o.reasons) for o in pruned.orphans)]
