"""The model card: a function of the manifest and of what was rendered, in the Hub's format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from adapterline.families import Family, family_named
from adapterline.package.card_body import card_body, trigger_words
from adapterline.package.card_section import MARKER, compose_card, merge_card
from adapterline.validation.files import by_layout
from adapterline.values import IMAGE_PATH, LoadCall, Manifest, RenderedImage

__all__ = ["CARD_NAME", "MARKER", "images_shown", "make_card", "merge_card", "snippet", "snippets"]

CARD_NAME = "README.md"
#: What the card's snippet loads from: the folder that it is run in.
HERE = "."
_IMAGE_IN_CARD = re.compile(rb"\]\((" + IMAGE_PATH.pattern.encode() + rb")\)")


def make_card(manifest: Manifest, images: Sequence[RenderedImage] = ()) -> bytes:
    """The bytes of `README.md`."""
    from huggingface_hub import ModelCardData

    family = family_named(manifest.family)
    known = manifest.base.model if manifest.base.model != "unknown" else None
    words, license = trigger_words(manifest), manifest.license
    data = ModelCardData(
        library_name=_library(manifest),
        base_model=known,
        license=license.id if license else None,
        license_name=license.name if license else None,
        license_link=license.link if license else None,
        pipeline_tag=next((tag for tag in family.tags if tag.startswith("text-to-")), None),
        tags=_tags(manifest, family),
    )
    if known:
        data["base_model_relation"] = "adapter"
    if words:
        data["instance_prompt"] = ", ".join(words)
    if images:  # https://huggingface.co/docs/hub/model-cards-widgets: what the Hub's gallery shows
        data["widget"] = [{"text": image.prompt, "output": {"url": image.path}} for image in images]
    body = card_body(manifest, snippets(manifest, HERE, known), images)
    return compose_card(f"---\n{data.to_yaml()}\n---\n", body)


def _library(manifest: Manifest) -> str:
    libraries = {load.library for load in manifest.loads}
    return "peft" if libraries == {"peft"} else "diffusers"


def _tags(manifest: Manifest, family: Family) -> list[str]:
    """As the training scripts of diffusers spell them; `template:sd-lora` is what the Hub's gallery goes by."""
    tags = ["lora", _library(manifest), *family.tags, "template:sd-lora"]
    return list(dict.fromkeys(tags))


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
