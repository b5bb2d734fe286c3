"""New tokens: they are exported with the adapter that was trained with them, and damage to any of it is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapterline.destinations.hub import HubDestination
from adapterline.destinations.s3 import S3Destination
from adapterline.errors import CheckpointError, ConversionError, FamilyError, UsageError
from adapterline.layouts.embeddings import plan_embeddings
from adapterline.package import make_package
from adapterline.package.card import snippet
from adapterline.scratch import Scratch
from adapterline.serialize import serialize
from adapterline.validation import validate_file
from adapterline.validation.embeddings import METHOD, check_embeddings
from adapterline.validation.findings import Findings
from adapterline.values import WEIGHT_NAME, ExportOptions, LoadCall, Plan
from tests.bases import load_component
from tests.hub_double.server import Hub
from tests.hub_fixtures import WRITER
from tests.line import Exported, run_line
from tests.packages import order_of
from tests.publishing import manifest_of, publish

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BaseOf = Callable[[str], Path]
PROMPT = "a_photo_of_<s0><s1> on a hill, not <s0>"
#: The module that is adapted, and the text encoders by what trainers call them.
FAMILIES = {
    "sd15": ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", {"clip_l": "text_encoder"}),
    "sdxl": (
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        {"clip_l": "text_encoder", "clip_g": "text_encoder_2"},
    ),
    "flux": ("transformer.transformer_blocks.0.attn.to_q", {"clip_l": "text_encoder", "t5": "text_encoder_2"}),
    "sd3": ("transformer.transformer_blocks.0.attn.to_q", {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}),
}


def lora(base: Path, family: str) -> dict[str, torch.Tensor]:
    """A rank 2 adapter of one layer of the denoiser, and of one of the text encoder."""
    key = FAMILIES[family][0]
    component, _, module = key.partition(".")
    out, inputs = load_component(base, component).get_submodule(module).weight.shape
    text = load_component(base, "text_encoder")
    name = next(name for name, _ in text.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    width = text.get_submodule(name).weight.shape[0]
    stem = f"text_encoder.text_model.{name.removeprefix('text_model.')}"
    shapes = {
        f"{key}.lora_A.weight": (2, inputs),
        f"{key}.lora_B.weight": (out, 2),
        f"{stem}.lora_A.weight": (2, width),
        f"{stem}.lora_B.weight": (width, 2),
    }
    return {name: random(*shape, seed=number) for number, (name, shape) in enumerate(shapes.items())}


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def width_of(base: Path, component: str) -> int:
    return int(load_component(base, component).get_input_embeddings().weight.shape[1])


def vectors(base: Path, family: str, rows: int = 2) -> dict[str, torch.Tensor]:
    encoders = FAMILIES[family][1]
    return {
        name: random(rows, width_of(base, component), seed=100 + number)
        for number, (name, component) in enumerate(encoders.items())
    }


@dataclass(frozen=True)
class Pivotal:
    """What the advanced DreamBooth script leaves, and what the prompt meant when it ended."""

    base: Path
    folder: Path
    embeddings: Mapping[str, torch.Tensor]


def train(base: Path, family: str, folder: Path) -> Pivotal:
    folder.mkdir()
    embeddings = vectors(base, family)
    save_file(lora(base, family), folder / WEIGHT_NAME)
    save_file(embeddings, folder / "anyone_emb.safetensors")
    return Pivotal(base, folder, embeddings)


@pytest.fixture
def pivotal(base: BaseOf, tmp_path: Path) -> Pivotal:
    return train(base("sdxl"), "sdxl", tmp_path / "trained")


@pytest.fixture
def exported(pivotal: Pivotal, tmp_path: Path) -> Exported:
    return run_line(pivotal.folder, pivotal.base, tmp_path)


def encoded(pipe: Any) -> list[torch.Tensor]:
    arguments: dict[str, Any] = {"prompt": PROMPT, "device": "cpu", "num_images_per_prompt": 1}
    if type(pipe).__name__ == "FluxPipeline":
        arguments |= {"prompt_2": PROMPT, "max_sequence_length": 32}
    else:
        arguments |= {"do_classifier_free_guidance": False}
    with torch.no_grad():
        found = pipe.encode_prompt(**arguments)
    return [tensor for tensor in found if tensor is not None]


def trained_pipeline(trained: Pivotal, family: str) -> Any:
    """The pipeline as the script has it in memory (TokenEmbeddingsHandler.initialize_new_tokens)."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(str(trained.base))
    pipe.load_lora_weights(str(trained.folder), weight_name=WEIGHT_NAME)
    for name, component in FAMILIES[family][1].items():
        tokenizer, model = getattr(pipe, component.replace("text_encoder", "tokenizer")), getattr(pipe, component)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<s0>", "<s1>"]})
        model.resize_token_embeddings(len(tokenizer))
        rows = tokenizer.convert_tokens_to_ids(["<s0>", "<s1>"])
        model.get_input_embeddings().weight.data[rows] = trained.embeddings[name]
    return pipe


