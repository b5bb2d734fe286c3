"""Real pipelines render; each failure is a base or an adapter that was broken once."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from adapterline.errors import FamilyError, UsageError
from adapterline.families.base import read_base
from adapterline.families.shipped import shipped
from adapterline.validation.pictures import pictures_of, preview, save_beside
from adapterline.validation.render import Rendered, check_render, fits, render, stored_dtype
from adapterline.values import WEIGHT_NAME, ExportOptions
from tests.bases import load_component, peft_adapter
from tests.conftest import Trained
from tests.families.adapted import train
from tests.families.tiny import CASES
from tests.line import Exported, run_line

SIDE = 64
GAP = 8
OPTIONS = ExportOptions(render=("a dog",), render_steps=2)


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return run_line(trained.checkpoint, trained.base, tmp_path_factory.mktemp("export"))


def rendered(export: Exported, out: Path, options: ExportOptions = OPTIONS, folder: Path | None = None) -> Rendered:
    assert export.base.folder is not None
    spec = str(export.base.folder)
    check_render(export.base, spec, options)
    return render(export.bundle, folder or export.folder, export.base, spec, options, out)


def failed(found: Rendered) -> set[str]:
    return {check.name.partition(", ")[2] for check in found.checks if not check.passed}


def with_base(export: Exported, folder: Path, edit: Callable[[Path], None]) -> Exported:
    """The same export on a copy of its base that `edit` changed."""
    assert export.base.folder is not None
    shutil.copytree(export.base.folder, folder)
    edit(folder)
    return replace(export, base=read_base(folder))


def edit_weights(file: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})


def halves(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    pixels = np.asarray(Image.open(path))
    width = (pixels.shape[1] - GAP) // 2
    assert (pixels[:, width : width + GAP] == 255).all()
    return pixels[:, :width], pixels[:, width + GAP :]


def by_diffusers(export: Exported, *, adapter: bool, dtype: torch.dtype = torch.float32) -> np.ndarray[Any, Any]:
    """What a user of diffusers would see."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(export.base.folder, dtype=dtype, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    if adapter:
        pipeline.load_lora_weights(str(export.folder), weight_name=WEIGHT_NAME)
    generator = torch.Generator("cpu").manual_seed(0)
    image = pipeline("a dog", num_inference_steps=2, generator=generator).images[0]
    return np.asarray(image)


# --- what passes ------------------------------------------------------------------------------------------------------


def test_the_halves_are_what_diffusers_renders_without_and_with_the_file(exported: Exported, tmp_path: Path) -> None:
    found = rendered(exported, tmp_path)
    assert found.passed
    (image,) = found.gallery.images
    left, right = halves(tmp_path / image.path)
    assert np.array_equal(left, by_diffusers(exported, adapter=False))
    assert np.array_equal(right, by_diffusers(exported, adapter=True))
    assert not np.array_equal(left, right)


def test_an_image_is_named_by_its_bytes_and_has_pixels_alone(exported: Exported, tmp_path: Path) -> None:
    (image,) = rendered(exported, tmp_path).gallery.images
    data = (tmp_path / image.path).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert (image.path, image.sha256, image.size) == (f"images/{digest[:16]}.png", digest, len(data))
    assert (image.width, image.height) == (2 * SIDE + GAP, SIDE)
    assert (image.prompt, image.seed) == ("a dog", 0)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.format == "PNG"
        assert opened.info == {}


def test_a_prompt_an_image_and_the_same_seed_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    options = OPTIONS.model_copy(update={"render": ("a dog", "a cat", "a dog")})
    first, second, again = rendered(exported, tmp_path, options).gallery.images
    assert first == again
    assert first.path != second.path
    other = rendered(exported, tmp_path, OPTIONS.model_copy(update={"render_seed": 1})).gallery.images[0]
    assert other.path != first.path


