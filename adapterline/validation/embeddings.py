"""Do the new tokens of an adapter arrive? Their files are loaded by diffusers onto skeletons of the text encoders.

The tokenizers are those of the base's folder, where it is a local one that has them. Otherwise they are made here, with
as many tokens as the text encoder's table has rows: then the proof does not say that a token is new to the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterline.checkpoints.containers.safetensors import read_header
from adapterline.digests import sha256_of_file
from adapterline.errors import FamilyError
from adapterline.families.base import Base
from adapterline.families.skeleton import build_model, build_pipeline, quiet_libraries
from adapterline.validation.findings import Findings
from adapterline.values import Embedding, LoadCall, digest_of

if TYPE_CHECKING:
    import torch

METHOD = "load_textual_inversion"


@dataclass(frozen=True)
class _Encoder:
    """A text encoder of the skeleton with its tokenizer, which had `known` tokens before anything was loaded."""

    component: str
    model: Any
    tokenizer: Any
    known: int
    whose: str

    @property
    def rows(self) -> torch.Tensor:
        rows: torch.Tensor = self.model.get_input_embeddings().weight
        return rows


def check_embeddings(
    findings: Findings, folder: Path, loads: Sequence[LoadCall], base: Base, embeddings: Sequence[Embedding]
) -> None:
    """Every row of every token is in the text encoder that it was trained in, bit by bit, and nothing else changed.

    `loads` are the calls for them alone. FamilyError if the base's tokenizers cannot be read.
    """
    if not (loads or embeddings):
        return
    encoders = [_encoder(base, name) for name in sorted(base.models) if name.startswith("text_encoder")]
    error, pipeline = _load(folder, loads, base, encoders)
    if not findings.that(
        "embeddings load", not error, observed=error or "no exception", limit="no exception", detail=error[:500]
    ):
        return
    for encoder in encoders:
        own = [embedding for embedding in embeddings if embedding.component == encoder.component]
        if own or len(encoder.tokenizer) > encoder.known:
            _check_tokens(findings, encoder, own, pipeline)
    changed = [encoder.component for encoder in encoders if _changed(encoder)]
    findings.that(
        "embeddings change nothing else",
        not changed,
        observed=", ".join(changed) or "the new rows alone",
        limit="the new rows alone",
    )
    _check_files(findings, folder, loads, embeddings)


def loads_beside(folder: Path, base: Base) -> tuple[LoadCall, ...]:
    """The calls for what lies in `folder` as `embeddings/{text encoder}/*.safetensors`, as exports have it.

    CheckpointError if one of them is no safetensors file.
    """
    return tuple(
        LoadCall(
            pipeline=base.pipeline,
            method=METHOD,
            weight_name=file.relative_to(folder).as_posix(),
            kwargs={"token": token},
            attributes={"text_encoder": file.parent.name, "tokenizer": _tokenizer_of(file.parent.name)},
        )
        for file in sorted(folder.glob("embeddings/text_encoder*/*.safetensors"))
        for token in sorted(read_header(file)[0])
    )


def tokenizers_digest(base: Base) -> str:
    """What tells the base's own tokenizers from others: of the files of their folders."""
    folders = [_own(base, name) for name in sorted(base.models) if name.startswith("text_encoder")]
    files = [file for folder in folders if folder for file in sorted(folder.rglob("*")) if file.is_file()]
    return digest_of([[f"{file.parent.name}/{file.name}", sha256_of_file(file)] for file in files])


def _load(folder: Path, loads: Sequence[LoadCall], base: Base, encoders: Sequence[_Encoder]) -> tuple[str, Any]:
    """(what the loader raised, the last pipeline that it was called on)."""
    parts = {encoder.component: encoder.model for encoder in encoders}
    parts |= {_tokenizer_of(encoder.component): encoder.tokenizer for encoder in encoders}
    pipeline = None
    for load in loads:
        pipeline = build_pipeline(base, parts, load.pipeline)
        try:
            attributes = {name: attrgetter(attribute)(pipeline) for name, attribute in load.attributes.items()}
            with quiet_libraries():
                arguments = {"weight_name": load.weight_name, **load.kwargs, **attributes}
                attrgetter(load.method)(pipeline)(str(folder), **arguments)
        except Exception as error:  # whatever it is, the consumer would meet it too
            return f"{type(error).__name__}: {error}", None
    return "", pipeline


