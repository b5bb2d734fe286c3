"""The names of the original implementations against diffusers' own converters, of whole models and of LoRA.

Every output row of every layer gets a number of its own. The table makes the original's layers out of them, diffusers
converts those back, and each number has to come home: names, splits and swapped halves all show.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.loaders import lora_conversion_utils as lora_converters
from diffusers.loaders import single_file_utils as converters
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.utils import convert_unet_state_dict_to_peft

from adapterline.families.originals import ORIGINALS, Rename, renames
from adapterline.families.originals.base import rename, within
from adapterline.families.skeleton import plain_name

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning:diffusers")

# --- models -----------------------------------------------------------------------------------------------------------

SD21 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
UNCLIP = {**SD21, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 2048}
UNEVEN = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": (1, 3, 2),
}
TWO = {"num_layers": 2}
TWO_AND_TWO = {"num_layers": 2, "num_single_layers": 2}

#: name -> model class and configuration, in the widths that diffusers' converters take for granted, of few layers
#: where those do not count.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ace_step": ("AceStepTransformer1DModel", {"num_hidden_layers": 2}),
    "anima": ("CosmosTransformer3DModel", {**TWO, "extra_pos_embed_type": None}),
    "anyflow": ("AnyFlowTransformer3DModel", TWO),
    "anyflow_far": ("AnyFlowFARTransformer3DModel", TWO),
    "auraflow": ("AuraFlowTransformer2DModel", {"num_mmdit_layers": 2, "num_single_dit_layers": 2}),
    "chroma": ("ChromaTransformer2DModel", TWO_AND_TWO),
    "chronoedit": ("ChronoEditTransformer3DModel", {**TWO, "image_dim": 8, "added_kv_proj_dim": 5120}),
    "clip_h": ("CLIPTextModel", {"hidden_size": 1024, "num_hidden_layers": 2}),
    "clip_g": ("CLIPTextModelWithProjection", {"hidden_size": 1280, "projection_dim": 1280, "num_hidden_layers": 2}),
    "cosmos1": ("CosmosTransformer3DModel", TWO),
    "cosmos2": ("CosmosTransformer3DModel", {**TWO, "extra_pos_embed_type": None, "use_crossattn_projection": True}),
    "flux": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "flux2": ("Flux2Transformer2DModel", TWO_AND_TWO),
    "flux3": ("Flux3Transformer2DModel", {**TWO_AND_TWO, "flow_map": True}),
    "helios": ("HeliosTransformer3DModel", TWO),
    "hunyuan_video": ("HunyuanVideoTransformer3DModel", TWO_AND_TWO),
    "hunyuan_video15": ("HunyuanVideo15Transformer3DModel", {**TWO, "use_meanflow": True}),
    "ideogram4": ("Ideogram4Transformer2DModel", TWO),
    "krea2": ("Krea2Transformer2DModel", TWO),
    "ltx2": ("LTX2VideoTransformer3DModel", TWO),
    "ltx23": (
        "LTX2VideoTransformer3DModel",
        {**TWO, "gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True, "audio_cross_attn_mod": True},
    ),
    "ltx2_connectors": ("LTX2TextConnectors", {}),
    "ltx23_connectors": (
        "LTX2TextConnectors",
        {"per_modality_projections": True, "video_gated_attn": True, "audio_gated_attn": True},
    ),
    "ltx_video": ("LTXVideoTransformer3DModel", TWO),
    "lumina2": ("Lumina2Transformer2DModel", TWO),
    "qwen_image21": ("QwenImage21Transformer2DModel", TWO),
    "minimax_h3": ("MiniMaxH3Transformer3DModel", TWO),
    "mochi": ("MochiTransformer3DModel", {"num_layers": 48}),
    "sana": ("SanaTransformer2DModel", TWO),
    "sana_sprint": ("SanaTransformer2DModel", {**TWO, "guidance_embeds": True}),
    "sd15": ("UNet2DConditionModel", {}),
    "sd21": ("UNet2DConditionModel", SD21),
    "sd21_unclip": ("UNet2DConditionModel", UNCLIP),
    "sd3": ("SD3Transformer2DModel", {"num_layers": 3}),
    "sd35": ("SD3Transformer2DModel", {"num_layers": 3, "dual_attention_layers": (0, 1)}),
    "sdxl": ("UNet2DConditionModel", SDXL),
    "skyreels_v2": ("SkyReelsV2Transformer3DModel", {**TWO, "image_dim": 8, "added_kv_proj_dim": 2048}),
    "uneven": ("UNet2DConditionModel", UNEVEN),
    "wan": ("WanTransformer3DModel", TWO),
    "motion": ("UNetMotionModel", {}),
    "wan_animate2": ("WanAnimate2Transformer3DModel", TWO),
    "wan_animate": ("WanAnimateTransformer3DModel", {"num_layers": 5, "added_kv_proj_dim": 5120}),
    "wan_i2v": ("WanTransformer3DModel", {**TWO, "image_dim": 8, "added_kv_proj_dim": 5120}),
    "wan_vace": (
        "WanVACETransformer3DModel",
        {**TWO, "vace_layers": (0, 1), "image_dim": 8, "added_kv_proj_dim": 5120},
    ),
    "z_image": ("ZImageTransformer2DModel", {"n_layers": 2}),
}

_KINDS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


@dataclass(frozen=True)
class Model:
    """What a test needs of a model: its configuration, the rows of each layer, and the names by the table."""

    config: Mapping[str, Any]
    rows: Mapping[str, int]
    table: tuple[Rename, ...]

    @functools.cached_property
    def originals(self) -> dict[str, Rename]:
        """Original name -> the entry with its numbers filled in, for every layer of the model."""
        found = {item.original: item for entry in self.table for item in filled_in(entry, self.rows)}
        renamed = {module for item in found.values() for module in item.modules}
        return found | {module: rename(module, module) for module in self.rows if module not in renamed}


@functools.cache
def model(name: str) -> Model:
    model_class, overrides = MODELS[name]
    if model_class.startswith("CLIP"):
        config = transformers.CLIPTextConfig(**overrides)
        with torch.device("meta"):
            built = getattr(transformers, model_class)(config)
        settings = config.to_dict()
    else:
        cls = LTX2TextConnectors if model_class == "LTX2TextConnectors" else getattr(diffusers, model_class)
        with torch.device("meta"):
            built = cls(**overrides)
        settings = dict(built.config)
    layers = {plain_name(name): module for name, module in built.named_modules() if isinstance(module, _KINDS)}
    rows = {name: module.weight.shape[0] for name, module in layers.items()}
    return Model(settings, rows, renames(model_class, settings))


def filled_in(entry: Rename, modules: Mapping[str, int]) -> Iterator[Rename]:
    """The entry for each set of numbers with which the model has its first module."""
    pattern = re.compile(re.escape(entry.modules[0]).replace(r"\{\}", r"(\d+)"))
    for module in modules:
        if match := pattern.fullmatch(module):
            names = tuple(name.format(*match.groups()) for name in entry.modules)
            yield Rename(entry.original.format(*match.groups()), names, entry.swapped)


def numbered(model: Model) -> dict[str, torch.Tensor]:
    """A column of numbers for each layer, [rows, 1], no number twice."""
    columns, first = {}, 1
    for module, rows in model.rows.items():
        columns[module] = torch.arange(first, first + rows, dtype=torch.float64)[:, None]
        first += rows
    return columns


def fused(item: Rename, columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the original layer holds if the modules hold `columns`."""
    column = torch.cat([columns[module] for module in item.modules])
    return torch.cat(column.chunk(2)[::-1]) if item.swapped else column


