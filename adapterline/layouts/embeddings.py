"""Embeddings of new tokens, as `load_textual_inversion` of a diffusers pipeline loads them.

One file for each token and text encoder, with one tensor: the token is its key, and its rows are as they were trained.
The files lie in a folder of their own, so that none is taken for the LoRA: without a `weight_name`, `load_lora_weights`
takes any `.safetensors` of a local folder.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

from adapterline.deltas import NAMES
from adapterline.layouts.base import LayoutPlan
from adapterline.values import Embedding, FilePlan, LoadCall, TensorPlan, Transform

FOLDER = "embeddings"


def plan_embeddings(embeddings: Sequence[Embedding], pipeline: str) -> LayoutPlan:
    """`embeddings/{text encoder}/{token}.safetensors` for each, and the call of `pipeline` that loads it."""
    paths = _paths(embeddings)
    files = tuple(_file(embedding, path) for embedding, path in zip(embeddings, paths, strict=True))
    loads = tuple(_load(embedding, path, pipeline) for embedding, path in zip(embeddings, paths, strict=True))
    return LayoutPlan(files, loads, tuple(_renamed(embedding) for embedding in embeddings if embedding.trained_as))


def _renamed(embedding: Embedding) -> Transform:
    return Transform(
        kind="rename",
        detail=f"the token {embedding.trained_as} is called {embedding.token}: "
        "diffusers finds all rows of a token only if it has no capitals",
        component=embedding.component,
    )


def _file(embedding: Embedding, path: str) -> FilePlan:
    vectors = embedding.vectors
    plan = TensorPlan(NAMES[str(vectors.dtype).removeprefix("torch.")], tuple(vectors.shape), lambda: vectors)
    return FilePlan("embedding", "diffusers", path, {embedding.token: plan}, {"format": "pt"})


def _load(embedding: Embedding, path: str, pipeline: str) -> LoadCall:
    # The pipeline's `text_encoder` and `tokenizer` are what the method takes by itself.
    suffix = embedding.component.removeprefix("text_encoder")
    attributes = {"text_encoder": embedding.component, "tokenizer": f"tokenizer{suffix}"} if suffix else {}
    return LoadCall(
        pipeline=pipeline,
        method="load_textual_inversion",
        weight_name=path,
        kwargs={"token": embedding.token},
        attributes=attributes,
    )


def _paths(embeddings: Sequence[Embedding]) -> list[str]:
    """A token may hold any character; where nothing is left of two of them but the same name, its sha256 helps."""
    names = [f"{FOLDER}/{each.component}/{_stem(each.token)}" for each in embeddings]
    often = Counter(names)
    return [
        f"{name}.safetensors" if often[name] == 1 else f"{name}-{_digest(each.token)}.safetensors"
        for name, each in zip(names, embeddings, strict=True)
    ]


def _stem(token: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", token.lower()).strip("-")[:64] or _digest(token)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:12]
