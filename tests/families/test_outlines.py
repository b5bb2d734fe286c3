"""The outlines are those of the models, and every family is most like its own."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from adapterline.families import FAMILIES, Family
from adapterline.families.aliases import shipped_family
from adapterline.families.base import read_base
from adapterline.families.likeness import Part, families_with, most_alike
from adapterline.families.outlines import FILE, layers_of, outlines_bytes, outlines_of, place
from adapterline.families.shipped import shipped


@cache
def rows() -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(FILE.read_bytes()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated")  # Chroma takes it from there
def test_file_is_what_the_installed_models_make() -> None:
    assert FILE.read_bytes() == outlines_bytes()


@pytest.mark.parametrize(
    ("alias", "component"),
    [("sd15", "unet"), ("sd15", "text_encoder"), ("flux-schnell", "transformer"), ("wan21-t2v-1.3b", "transformer")],
)
def test_outline_is_that_of_the_skeleton(alias: str, component: str) -> None:
    folder = shipped(alias)
    assert folder is not None
    config = read_base(folder).models[component]
    (row,) = [row for row in rows() if row["model"] == config.model_class and alias in row["bases"]]
    assert row["layers"] == json.loads(json.dumps(layers_of(config)))


def test_every_model_of_every_family_has_an_outline() -> None:
    models = {model for family in FAMILIES for component in family.components for model in component.models}
    assert {row["model"] for row in rows()} == models


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        ("down_blocks.0.attentions.12.to_out.0", "down_blocks_{}_attentions_{}_to_out_{}"),
        ("down_blocks_0_attentions_12_to_out_0", "down_blocks_{}_attentions_{}_to_out_{}"),
        ("text_model.encoder.layers.3.mlp.fc1", "encoder_layers_{}_mlp_fc1"),
        ("text_model_encoder_layers_3_mlp_fc1", "encoder_layers_{}_mlp_fc1"),
        ("blocks.0.attn2.linear_1", "blocks_{}_attn2_linear_{}"),
        ("0.3", "{}_{}"),
        ("conv_in", "conv_in"),
    ],
)
def test_place_is_the_same_in_every_spelling(spelled: str, expected: str) -> None:
    assert place(spelled) == expected


def test_fused_layers_of_the_original_have_the_sizes_of_their_parts_together() -> None:
    (dev,) = [outline for outline in outlines_of("FluxTransformer2DModel") if "flux-dev" in outline.bases]
    assert dev.sizes["double_blocks_{}_img_attn_qkv"] == {(9216, 3072)}
    assert dev.sizes["single_blocks_{}_linear1"] == {(21504, 3072)}
    assert dev.sizes["single_transformer_blocks_{}_attn_to_q"] == {(3072, 3072)}
    (unet,) = [outline for outline in outlines_of("UNet2DConditionModel") if "sd15" in outline.bases]
    assert (320, 4) in unet.sizes["input_blocks_{}_{}"]


def test_layers_are_counted_by_size_and_by_proportion() -> None:
    (outline,) = [outline for outline in outlines_of("CLIPTextModel") if "sd15" in outline.bases]
    fc1, q = "encoder.layers.0.mlp.fc1", "encoder.layers.0.self_attn.q_proj"
    sizes = {fc1: (3072, 768), q: (512, 512), "no.such.layer": (768, 768)}
    assert (outline.of_size(sizes), outline.in_proportion(sizes)) == (1, 2)
    assert outline.has([fc1, q])
    assert not outline.has(sizes)


def _denoisers() -> list[Any]:
    """Each outline of a family's own denoisers; UNets are of two families."""
    return [
        pytest.param(family, row, id=f"{family.name}-{row['model']}-{number}")
        for family in FAMILIES
        for number, row in enumerate(rows())
        if row["model"] in family.components[0].models
        and (not row["bases"] or any(shipped_family(alias) is family for alias in row["bases"]))
    ]


@pytest.mark.parametrize(("family", "row"), _denoisers())
def test_layers_of_a_model_are_most_like_its_own_family(family: Family, row: dict[str, Any]) -> None:
    sizes = {module.replace("{}", "0"): tuple(found[0]) for module, found in row["layers"].items()}
    part = Part(family.components[0].name, False, frozenset(sizes), sizes)  # type: ignore[arg-type]
    fitting = families_with([part])
    found = most_alike(FAMILIES, [part])
    assert family in fitting
    assert family in found.families
    assert (found.what, found.is_whole) == ("sizes", True)


def test_nothing_is_alike_where_no_size_is_known() -> None:
    part = Part(None, False, frozenset({"transformer_blocks.0.attn.to_q"}), {})
    assert most_alike(FAMILIES[:3], [part]).families == FAMILIES[:3]
    assert not most_alike(FAMILIES[:3], [part]).is_whole
    assert families_with([]) == ()
