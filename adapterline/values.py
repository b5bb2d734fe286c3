"""The values of the line, in the order in which they come into being.

    ExportOptions, TrainingRun            what is asked for
    Source -> Adapter -> Plan             tensors, in one process, memory-mapped (dataclasses)
    Bundle -> Manifest -> Package         files and digests (pydantic: they cross steps, runs and machines)
    Receipt -> Publication -> LineageRecord

All are frozen. A digest is a lower-case hexadecimal sha256 unless it says otherwise.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from adapterline.errors import UsageError

if TYPE_CHECKING:
    import torch

    from adapterline.deltas import Delta

#: Part of every cache key and of the manifest's tools: raised when equal input may give other bytes or another verdict.
FORMAT_VERSION = 2
MANIFEST_SCHEMA: Final = "adapterline/manifest/v1"
RECORD_SCHEMA: Final = "adapterline/record/v1"
#: The file name that `load_lora_weights` looks for first (diffusers.loaders.lora_base.LORA_WEIGHT_NAME_SAFE).
WEIGHT_NAME = "pytorch_lora_weights.safetensors"

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,95}")


def check_name(name: str) -> str:
    """`name`, if it can be a folder, a key prefix and a Hub repository; UsageError otherwise."""
    if not NAME_PATTERN.fullmatch(name) or name.endswith((".lock", ".git")) or ".." in name or "--" in name:
        raise UsageError(
            f"The name {name!r} cannot be used.",
            expected="[a-z0-9][a-z0-9._-]{0,95}, without '..' or '--' and not ending in .git (the Hub's rule)",
            remedy="Pass another --name.",
        )
    return name


def make_name(stem: str) -> str:
    """A valid name from a file or folder name. UsageError if nothing of it can be kept."""
    kept = re.sub(r"[^a-z0-9._-]+", "-", stem.lower())
    kept = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", kept)).strip("-._")[:96].rstrip("-._")
    return check_name(kept)


def slug(name: str) -> str:
    """The Prefect artifact key of a name: made [a-z0-9-], and 6 hex digits of its sha256 so that two never meet."""
    return f"{re.sub(r'[^a-z0-9]+', '-', name).strip('-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def digest_of(rows: list[Any]) -> str:
    """sha256 of the compact UTF-8 JSON of the sorted rows: how a source and a bundle are identified."""
    text = json.dumps(sorted(rows), separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Indented, sorted, UTF-8, one newline at the end: the one form in which adapterline publishes JSON."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


class Value(BaseModel):
    """Frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


def _is_digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("a sha256 is 64 lower-case hexadecimal digits")
    return text


Sha256 = Annotated[str, AfterValidator(_is_digest), Field(json_schema_extra={"pattern": "^[0-9a-f]{64}$"})]
Layout = Literal["diffusers"]
DType = Literal["float32", "float16", "bfloat16"]
ScaleMode = Literal["portable", "header"]


# --- what is asked for ------------------------------------------------------------------------------------------------


class ExportOptions(Value):
    """What a user may decide about an export. The defaults are what a nightly run wants."""

    layouts: tuple[Layout, ...] = Field(("diffusers",), min_length=1, description="layouts to write")
    dtype: DType | None = Field(None, description="dtype of the factors; None keeps each tensor's own")
    scale: ScaleMode = Field("portable", description="fold the scale into the factors, or say it in the header")
    alpha: float | None = Field(None, gt=0, description="lora_alpha, for a checkpoint that does not say it")
    adapter_config: str | None = Field(None, description="path of a PEFT adapter_config.json, for the same")
    components: tuple[str, ...] | None = Field(None, min_length=1, description="export these alone; None: all")
    step: int | None = Field(None, ge=0, description="which checkpoint-N of a training folder; None: the final file")
    weights: Literal["raw", "ema"] = Field("raw", description="the trained weights, or their moving average")
    keep_form: bool = Field(False, description="write LoKr as LoKr, where diffusers loads it: FLUX.2 and Z-Image")
    max_rank: int = Field(256, ge=1, description="the largest rank that LoHa, LoKr and the like may need as a LoRA")
    approximate: int | None = Field(
        None, ge=1, description="the rank to which layers that need more are approximated, by SVD; None: none are"
    )