def embedding_loads(exported: Exported) -> list[LoadCall]:
    return [load for load in exported.bundle.loads if load.method == METHOD]


def failed(exported: Exported, folder: Path, loads: list[LoadCall] | None = None) -> set[str]:
    """Names of the checks of the embeddings that fail."""
    findings = Findings()
    chosen = embedding_loads(exported) if loads is None else loads
    check_embeddings(findings, folder, chosen, exported.base, exported.adapter.embeddings)
    return {check.name for check in findings.checks if not check.passed}


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_the_published_snippet_makes_the_prompt_mean_what_it_meant_in_training(
    base: BaseOf, tmp_path: Path, family: str
) -> None:
    trained = train(base(family), family, tmp_path / "trained")
    exported = run_line(trained.folder, trained.base, tmp_path)
    report = exported.report()
    assert report.passed, report.failures
    published = publish(exported, "anyone", tmp_path / "published")
    names: dict[str, Any] = {}
    exec(snippet(exported.bundle.loads, published.load, str(trained.base)), names)
    meant = encoded(trained_pipeline(trained, family))
    assert all(map(torch.equal, encoded(names["pipe"]), meant))
    from diffusers import DiffusionPipeline

    assert not torch.equal(encoded(DiffusionPipeline.from_pretrained(str(trained.base)))[0], meant[0])


def test_each_token_of_each_text_encoder_is_a_file_with_its_own_call(pivotal: Pivotal, exported: Exported) -> None:
    for encoder, name in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g")):
        for row in range(2):
            tensors = load_file(exported.folder / f"embeddings/{encoder}/s{row}.safetensors")
            assert list(tensors) == [f"<s{row}>"]
            assert torch.equal(tensors[f"<s{row}>"], pivotal.embeddings[name][row : row + 1])
    assert embedding_loads(exported)[-1] == LoadCall(
        pipeline="StableDiffusionXLPipeline",
        method="load_textual_inversion",
        weight_name="embeddings/text_encoder_2/s1.safetensors",
        kwargs={"token": "<s1>"},
        attributes={"text_encoder": "text_encoder_2", "tokenizer": "tokenizer_2"},
    )
    manifest = manifest_of(exported, "anyone")
    assert [file.path for file in manifest.files if file.role == "embedding"] == [
        load.weight_name for load in embedding_loads(exported)
    ]
    assert manifest.consumers["embeddings/text_encoder/s0.safetensors"] == ("diffusers",)


def test_the_embeddings_are_part_of_the_source_and_of_the_bundle(
    pivotal: Pivotal, exported: Exported, tmp_path: Path
) -> None:
    changed = {**pivotal.embeddings, "clip_g": pivotal.embeddings["clip_g"] + 1}
    save_file(changed, pivotal.folder / "anyone_emb.safetensors")
    other = run_line(pivotal.folder, pivotal.base, tmp_path / "other")
    assert other.source.digest != exported.source.digest
    assert other.bundle.digest != exported.bundle.digest