# --- a table by itself ------------------------------------------------------------------------------------------------


def models_of(model_class: str) -> list[Model]:
    """Those of the class, and of classes with the same table."""
    return [model(name) for name, (cls, _) in MODELS.items() if ORIGINALS[cls] is ORIGINALS[model_class]]


def test_every_class_has_a_model_here() -> None:
    assert {model_class for model_class, _ in MODELS.values()} == set(ORIGINALS)


@pytest.mark.parametrize("model_class", ORIGINALS)
def test_every_module_of_a_table_exists_in_a_model(model_class: str) -> None:
    built = models_of(model_class)
    absent = [{entry for entry in one.table if not [*filled_in(entry, one.rows)]} for one in built]
    assert set.intersection(*absent) == set()
    for one in built:
        for entry in one.table:
            for item in filled_in(entry, one.rows):
                assert set(item.modules) <= set(one.rows), f"{entry.original} names a module that there is not"


@pytest.mark.parametrize("name", MODELS)
def test_placeholders_agree_and_no_module_is_named_twice(name: str) -> None:
    built = model(name)
    for entry in built.table:
        assert {module.count("{}") for module in entry.modules} == {entry.original.count("{}")}
        assert not (entry.swapped and len(entry.modules) > 1)
    assert len({entry.original for entry in built.table}) == len(built.table)
    named = [module for entry in built.table for item in filled_in(entry, built.rows) for module in item.modules]
    assert len(set(named)) == len(named)
    assert set(named) <= set(built.rows)


