"""What is asked for, and what is known of the run that trained it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from adapterline.values.base import Value

Layout = Literal["diffusers", "kohya", "peft"]

DType = Literal["float32", "float16", "bfloat16"]

ScaleMode = Literal["portable", "header"]

Prompt = Annotated[str, Field(min_length=1, max_length=2000)]


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
