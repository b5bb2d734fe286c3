"""The model card: a function of the manifest and of what was rendered, in the Hub's format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from adapterline.families import family_named
from adapterline.package.card_section import MARKER, compose_card, merge_card
from adapterline.validation.files import by_layout
from adapterline.values import IMAGE_PATH, LoadCall, Manifest, RenderedImage

__all__ = ["CARD_NAME", "MARKER", "images_shown", "make_card", "merge_card", "snippet", "snippets"]

CARD_NAME = "README.md"
_IMAGE_IN_CARD = re.compile(rb"\]\((" + IMAGE_PATH.pattern.encode() + rb")\)")


def make_card(manifest: Manifest, images: Sequence[RenderedImage] = ()) -> bytes:
    """The bytes of `README.md`."""
    from huggingface_hub import ModelCardData

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
    if images:  # https://huggingface.co/docs/hub/model-cards-widgets: what the Hub's gallery shows
        data["widget"] = [{"text": image.prompt, "output": {"url": image.path}} for image in images]
    return compose_card(f"---\n{data.to_yaml()}\n---\n", _body(manifest, images))


def images_shown(card: bytes) -> tuple[str, ...]:
    """The paths of the images that a card of adapterline shows: of what is published, these belong to it."""
    return tuple(dict.fromkeys(match.decode() for match in _IMAGE_IN_CARD.findall(card)))


def snippets(manifest: Manifest, where: str, base: str | None, revision: str = "") -> tuple[str, ...]:
    """Python that loads what was published at `where`: the ways that exclude each other, the usual one first.

    Of several layouts for diffusers, its own is the usual one: the others are there for other programs.
    """
    layouts = {each.layout: each.loads for each in by_layout(manifest.files, manifest.loads)}
    weights = [load for loads in layouts.values() for load in loads]
    embeddings = [load for load in manifest.loads if load not in weights]
    usual = next((name for name in ("diffusers", *layouts) if name in layouts and name != "peft"), "")
    calls = [[*layouts.get(usual, ()), *embeddings]] if usual or "peft" not in layouts else []
    if "peft" in layouts:  # it puts its own model around the text encoder, so the tokens come first
        calls.append([*embeddings, *layouts["peft"]])
    return tuple(snippet(loads, where, base, revision) for loads in calls if loads)


def snippet(loads: Iterable[LoadCall], where: str, base: str | None, revision: str = "") -> str:
    """Python that makes these calls for what lies at `where`, as the proof did."""
    calls = tuple(loads)
    lines, opened = ["import diffusers"], None
    if any(load.library == "peft" for load in calls):
        lines.append("from peft import PeftModel")
    lines.append("")
    for load in calls:
        if load.pipeline != opened:
            lines.append(f"pipe = diffusers.{load.pipeline}.from_pretrained({(base or 'the base model')!r})")
            if load.pipeline.endswith("ModularPipeline"):  # they load nothing unasked
                lines.append("pipe.load_components()")
            opened = load.pipeline
        line = _peft_line if load.library == "peft" else _diffusers_line
        lines.append(line(load, where, {"revision": revision} if revision else {}))
    return "\n".join(lines)


def _diffusers_line(load: LoadCall, where: str, which: dict[str, str]) -> str:
    texts = [f"{key}={value!r}" for key, value in {"weight_name": load.weight_name, **load.kwargs, **which}.items()]
    texts += [f"{key}=pipe.{attribute}" for key, attribute in load.attributes.items()]
    return f"pipe.{load.method}({where!r}, {', '.join(texts)})"


def _peft_line(load: LoadCall, where: str, which: dict[str, str]) -> str:
    model = f"pipe.{load.attributes['model']}"
    texts = "".join(f", {key}={value!r}" for key, value in {"subfolder": load.weight_name, **which}.items())
    return f"{model} = {load.method}({model}, {where!r}{texts})"


def _body(manifest: Manifest, images: Sequence[RenderedImage]) -> str:
    base = None if manifest.base.model == "unknown" else manifest.base.model
    passed = sum(check.passed for check in manifest.validation.checks)
    parts = [
        f"# {manifest.name}",
        f"A LoRA for {family_named(manifest.family).title}"
        + (
            f", trained on [{base}](https://huggingface.co/{base})."
            if base
            else "; what it was trained on is not known."
        ),
        "## Use",
        "\n\nor, with PEFT:\n\n".join(
            f"```python\n{text}\n```" for text in snippets(manifest, "the folder or repository of this card", base)
        ),
        *_prompts(manifest),
        *_gallery(images),
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
        f"{passed} of {len(manifest.validation.checks)} checks passed: each file was loaded with what reads it "
        f"({_consumers(manifest)}), and what each module computes was compared with the checkpoint.",
        _table(
            ("check", "with", "component", "observed", "limit"),
            (
                (c.name, c.consumer or "", c.component or "", _short(c.observed), _short(c.limit))
                for c in manifest.validation.checks
            ),
        ),
        "## Where it comes from",
        _table(("", ""), _origin(manifest)),
    ]
    return "\n\n".join(parts)


def _consumers(manifest: Manifest) -> str:
    return ", ".join(dict.fromkeys(name for names in manifest.consumers.values() for name in names))


def _gallery(images: Sequence[RenderedImage]) -> Iterable[str]:
    if not images:
        return
    yield "## Images"
    yield (
        "The base on the left and the adapter on the right, with the same seed. Of a video the first, the middle and "
        "the last frame, the base's above."
    )
    head = "| image | prompt | seed |\n| --- | --- | --- |"
    rows = (f"| ![image {n}]({i.path}) | {_escaped(i.prompt)} | {i.seed} |" for n, i in enumerate(images, 1))
    yield "\n".join([head, *rows])


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
    several = len({file.layout for file in manifest.files}) > 1
    for transform in manifest.transforms:
        where = f"{transform.layout} layout, " if transform.layout and several else ""
        yield transform.kind, f"{where}{transform.component or 'all'}: {transform.detail}"
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
