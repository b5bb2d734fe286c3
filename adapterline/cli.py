"""The command line. stdout has data alone; progress and errors go to stderr.

Exit codes are those of `adapterline.errors`: 0 done, 1 a bug, 2 usage, 3 refused, 4 validation failed, 5 destination,
6 this machine.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import App, CycloptsError, Parameter

from adapterline.dashboard.command import dashboard
from adapterline.errors import AdapterlineError, MachineError, UsageError, ValidationFailedError
from adapterline.lineage.commands import app as lineage
from adapterline.output import Json, Port
from adapterline.output import fail as _fail
from adapterline.output import print_document as _print
from adapterline.texts import inspection_text, promotion_text, pruning_text, record_text, report_text

if TYPE_CHECKING:
    from adapterline.values import ExportOptions

Made = TypeVar("Made")

app = App(
    name="adapterline",
    help="From a training checkpoint to a published, proven LoRA.",
    help_format="plaintext",
    version_flags=["--version"],
)
app.command(lineage)
app.command(dashboard)

Alpha = Annotated[float | None, Parameter(help="lora_alpha, for a checkpoint that does not say it.")]
AdapterConfig = Annotated[Path | None, Parameter(help="A PEFT adapter_config.json, for the same.")]
Components = Annotated[str | None, Parameter(help="Export these components alone, separated by commas.")]
Step = Annotated[int | None, Parameter(help="Which checkpoint-N of a training folder.")]
Weights = Annotated[Literal["raw", "ema"], Parameter(help="The trained weights, or their moving average (EMA).")]
MaxRank = Annotated[
    int | None, Parameter(help="The largest rank that a layer may need as a LoRA, where it was not trained as one.")
]
Approximate = Annotated[
    int | None, Parameter(help="Approximate the layers that need more by SVD, to this rank. Default: refuse them.")
]
DTypeName = Annotated[
    Literal["float32", "float16", "bfloat16"] | None, Parameter(name="--dtype", help="Round the factors to this dtype.")
]


def main() -> None:
    """The entry point: runs a command, and makes every error one paragraph and an exit code."""
    _quiet_libraries()
    try:
        try:
            _run(sys.argv[1:])
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads has read enough, as `head` does. What the interpreter flushes at its end goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _run(arguments: list[str]) -> None:
    wants_json = "--json" in arguments
    try:
        app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(UsageError(str(error).strip(), remedy="See adapterline --help."), wants_json)
    except AdapterlineError as error:
        _fail(error, wants_json)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)


@app.command
def export(
    checkpoint: str,
    *,
    base: str | None = None,
    to: Annotated[list[str] | None, Parameter(negative="")] = None,
    name: str | None = None,
    layout: str = "diffusers",
    dtype: DTypeName = None,
    scale: Literal["portable", "header"] = "portable",
    alpha: Alpha = None,
    adapter_config: AdapterConfig = None,
    components: Components = None,
    step: Step = None,
    weights: Weights = "raw",
    max_rank: MaxRank = None,
    approximate: Approximate = None,
    keep_form: Annotated[bool, Parameter(negative="")] = False,
    render: Annotated[list[str] | None, Parameter(negative="")] = None,
    render_seed: int | None = None,
    render_steps: int | None = None,
    render_width: int | None = None,
    render_height: int | None = None,
    render_frames: int | None = None,
    render_guidance: float | None = None,
    trigger: Annotated[list[str] | None, Parameter(negative="")] = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    keep_header: Annotated[list[str] | None, Parameter(negative="")] = None,
    base_model: str | None = None,
    run_id: str | None = None,
    signing_key: Path | None = None,
    signing_certificate: Path | None = None,
    signing_chain: Annotated[list[Path] | None, Parameter(negative="")] = None,
    hub_public: Annotated[bool, Parameter(negative="")] = False,
    hub_branch: str | None = None,
    hub_pr: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Export one adapter: read, convert, prove, publish.

    Parameters
    ----------
    checkpoint
        A file or folder, s3://bucket/key or hf://org/name[@revision][/path].
    base
        The architecture to prove on: a diffusers pipeline folder, a Hub id, or an alias (sd15, sdxl, flux-dev, ...).
        Default: what the checkpoint says.
    to
        Where to publish, as often as needed: a folder, s3://bucket/prefix, hf://org or hf://org/repo. Without it the
        run ends after the proof.
    name
        The name to publish under. Default: the checkpoint's.
    layout
        The layouts to write, separated by commas.
    scale
        portable: fold the scale into the factors; header: leave them alone and say it in the header.
    keep_form
        Write LoKr as LoKr, for FLUX.2 and Z-Image, whose loaders take it.
    render
        A prompt to render with the base and with the adapter, as often as needed. The base needs its weights: a folder
        that has them, or a Hub id.
    render_seed
        Of the noise, the same for both. Default: 0.
    render_steps
        Denoising steps. Default, as of the four below: the pipeline's own.
    render_width
        Pixels.
    render_height
        Pixels.
    render_frames
        Of a video.
    render_guidance
        The pipeline's guidance_scale.
    trigger
        A word that calls what was trained, for the card, as often as needed.
    license
        The Hub's identifier of the adapter's licence. Default: the base's, where it is known.
    license_name
        Of a license that is other.
    license_link
        Where its text is.
    keep_header
        A field of the checkpoint's header that is published as it is, as often as needed. Default: none.
    base_model
        What it was trained on, for card and lineage: a Hub id, with @revision if known.
    run_id
        The training run.
    signing_key
        A private key in PEM to sign with; its password, if it has one, is ADAPTERLINE_SIGNING_KEY_PASSWORD.
    signing_certificate
        The key's certificate.
    signing_chain
        A certificate that vouches for it, as often as needed.
    hub_public
        A Hub repository that has to be created is public.
    hub_branch
        Publish on this branch of the Hub repository instead of main.
    hub_pr
        Open a pull request to main instead of committing to it.
    dry_run
        End after the proof, whatever --to says.
    """
    from adapterline import api
    from adapterline.values import TrainingRun

    run = _made(TrainingRun, run_id=run_id, base_model=base_model) if run_id or base_model else None
    options = _options(
        layouts=_split(layout),
        dtype=dtype,
        scale=scale,
        alpha=alpha,
        adapter_config=str(adapter_config) if adapter_config else None,
        components=_split(components) if components else None,
        step=step,
        weights=weights,
        max_rank=max_rank,
        approximate=approximate,
        keep_form=keep_form,
        render=tuple(render) if render else None,
        render_seed=render_seed,
        render_steps=render_steps,
        render_width=render_width,
        render_height=render_height,
        render_frames=render_frames,
        render_guidance=render_guidance,
        trigger=tuple(trigger) if trigger else None,
        license=license,
        license_name=license_name,
        license_link=license_link,
        keep_header=tuple(keep_header) if keep_header else None,
    )
    _set(
        signing_key=str(signing_key) if signing_key else None,
        signing_certificate=str(signing_certificate) if signing_certificate else None,
        signing_chain=",".join(map(str, signing_chain)) if signing_chain else None,
    )
    _set(hub_private=False if hub_public else None, hub_branch=hub_branch, hub_pr=hub_pr or None)
    _prepare_prefect(show_steps=sys.stderr.isatty())
    record = api.export(
        checkpoint, base=base, name=name, to=() if dry_run else tuple(to or ()), run=run, options=options
    )
    _print(record.model_dump(mode="json"), lambda: record_text(record, base), json)