class TrainingRun(Value):
    """The run that left the checkpoint, as its event or its descriptor tells it. Every field may be unknown."""

    run_id: str | None = Field(None, max_length=200)
    finished_at: AwareDatetime | None = None
    step: int | None = Field(None, ge=0)
    base_model: str | None = Field(
        None,
        max_length=300,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9._/-]+)?$",
        description="what it was trained on: a Hub id, with @revision if known",
    )
    dataset: str | None = None
    code: str | None = Field(None, description="repository and commit of the training code")
    trainer: str | None = None
    parents: tuple[str, ...] = Field((), description="digests or run ids that it was resumed from")


# --- load, extract, convert -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorInfo:
    """What a container says of a tensor without reading it."""

    dtype: str  # as safetensors spells it: F32, BF16, ...
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StoredEmbedding:
    """What was trained for a new token, as a checkpoint has it: a vector, or [n, width] of them.

    `encoder` is what the checkpoint calls the text encoder (clip_l, clip_g, t5), its number among those of the pipeline
    ("0"), or "" where it says neither. `info` is of what `read` gives; `where` names file and key.
    """

    token: str
    encoder: str
    info: TensorInfo
    read: Callable[[], torch.Tensor]
    where: str


@dataclass(frozen=True)
class Source:
    """A checkpoint whose files are hashed and whose dialect is known; its tensors are read when asked for.

    `tensors` holds the keys after wrappers (`module.`, `_orig_mod.`) were peeled. `read(key)` gives a tensor that is
    memory-mapped where the container allows it; `scalar(key)` the value of one of one element, without torch where the
    file is safetensors. `configs` has a PEFT configuration by component prefix ("" for the
    whole file). `digest` covers every file that the container reads, by its path relative to `root`.
    """

    uri: str
    path: Path  # where it lies on this machine
    root: Path
    files: tuple[tuple[str, str], ...]  # (path relative to root, sha256), sorted
    digest: str
    modified_at: datetime
    container: str
    dialect: str
    tensors: Mapping[str, TensorInfo]
    read: Callable[[str], torch.Tensor]
    scalar: Callable[[str], float]
    header: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stated_base: str | None = None  # a Hub id that the checkpoint names; never a path
    step: int | None = None
    embeddings: tuple[StoredEmbedding, ...] = ()

    @property
    def name(self) -> str:
        """The last part of its URI: what may be said of it in public."""
        return self.uri.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class Embedding:
    """A new token of a text encoder: rows of its input embedding, [n, width].

    A prompt calls it by `token`; of several rows the further ones are `token_1`, `token_2`, ... (diffusers' names).
    `trained_as` is what the trainer called it, where that is something else.
    """

    token: str
    component: str
    vectors: torch.Tensor
    trained_as: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What each row is called in the tokenizer."""
        return (self.token, *(f"{self.token}_{row}" for row in range(1, len(self.vectors))))


@dataclass(frozen=True)
class Adapter:
    """What was trained: for each adapted module the change of its weight.

    Module names are those of the model class without `text_model.`, which transformers 5 dropped from `CLIPTextModel`
    alone. `left_out` are components that the user excluded by name. `norms` are whole weights of norms, by component
    and the model's own name, that take the place of the base's.
    """

    family: str
    components: Mapping[str, Mapping[str, Delta]]
    evidence: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    pipeline: str | None = None  # the class that it takes, where that is not the base's own
    embeddings: tuple[Embedding, ...] = ()
    norms: Mapping[str, Mapping[str, torch.Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorPlan:
    """One tensor to be written: made when its turn comes, so that one at a time lies in memory."""

    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]


class LoadCall(Value):
    """One call that loads an exported file: what the validator executes, and the card and the CLI print."""

    pipeline: str = Field(description="a diffusers pipeline class")
    method: str = Field(description="its method")
    weight_name: str
    kwargs: dict[str, str | int | float | bool] = {}
    attributes: dict[str, str] = Field(
        {}, description="arguments that are the pipeline's own: `text_encoder` -> the name of its attribute"
    )


@dataclass(frozen=True)
class FilePlan:
    """One file to be written: tensors with a safetensors header, in no particular order."""

    role: str
    layout: str
    path: str
    tensors: Mapping[str, TensorPlan]
    header: Mapping[str, str]


@dataclass(frozen=True)
class Plan:
    """All files of an export, the calls that load them, and what was done to the factors, in order."""

    files: tuple[FilePlan, ...]
    loads: tuple[LoadCall, ...]
    transforms: tuple[Transform, ...]


class Transform(Value):
    """Something that was done between the checkpoint and the file."""

    kind: str = Field(description="what: fold-scale, store-fp32, cast, rename, ...")
    detail: str
    component: str | None = None
    modules: tuple[str, ...] = Field((), description="the modules it applies to; empty: all of the component")
    errors: dict[str, float] = Field({}, description="relative error of the weight's change by module, if it made one")


# --- serialize, validate ----------------------------------------------------------------------------------------------


class ExportedFile(Value):
    """A file of the bundle. Its bytes are the export."""

    role: str = Field(description="weights, embedding, or config")
    layout: str
    path: str = Field(description="relative to the publication")
    size: int = Field(ge=0, description="bytes")
    sha256: Sha256
    tensors_sha256: Sha256 = Field(description="sha256 of the tensor bytes alone, after the header")


class Bundle(Value):
    """The files of an export as they lie in the scratch folder, and how to load them."""

    files: tuple[ExportedFile, ...]
    loads: tuple[LoadCall, ...]
    transforms: tuple[Transform, ...]
    digest: Sha256

    @staticmethod
    def digest_of(files: tuple[ExportedFile, ...]) -> str:
        """The identity of an export: of [role, layout, path, sha256] of every file. Card and manifest do not count."""
        return digest_of([[file.role, file.layout, file.path, file.sha256] for file in files])

    @property
    def sha12(self) -> str:
        """A name for the bundle. Where it decides something, the full digest is compared."""
        return self.digest[:12]


class Check(Value):
    """One thing that was checked, over all modules of a component."""

    name: str
    component: str | None = None
    observed: float | str
    limit: float | str
    passed: bool
    modules: tuple[str, ...] = Field((), description="the modules that failed")
    detail: str = ""


class ValidationReport(Value):
    """Every check, also those that passed."""

    bundle_digest: Sha256
    source_digest: Sha256 | None = None
    checks: tuple[Check, ...]
    versions: dict[str, str] = {}

    @property
    def passed(self) -> bool:
        """True if there was a check and none failed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if not check.passed)


