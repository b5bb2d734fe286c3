"""The model card: a function of the manifest, in the Hub's format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from adapterline.families import family_named
from adapterline.values import LoadCall, Manifest

CARD_NAME = "README.md"
#: In every card that adapterline writes. A card without it was written by a person, and is left alone.
MARKER = "<!-- adapterline -->"


def make_card(manifest: Manifest) -> bytes:
    """The bytes of `README.md`."""
    from huggingface_hub import ModelCard, ModelCardData

    family = family_named(manifest.family)
    known = manifest.base.model != "unknown"
    data = ModelCardData(
        library_name="diffusers",
        base_model=manifest.base.model if known else None,
        pipeline_tag=next((tag for tag in family.tags if tag.startswith("text-to-")), None),
        tags=list(dict.fromkeys(["lora", "diffusers", *family.tags, "template:sd-lora"])),
    )
    if known:
        data["base_model_relation"] = "adapter"
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(manifest)}", ignore_metadata_errors=True)
    return (str(card).rstrip("\n") + "\n").encode()


def snippet(loads: Iterable[LoadCall], where: str, base: str | None) -> str:
    """Python that loads what was published at `where` onto the base, as the proof did."""
    lines, opened = ["import diffusers", ""], None
    for load in loads:
        arguments = {"weight_name": load.weight_name, **load.kwargs}
        texts = [f"{key}={value!r}" for key, value in arguments.items()]
        texts += [f"{key}=pipe.{attribute}" for key, attribute in load.attributes.items()]
        if load.pipeline != opened:
            lines.append(f"pipe = diffusers.{load.pipeline}.from_pretrained({(base or 'the base model')!r})")
            if load.pipeline.endswith("ModularPipeline"):  # they load nothing unasked
                lines.append("pipe.load_components()")
            opened = load.pipeline
        lines.append(f"pipe.{load.method}({where!r}, {', '.join(texts)})")
    return "\n".join(lines)


def _body(manifest: Manifest) -> str:
    base = None if manifest.base.model == "unknown" else manifest.base.model
    passed = sum(check.passed for check in manifest.validation.checks)
    parts = [
        MARKER,
        f"# {manifest.name}",
        f"A LoRA for {family_named(manifest.family).title}"
        + (
            f", trained on [{base}](https://huggingface.co/{base})."
            if base
            else "; what it was trained on is not known."
        ),
        "## Use",
        f"```python\n{snippet(manifest.loads, 'the folder or repository of this card', base)}\n```",
        *_prompts(manifest),
        "## What is in it",
        _table(
            ("component", "type", "rank", "alpha", "modules", "parameters", "dtype"),
            (
                (name, c.adapter_type, c.rank, c.alpha, c.modules, f"{c.parameters:,}", c.dtype)
                for name, c in manifest.components.items()
            ),
        ),
        _table(
            ("file", "bytes", "sha256"), ((file.path, f"{file.size:,}", f"`{file.sha256}`") for file in manifest.files)
        ),
        "## What was proven",
        f"{passed} of {len(manifest.validation.checks)} checks passed: the file was loaded "
        "with diffusers, and what each module computes was compared with the checkpoint.",
        _table(
            ("check", "component", "observed", "limit"),
            ((c.name, c.component or "", _short(c.observed), _short(c.limit)) for c in manifest.validation.checks),
        ),
        "## Where it comes from",
        _table(("", ""), _origin(manifest)),
    ]
    return "\n\n".join(parts)


def _prompts(manifest: Manifest) -> Iterable[str]:
    """How a prompt calls the embeddings."""
    if tokens := sorted({str(load.kwargs["token"]) for load in manifest.loads if "token" in load.kwargs}):
        yield f"It was trained together with new tokens. Call them in a prompt: {', '.join(map(_escaped, tokens))}."


def _origin(manifest: Manifest) -> Iterable[tuple[str, Any]]:
    yield "checkpoint", f"{manifest.source.name} (`{manifest.source.digest[:12]}`), read as {manifest.source.dialect}"
    run = manifest.training_run
    for label, value in (
        ("step", manifest.source.step if manifest.source.step is not None else (run.step if run else None)),
        ("training run", run.run_id if run else None),
        ("dataset", run.dataset if run else None),
        ("code", run.code if run else None),
    ):
        if value is not None:
            yield label, value
    for transform in manifest.transforms:
        yield transform.kind, f"{transform.component or 'all'}: {transform.detail}"
    if manifest.left_out:
        yield "left out, by request", ", ".join(manifest.left_out)
    yield "made with", ", ".join(f"{tool} {version}" for tool, version in sorted(manifest.tools.items()))


def _table(head: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    lines = [_row(head), _row("---" for _ in head), *(_row(row) for row in rows)]
    return "\n".join(lines)


def _row(cells: Iterable[Any]) -> str:
    texts = (", ".join(map(str, cell)) if isinstance(cell, list | tuple) else str(cell) for cell in cells)
    return f"| {' | '.join(_escaped(text) for text in texts)} |"


def _escaped(text: str) -> str:
    """Names and texts come from checkpoints and events: they must not become HTML or another cell."""
    clean = " ".join(text.split())
    return clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "\\|")


def _short(value: float | str) -> str:
    text = f"{value:.1e}" if isinstance(value, float) else value
    return text if len(text) <= 20 else f"{text[:12]}…"