def test_the_card_says_how_a_prompt_calls_them(exported: Exported, tmp_path: Path) -> None:
    package = make_package(manifest_of(exported, "anyone"), exported.folder, tmp_path / "package")
    card = (package.folder / "README.md").read_text()
    assert "In a prompt these call what was trained: &lt;s0&gt;, &lt;s1&gt;." in card
    assert "token='<s1>', text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)" in card


# --- damage -----------------------------------------------------------------------------------------------------------


def damaged(exported: Exported, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
    """The export in another folder, with one tensor changed."""
    folder = tmp_path / "damaged"
    shutil.copytree(exported.folder, folder)
    file = folder / "embeddings/text_encoder_2/s1.safetensors"
    save_file({key: change(tensor) for key, tensor in load_file(file).items()}, file)
    return folder


def one_value(tensor: torch.Tensor) -> torch.Tensor:
    tensor[0, -1] = torch.nextafter(tensor[0, -1], torch.tensor(9.0))
    return tensor


def signed_zero(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor)


def test_an_undamaged_export_passes(exported: Exported) -> None:
    assert failed(exported, exported.folder) == set()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (one_value, {"embeddings bit by bit", "tensors of the checkpoint"}),
        (signed_zero, {"embeddings bit by bit", "tensors of the checkpoint"}),
        (lambda t: t * float("nan"), {"embeddings finite", "embeddings bit by bit", "tensors of the checkpoint"}),
        (lambda t: t.double(), {"tensors of the checkpoint"}),
        (lambda t: t[:, :-1].contiguous(), {"embeddings load"}),
        (
            lambda t: torch.cat([t, t]),
            {"tokens of the checkpoint (the base's own tokenizer)", "tensors of the checkpoint"},
        ),
    ],
    ids=["one value", "zeros", "nan", "dtype", "width", "a row more"],
)
def test_damage_to_a_tensor_is_found(
    exported: Exported, tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], found: set[str]
) -> None:
    assert failed(exported, damaged(exported, tmp_path, change)) == found


