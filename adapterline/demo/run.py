"""The demo: a base is built, an adapter trained on it, and the line publishes that to a folder and to a real S3 API."""

from __future__ import annotations

import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapterline.errors import UsageError, from_os_error
from adapterline.families.skeleton import quiet_libraries
from adapterline.texts import record_text

NAME = "demo-lora"
BUCKET = "adapters"
#: What a demo makes in its folder, and so what the next one may remove.
_OURS = ("base", "checkpoint", "published", "s3", "records", "lineage", "scratch", "prefect")


def run_demo(out: Path, *, prepare: Callable[[], None], as_json: bool) -> None:
    """Trains, exports and loads, and prints what happens: the record on stdout, the rest on stderr.

    `prepare` is called before Prefect is used and after its settings are in the environment.
    """
    out = out.absolute()
    _make_room(out)
    _keep_to(out)
    prepare()
    started = time.monotonic()
    _say("1. A small Stable Diffusion pipeline, built here from its configuration, with random weights")
    from adapterline.demo.base import build_base
    from adapterline.demo.train import train

    build_base(out / "base")
    _say("2. A LoRA on its UNet and its text encoder, trained with PEFT")
    training = train(out / "base", out / "checkpoint")
    for name, settings in training["components"].items():
        _say(f"     {name}: rank {settings['rank']}, alpha {settings['alpha']}")
    _say(f"     loss over {training['steps']} steps: {', '.join(f'{loss:.4f}' for loss in training['losses'])}")
    _say("3. The line, as a Prefect flow, to a folder and to an S3 API (SeaweedFS on this machine)")
    from adapterline.seaweedfs import run_seaweedfs

    with run_seaweedfs(out / "s3") as server:
        os.environ |= server.environment()
        _make_bucket()
        record = _export(out)
        _say("4. The same again: nothing to do")
        again = _export(out)
        _say(f"     {again.outcome}, by run {again.earlier}")
    published = record.publications[0].load
    _say("5. Loaded with diffusers, on the real weights: what the adapter changes")
    for name, (ours, trained) in _effects(out, published).items():
        _say(f"     {name}: output changes by {ours:.6f}, in training by {trained:.6f}")
    _say("6. The record")
    print(record.model_dump_json(indent=2) if as_json else record_text(record, str(out / "base")))
    _say(f"done in {time.monotonic() - started:.0f} s; everything is in {out}")


def _make_room(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        strangers = sorted(entry.name for entry in out.iterdir() if entry.name not in _OURS)
        if strangers:
            raise UsageError(
                f"{out} has something else in it: {', '.join(strangers[:5])}.",
                expected="an empty folder, or one of an earlier demo",
                remedy="Pass another --out.",
            )
        for name in _OURS:
            shutil.rmtree(out / name, ignore_errors=True)
    except OSError as error:
        raise from_os_error(error, f"Preparing {out}") from error


def _keep_to(out: Path) -> None:
    """The demo writes nowhere else: neither to the user's Prefect nor to their record store."""
    os.environ["ADAPTERLINE_RECORDS"] = str(out / "records")
    os.environ["ADAPTERLINE_INDEX"] = f"sqlite:///{out / 'lineage' / 'index.sqlite'}"
    os.environ["ADAPTERLINE_OPENLINEAGE"] = str(out / "lineage" / "openlineage.jsonl")
    os.environ["ADAPTERLINE_SCRATCH"] = str(out / "scratch")
    os.environ["PREFECT_HOME"] = str(out / "prefect")
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.pop("PREFECT_API_URL", None)


def _make_bucket() -> None:
    from adapterline.s3 import make_client

    make_client().create_bucket(Bucket=BUCKET)


def _export(out: Path) -> Any:
    from adapterline.api import export

    return export(
        str(out / "checkpoint"),
        base=str(out / "base"),
        name=NAME,
        to=(str(out / "published"), f"s3://{BUCKET}/loras"),
    )


def _effects(out: Path, published: str) -> dict[str, tuple[float, float]]:
    """By component: how far the adapter moves the output, loaded by diffusers, and by PEFT as it was trained."""
    import torch
    from diffusers import StableDiffusionPipeline
    from peft import PeftModel

    def outputs(unet: Any, text_encoder: Any, tokenizer: Any) -> dict[str, torch.Tensor]:
        tokens = tokenizer(["a photo of a sks dog"], padding="max_length", max_length=77, return_tensors="pt").input_ids
        noise = torch.randn(1, unet.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            states = text_encoder(tokens)[0]
            # The UNet's own effect: on states that do not depend on the text encoder's adapter.
            fixed = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
            return {"unet": unet(noise, 10, fixed).sample, "text_encoder": states}

    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 uses what transformers 6 will not have
        pipe = StableDiffusionPipeline.from_pretrained(out / "base", safety_checker=None)
        before = outputs(pipe.unet, pipe.text_encoder, pipe.tokenizer)
        pipe.load_lora_weights(published, weight_name="pytorch_lora_weights.safetensors")
        after = outputs(pipe.unet, pipe.text_encoder, pipe.tokenizer)
        fresh = StableDiffusionPipeline.from_pretrained(out / "base", safety_checker=None)
        parts = {name: PeftModel.from_pretrained(getattr(fresh, name), out / "checkpoint" / name) for name in before}
        trained = outputs(parts["unet"], parts["text_encoder"], fresh.tokenizer)
    return {
        name: (float((after[name] - before[name]).abs().max()), float((trained[name] - before[name]).abs().max()))
        for name in before
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