def test_size_steps_and_guidance_are_the_pipelines(exported: Exported, tmp_path: Path) -> None:
    more = {"render_width": 128, "render_height": 72, "render_guidance": 1.0, "render_steps": 1}
    (image,) = rendered(exported, tmp_path, OPTIONS.model_copy(update=more)).gallery.images
    assert (image.width, image.height) == (2 * 128 + GAP, 72)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_base_in_half_precision_is_rendered_in_it(exported: Exported, tmp_path: Path, dtype: torch.dtype) -> None:
    def in_half(base: Path) -> None:
        for file in base.glob("*/*.safetensors"):
            edit_weights(file, lambda tensors: tensors.update({k: t.to(dtype) for k, t in tensors.items()}))

    half = with_base(exported, tmp_path / "base", in_half)
    assert stored_dtype(tmp_path / "base/unet") == dtype
    found = rendered(half, tmp_path)
    assert found.passed
    left, right = halves(tmp_path / found.gallery.images[0].path)
    assert np.array_equal(left, by_diffusers(half, adapter=False, dtype=dtype))
    assert np.array_equal(right, by_diffusers(half, adapter=True, dtype=dtype))


@pytest.mark.parametrize(("family", "targets"), [("flux", ["to_q", "proj_mlp"]), ("sd3", ["to_q", "to_v"])])
def test_flow_transformers_render_too(
    base: Callable[[str], Path], tmp_path: Path, family: str, targets: list[str]
) -> None:
    peft_adapter(base(family), "transformer", tmp_path / "in/transformer", 4, 10, targets)
    options = OPTIONS.model_copy(update={"render_width": SIDE, "render_height": SIDE})
    found = rendered(run_line(tmp_path / "in", base(family), tmp_path), tmp_path, options)
    assert found.passed
    assert found.gallery.images[0].height == SIDE


