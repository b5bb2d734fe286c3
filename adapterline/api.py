"""What a Python caller uses: `adapterline.inspect`, `adapterline.export`, `adapterline.validate`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from adapterline.checkpoints import fetch, load_checkpoint
from adapterline.errors import AdapterlineError, MachineError
from adapterline.inspection import Inspection, inspect
from adapterline.values import ExportOptions, LineageRecord, TrainingRun, ValidationReport

__all__ = ["Inspection", "export", "inspect", "validate"]


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


def _is_about_the_api(error: BaseException | None) -> bool:
    import httpx

    while error is not None:
        if isinstance(error, httpx.TransportError | httpx.HTTPStatusError):
            return True
        if isinstance(error, RuntimeError) and ("ephemeral Prefect API" in str(error) or "reach API" in str(error)):
            return True
        error = error.__cause__
    return False