def _check_tokens(findings: Findings, encoder: _Encoder, embeddings: Sequence[Embedding], pipeline: Any) -> None:
    wanted = {name: row for each in embeddings for name, row in zip(each.names, each.vectors, strict=True)}
    component, total = encoder.component, len(wanted)
    new = {name for name, number in encoder.tokenizer.get_added_vocab().items() if number >= encoder.known}
    strange = dict.fromkeys(wanted.keys() - new, "not there") | dict.fromkeys(new - wanted.keys(), "not trained")
    if not findings.none_of(f"tokens of the checkpoint ({encoder.whose})", strange, component, total):
        return
    ids = {name: encoder.tokenizer.convert_tokens_to_ids(name) for name in wanted}
    rows = {name: encoder.rows[ids[name]] for name in wanted}
    infinite = {name for name, row in rows.items() if not bool(row.isfinite().all())}
    findings.none_of("embeddings finite", infinite, component, total)
    other = {name for name, row in rows.items() if not _same(row, wanted[name])}
    findings.none_of("embeddings bit by bit", other, component, total)
    unheard = {}
    for each in embeddings:
        prompt = pipeline.maybe_convert_prompt(each.token, encoder.tokenizer)
        heard = [number for number in encoder.tokenizer(prompt).input_ids if number >= encoder.known]
        if heard != [ids[name] for name in each.names]:
            unheard[each.token] = f"is read as {encoder.tokenizer.convert_ids_to_tokens(heard)}"
    findings.none_of("a prompt reaches all rows", unheard, component, len(embeddings))


def _check_files(findings: Findings, folder: Path, loads: Sequence[LoadCall], embeddings: Sequence[Embedding]) -> None:
    """Each file has the one tensor that was trained, with its dtype: a model in float32 would hide another."""
    from safetensors.torch import load_file

    trained = {(each.component, each.token): each.vectors for each in embeddings}
    wrong = {}
    for load in loads:
        key = load.attributes.get("text_encoder", "text_encoder"), str(load.kwargs.get("token"))
        tensors = load_file(folder / load.weight_name)
        vectors = trained.get(key)
        if vectors is None or set(tensors) != {key[1]} or not _identical(tensors[key[1]], vectors):
            wrong[load.weight_name] = "is not what was trained"
    findings.none_of("tensors of the checkpoint", wrong, "embeddings", len(loads))


def _same(row: torch.Tensor, vector: torch.Tensor) -> bool:
    """Equal bits, after the vector got the row's dtype: 0.0 is not -0.0."""
    import torch

    return row.shape == vector.shape and torch.equal(
        row.detach().view(torch.uint8), vector.to(row.dtype).contiguous().view(torch.uint8)
    )


def _identical(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    return tensor.dtype == other.dtype and _same(tensor, other)


def _changed(encoder: _Encoder) -> bool:
    """A skeleton is zeros that take no memory: what is not has been written to."""
    table = encoder.rows
    for parameter in encoder.model.parameters():
        if parameter is table:
            if bool(parameter[: encoder.known].any()):
                return True
        elif parameter.untyped_storage().nbytes() > parameter.element_size() or bool(parameter.flatten()[0]):
            return True
    return False


# --- skeletons of text encoders, and their tokenizers -----------------------------------------------------------------


def _encoder(base: Base, component: str) -> _Encoder:
    model = build_model(base.models[component])
    # Fills new rows from the distribution of the old ones, which takes a minute for T5; each is then overwritten.
    model.resize_token_embeddings = partial(model.resize_token_embeddings, mean_resizing=False)
    folder = _own(base, component)
    if folder is None:
        count = int(model.get_input_embeddings().weight.shape[0])
        return _Encoder(component, model, _made_tokenizer(count), count, f"a tokenizer of {count} tokens")
    tokenizer = _read_tokenizer(folder)
    return _Encoder(component, model, tokenizer, len(tokenizer), "the base's own tokenizer")


def _tokenizer_of(component: str) -> str:
    return component.replace("text_encoder", "tokenizer")


def _own(base: Base, component: str) -> Path | None:
    """The folder of the base's tokenizer, if it is there."""
    folder = base.folder / _tokenizer_of(component) if base.folder else None
    return folder if folder and (folder / "tokenizer_config.json").is_file() else None


def _read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet_libraries():
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a dozen formats, each with exceptions of its own
        raise FamilyError(
            f"The base's {folder.name} cannot be read: {error}.", expected="a tokenizer that transformers saved"
        ) from error


def _made_tokenizer(count: int) -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    # No trainer's token has a character of the private use area.
    vocabulary: Mapping[str, int] = {f"\ue000{number}": number for number in range(count)}
    model = models.WordLevel(dict(vocabulary), unk_token="\ue0000")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
