"""What a request leaves open, decided: the name, the base, the destinations, and the order among exports of a name."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

from adapterline.checkpoints.evidence import Evidence, contradiction, evidence_of, guess
from adapterline.errors import FamilyError, UsageError
from adapterline.families.base import family_of
from adapterline.families.shipped import shipped
from adapterline.settings import Settings
from adapterline.values import Order, Source, TrainingRun, check_name, make_name

#: File and folder names that say nothing of what was trained: the folder around them does.
_GENERIC = re.compile(
    r"pytorch_lora_weights|adapter_model|model|lora|weights|checkpoint-\d+|out|output|final|unet|transformer"
)
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".tar.gz", ".tgz", ".tar")


def name_of(name: str | None, checkpoint: str) -> str:
    """The given name, or the checkpoint's file or folder stem made a name. UsageError if it cannot be used."""
    if not checkpoint.strip():
        raise UsageError(
            "No checkpoint was named.",
            expected="a path, s3://bucket/key or hf://org/name",
            remedy="Whoever sent the event has to say where the checkpoint is.",
        )
    if name is not None:
        return check_name(name)
    parts = [part for part in checkpoint.partition("://")[2].split("/") or [] if part] or [
        part for part in checkpoint.split("/") if part
    ]
    for part in reversed(parts):
        stem = next((part.removesuffix(suffix) for suffix in _SUFFIXES if part.endswith(suffix)), part)
        if not _GENERIC.fullmatch(stem):
            return make_name(stem)
    return make_name(parts[-1] if parts else "")


def base_of(base: str | None, source: Source, run: TrainingRun | None) -> str:
    """The base to prove on: what was asked for, else what the run or the checkpoint says.

    Where the checkpoint says the architecture alone, it is the folder of the shipped configuration that has all its
    layers: a folder, so that no model is recorded. FamilyError without any base, or if one of these contradicts
    another for certain.
    """
    evidence = evidence_of(source)
    stated = base or (run.base_model if run else None) or source.stated_base
    if stated is not None:
        check_base(stated, source, evidence)
        return stated
    if pair := contradiction(evidence):
        raise _contradiction(source, str(pair[0]), str(pair[1]))
    guessed = guess(evidence)
    folder = shipped(guessed.base) if guessed and guessed.base else None
    if folder is None:
        raise FamilyError(
            f"Nothing in {source.name} says which base it was trained on.",
            expected="a base model",
            remedy=f"Pass --base with {_CHOICES}.",
        )
    return str(folder)


def check_base(base: str, source: Source, evidence: tuple[Evidence, ...] | None = None) -> None:
    """FamilyError if what the checkpoint says of its base contradicts `base`, or itself, for certain.

    Which base of a family it is, and one whose family is not known before it is opened, is for the layers to decide.
    """
    evidence = evidence_of(source) if evidence is None else evidence
    if pair := contradiction(evidence):
        raise _contradiction(source, str(pair[0]), str(pair[1]))
    family = family_of(base)
    for each in evidence:
        if family is not None and each.families and family.name not in each.families:
            raise _contradiction(source, str(each), f"the base {Path(base).name} is of {family.title}")


_CHOICES = "a diffusers pipeline folder, a Hub id, or an alias such as sd15"


def _contradiction(source: Source, one: str, other: str) -> FamilyError:
    return FamilyError(
        f"{source.name} contradicts itself or its base: {one}, and {other}.",
        expected="an adapter of the base that it was trained on",
        remedy="Pass the --base that it was trained on. If a card or a configuration beside the weights is wrong, name "
        "the file of the weights alone.",
    )


def check_allowed(checkpoint: str, name: str, settings: Settings) -> None:
    """UsageError unless the settings allow this checkpoint and this name; without settings, everything is allowed.

    A deployment that events start sets them: whoever may send an event may otherwise have any file read, and move the
    `latest` of another team.
    """
    if settings.allowed_roots and not any(_is_under(checkpoint, root) for root in settings.allowed_roots):
        raise UsageError(
            f"The checkpoint {checkpoint} lies outside of what may be exported here.",
            expected=f"one under {', '.join(settings.allowed_roots)} (ADAPTERLINE_ALLOWED_ROOTS)",
            remedy="Put it there, or have whoever owns the deployment allow its place.",
        )
    if settings.allowed_names and not any(fnmatchcase(name, pattern) for pattern in settings.allowed_names):
        raise UsageError(
            f"The name {name} may not be published from here.",
            expected=f"one like {', '.join(settings.allowed_names)} (ADAPTERLINE_ALLOWED_NAMES)",
            remedy="Choose another name, or have whoever owns the deployment allow it.",
        )


def _is_under(uri: str, root: str) -> bool:
    """By whole parts of the path. Of folders what they really are counts, whatever links and dots say."""
    if ("://" in uri and not uri.startswith("file://")) or "://" in root:
        parts = uri.rstrip("/").split("/")
        inside = f"{uri.rstrip('/')}/".startswith(f"{root.rstrip('/')}/")
        return inside and ".." not in parts and "." not in parts
    path = Path(uri.removeprefix("file://")).expanduser().resolve()
    return path.is_relative_to(Path(root).expanduser().resolve())


def check_destinations(to: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Every destination once. UsageError for one that cannot be, before anything is read."""
    from adapterline.destinations import open_destination

    for uri in to:
        if not uri.strip():
            raise UsageError("An empty destination was given.", expected="a folder, s3://bucket/prefix or hf://org")
        open_destination(uri, name)
    return tuple(dict.fromkeys(to))


def order_of(source: Source, run: TrainingRun | None) -> Order:
    """When and where in training it was made; without a run, when the checkpoint was last written."""
    step = run.step if run and run.step is not None else source.step
    return Order(
        finished_at=(run.finished_at if run else None) or source.modified_at,
        step=-1 if step is None else step,
        run_id=(run.run_id if run else None) or "",
    )