@app.command
def inspect(
    path: str,
    *,
    alpha: Alpha = None,
    adapter_config: AdapterConfig = None,
    step: Step = None,
    weights: Weights = "raw",
    json: Json = False,
) -> None:
    """Say what a checkpoint is, from its headers: nothing is loaded, nothing is written.

    Parameters
    ----------
    path
        A file or folder.
    """
    from adapterline.inspection import inspect as inspect_

    options = _options(
        alpha=alpha, adapter_config=str(adapter_config) if adapter_config else None, step=step, weights=weights
    )
    found = inspect_(path, options)
    _print(found.model_dump(mode="json"), lambda: inspection_text(found), json)


@app.command
def validate(
    file: str,
    *,
    base: str,
    against: str | None = None,
    alpha: Alpha = None,
    adapter_config: AdapterConfig = None,
    components: Components = None,
    step: Step = None,
    weights: Weights = "raw",
    max_rank: MaxRank = None,
    approximate: Approximate = None,
    dtype: DTypeName = None,
    public_key: Path | None = None,
    certificate_chain: Annotated[list[Path] | None, Parameter(negative="")] = None,
    require_signature: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Prove a LoRA file, whoever wrote it.

    Parameters
    ----------
    file
        A file or folder, s3://bucket/key or hf://org/name[@revision].
    base
        The architecture to prove on: a diffusers pipeline folder, a Hub id, or an alias (sd15, sdxl, flux-dev, ...).
    against
        The checkpoint whose effect it must have. Without it: loads whole, on the right modules, finite and alive.
    public_key
        Of the signer, to check the signature with: a PEM file.
    certificate_chain
        Certificates that vouch for the signer's, in PEM, as often as needed.
    require_signature
        Fail without a signature that could be checked.
    """
    from adapterline import api
    from adapterline.package.verification import Trust
    from adapterline.validation import describe

    options = _options(
        alpha=alpha,
        adapter_config=str(adapter_config) if adapter_config else None,
        components=_split(components) if components else None,
        step=step,
        weights=weights,
        max_rank=max_rank,
        approximate=approximate,
        dtype=dtype,
    )
    trust = Trust(public_key, tuple(certificate_chain or ()), require_signature)
    report = api.validate(file, base, against, options, trust)
    _print(report.model_dump(mode="json") | {"passed": report.passed}, lambda: report_text(report), json)
    if not report.passed:
        found = "; ".join(map(describe, report.failures))
        what = "does not do what was trained" if against else "does not load as it should"
        _fail(
            ValidationFailedError(f"{Path(file).name} {what}: {found}.", report=report, remedy="Do not publish it."),
            as_json=False,
        )


@app.command
def sweep(
    *roots: str,
    base: str | None = None,
    to: Annotated[list[str] | None, Parameter(negative="")] = None,
    steps: str = "final",
    layout: str = "diffusers",
    dtype: DTypeName = None,
    deployment: str | None = None,
    json: Json = False,
) -> None:
    """Export whatever is finished under the roots and not exported yet; what fails or is refused stops nothing.

    Parameters
    ----------
    roots
        Folders or s3://bucket/prefix; what lies directly in one is a training run each.
    base
        The architecture to prove on, where a run says none.
    to
        Where to publish, as often as needed.
    steps
        final, all or every:N.
    layout
        The layouts to write, separated by commas.
    deployment
        Export by runs of this deployment, export-adapter/on-completion, with its destinations.
    """
    from adapterline import api
    from adapterline.errors import SweepFailedError
    from adapterline.texts import sweep_text

    _prepare_prefect(show_steps=sys.stderr.isatty())
    options = _options(layouts=_split(layout), dtype=dtype)
    try:
        summary, failure = api.sweep(roots, tuple(to or ()), base, options, steps, deployment), None
    except SweepFailedError as error:
        summary, failure = error.summary, error
    _print(summary.model_dump(mode="json") | {"counts": summary.counts}, lambda: sweep_text(summary), json)
    if failure:
        _fail(failure, as_json=False)


@app.command
def audit(
    *names: str,
    to: Annotated[list[str] | None, Parameter(negative="")] = None,
    sample: int | None = None,
    base: str | None = None,
    public_key: Path | None = None,
    certificate_chain: Annotated[list[Path] | None, Parameter(negative="")] = None,
    require_signature: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Read again what is published, and compare it with what was published: bytes, record, signature, effect.

    Parameters
    ----------
    names
        Patterns of names, team-a-*. Default: all that the records know.
    to
        The destinations to look at, as often as needed. Default: all that the records know.
    sample
        How many versions to read besides those that an alias points to. Default: all.
    base
        Where the base is neither shipped nor on the Hub: a diffusers pipeline folder.
    public_key
        Of the signer, to check signatures with: a PEM file.
    certificate_chain
        Certificates that vouch for the signer's, in PEM, as often as needed.
    require_signature
        A version without a signature that could be checked has drifted.
    """
    from adapterline import api
    from adapterline.errors import AuditFailedError
    from adapterline.package.verification import Trust
    from adapterline.texts import audit_text

    _prepare_prefect(show_steps=sys.stderr.isatty())
    trust = Trust(public_key, tuple(certificate_chain or ()), require_signature)
    try:
        report, failure = api.audit(names, tuple(to or ()), sample=sample, base=base, trust=trust), None
    except AuditFailedError as error:
        report, failure = error.report, error
    _print(report.model_dump(mode="json") | {"counts": report.counts}, lambda: audit_text(report), json)
    if failure:
        _fail(failure, as_json=False)


@app.command
def notify(
    *,
    checkpoint: str,
    base: str | None = None,
    name: str | None = None,
    run_id: str | None = None,
    step: int | None = None,
    finished_at: datetime | None = None,
    base_model: str | None = None,
    dataset: str | None = None,
    code: str | None = None,
    trainer: str | None = None,
    json: Json = False,
) -> None:
    """Tell Prefect that a training run left a checkpoint: what a training script calls last.

    Parameters
    ----------
    checkpoint
        A path that the worker sees, s3://bucket/key or hf://org/name.
    base
        The architecture to prove on. Default: what the deployment or the checkpoint says.
    name
        The name to publish under. Default: the checkpoint's.
    run_id
        The training run.
    step
        The last one.
    finished_at
        When it ended, with a time zone or in UTC. Default: now.
    base_model
        What it was trained on: a Hub id, with @revision if known.
    dataset
        What it was trained with.
    code
        Repository and commit of the training code.
    trainer
        What trained it.
    """
    from adapterline import api
    from adapterline.values import TrainingRun

    if finished_at is not None and finished_at.tzinfo is None:
        finished_at = finished_at.replace(tzinfo=UTC)
    run = _made(
        TrainingRun,
        run_id=run_id,
        step=step,
        finished_at=finished_at,
        base_model=base_model,
        dataset=dataset,
        code=code,
        trainer=trainer,
    )
    event = api.notify(checkpoint, base=base, name=name, run=run)
    _print({"event": event}, lambda: f"told: event {event}", json)


@app.command
def listen(
    *,
    host: str = "127.0.0.1",
    port: Port = 8787,
    sqs: Annotated[list[str] | None, Parameter(negative="")] = None,
    sqs_sender: str | None = None,
) -> None:
    """Receive what platforms send when a training run ends, and tell Prefect: over HTTP, and from SQS queues.

    Parameters
    ----------
    host
        The address to listen at.
    port
        And the port.
    sqs
        The URL of a queue to consume, as often as needed.
    sqs_sender
        Whose messages the queues carry. Default: each message says it.
    """
    from adapterline import api

    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("adapterline").setLevel(logging.INFO)
    api.listen(host, port, sqs or (), sqs_sender)


@app.command
def doctor(*, to: Annotated[list[str] | None, Parameter(negative="")] = None, json: Json = False) -> None:
    """Try everything that an export needs here, and say what to do about what is missing.

    Parameters
    ----------
    to
        A destination to try, as often as needed. Nothing stays there.
    """
    from adapterline import api
    from adapterline.texts import doctor_text

    findings = api.doctor(tuple(to or ()))
    _print({"findings": [each.model_dump(mode="json") for each in findings]}, lambda: doctor_text(findings), json)
    if failed := [each.name for each in findings if each.status == "failed"]:
        _fail(MachineError(f"{', '.join(failed)}: not as needed.", remedy="See above."), as_json=False)


@app.command
def promote(
    name: str,
    version: str,
    *,
    alias: str,
    to: Annotated[list[str], Parameter(negative="")],
    expect: str | None = None,
    json: Json = False,
) -> None:
    """Point an alias to a published version, at every destination.

    Parameters
    ----------
    name
        What it was published under.
    version
        The first digits of its digest, 8 or more.
    alias
        What to move: production, staging, ... Also latest, whatever the order of the exports.
    to
        Where, as often as needed: a folder, s3://bucket/prefix, hf://org or hf://org/repo.
    expect
        Refuse unless it points to this version now (its first digits), or to nothing (none).
    """
    from adapterline import api

    done = api.promote(name, version, alias, to, expect)
    _print(done.model_dump(mode="json"), lambda: promotion_text(done), json)


@app.command
def prune(
    name: str,
    *,
    to: Annotated[list[str], Parameter(negative="")],
    keep_last: int | None = None,
    keep_alias: Annotated[list[str] | None, Parameter(negative="")] = None,
    older_than: str | None = None,
    orphans: Annotated[bool, Parameter(negative="")] = False,
    yes: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Say which versions would go and why the others stay; with --yes, delete them.

    What an alias points to stays, whatever else is said.

    Parameters
    ----------
    name
        What they were published under.
    to
        Where, as often as needed: a folder, s3://bucket/prefix, hf://org or hf://org/repo.
    keep_last
        Keep so many of the newest.
    keep_alias
        An alias that has to be there, as often as needed: without it nothing is deleted.
    older_than
        Keep what was published less than this ago: 30d, 36h. With --orphans: what was changed (default: 24h).
    orphans
        Instead of versions, what interrupted exports left.
    yes
        Delete.
    """
    from adapterline import api

    done = api.prune(
        name,
        to,
        keep_last=keep_last,
        keep_aliases=keep_alias or (),
        older_than=_time(older_than) if older_than is not None else None,
        orphans=orphans,
        yes=yes,
    )
    _print(done.model_dump(mode="json"), lambda: pruning_text(done), json)


@app.command
def demo(*, out: Path = Path("demo"), json: Json = False) -> None:
    """Train a tiny adapter with PEFT and send it down the whole line, offline.

    Parameters
    ----------
    out
        The folder to work in; what an earlier demo left there is replaced.
    """
    from adapterline.demo.run import run_demo

    run_demo(out, prepare=lambda: _prepare_prefect(show_steps=True), as_json=json)


def _options(**given: Any) -> ExportOptions:
    from adapterline.values import ExportOptions

    return _made(ExportOptions, **given)


def _made(kind: type[Made], **given: Any) -> Made:
    """A value from what was given; UsageError, in the option's words, if it cannot be."""
    from pydantic import ValidationError

    try:
        return kind(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        option = f"--{field.replace('_', '-')}" if field != "layouts" else "--layout"
        given_value = "" if first["input"] is None else f" {first['input']!r}"
        raise UsageError(f"{option}{given_value}: {first['msg'].removeprefix('Value error, ')}.") from error


def _set(**given: str | bool | None) -> None:
    """Settings of this process: how to publish is no property of an export, nor a parameter that an event may give."""
    from adapterline.settings import Settings

    for name, value in given.items():
        if value is not None:
            os.environ[f"ADAPTERLINE_{name.upper()}"] = str(value)
    Settings()


def _time(text: str) -> timedelta:
    if not (match := re.fullmatch(r"(\d{1,6})([dh])", text)):
        raise UsageError(f"--older-than {text!r} is no time.", expected="days or hours, as in 30d or 36h")
    return timedelta(days=int(match[1])) if match[2] == "d" else timedelta(hours=int(match[1]))


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


# --- how it speaks ----------------------------------------------------------------------------------------------------


class _Steps(logging.Handler):
    """Shows what the steps of the line say, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "adapterline_step", False):
            print(f"  {record.getMessage()}", file=sys.stderr, flush=True)


#: One, so that adding it again changes nothing.
_STEPS = _Steps()


def _prepare_prefect(show_steps: bool) -> None:
    """Prefect's own log lines stay out of the terminal; what the steps say goes there if somebody is watching."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    from prefect.logging.configuration import setup_logging

    setup_logging()
    if show_steps:
        for name in ("prefect.task_runs", "prefect.flow_runs"):
            logging.getLogger(name).addHandler(_STEPS)


def _quiet_libraries() -> None:
    """Advice of the libraries to whoever installed them; set the variables to see it."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


if __name__ == "__main__":
    main()