@pytest.mark.parametrize("name", MODELS)
def test_original_names_stay_apart_from_each_other_and_from_other_modules_when_flattened(name: str) -> None:
    built = model(name)
    flat = {original.replace(".", "_") for original in built.originals}
    assert len(flat) == len(built.originals)
    for original, item in built.originals.items():
        taken = {module for module in built.rows if module.replace(".", "_") == original.replace(".", "_")}
        assert taken <= set(item.modules), f"{original} is also a module of its own"


@pytest.mark.parametrize("name", [name for name, (cls, _) in MODELS.items() if cls == "UNet2DConditionModel"])
def test_table_of_a_unet_names_each_of_its_layers_and_no_other(name: str) -> None:
    built = model(name)
    assert [entry.original for entry in built.table if not [*filled_in(entry, built.rows)]] == []
    named = {module for entry in built.table for item in filled_in(entry, built.rows) for module in item.modules}
    assert named == set(built.rows)


@pytest.mark.parametrize("model_class", [name for name, table in ORIGINALS.items() if callable(table)])
def test_what_a_configuration_does_not_say_is_as_diffusers_has_it(model_class: str) -> None:
    parameters = inspect.signature(getattr(diffusers, model_class).__init__).parameters.values()
    defaults = {item.name: item.default for item in parameters if item.default is not inspect.Parameter.empty}
    assert renames(model_class, {}) == renames(model_class, defaults)


def test_within_puts_a_part_around_every_name_and_keeps_swaps() -> None:
    inner = (rename("qkv", "q", "k"), rename("w1", "up", swapped=True))
    assert within("a.{}", "b.{}", inner) == (
        Rename("a.{}.qkv", ("b.{}.q", "b.{}.k")),
        Rename("a.{}.w1", ("b.{}.up",), swapped=True),
    )


@pytest.mark.parametrize(
    "model_class", ["QwenImageTransformer2DModel", "T5EncoderModel", "HiDreamImageTransformer2DModel"]
)
def test_class_whose_original_names_are_diffusers_own_has_an_empty_table(model_class: str) -> None:
    assert renames(model_class, {}) == ()


# --- against the conversion of whole models ---------------------------------------------------------------------------


class Checkpoint(dict[str, torch.Tensor]):
    """An original checkpoint that has whatever norm or table a converter asks for."""

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key, *(default or (torch.zeros(12, 1),)))