# --- package, publish, record -----------------------------------------------------------------------------------------


class ComponentSummary(Value):
    """One component of an adapter, in numbers."""

    rank: int | list[int] = Field(description="one number, or every rank that occurs, sorted")
    alpha: float | list[float] = Field(description="rank x scale: one number, or every value that occurs")
    modules: int
    adapter_type: str = Field(description="lora, dora, loha, lokr or full as trained, with +bias for biases")
    dtype: str | list[str]
    parameters: int


class SourceSummary(Value):
    """What is said in public of the checkpoint: no path, no host."""

    name: str
    digest: Sha256
    container: str
    dialect: str
    step: int | None = None


class BaseSummary(Value):
    """The base: the architecture that it was proven on, and the model that it was trained on."""

    architecture: str = Field(description="sha256 of the component configs that it was proven on")
    pipeline: str
    model: str = Field("unknown", description="Hub id, or unknown")
    revision: str = Field("unknown", description="commit, tag or branch, or unknown")


class Manifest(Value):
    """What an export is: immutable, and the same bytes at every destination.

    It holds nothing that varies between runs on equal input and no private path.
    """

    model_config = ConfigDict(title=MANIFEST_SCHEMA, validate_by_name=True, serialize_by_alias=True)

    schema_: Literal["adapterline/manifest/v1"] = Field(MANIFEST_SCHEMA, alias="schema")
    name: str
    digest: Sha256 = Field(description="the bundle's digest")
    family: str
    source: SourceSummary
    training_run: TrainingRun | None
    base: BaseSummary
    files: tuple[ExportedFile, ...]
    components: dict[str, ComponentSummary]
    transforms: tuple[Transform, ...]
    left_out: tuple[str, ...]
    validation: ValidationReport
    loads: tuple[LoadCall, ...]
    consumers: dict[str, tuple[str, ...]] = Field(description="path of a file -> what it is proven for")
    tools: dict[str, str]

    def to_bytes(self) -> bytes:
        """The bytes that are published."""
        return canonical_json(self.model_dump(mode="json"))


