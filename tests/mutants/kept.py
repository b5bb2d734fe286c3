"""What changes a file and not its effect: a proof that fails for one of these is wrong."""

from __future__ import annotations

import json

import torch

from tests.mutants.copy import METADATA, Copy, NotApplicableError


def signs_flipped_in_both(copy: Copy) -> None:
    """some of the rank's directions have the other sign in A and in B"""
    for layer in copy.layers:
        b = copy.get(layer, "b")
        if b.shape[1] == len(copy.get(layer, "a")):
            copy.get(layer, "a")[::2].neg_()
            b[:, ::2].neg_()


def a_doubled_b_halved(copy: Copy) -> None:
    """A is twice as large, and B half as large"""
    for layer in copy.layers:
        # the numbers below the normal range of float16 would lose bits
        if copy.get(layer, "b").dtype != torch.float16:
            copy.get(layer, "a").mul_(2)
            copy.get(layer, "b").mul_(0.5)


def one_direction_doubled_and_halved(copy: Copy) -> None:
    """one of the rank's directions is twice as large in A, and half as large in B"""
    for layer in copy.layers:
        a, b = copy.get(layer, "a"), copy.get(layer, "b")
        if b.shape[1] == len(a) and b.dtype != torch.float16:
            a[-1].mul_(2)
            b[:, -1].mul_(0.5)


def rank_permuted_in_both(copy: Copy) -> None:
    """the rank's directions are in another order in A and in B"""
    for layer in copy.layers:
        b = copy.get(layer, "b")
        if b.shape[1] == len(copy.get(layer, "a")):
            copy.put(layer, "a", copy.get(layer, "a").flip(0))
            copy.put(layer, "b", b.flip(1))


def ranks_of_zeros_added(copy: Copy) -> None:
    """the rank is larger by two directions of zeros, and what the metadata says of it too"""
    if any("left" in layer.keys or copy.get(layer, "b").shape[1] != len(copy.get(layer, "a")) for layer in copy.layers):
        raise NotApplicableError
    for file in copy.files.values():
        metadata = json.loads(file.header.get(METADATA, "{}"))
        if any(name.endswith("_pattern") and value for name, value in metadata.items()):
            raise NotApplicableError
        for name in [name for name in metadata if name.endswith(".r")]:
            alpha = f"{name.removesuffix('.r')}.lora_alpha"
            metadata[alpha] = metadata[alpha] * (metadata[name] + 2) / metadata[name]
            metadata[name] += 2
        if metadata:
            file.header[METADATA] = json.dumps(metadata)
    for layer in copy.layers:
        a, b = copy.get(layer, "a"), copy.get(layer, "b")
        copy.put(layer, "a", torch.cat([a, torch.zeros_like(a[:1]).repeat(2, *[1] * (a.dim() - 1))]))
        copy.put(layer, "b", torch.cat([b, torch.zeros_like(b[:, :1]).repeat(1, 2, *[1] * (b.dim() - 2))], 1))


def order_of_tensors(copy: Copy) -> None:
    """the tensors lie in another order"""
    for file in copy.files.values():
        file.tensors = dict(reversed(file.tensors.items()))


def spaces_in_the_header(copy: Copy) -> None:
    """the header is padded with more spaces"""
    for file in copy.files.values():
        file.padding = 64


def other_metadata(copy: Copy) -> None:
    """the header has metadata that no loader reads"""
    for file in copy.files.values():
        file.header["modelspec.title"] = "An adapter"


def metadata_in_another_order(copy: Copy) -> None:
    """the adapter metadata has its settings in another order"""
    file, metadata = copy.metadata()
    file.header[METADATA] = json.dumps(dict(reversed(metadata.items())), indent=1)


def metadata_that_says_a_scale_of_one(copy: Copy) -> None:
    """the scale is in the factors, and there is metadata that says a scale of 1 and the rank"""
    file = next(iter(copy.files.values()))
    layers = copy.layers_in(file)
    if METADATA in file.header or any("left" in layer.keys for layer in layers):
        raise NotApplicableError
    metadata: dict[str, object] = {}
    for prefix in dict.fromkeys(layer.stem.partition(".")[0] for layer in layers):
        own = [layer for layer in layers if layer.stem.startswith(f"{prefix}.")]
        rank = len(copy.get(own[0], "a"))
        metadata |= {
            f"{prefix}.r": rank,
            f"{prefix}.lora_alpha": rank,
            f"{prefix}.use_dora": any("magnitude" in layer.keys for layer in own),
            f"{prefix}.target_modules": sorted(layer.module for layer in own),
        }
    file.header[METADATA] = json.dumps(metadata)


def text_encoder_without_text_model(copy: Copy) -> None:
    """the keys of a text encoder lack `text_model.`, as the modules of its class do since transformers 5"""
    models = copy.exported.base.models
    layers = [layer for layer in copy.layers if models[layer.component].model_class == "CLIPTextModel"]
    if not layers:
        raise NotApplicableError
    copy.rename(layers, lambda key: key.replace(".text_model.", ".", 1))
