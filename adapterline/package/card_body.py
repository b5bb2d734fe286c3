"""The body of the model card: a function of the manifest and of what was rendered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from adapterline.digests import sha256_of_bytes
from adapterline.families import family_named
from adapterline.values import Manifest, RenderedImage, provenance_name, signature_name


def trigger_words(manifest: Manifest) -> tuple[str, ...]:
    """The words that call what was trained: those that were said, and the tokens of its embeddings."""
    return tuple(dict.fromkeys((*manifest.trigger, *_tokens(manifest))))


def card_body(manifest: Manifest, snippets: Iterable[str], images: Sequence[RenderedImage]) -> str:
    """Markdown. `snippets` is Python that loads what lies beside the card, the ways that exclude each other."""
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
        "In the folder of this card; elsewhere its path, or the name of its repository on the Hub, takes the place of "
        "the dot.",
        "\n\nor, with PEFT:\n\n".join(f"```python\n{text}\n```" for text in snippets),
        *_triggers(manifest),
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
        f"({_consumers(manifest)}), and what each module computes was compared with the checkpoint."
        + _others(manifest),
        _table(
            ("check", "with", "component", "observed", "limit"),
            (
                (c.name, c.consumer or "", c.component or "", _short(c.observed), _short(c.limit))
                for c in manifest.validation.checks
            ),
        ),
        "## Where it comes from",
        _table(("", ""), _origin(manifest)),
        "## Is it what was published?",
        *_verification(manifest),
    ]
    return "\n\n".join(parts)


def _verification(manifest: Manifest) -> Iterable[str]:
    """The same whether it is signed or not: the signature of a manifest has one name."""
    digest = sha256_of_bytes(manifest.to_bytes())
    provenance, signature = provenance_name(digest), signature_name(digest)
    yield (
        f"`manifest.json` has the sha256 of every file of the adapter, and `{provenance}` says what it was made from "
        f"(in-toto, SLSA). If it is signed, `{signature}` covers these, and not this card and its images. With the "
        "signer's public key:"
    )
    yield f"```console\nmodel_signing verify key . --signature {signature} --public_key signer.pub\n```"


def _consumers(manifest: Manifest) -> str:
    return ", ".join(name for name in _named(manifest) if "==" not in name)


def _others(manifest: Manifest) -> str:
    """The versions that were tried on files of this kind, and not on this one."""
    versions = [name.replace("==", " ") for name in _named(manifest) if "==" in name]
    return f" Files of this kind also load right with {', '.join(versions)}." if versions else ""


def _named(manifest: Manifest) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in manifest.consumers.values() for name in names))


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


def _triggers(manifest: Manifest) -> Iterable[str]:
    """How a prompt calls what was trained."""
    if words := trigger_words(manifest):
        yield "## Trigger words"
        yield f"In a prompt these call what was trained: {', '.join(map(_escaped, words))}."
    if tokens := _tokens(manifest):
        yield f"Of these the embeddings bring, as new tokens: {', '.join(map(_escaped, tokens))}."


def _tokens(manifest: Manifest) -> list[str]:
    return sorted({str(load.kwargs["token"]) for load in manifest.loads if "token" in load.kwargs})


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
    if manifest.license:
        link = f" ({manifest.license.link})" if manifest.license.link else ""
        yield "licence", f"{manifest.license.name or manifest.license.id}{link}"
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