def _open_clip(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    class Text:
        class config:  # noqa: N801
            hidden_size = config["hidden_size"]

    keys = {key.replace(".in_proj.weight", ".in_proj_weight"): value for key, value in checkpoint.items()}
    # Only transformers has a layer for it; there, it is a bare matrix.
    projection = keys.pop("text_projection.weight", torch.zeros(0))
    converted = converters.convert_open_clip_checkpoint(Text, keys, prefix="")
    return {"text_projection.weight": projection} | {plain_name(key): value for key, value in converted.items()}


class _Cosmos1(Checkpoint):
    """diffusers asks for the generation after it has emptied the checkpoint."""

    def __contains__(self, key: object) -> bool:
        return key == "net.blocks.block1.blocks.0.block.attn.to_q.0.weight" or super().__contains__(key)


def _cosmos1(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return converters.convert_cosmos_transformer_checkpoint_to_diffusers(_Cosmos1(checkpoint))


def _unet(checkpoint: Checkpoint, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return converters.convert_ldm_unet_checkpoint(checkpoint, dict(config))


def _plain(name: str) -> Callable[..., dict[str, torch.Tensor]]:
    return getattr(converters, f"convert_{name}")  # type: ignore[no-any-return]


WHOLE: dict[str, tuple[Callable[..., dict[str, torch.Tensor]], str]] = {
    "auraflow": (_plain("auraflow_transformer_checkpoint_to_diffusers"), ""),
    "chroma": (_plain("chroma_transformer_checkpoint_to_diffusers"), ""),
    "clip_g": (_open_clip, ""),
    "clip_h": (_open_clip, ""),
    "cosmos1": (_cosmos1, "net."),
    "cosmos2": (_plain("cosmos_transformer_checkpoint_to_diffusers"), "net."),
    "flux": (_plain("flux_transformer_checkpoint_to_diffusers"), ""),
    "flux2": (_plain("flux2_transformer_checkpoint_to_diffusers"), ""),
    "flux3": (_plain("flux3_transformer_checkpoint_to_diffusers"), ""),
    "hunyuan_video": (_plain("hunyuan_video_transformer_to_diffusers"), ""),
    "krea2": (_plain("krea2_transformer_checkpoint_to_diffusers"), ""),
    "ltx2": (_plain("ltx2_transformer_to_diffusers"), ""),
    "ltx_video": (_plain("ltx_transformer_checkpoint_to_diffusers"), ""),
    "lumina2": (_plain("lumina2_to_diffusers"), ""),
    "minimax_h3": (_plain("minimax_h3_transformer_checkpoint_to_diffusers"), ""),
    "mochi": (_plain("mochi_transformer_checkpoint_to_diffusers"), ""),
    "sana": (_plain("sana_transformer_to_diffusers"), ""),
    "sd15": (_unet, "model.diffusion_model."),
    "sd21": (_unet, "model.diffusion_model."),
    "sd21_unclip": (_unet, "model.diffusion_model."),
    "sd3": (_plain("sd3_transformer_checkpoint_to_diffusers"), ""),
    "sd35": (_plain("sd3_transformer_checkpoint_to_diffusers"), ""),
    "sdxl": (_unet, "model.diffusion_model."),
    "wan": (_plain("wan_transformer_to_diffusers"), ""),
    "qwen_image21": (_plain("qwen_image21_transformer_checkpoint_to_diffusers"), ""),
    "wan_animate2": (_plain("wan_animate_2_transformer_to_diffusers"), ""),
    "wan_animate": (_plain("wan_transformer_to_diffusers"), ""),
    "wan_i2v": (_plain("wan_transformer_to_diffusers"), ""),
    "wan_vace": (_plain("wan_transformer_to_diffusers"), ""),
    "z_image": (_plain("z_image_transformer_checkpoint_to_diffusers"), ""),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_row_is_where_diffusers_conversion_of_the_whole_model_puts_it(name: str) -> None:
    built, (convert, prefix) = model(name), WHOLE[name]
    columns = numbered(built)
    checkpoint = Checkpoint()
    for original, item in built.originals.items():
        checkpoint[f"{prefix}{original}.weight"] = fused(item, columns)
        checkpoint[f"{prefix}{original}.bias"] = fused(item, columns)[:, 0]
    converted = convert(checkpoint, config=built.config)
    strays = {
        module
        for module, column in columns.items()
        if not torch.equal(converted.get(f"{module}.weight", torch.zeros(0)), column)
    }
    assert strays == set()


# --- against the conversion of LoRA -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lora:
    """A LoRA converter of diffusers: the model, how its files name layers, and where diffusers falls short.

    `refused`, `lost` and `wrong` are regular expressions on original names, each with the reason: with such a layer in
    the file, the converter raises; without a word, it leaves the layer out of what is loaded; it loads other numbers.
    """

    model: str
    convert: Callable[[dict[str, torch.Tensor], Model], dict[str, torch.Tensor]]
    prefix: str = "diffusion_model."
    component: str = "transformer"
    kohya: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)
    wrong: Mapping[str, str] = field(default_factory=dict)

    def file(self, originals: Mapping[str, Rename], columns: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A rank 1 LoRA for these layers: each A has its place as number, each B its column."""
        names = ("lora_down", "lora_up") if self.kohya else ("lora_A", "lora_B")
        state = Checkpoint()
        for place, (original, item) in enumerate(originals.items(), 1):
            key = self.prefix + (original.replace(".", "_") if self.kohya else original)
            state[f"{key}.{names[0]}.weight"] = torch.full((1, 1), float(place), dtype=torch.float64)
            state[f"{key}.{names[1]}.weight"] = fused(item, columns)
            if self.kohya:
                state[f"{key}.alpha"] = torch.tensor(1.0, dtype=torch.float64)
        return state


def _lora(name: str, **options: Any) -> Callable[[dict[str, torch.Tensor], Model], dict[str, torch.Tensor]]:
    convert = getattr(lora_converters, f"_convert_{name}_to_diffusers")
    return lambda state, built: convert(state, **options)


def _sgm(state: dict[str, torch.Tensor], built: Model) -> dict[str, torch.Tensor]:
    class Config:
        layers_per_block = built.config["layers_per_block"]

    mapped = lora_converters._maybe_map_sgm_blocks_to_diffusers(dict(state), Config)
    converted, _ = lora_converters._convert_non_diffusers_lora_to_diffusers(mapped)
    return convert_unet_state_dict_to_peft(converted)  # type: ignore[no-any-return]


def _connectors(state: dict[str, torch.Tensor], built: Model) -> dict[str, torch.Tensor]:
    options = {"non_diffusers_prefix": "text_embedding_projection"}
    return _lora("non_diffusers_ltx2_lora", **options)(state, built)


def _control(state: dict[str, torch.Tensor], built: Model) -> dict[str, torch.Tensor]:
    converted = lora_converters._convert_bfl_flux_control_lora_to_diffusers(state)
    return {key: value for key, value in converted.items() if "lora" in key}


UNKNOWN = "the converter does not know it"
UNPREFIXED = "its key comes out without `transformer.`, and loading passes over it"
UNRENAMED = "it keeps its original name, of which the model has no layer"
#: All but the blocks of FLUX.
FLUX_ENDS = r"(img_in|txt_in|(time|vector|guidance)_in\..*|final_layer\..*)"
#: `input_blocks_1` is looked for in keys that begin with `input_blocks_10`, too.
TENS = {r"(input|output)_blocks\.1[01]\..*": "its layers are taken for those of block 1"}
BARE_UPSAMPLER = {r"output_blocks\.2\.1\.conv": "in second place, it is taken for an attention"}

LORA: dict[str, Lora] = {
    "ace_step": Lora(
        "ace_step", _lora("non_diffusers_ace_step_lora"), "base_model.model.", lost={r"proj_in\.1": UNRENAMED}
    ),
    "anima": Lora("anima", _lora("non_diffusers_anima_lora")),
    "chroma-kohya": Lora(
        "chroma",
        _lora("kohya_flux_lora"),
        "lora_unet_",
        kohya=True,
        refused={r"distilled_guidance_layer\..*": UNKNOWN},
        lost={FLUX_ENDS: UNPREFIXED},
    ),
    "flux-control": Lora(
        "flux",
        _control,
        "",
        refused={r"final_layer\.adaLN_modulation\.1": "A, which has no halves, is halved and swapped as B is"},
    ),
    "flux-kohya": Lora("flux", _lora("kohya_flux_lora"), "lora_unet_", kohya=True, lost={FLUX_ENDS: UNPREFIXED}),
    "flux-kontext": Lora(
        "flux",
        _lora("fal_kontext_lora"),
        "base_model.model.",
        refused={rf"(?!final_layer\.linear){FLUX_ENDS}": UNKNOWN},
    ),
    "flux2": Lora(
        "flux2",
        _lora("non_diffusers_flux2_lora"),
        wrong={r"final_layer\.adaLN_modulation\.1": "not swapped, as the conversion of the whole model does"},
    ),
    "flux2-kohya": Lora(
        "flux2",
        _lora("kohya_flux2_lora"),
        "lora_unet_",
        kohya=True,
        lost={r"(double|single)_stream_.*|guidance_in\..*|final_layer\.adaLN_modulation\.1": UNKNOWN},
    ),
    "flux3": Lora(
        "flux3",
        _lora("non_diffusers_flux3_lora"),
        lost={r".*_stream_modulations\..*|emb_in\..*|(ref_)?time_in\..*|txt_in|final_layer\..*": UNRENAMED},
    ),
    "hunyuan_video": Lora(
        "hunyuan_video",
        _lora("hunyuan_video_lora"),
        "transformer.",
        refused={
            r"txt_in\..*\.self_attn_qkv": "A, which has no thirds, is split as B is",
            r"final_layer\.adaLN_modulation\.1": "A, which has no halves, is halved and swapped as B is",
        },
    ),
    "ideogram4": Lora("ideogram4", _lora("non_diffusers_ideogram4_lora"), refused={r"(?!layers\.).*": UNKNOWN}),
    "krea2": Lora("krea2", _lora("non_diffusers_krea2_lora")),
    "ltx2": Lora("ltx23", _lora("non_diffusers_ltx2_lora")),
    "ltx2_connectors": Lora("ltx2_connectors", _connectors, "", "connectors", lost={r"\w+_connector\..*": UNKNOWN}),
    "ltx_video": Lora(
        "ltx_video", _lora("non_diffusers_ltxv_lora"), lost={r"adaln_single\..*|patchify_proj": UNRENAMED}
    ),
    "lumina2": Lora(
        "lumina2",
        _lora("non_diffusers_lumina2_lora"),
        refused={r"(x|t|cap)_embedder.*|final_layer\..*": UNKNOWN},
    ),
    "minimax_h3": Lora("minimax_h3", _lora("non_diffusers_minimax_h3_lora")),
    "minimax_h3-kohya": Lora("minimax_h3", _lora("non_diffusers_minimax_h3_lora"), "lora_unet_", kohya=True),
    "sd15-kohya": Lora("sd15", _sgm, "lora_unet_", "unet", kohya=True, refused=TENS, lost=BARE_UPSAMPLER),
    "sd21-kohya": Lora("sd21", _sgm, "lora_unet_", "unet", kohya=True, refused=TENS, lost=BARE_UPSAMPLER),
    "sdxl-kohya": Lora("sdxl", _sgm, "lora_unet_", "unet", kohya=True),
    "wan": Lora("wan", _lora("non_diffusers_wan_lora"), refused={r"patch_embedding": UNKNOWN}),
    "wan-kohya": Lora("wan", _lora("musubi_wan_lora"), "lora_unet_", kohya=True, refused={r"(?!blocks\.).*": UNKNOWN}),
    "wan_i2v": Lora("wan_i2v", _lora("non_diffusers_wan_lora"), refused={r"patch_embedding": UNKNOWN}),
    "wan_i2v-kohya": Lora(
        "wan_i2v", _lora("musubi_wan_lora"), "lora_unet_", kohya=True, refused={r"(?!blocks\.).*": UNKNOWN}
    ),
    "wan_vace": Lora(
        "wan_vace", _lora("non_diffusers_wan_lora"), refused={r"(vace_)?patch_embedding|vace_blocks\..*": UNKNOWN}
    ),
    "z_image": Lora(
        "z_image",
        _lora("non_diffusers_z_image_lora"),
        lost={r".*\.attention\.(qkv|out)|x_embedder|final_layer\..*": UNRENAMED},
    ),
    "z_image-kohya": Lora(
        "z_image",
        _lora("non_diffusers_z_image_lora"),
        "lora_unet_",
        kohya=True,
        lost={r"x_embedder|final_layer\..*": UNRENAMED},
    ),
}


def matching(patterns: Mapping[str, str], names: Iterable[str]) -> set[str]:
    return {name for name in names if any(re.fullmatch(pattern, name) for pattern in patterns)}


@pytest.mark.parametrize("name", LORA)
def test_every_row_of_a_lora_is_where_diffusers_puts_it_but_for_what_it_is_known_to_miss(name: str) -> None:
    case, built = LORA[name], model(LORA[name].model)
    columns = numbered(built)
    refused = matching(case.refused, built.originals)
    kept = {original: item for original, item in built.originals.items() if original not in refused}
    loaded = case.convert(case.file(kept, columns), built)
    lost, wrong = set(), set()
    for place, (original, item) in enumerate(kept.items(), 1):
        for module in item.modules:
            a, b = (loaded.get(f"{case.component}.{module}.lora_{factor}.weight") for factor in "AB")
            if a is None or b is None:
                lost.add(original)
            elif not (torch.equal(b, columns[module]) and a.tolist() == [[place]]):
                wrong.add(original)
    assert lost == matching(case.lost, kept)
    assert wrong == matching(case.wrong, kept)


@pytest.mark.parametrize("name", [name for name, case in LORA.items() if case.refused])
def test_what_diffusers_is_said_to_refuse_it_refuses(name: str) -> None:
    case, built = LORA[name], model(LORA[name].model)
    columns = numbered(built)
    kept = {o: item for o, item in built.originals.items() if o not in matching(case.refused, built.originals)}
    for pattern in case.refused:
        bad = sorted(matching({pattern: ""}, built.originals))
        assert bad, f"{pattern} matches nothing"
        with pytest.raises((ValueError, KeyError, IndexError)):
            case.convert(case.file(kept | {original: built.originals[original] for original in bad}, columns), built)
