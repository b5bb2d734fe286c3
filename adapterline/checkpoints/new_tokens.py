"""From the embeddings of a source to those of an adapter: each on a text encoder that the base really has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from adapterline.checkpoints.embeddings import EMBEDDINGS, OUTPUT_SUFFIX
from adapterline.checkpoints.roles import TEXT_ENCODERS
from adapterline.deltas import DTYPES
from adapterline.errors import CheckpointError, ConversionError, FamilyError, UsageError
from adapterline.families.base import Base
from adapterline.families.skeleton import build_model
from adapterline.values import Embedding, ExportOptions, Source, StoredEmbedding

_T5 = ("T5EncoderModel",)
_LEAVE_OUT = f"To export the rest alone, pass --components without {EMBEDDINGS}."


def wants_embeddings(source: Source, options: ExportOptions) -> bool:
    """Are the embeddings of the source to be exported? UsageError if they are wanted alone."""
    if not source.embeddings or options.components is None:
        return bool(source.embeddings)
    if set(options.components) == {EMBEDDINGS}:
        raise UsageError(
            f"--components has {EMBEDDINGS} alone.",
            expected="a component of the adapter besides",
            remedy="Embeddings without an adapter need no export: load_textual_inversion takes them as they are.",
        )
    return EMBEDDINGS in options.components


def without_embeddings(source: Source, options: ExportOptions) -> ExportOptions:
    """The options, with those of `components` alone that are models."""
    if not source.embeddings or options.components is None:
        return options
    models = tuple(name for name in options.components if name != EMBEDDINGS)
    return options.model_copy(update={"components": models})


def place_embeddings(source: Source, base: Base, pipeline: str) -> tuple[Embedding, ...]:
    """The embeddings of the source on the base's text encoders, by component and token.

    ConversionError for those that no loader of `pipeline` takes, FamilyError if the base has no such text encoder,
    CheckpointError if the source contradicts itself.
    """
    _check_loadable(source, pipeline)
    placed: dict[tuple[str, str], Embedding] = {}
    names = _names(source.embeddings)
    for stored in source.embeddings:
        component, name = _component(stored, base), names[stored.token]
        if (component, name) in placed:
            raise CheckpointError(f"{stored.where}: the token {name} is there twice.", expected="once")
        placed[component, name] = _embedding(stored, component, name)
    embeddings = tuple(placed[key] for key in sorted(placed))
    _check_names(embeddings)
    return embeddings


def _names(embeddings: Iterable[StoredEmbedding]) -> dict[str, str]:
    """What each token is called in diffusers: where it has several rows, in small letters.

    CLIP's tokenizer makes a prompt small before it looks for tokens, and `maybe_convert_prompt` looks up what it found
    there, to put the names of the other rows behind it: of `Tok` that is `tok`, and the other rows are never used.
    """
    several = {stored.token for stored in embeddings if len(stored.info.shape) == 2 and stored.info.shape[0] > 1}
    return {stored.token: stored.token.lower() if stored.token in several else stored.token for stored in embeddings}


def _check_loadable(source: Source, pipeline: str) -> None:
    import diffusers

    if not hasattr(getattr(diffusers, pipeline), "load_textual_inversion"):
        raise ConversionError(
            f"{source.name} has embeddings of new tokens, and {pipeline} has no load_textual_inversion.",
            expected="a pipeline that loads them",
            remedy=_LEAVE_OUT,
        )
    for stored in source.embeddings:
        if stored.encoder.endswith(OUTPUT_SUFFIX):
            raise ConversionError(
                f"{stored.where} is added to the output of a text encoder, and no loader of diffusers does that.",
                expected="embeddings of the text encoder's input",
                remedy=_LEAVE_OUT,
            )


def _component(stored: StoredEmbedding, base: Base) -> str:
    """The text encoder that it is for: by its class, by its number, or as the only one of that width."""
    encoders = sorted(name for name in base.models if name.startswith("text_encoder"))
    if stored.encoder.isdigit():
        encoders = encoders[int(stored.encoder) :][:1]
    elif stored.encoder:
        classes = _T5 if stored.encoder == "t5" else TEXT_ENCODERS.get(stored.encoder, ())
        encoders = [name for name in encoders if base.models[name].model_class in classes]
    widths = {name: _width(base, name) for name in encoders}
    fitting = [name for name in encoders if widths[name] == stored.info.shape[-1:]]
    if stored.encoder in ("clip_l", "clip_g") and len(fitting) > 1:  # CLIP-L comes first in every pipeline
        fitting = fitting[:1] if stored.encoder == "clip_l" else fitting[-1:]
    if len(fitting) == 1:
        return fitting[0]
    shape = list(stored.info.shape)
    if fitting:
        raise CheckpointError(
            f"{stored.where} does not say whether it is for {' or '.join(fitting)}: {shape} fits both.",
            expected="a text encoder that can be told",
            remedy=_LEAVE_OUT,
        )
    there = ", ".join(f"{name} of width {width[0]}" for name, width in widths.items()) or "none of that kind"
    raise FamilyError(
        f"{stored.where} is an embedding {shape}, and {base.pipeline} has {there}.",
        expected="embeddings of this base's text encoders",
        remedy=f"Pass the --base that they were trained on. {_LEAVE_OUT}",
    )


def _width(base: Base, component: str) -> tuple[int]:
    return (int(build_model(base.models[component]).get_input_embeddings().weight.shape[-1]),)


def _embedding(stored: StoredEmbedding, component: str, name: str) -> Embedding:
    if stored.info.dtype not in DTYPES or len(stored.info.shape) not in (1, 2) or 0 in stored.info.shape:
        raise CheckpointError(
            f"{stored.where} is {stored.info.dtype} {list(stored.info.shape)}.",
            expected=f"[width] or [n, width] in one of {', '.join(DTYPES)}",
        )
    if not stored.token.strip():
        raise CheckpointError(f"{stored.where} has no token.", expected="what a prompt calls it by")
    vectors = stored.read()
    trained_as = None if name == stored.token else stored.token
    return Embedding(name, component, vectors.reshape(-1, vectors.shape[-1]), trained_as)


def _check_names(embeddings: Iterable[Embedding]) -> None:
    """diffusers calls the rows of one token `token`, `token_1`, ..., and takes whatever is called so for its rows."""
    names: dict[str, dict[str, str]] = defaultdict(dict)
    for embedding in embeddings:
        for name in (*embedding.names, f"{embedding.token}_{len(embedding.vectors)}"):
            other = names[embedding.component].setdefault(name, embedding.token)
            if other != embedding.token:
                raise ConversionError(
                    f"The tokens {other} and {embedding.token} of {embedding.component} both mean {name} to diffusers.",
                    expected="tokens that are not named like the rows of another",
                    remedy=_LEAVE_OUT,
                )
