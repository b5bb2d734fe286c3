"""What is asked for, and what is known of the run that trained it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, ValidationInfo, field_validator

from adapterline.values.base import Value

Layout = Literal["diffusers", "kohya", "peft"]

DType = Literal["float32", "float16", "bfloat16"]

ScaleMode = Literal["portable", "header"]

Prompt = Annotated[str, Field(min_length=1, max_length=2000)]

#: One line of text.
Word = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$")]

HeaderKey = Annotated[str, Field(min_length=1, max_length=200)]

LicenseId = Annotated[str, Field(max_length=100, pattern=r"^[a-z0-9][a-z0-9.+-]*$")]

LicenseLink = Annotated[str, Field(max_length=500, pattern=r"^(https://[^\s@]+|LICENSE(\.md|\.txt)?)$")]


class License(Value):
    """A licence, as the Hub's model cards have it.

    https://huggingface.co/docs/hub/repositories-licenses: `id` is the Hub's identifier; for `other`, one that the Hub
    has no identifier for, `name` and `link` say which it is.
    """

    id: LicenseId = Field(description="the Hub's identifier")
    name: Word | None = Field(None, description="of a licence that is other")
    link: LicenseLink | None = Field(None, description="where the text of one that is other is")


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
    render: tuple[Prompt, ...] = Field((), max_length=32, description="prompts to render, with the base's weights")
    render_seed: int = Field(0, ge=0, lt=2**63, description="of the noise, the same for base and adapter")
    render_steps: int | None = Field(None, ge=1, description="denoising steps; None: the pipeline's own number")
    render_width: int | None = Field(None, ge=8, description="pixels; None: the pipeline's own")
    render_height: int | None = Field(None, ge=8, description="pixels; None: the pipeline's own")
    render_frames: int | None = Field(None, ge=1, description="of a video; None: the pipeline's own number")
    render_guidance: float | None = Field(None, ge=0, description="guidance_scale; None: the pipeline's own")
    trigger: tuple[Word, ...] = Field((), max_length=32, description="words that call what was trained, for the card")
    license: LicenseId | None = Field(None, description="the Hub's identifier; None: the base's, where it is known")
    license_name: Word | None = Field(None, validate_default=True, description="of a license that is other")
    license_link: LicenseLink | None = Field(
        None, description="where its text is: https://, or LICENSE beside the card"
    )

    keep_header: tuple[HeaderKey, ...] = Field(
        (), max_length=64, description="fields of the checkpoint's header that are published as they are"
    )

    @field_validator("license_name")
    @classmethod
    def _other_has_a_name(cls, name: str | None, info: ValidationInfo) -> str | None:
        if (info.data.get("license") == "other") != (name is not None):
            raise ValueError("a license has a name if, and only if, it is other")
        return name

    @field_validator("license_link")
    @classmethod
    def _only_other_has_a_link(cls, link: str | None, info: ValidationInfo) -> str | None:
        if link is not None and info.data.get("license") != "other":
            raise ValueError("a license has a link only if it is other")
        return link


class TrainingRun(Value):
    """The run that left the checkpoint, as its event or its descriptor tells it. Every field may be unknown."""

    run_id: str | None = Field(None, max_length=200, description="the trainer's or the platform's name of the run")
    finished_at: AwareDatetime | None = Field(None, description="when training ended; decides which export is latest")
    step: int | None = Field(None, ge=0, description="the last one")
    base_model: str | None = Field(
        None,
        max_length=300,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9._/-]+)?$",
        description="what it was trained on: a Hub id, with @revision if known",
    )
    dataset: str | None = Field(None, description="what it was trained with: a URI, a name, a version")
    code: str | None = Field(None, description="repository and commit of the training code")
    trainer: str | None = Field(None, description="the program, and its version")
    parents: tuple[str, ...] = Field((), description="digests or run ids that it was resumed from")
