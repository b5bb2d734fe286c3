"""The effect is the contract: what the trainer's model computes, a pipeline computes that loaded the exported file."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from adapterline.checkpoints import load_checkpoint
from adapterline.checkpoints.extract import extract
from adapterline.families.base import read_base
from adapterline.layouts import convert
from adapterline.scratch import Scratch
from adapterline.serialize import serialize
from adapterline.settings import Settings
from adapterline.values import WEIGHT_NAME, ExportOptions
from tests.bases import VARIANTS, PeftAdapter, forward, peft_adapter

BaseOf = Callable[[str], Path]

UNET = ["to_q", "to_k", "to_v", "to_out.0"]
CLIP = ["q_proj", "k_proj", "v_proj", "out_proj"]
CONV = ["conv1", "conv2", "conv_shortcut", "conv_in", "proj_in"]
FLUX2 = ["to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj"]

COMPONENTS: dict[tuple[str, str], list[str]] = {
    ("sd15", "unet"): UNET,
    ("sd15", "text_encoder"): CLIP,
    ("sdxl", "unet"): UNET,
    ("sdxl", "text_encoder"): CLIP,
    ("sdxl", "text_encoder_2"): CLIP,
    ("sd3", "transformer"): UNET,
    ("sd3", "text_encoder"): CLIP,
    ("sd3", "text_encoder_2"): CLIP,
    ("flux", "transformer"): UNET,
    ("flux", "text_encoder"): CLIP,
    ("flux2", "transformer"): FLUX2,
    ("qwenimage", "transformer"): UNET,
}
#: SDXL's UNet is large, and what it shares with that of Stable Diffusion 1.5 is tried there.
CASES = [
    pytest.param(*place, variant, marks=[pytest.mark.slow] if place == ("sdxl", "unet") and variant != "dora" else [])
    for place in COMPONENTS
    for variant in VARIANTS
]


@pytest.fixture(scope="module")
def pipeline_of(base: BaseOf) -> Callable[[str], Any]:
    return functools.cache(lambda family: DiffusionPipeline.from_pretrained(base(family)))


def export(checkpoint: Path, base_folder: Path, scratch: Path, **options: Any) -> Path:
    """The folder of the exported file: the line from load to serialize."""
    asked = ExportOptions(**options)
    source = load_checkpoint(str(checkpoint), asked, scratch)
    base = read_base(base_folder)
    store = Scratch.open(Settings(scratch=scratch))
    return store.folder(serialize(convert(extract(source, base, asked), base, asked), store).digest)


@contextmanager
def loaded(pipeline: Any, folder: Path) -> Iterator[Any]:
    """The pipeline with the file, as its users load it: no option is given."""
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 models for it, and says of a lora_B.bias that it could not be merged.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        warnings.filterwarnings("ignore", ".*(lora_bias=True|lora_B.bias)")
        pipeline.load_lora_weights(str(folder), weight_name=WEIGHT_NAME)
        try:
            yield pipeline
        finally:
            pipeline.unload_lora_weights()


def assert_same_effect(pipeline: Any, component: str, adapter: PeftAdapter, folder: Path, limit: float = 1e-4) -> None:
    effect = (adapter.adapted_output - adapter.base_output).norm()
    assert effect > 1e-3 * adapter.base_output.norm(), "an adapter without effect would prove nothing"
    model = getattr(pipeline, component)
    assert torch.equal(forward(model), adapter.base_output)
    with loaded(pipeline, folder):
        model = getattr(pipeline, component)
        output = forward(model)
        assert torch.equal(output, forward(model)), "nothing is read from memory that nobody wrote"
    assert (output - adapter.adapted_output).norm() <= limit * effect


@pytest.mark.parametrize(("family", "component", "variant"), CASES)
def test_pipeline_computes_what_peft_computes(
    base: BaseOf, pipeline_of: Callable[[str], Any], tmp_path: Path, family: str, component: str, variant: str
) -> None:
    targets, settings = COMPONENTS[family, component], VARIANTS[variant]
    adapter = peft_adapter(base(family), component, tmp_path / "peft" / component, 4, 6, targets, **settings)
    folder = export(adapter.folder.parent, base(family), tmp_path / "scratch")
    assert_same_effect(pipeline_of(family), component, adapter, folder)


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("sd15", "alpha"),
        ("sd15", "dora"),
        ("sd15", "patterns"),
        pytest.param("sdxl", "dora", marks=pytest.mark.slow),
    ],
)
def test_pipeline_computes_what_peft_computes_with_convolutions(
    base: BaseOf, pipeline_of: Callable[[str], Any], tmp_path: Path, family: str, variant: str
) -> None:
    adapter = peft_adapter(base(family), "unet", tmp_path / "peft", 4, 6, UNET + CONV, **VARIANTS[variant])
    folder = export(adapter.folder, base(family), tmp_path / "scratch")
    assert any(tensor.dim() == 4 for tensor in load_file(folder / WEIGHT_NAME).values())
    assert_same_effect(pipeline_of(family), "unet", adapter, folder)


@pytest.mark.parametrize("variant", ["alpha", "dora", "patterns"])
@pytest.mark.parametrize(
    ("family", "component"), [("sd15", "unet"), ("flux", "transformer"), ("sdxl", "text_encoder_2")]
)
def test_scale_in_the_header_has_the_same_effect(
    base: BaseOf, pipeline_of: Callable[[str], Any], tmp_path: Path, family: str, component: str, variant: str
) -> None:
    targets, settings = COMPONENTS[family, component], VARIANTS[variant]
    adapter = peft_adapter(base(family), component, tmp_path / "peft" / component, 4, 6, targets, **settings)
    folder = export(adapter.folder.parent, base(family), tmp_path / "scratch", scale="header")
    trained = load_file(adapter.folder / "adapter_model.safetensors")
    written = load_file(folder / WEIGHT_NAME)
    assert sorted(tensor.sum().item() for tensor in trained.values()) == sorted(
        tensor.sum().item() for tensor in written.values()
    ), "the factors are left as they are"
    assert_same_effect(pipeline_of(family), component, adapter, folder)


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float16, 1e-3), (torch.bfloat16, 1e-3), (torch.float64, 1e-4)], ids=str
)
def test_adapter_in_another_dtype_keeps_it_and_its_effect(
    base: BaseOf, pipeline_of: Callable[[str], Any], tmp_path: Path, dtype: torch.dtype, limit: float
) -> None:
    """A scale of 1.5 is not exact in 8 bits: those factors are promoted. A scale of 2 leaves them as they are."""
    for alpha, kept in ((6, dtype != torch.bfloat16), (8, True)):
        adapter = peft_adapter(base("sd15"), "unet", tmp_path / f"peft{alpha}", 4, alpha, UNET, dtype=dtype)
        folder = export(adapter.folder, base("sd15"), tmp_path / "scratch")
        assert {tensor.dtype for tensor in load_file(folder / WEIGHT_NAME).values()} == {
            dtype if kept else torch.float32
        }
        assert_same_effect(pipeline_of("sd15"), "unet", adapter, folder, limit)


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_components_in_one_file_have_their_own_scales(
    base: BaseOf, pipeline_of: Callable[[str], Any], tmp_path: Path, family: str
) -> None:
    adapters = {}
    for seed, (name, targets) in enumerate((place[1], t) for place, t in COMPONENTS.items() if place[0] == family):
        alpha = 3 + 4 * seed
        adapters[name] = peft_adapter(base(family), name, tmp_path / "peft" / name, 4, alpha, targets, seed=seed)
    folder = export(tmp_path / "peft", base(family), tmp_path / "scratch")
    assert len(adapters) >= 2
    for name, adapter in adapters.items():
        assert_same_effect(pipeline_of(family), name, adapter, folder)


def test_state_dict_of_a_compiled_model_has_the_effect_of_the_alpha_that_is_given(
    base: BaseOf, pipeline_of: Callable[[str], Any], tmp_path: Path
) -> None:
    adapter = peft_adapter(base("flux"), "transformer", tmp_path / "peft", 4, 6, UNET)
    tensors = load_file(adapter.folder / "adapter_model.safetensors")
    raw = {
        f"module._orig_mod.{key.removeprefix('base_model.model.').replace('.weight', '.default.weight')}": tensor
        for key, tensor in tensors.items()
    }
    save_file(raw, tmp_path / "raw.safetensors")
    folder = export(tmp_path / "raw.safetensors", base("flux"), tmp_path / "scratch", alpha=6)
    assert_same_effect(pipeline_of("flux"), "transformer", adapter, folder)


def test_another_alpha_has_another_effect(base: BaseOf, pipeline_of: Callable[[str], Any], tmp_path: Path) -> None:
    """The comparison above can fail: by the smallest mistake that trainers and loaders make."""
    adapter = peft_adapter(base("sd15"), "unet", tmp_path / "peft", 4, 6, UNET)
    save_file(load_file(adapter.folder / "adapter_model.safetensors"), tmp_path / "raw.safetensors")
    folder = export(tmp_path / "raw.safetensors", base("sd15"), tmp_path / "scratch", alpha=6.01)
    with pytest.raises(AssertionError):
        assert_same_effect(pipeline_of("sd15"), "unet", adapter, folder)


@pytest.mark.parametrize("scale", ["portable", "header"])
def test_layer_whose_name_ends_others_is_adapted_alone(
    base: BaseOf, pipeline_of: Callable[[str], Any], tmp_path: Path, scale: str
) -> None:
    """FLUX has a `proj_out` of its own and one in every single block; peft finds modules by the end of their names."""
    adapter = peft_adapter(base("flux"), "transformer", tmp_path / "peft", 4, 6, r"proj_out")
    assert len(load_file(adapter.folder / "adapter_model.safetensors")) == 2
    folder = export(adapter.folder, base("flux"), tmp_path / "scratch", scale=scale)
    pipeline = pipeline_of("flux")
    assert any(name.endswith(".proj_out") for name, _ in pipeline.transformer.named_modules())
    with loaded(pipeline, folder):
        adapted = [name for name, module in pipeline.transformer.named_modules() if hasattr(module, "lora_A")]
    assert adapted == ["proj_out"]
    assert_same_effect(pipeline, "transformer", adapter, folder)