def build_wan(folder: Path) -> None:
    """A whole text-to-video pipeline, tiny and random."""
    from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
    from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

    tokenizer = T5Tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = UMT5Config(vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        transformer = CASES["wan"].build("transformer")
        WanPipeline(
            tokenizer=tokenizer,
            text_encoder=UMT5EncoderModel(text),
            vae=AutoencoderKLWan(
                base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
                latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            transformer=transformer,
        ).save_pretrained(folder)  # fmt: skip


def test_of_a_video_pipeline_frames_are_shown_in_two_rows(tmp_path: Path) -> None:
    build_wan(tmp_path / "base")
    train(CASES["wan"].build("transformer"), tmp_path / "in/transformer")
    more = {"render_width": 32, "render_height": 32, "render_frames": 9}
    video = run_line(tmp_path / "in", tmp_path / "base", tmp_path)
    found = rendered(video, tmp_path, OPTIONS.model_copy(update=more))
    assert found.passed
    (image,) = found.gallery.images
    assert (image.width, image.height) == (3 * 32 + 2 * GAP, 2 * 32 + GAP)


def test_new_tokens_are_there_for_the_adapted_image(exported: Exported, tmp_path: Path) -> None:
    # The token of an embedding changes what its prompt renders, also where the adapter's weights do nothing.
    checkpoint = tmp_path / "in"
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {f"{layer}.lora_down.weight": torch.randn(4, 32), f"{layer}.lora_up.weight": torch.full((32, 4), 1e-9)}
    checkpoint.mkdir()
    emb = {"bundle_emb.<sks>.string_to_param.*": torch.randn(2, 32)}
    save_file({**tensors, f"{layer}.alpha": torch.tensor(4.0), **emb}, checkpoint / "lora.safetensors")
    assert exported.base.folder is not None
    with_token = run_line(checkpoint / "lora.safetensors", exported.base.folder, tmp_path)
    assert any(load.method == "load_textual_inversion" for load in with_token.plan.loads)
    found = rendered(with_token, tmp_path, OPTIONS.model_copy(update={"render": ("a photo of <sks>", "a dog")}))
    by_image = [check for check in found.checks if check.name.endswith("is not the base's")]
    assert [check.passed for check in by_image] == [True, False]


# --- what fails -------------------------------------------------------------------------------------------------------


def test_an_adapter_that_is_not_seen_fails(exported: Exported, tmp_path: Path) -> None:
    tensors = load_file(exported.folder / WEIGHT_NAME)
    dead = {key: torch.zeros_like(tensor) if "lora_B" in key else tensor for key, tensor in tensors.items()}
    (tmp_path / "dead").mkdir()
    save_file(dead, tmp_path / "dead" / WEIGHT_NAME)
    found = rendered(exported, tmp_path, folder=tmp_path / "dead")
    assert failed(found) == {"is not the base's"}
    assert "0% of the pixels" in str(found.checks[-1].observed)


def test_a_black_image_fails(exported: Exported, tmp_path: Path) -> None:
    def blacken(base: Path) -> None:
        def edit(tensors: dict[str, torch.Tensor]) -> None:
            tensors["decoder.conv_out.weight"].zero_()
            tensors["decoder.conv_out.bias"].fill_(-5)

        edit_weights(base / "vae/diffusion_pytorch_model.safetensors", edit)

    found = rendered(with_base(exported, tmp_path / "base", blacken), tmp_path)
    assert failed(found) == {"neither black nor of one colour", "is not the base's"}
    assert "base from 0 to 0, adapted from 0 to 0" in {check.observed for check in found.checks}


def test_an_image_of_one_colour_fails(exported: Exported, tmp_path: Path) -> None:
    def grey(base: Path) -> None:
        file = base / "vae/diffusion_pytorch_model.safetensors"
        edit_weights(file, lambda t: [t[f"decoder.conv_out.{name}"].zero_() for name in ("weight", "bias")] and None)

    assert "neither black nor of one colour" in failed(rendered(with_base(exported, tmp_path / "base", grey), tmp_path))


@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_base_with_nan_fails(exported: Exported, tmp_path: Path) -> None:
    def spoil(base: Path) -> None:
        file = base / "unet/diffusion_pytorch_model.safetensors"
        edit_weights(file, lambda tensors: tensors["conv_in.bias"][0].fill_(torch.nan) and None)

    found = rendered(with_base(exported, tmp_path / "base", spoil), tmp_path)
    assert "finite" in failed(found)
    assert found.checks[0].observed == f"base {SIDE * SIDE * 3}, adapted {SIDE * SIDE * 3} values are not"


def test_an_adapter_that_overflows_in_the_bases_dtype_fails(exported: Exported, tmp_path: Path) -> None:
    # In float32 all is well.
    tensors = load_file(exported.folder / WEIGHT_NAME)
    large = {key: tensor * 1e4 if "lora_B" in key else tensor for key, tensor in tensors.items()}
    (tmp_path / "large").mkdir()
    save_file(large, tmp_path / "large" / WEIGHT_NAME)

    def in_half(base: Path) -> None:
        for file in base.glob("*/*.safetensors"):
            edit_weights(file, lambda some: some.update({k: t.half() for k, t in some.items()}))

    half = with_base(exported, tmp_path / "base", in_half)
    found = rendered(half, tmp_path, folder=tmp_path / "large")
    assert "finite" in failed(found)
    assert str(found.checks[0].observed).startswith("base 0, adapted ")
    assert "finite" not in failed(rendered(exported, tmp_path, folder=tmp_path / "large"))


# --- what is refused before anything is computed ----------------------------------------------------------------------


def test_a_base_without_weights_is_refused(exported: Exported, tmp_path: Path) -> None:
    folder = shipped("sd15")
    assert folder is not None
    with pytest.raises(UsageError, match="without weights"):
        check_render(read_base(folder, model="stable-diffusion-v1-5/stable-diffusion-v1-5"), "sd15", OPTIONS)
    lacking = with_base(exported, tmp_path / "base", lambda base: shutil.rmtree(base / "vae"))
    with pytest.raises(UsageError, match="no safetensors weights of vae"):
        check_render(lacking.base, str(tmp_path / "base"), OPTIONS)


def test_a_hub_id_is_not(tmp_path: Path) -> None:
    folder = shipped("sd15")
    assert folder is not None
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    check_render(read_base(folder, model=name), name, OPTIONS)


@pytest.mark.parametrize("alias", ["wan21-i2v-14b-480p", "flux-fill-dev", "flux-canny-dev", "qwen-image-edit"])
def test_a_pipeline_that_needs_an_image_is_refused(alias: str) -> None:
    folder = shipped(alias)
    assert folder is not None
    with pytest.raises(FamilyError, match="renders no image from a prompt alone"):
        check_render(read_base(folder), alias, OPTIONS)


def test_an_option_that_the_pipeline_does_not_have_is_refused(exported: Exported) -> None:
    with pytest.raises(FamilyError, match="takes no num_frames"):
        check_render(exported.base, "base", OPTIONS.model_copy(update={"render_frames": 5}))


def test_peft_alone_cannot_be_rendered(exported: Exported) -> None:
    with pytest.raises(UsageError, match="peft"):
        check_render(exported.base, "base", OPTIONS.model_copy(update={"layouts": ("peft",)}))


def test_nothing_is_asked_of_a_base_without_prompts() -> None:
    folder = shipped("flux-fill-dev")
    assert folder is not None
    check_render(read_base(folder), "flux-fill-dev", ExportOptions())


def test_what_the_pipeline_itself_refuses_is_an_error_of_ours(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="num_inference_steps"):
        rendered(exported, tmp_path, OPTIONS.model_copy(update={"render_steps": 2000}))


def test_a_broken_pipeline_is_an_error_of_ours(exported: Exported, tmp_path: Path) -> None:
    lacking = with_base(exported, tmp_path / "base", lambda base: shutil.rmtree(base / "scheduler"))
    index = json.loads((tmp_path / "base/model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (tmp_path / "base/model_index.json").write_text(json.dumps(index))
    (tmp_path / "base/scheduler").mkdir()
    with pytest.raises(FamilyError, match="cannot be opened"):
        rendered(lacking, tmp_path)


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_of_a_video_the_first_the_middle_and_the_last_frame_are_shown(tmp_path: Path) -> None:
    frames = np.zeros((1, 5, 16, 24, 3), dtype=np.float32)
    for number in range(5):
        frames[0, number] = number / 8
    plain, adapted = pictures_of(SimpleNamespace(frames=frames)), pictures_of(SimpleNamespace(frames=frames + 0.5))
    assert [int(picture.pixels.max()) for picture in plain] == [0, 64, 128]
    image = save_beside(plain, adapted, tmp_path, "a dog", 0)
    assert (image.width, image.height) == (3 * 24 + 2 * GAP, 2 * 16 + GAP)
    pixels = np.asarray(Image.open(tmp_path / image.path))[..., 0]
    assert [int(pixels[0, x]) for x in (0, 32, 64)] == [0, 64, 128]
    assert [int(pixels[24, x]) for x in (0, 32, 64)] == [128, 191, 255]


def test_one_frame_is_an_image() -> None:
    assert len(pictures_of(SimpleNamespace(frames=np.zeros((1, 1, 8, 8, 3))))) == 1


def test_values_that_are_not_finite_are_counted_and_pil_images_are_taken() -> None:
    values = np.full((1, 4, 4, 3), 0.5)
    values[0, 0, 0] = [np.nan, np.inf, -np.inf]
    (picture,) = pictures_of(SimpleNamespace(images=values))
    assert picture.infinite == 3
    assert picture.pixels[0, 0].tolist() == [0, 0, 0]
    assert picture.pixels[1, 1].tolist() == [128, 128, 128]
    (grey,) = pictures_of(SimpleNamespace(images=[Image.new("L", (3, 2), 7)]))
    assert grey.pixels.shape == (2, 3, 3)
    assert (grey.pixels == 7).all()


def test_a_preview_is_small_and_opens_in_a_browser(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1024, 2056, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    uri = preview(tmp_path / "large.png")
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    assert len(uri) < 100_000
    assert (tmp_path / "large.png").stat().st_size > 1_000_000
    with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
        assert opened.width == pytest.approx(opened.height * 2056 / 1024, rel=0.05)


def test_what_does_not_fit_a_gpu_goes_there_model_by_model() -> None:
    assert fits(5.5e9, free=22e9)  # SDXL in fp16 on a 24 GB card
    assert not fits(34e9, free=22e9)  # FLUX in bf16
    assert fits(34e9, free=79e9)


def test_the_dtype_is_that_of_most_weights(base: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_component(base("flux"), "transformer").to(torch.bfloat16)
    model.proj_out.float()
    model.save_pretrained(tmp_path)
    assert stored_dtype(tmp_path) == torch.bfloat16
    assert stored_dtype(base("flux") / "transformer") == torch.float32