class PackagedFile(Value):
    """A file that is published: of the bundle, or the card."""

    path: str
    size: int
    sha256: Sha256


@dataclass(frozen=True)
class Package:
    """What every destination gets: `files` lie in `folder` under their `path`; the manifest is the commit marker."""

    manifest: Manifest
    manifest_bytes: bytes
    folder: Path
    files: tuple[PackagedFile, ...]

    @property
    def name(self) -> str:
        """The name it is published under."""
        return self.manifest.name

    @property
    def sha12(self) -> str:
        """The name of its version."""
        return self.manifest.digest[:12]


class Order(Value):
    """What decides between two exports of a name which of them `latest` is: the later training run."""

    finished_at: AwareDatetime
    step: int = -1
    run_id: str = ""

    def key(self) -> tuple[datetime, int, str]:
        """Sorts from the oldest to the newest."""
        return self.finished_at, self.step, self.run_id


class Latest(Value):
    """The content of `latest.json`."""

    name: str
    digest: Sha256
    sha12: str
    manifest_sha256: Sha256
    order: Order


class Receipt(Value):
    """A package lies at a destination, read back with the right digests, and nobody sees it yet."""

    destination: str
    name: str
    digest: Sha256
    location: str
    manifest_sha256: Sha256 = Field(description="of the manifest that counts there: the first one wins")
    files: tuple[PackagedFile, ...]
    published: bool = Field(description="it was already visible before this run")
    token: str = Field("", description="what the destination needs to find its staging again")


class Publication(Value):
    """A package is visible at a destination."""

    receipt: Receipt
    latest: Literal["moved", "kept"] = Field(description="kept: what `latest` points to is newer")
    url: str
    load: str = Field(description="what to pass to load_lora_weights")


class FlowRun(Value):
    """The Prefect run that did it."""

    id: str
    name: str
    url: str | None = None


class LineageRecord(Value):
    """One export, refusal or failure: a JSON file in the record store."""

    model_config = ConfigDict(title=RECORD_SCHEMA, validate_by_name=True, serialize_by_alias=True)

    schema_: Literal["adapterline/record/v1"] = Field(RECORD_SCHEMA, alias="schema")
    id: str
    key: str = Field(description="of the request: equal keys ask for equal bytes at equal places")
    outcome: Literal["exported", "already-exported", "validated", "refused", "failed"]
    started_at: AwareDatetime
    ended_at: AwareDatetime
    checkpoint: str
    name: str | None
    to: tuple[str, ...]
    options: ExportOptions
    run: TrainingRun | None = None
    flow_run: FlowRun | None = None
    manifest: Manifest | None = None
    publications: tuple[Publication, ...] = ()
    report: ValidationReport | None = Field(None, description="of a failed validation")
    error: str | None = None
    error_type: str | None = None
    exit_code: int = 0
    earlier: str | None = Field(None, description="id of the record that already did this")
