"""What a Python caller uses: `inspect`, `export`, `validate`, `promote` and `prune` of `adapterline`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from adapterline.checkpoints import fetch, load_checkpoint
from adapterline.errors import AdapterlineError, MachineError, UsageError
from adapterline.inspection import Inspection, inspect
from adapterline.values import ExportOptions, LineageRecord, Promotion, Pruning, TrainingRun, ValidationReport

__all__ = ["Inspection", "export", "inspect", "promote", "prune", "validate"]


def export(
    checkpoint: str,
    base: str | None = None,
    name: str | None = None,
    to: tuple[str, ...] = (),
    run: TrainingRun | None = None,
    options: ExportOptions | None = None,
) -> LineageRecord:
    """Runs the flow `export-adapter` in this process; see `flows.export.export_adapter`.

    It needs a Prefect API: the one of `PREFECT_API_URL`, or, without that, a temporary server that Prefect starts.
    MachineError if there is none to be had.
    """
    from flows.export import export_adapter

    try:
        return export_adapter(
            checkpoint=checkpoint, base=base, name=name, to=to, run=run, options=options or ExportOptions()
        )
    except AdapterlineError:
        raise
    except Exception as error:
        if _is_about_the_api(error):
            raise MachineError(
                f"The Prefect API cannot be used: {str(error).splitlines()[0][:200]}.",
                expected="a Prefect server",
                remedy="Check PREFECT_API_URL, or unset it to use a temporary server.",
                transient=True,
            ) from error
        raise


def validate(
    file: str, base: str, against: str | None = None, options: ExportOptions | None = None
) -> ValidationReport:
    """The proof alone, for a file that anybody wrote: a path, a folder, `s3://` or `hf://`.

    Without `against` (a checkpoint) it proves that the file loads whole, onto the right modules, finite and alive. With
    it, that the effect is the checkpoint's. Nothing is raised for a finding: look at `.passed` and `.checks`.
    """
    from adapterline.families.base import open_base
    from adapterline.request import check_base
    from adapterline.validation import validate_file

    options = options or ExportOptions()
    with tempfile.TemporaryDirectory(prefix="adapterline-") as folder:
        work = Path(folder)
        path = fetch(file, work / "file")
        source = load_checkpoint(against, options, work / "against") if against else None
        if source:
            check_base(base, source)
        return validate_file(path, open_base(base, work / "base"), source, options)


def promote(name: str, version: str, alias: str, to: Sequence[str], expect: str | None = None) -> Promotion:
    """Points `alias` of `name` to a version, at every destination; see `adapterline.retention.promote`.

    `version` is the beginning of its digest, 8 digits or more; `expect` that of what the alias has to point to now, or
    "none".
    """
    from adapterline import retention

    return retention.promote(name, version, alias, to, expect)


def prune(
    name: str,
    to: Sequence[str],
    *,
    keep_last: int | None = None,
    keep_aliases: Sequence[str] = (),
    older_than: timedelta | None = None,
    orphans: bool = False,
    yes: bool = False,
) -> Pruning:
    """Tells, and with `yes` deletes, the versions that nothing keeps; with `orphans` what interrupted runs left.

    See `adapterline.retention.prune` and `adapterline.retention.collect`. UsageError for versions if neither
    `keep_last` nor `older_than` is given; `older_than` is a day for orphans unless it is.
    """
    from adapterline import retention

    if not orphans:
        rules = retention.Rules(keep_last, older_than)
        return retention.prune(name, to, rules, keep_aliases=keep_aliases, yes=yes)
    if keep_last is not None or keep_aliases:
        raise UsageError(
            "--orphans collects what is no version, and --keep-last and --keep-alias are of versions.",
            expected="one or the other",
            remedy="Prune versions and collect orphans in two calls.",
        )
    return retention.collect(name, to, retention.ORPHAN_AGE if older_than is None else older_than, yes=yes)


def _is_about_the_api(error: BaseException | None) -> bool:
    import httpx

    while error is not None:
        if isinstance(error, httpx.TransportError | httpx.HTTPStatusError):
            return True
        if isinstance(error, RuntimeError) and ("ephemeral Prefect API" in str(error) or "reach API" in str(error)):
            return True
        error = error.__cause__
    return False
