"""What is known of sd-scripts' keys agrees with what is known of the models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from adapterline.families import family_named
from adapterline.families.base import open_base
from adapterline.families.kohya import _KNOWN, kohya_of, stems
from adapterline.families.names import look_up, names
from adapterline.families.originals import comfy_renames, renames
from adapterline.families.originals.base import Rename

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning:diffusers")

#: How ComfyUI spells its own names of HunyuanVideo's modules to find the authors' (comfy/lora.py).
_TO_AUTHORS = (
    (r"_mod\.lin$", "_mod.linear"),
    (r"_attn\.qkv$", "_attn_qkv"),
    (r"_attn\.proj$", "_attn_proj"),
    (r"mlp\.0$", "mlp.fc1"),
    (r"mlp\.2$", "mlp.fc2"),
    (r"\.modulation\.lin$", ".modulation.linear"),
)


def by_original(table: tuple[Rename, ...]) -> Mapping[str, Rename]:
    return {each.original: each for each in table}


def test_comfyuis_names_of_hunyuan_video_are_the_authors_by_its_own_rule() -> None:
    authors = by_original(renames("HunyuanVideoTransformer3DModel", {}))
    for each in comfy_renames("HunyuanVideoTransformer3DModel", {}):
        name = each.original
        if "blocks" in name:
            for pattern, author in _TO_AUTHORS:
                name = re.sub(pattern, author, name)
            assert (authors[name].modules, authors[name].swapped) == (each.modules, each.swapped), name
    comfy = comfy_renames("HunyuanVideoTransformer3DModel", {})
    assert {module for each in comfy for module in each.modules} == {
        module for each in authors.values() for module in each.modules
    }


@pytest.mark.parametrize(("family", "model"), list(_KNOWN), ids=str)
def test_entry_is_of_a_family_and_has_what_a_header_needs(family: str, model: str) -> None:
    described = family_named(family)
    assert model in described.components[0].models
    known = _KNOWN[family, model]({})
    assert {component.name for component in described.components} >= set(known.prefixes) - {"transformer_2"}
    assert known.architecture or described.architecture
    assert known.version or described.kohya_version
    assert known.implementation
    assert known.module.startswith("networks.")
    assert bool(known.trainer) == bool(known.trained)


@pytest.mark.parametrize("alias", ["sd15", "sdxl", "sd35-medium", "flux-dev", "chroma", "flux2-dev", "hunyuan-video"])
def test_every_stem_is_read_as_the_layers_that_it_is_written_for(alias: str, tmp_path: Path) -> None:
    """The table that files are written by, and the one that names in checkpoints are looked up in."""
    base = open_base(alias, tmp_path)
    known = kohya_of(base)
    assert known is not None
    for component, prefix in known.prefixes.items():
        for stem, pieces in stems(base, known, component).items() if component in base.models else ():
            assert look_up(names(base, component), stem.removeprefix(f"{prefix}_")) == pieces, stem
