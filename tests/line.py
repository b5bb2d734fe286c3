"""The line's steps without Prefect, for tests that look at one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.extract import extract
from adapterline.families.base import Base, read_base
from adapterline.layouts import convert
from adapterline.package.header import apply_header_policy
from adapterline.scratch import Scratch
from adapterline.serialize import serialize
from adapterline.validation import validate_bundle
from adapterline.values import Adapter, Bundle, ExportOptions, Plan, Source, ValidationReport


@dataclass(frozen=True)
class Exported:
    """What the line made of a checkpoint, up to the bundle."""

    source: Source
    base: Base
    adapter: Adapter
    plan: Plan
    bundle: Bundle
    folder: Path
    options: ExportOptions

    def report(self, folder: Path | None = None) -> ValidationReport:
        """The proof of the bundle as it lies in its folder, or in another one."""
        return validate_bundle(self.bundle, folder or self.folder, self.source, self.base, self.options)


def run_line(checkpoint: Path, base: Path, work: Path, options: ExportOptions | None = None) -> Exported:
    """Loads, extracts, converts and serializes."""
    options = options or ExportOptions()
    scratch = Scratch(work / "scratch", 10**9, 1e6)
    source = load_checkpoint(str(checkpoint), options, work)
    model = read_base(base)
    adapter = extract(source, model, options)
    plan = apply_header_policy(convert(adapter, model, options), source, options)
    bundle = serialize(plan, scratch)
    return Exported(source, model, adapter, plan, bundle, scratch.folder(bundle.digest), options)