def test_swapped_tokens_are_found(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(exported.folder, folder)
    first, second = (folder / f"embeddings/text_encoder/s{row}.safetensors" for row in range(2))
    one, two = load_file(first)["<s0>"], load_file(second)["<s1>"]
    save_file({"<s0>": two}, first)
    save_file({"<s1>": one}, second)
    assert failed(exported, folder) == {"embeddings bit by bit", "tensors of the checkpoint"}


def test_swapped_text_encoders_are_found(exported: Exported) -> None:
    loads = embedding_loads(exported)
    swapped = [replace_attributes(one, other) for one, other in zip(loads, [*loads[2:], *loads[:2]], strict=True)]
    assert failed(exported, exported.folder, swapped) == {"embeddings bit by bit", "tensors of the checkpoint"}


def test_the_tokenizer_of_another_text_encoder_is_found(exported: Exported) -> None:
    loads = embedding_loads(exported)
    loads[-1] = loads[-1].model_copy(update={"attributes": {"text_encoder": "text_encoder_2"}})
    assert failed(exported, exported.folder, loads) != set()


def replace_attributes(load: LoadCall, other: LoadCall) -> LoadCall:
    return load.model_copy(update={"attributes": other.attributes})


def test_a_missing_file_is_found(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(exported.folder, folder)
    (folder / "embeddings/text_encoder/s0.safetensors").unlink()
    assert failed(exported, folder) == {"embeddings load"}
    names = {check.name for check in exported.report(folder).failures}
    assert names == {"embeddings/text_encoder/s0.safetensors has its digest", "embeddings load"}


def test_a_call_that_is_missing_is_found(exported: Exported) -> None:
    found = failed(exported, exported.folder, embedding_loads(exported)[1:])
    assert found == {"tokens of the checkpoint (the base's own tokenizer)"}
    assert failed(exported, exported.folder, []) != set()


def test_the_whole_proof_has_the_checks_of_the_embeddings(exported: Exported) -> None:
    names = {check.name for check in exported.report().checks}
    assert {"embeddings bit by bit", "embeddings change nothing else", "tensors of the checkpoint"} <= names


@pytest.mark.parametrize("place", ["another row", "another parameter", "the other text encoder"])
def test_a_loader_that_changes_something_else_is_found(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    from diffusers import StableDiffusionXLPipeline

    original = StableDiffusionXLPipeline.load_textual_inversion

    def load(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if place == "another row":
            self.text_encoder.get_input_embeddings().weight.data[3, 3] = 1e-30
        elif place == "another parameter":
            self.text_encoder.get_parameter("final_layer_norm.weight").data = torch.ones(32)
        else:
            self.text_encoder_2.get_input_embeddings().weight.data = torch.ones(514, 32)

    monkeypatch.setattr(StableDiffusionXLPipeline, "load_textual_inversion", load)
    loads = [load for load in embedding_loads(exported) if not load.attributes]
    only = [each for each in exported.adapter.embeddings if each.component == "text_encoder"]
    findings = Findings()
    check_embeddings(findings, exported.folder, loads, exported.base, only)
    assert [check.name for check in findings.checks if not check.passed] == ["embeddings change nothing else"]


def test_a_file_is_proven_with_the_embeddings_in_its_folder(exported: Exported, tmp_path: Path) -> None:
    def passed(folder: Path) -> bool:
        return validate_file(folder / WEIGHT_NAME, exported.base, exported.source).passed

    assert passed(exported.folder)
    assert not passed(damaged(exported, tmp_path, one_value))
    shutil.copy(exported.folder / WEIGHT_NAME, tmp_path)
    assert not passed(tmp_path)
    unet = ExportOptions(components=("unet", "text_encoder"))
    assert validate_file(tmp_path / WEIGHT_NAME, exported.base, exported.source, unet).passed


def test_without_tokenizers_of_the_base_it_is_proven_on_one_of_the_same_size(
    exported: Exported, tmp_path: Path
) -> None:
    bare = replace(exported, base=replace(exported.base, folder=None))
    findings = Findings()
    check_embeddings(findings, bare.folder, embedding_loads(bare), bare.base, bare.adapter.embeddings)
    assert all(check.passed for check in findings.checks)
    assert "tokens of the checkpoint (a tokenizer of 514 tokens)" in {check.name for check in findings.checks}
    assert failed(bare, damaged(exported, tmp_path, one_value)) == {
        "embeddings bit by bit",
        "tensors of the checkpoint",
    }


def test_a_token_that_the_base_has_already_is_found(base: BaseOf, tmp_path: Path) -> None:
    folder = tmp_path / "trained"
    folder.mkdir()
    save_file(lora(base("sd15"), "sd15"), folder / WEIGHT_NAME)
    save_file({"a": random(width_of(base("sd15"), "text_encoder"), seed=1)}, folder / "learned_embeds.safetensors")
    failures = run_line(folder, base("sd15"), tmp_path).report().failures
    assert [check.name for check in failures] == ["embeddings load"]
    assert "already in tokenizer vocabulary" in failures[0].detail


# --- what is chosen, and what is refused ------------------------------------------------------------------------------


def test_embeddings_are_left_out_by_name_and_that_is_written_down(pivotal: Pivotal, tmp_path: Path) -> None:
    alone = run_line(pivotal.folder, pivotal.base, tmp_path, ExportOptions(components=("unet",)))
    assert [file.path for file in alone.bundle.files] == [WEIGHT_NAME]
    assert alone.adapter.left_out == ("text_encoder", "embeddings")
    assert alone.report().passed
    both = run_line(pivotal.folder, pivotal.base, tmp_path, ExportOptions(components=("unet", "embeddings")))
    assert [file.role for file in both.bundle.files] == ["weights", *["embedding"] * 4]
    assert both.adapter.left_out == ("text_encoder",)
    with pytest.raises(UsageError, match="embeddings alone"):
        run_line(pivotal.folder, pivotal.base, tmp_path, ExportOptions(components=("embeddings",)))


def test_the_file_itself_is_exported_without_what_lies_beside_it(pivotal: Pivotal, tmp_path: Path) -> None:
    alone = run_line(pivotal.folder / WEIGHT_NAME, pivotal.base, tmp_path)
    assert alone.adapter.embeddings == ()
    assert [file.path for file in alone.bundle.files] == [WEIGHT_NAME]
    with pytest.raises(UsageError, match="no component embeddings"):
        run_line(pivotal.folder / WEIGHT_NAME, pivotal.base, tmp_path, ExportOptions(components=("unet", "embeddings")))


def test_a_pipeline_that_loads_no_embeddings_is_refused(base: BaseOf, tmp_path: Path) -> None:
    trained = train(base("sd3"), "sd3", tmp_path / "trained")
    with pytest.raises(ConversionError, match="StableDiffusion3Pipeline has no load_textual_inversion"):
        run_line(trained.folder, trained.base, tmp_path)
    run_line(trained.folder, trained.base, tmp_path, ExportOptions(components=("transformer", "text_encoder")))


@pytest.mark.parametrize("name", ["an embedding of three rows", "<s0>"])
def test_onetrainers_bundled_embeddings_are_exported(base: BaseOf, tmp_path: Path, name: str) -> None:
    rows = vectors(base("sdxl"), "sdxl", rows=3)
    bundled = {f"bundle_emb.{name}.{encoder}": tensor for encoder, tensor in rows.items()}
    file = tmp_path / "lora.safetensors"
    save_file({**lora(base("sdxl"), "sdxl"), **bundled}, file)
    exported = run_line(file, base("sdxl"), tmp_path)
    assert {(each.token, each.component) for each in exported.adapter.embeddings} == {
        (name, "text_encoder"),
        (name, "text_encoder_2"),
    }
    assert torch.equal(exported.adapter.embeddings[1].vectors, rows["clip_g"])
    assert exported.report().passed, exported.report().failures


def test_a_token_of_several_rows_is_called_in_small_letters_and_that_is_written_down(
    base: BaseOf, tmp_path: Path
) -> None:
    file = tmp_path / "lora.safetensors"
    bundled = {"bundle_emb.Tok.clip_l": random(2, 32, seed=1), "bundle_emb.Other.clip_l": random(1, 32, seed=2)}
    save_file({**lora(base("sd15"), "sd15"), **bundled}, file)
    exported = run_line(file, base("sd15"), tmp_path)
    assert [load.kwargs["token"] for load in embedding_loads(exported)] == ["Other", "tok"]
    assert [t.detail[:31] for t in exported.bundle.transforms if t.kind == "rename"] == [
        "the token Tok is called tok: di"
    ]
    assert exported.report().passed, exported.report().failures
    kept = [replace(each, token="Tok") if each.trained_as else each for each in exported.adapter.embeddings]
    plan = plan_embeddings(kept, exported.base.pipeline)
    bundle = serialize(Plan(plan.files, plan.loads, ()), Scratch(tmp_path / "other", 10**9, 1e6))
    findings = Findings()
    folder = Scratch(tmp_path / "other", 10**9, 1e6).folder(bundle.digest)
    check_embeddings(findings, folder, plan.loads, exported.base, kept)
    assert [check.name for check in findings.checks if not check.passed] == ["a prompt reaches all rows"]


def test_embeddings_of_a_text_encoders_output_are_refused(base: BaseOf, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({**lora(base("sd15"), "sd15"), "bundle_emb.tok.clip_l_out": torch.ones(1, 32)}, file)
    with pytest.raises(ConversionError, match="output of a text encoder"):
        run_line(file, base("sd15"), tmp_path)
    alone = run_line(file, base("sd15"), tmp_path, ExportOptions(components=("unet", "text_encoder")))
    assert alone.adapter.left_out == ("embeddings",)
    assert alone.report().passed


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"bundle_emb.tok.clip_l": torch.ones(1, 31)}, FamilyError, r"\[1, 31\], and .* text_encoder of width 32"),
        ({"bundle_emb.tok.t5": torch.ones(1, 32)}, FamilyError, "none of that kind"),
        ({"bundle_emb.tok.string_to_param.*": torch.ones(1, 32)}, CheckpointError, "text_encoder or text_encoder_2"),
        ({"bundle_emb.tok.clip_l": torch.ones(1, 2, 32)}, CheckpointError, r"\[1, 2, 32\]"),
        ({"bundle_emb.tok.clip_l": torch.ones(1, 32, dtype=torch.int64)}, CheckpointError, "I64"),
        ({"bundle_emb.clip_l": torch.ones(1, 32)}, CheckpointError, "names no token"),
        (
            {"bundle_emb.tok.clip_l": torch.ones(2, 32), "bundle_emb.tok_1.clip_l": torch.ones(1, 32)},
            ConversionError,
            "both mean tok_1",
        ),
        (
            {"bundle_emb.tok.clip_l": torch.ones(1, 32), "bundle_emb.tok_1.clip_l": torch.ones(1, 32)},
            ConversionError,
            "both mean tok_1",
        ),
    ],
    ids=["width", "encoder", "either", "dimensions", "dtype", "no token", "row names", "next row name"],
)
def test_embeddings_that_cannot_be_carried_are_refused(
    base: BaseOf, tmp_path: Path, tensors: dict[str, torch.Tensor], error: type[Exception], message: str
) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({**lora(base("sdxl"), "sdxl"), **tensors}, file)
    with pytest.raises(error, match=message):
        run_line(file, base("sdxl"), tmp_path)


def test_tokens_that_make_the_same_file_name_get_files_of_their_own(base: BaseOf, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    tokens = {
        f"bundle_emb.{token}.clip_l": torch.full((1, 32), value) for value, token in enumerate(("<a>", "[A]", "猫"), 1)
    }
    save_file({**lora(base("sd15"), "sd15"), **{key: value.float() for key, value in tokens.items()}}, file)
    exported = run_line(file, base("sd15"), tmp_path)
    paths = [load.weight_name for load in embedding_loads(exported)]
    assert len(set(paths)) == 3
    assert all(path.isascii() for path in paths)
    assert exported.report().passed, exported.report().failures


# --- published --------------------------------------------------------------------------------------------------------


def test_in_a_bucket_every_file_arrives_where_the_calls_look_for_it(
    exported: Exported, tmp_path: Path, s3: S3Client, bucket: str
) -> None:
    package = make_package(manifest_of(exported, "anyone"), exported.folder, tmp_path / "package")
    place = S3Destination(f"s3://{bucket}/loras", "anyone")
    place.release(package, place.stage(package), order_of(1))
    for load in exported.bundle.loads:
        found = s3.get_object(Bucket=bucket, Key=f"loras/anyone/{package.sha12}/{load.weight_name}")["Body"].read()
        assert found == (exported.folder / load.weight_name).read_bytes()


@pytest.mark.slow
def test_on_the_hub_the_embeddings_load_and_the_lora_is_still_found_by_the_repository_alone(
    pivotal: Pivotal, exported: Exported, tmp_path: Path, hub: Hub
) -> None:
    package = make_package(manifest_of(exported, "anyone"), exported.folder, tmp_path / "package")
    place = HubDestination("hf://acme", "anyone")
    place.release(package, place.stage(package), order_of(1))
    content = hub.content("acme/anyone", "main")
    assert content is not None
    assert {file.path: content[file.path] for file in package.files} == {
        file.path: (package.folder / file.path).read_bytes() for file in package.files
    }
    code = """
import sys
import torch
from diffusers.loaders.lora_base import _best_guess_weight_name
from tests.validation.test_embeddings import encoded

def meaning(code):
    names = {}
    exec(code, names)
    return encoded(names["pipe"])

there, here = sys.argv[1:]
assert all(map(torch.equal, meaning(there), meaning(here)))
print(_best_guess_weight_name("acme/anyone"))
"""
    calls = [snippet(exported.bundle.loads, where, str(pivotal.base)) for where in ("acme/anyone", str(package.folder))]
    done = subprocess.run(
        [sys.executable, "-c", code, *calls],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == WEIGHT_NAME, done.stderr[-2000:]
