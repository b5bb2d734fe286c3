"""The card says in the Hub's words what the manifest says, and its snippet runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from pydantic import ValidationError

from adapterline.families.licences import licence_of
from adapterline.package.card import make_card
from adapterline.package.manifest import make_manifest
from adapterline.package.privacy import public_run
from adapterline.values import ExportOptions, License, LoadCall, Manifest, RenderedImage, TrainingRun
from tests.conftest import Trained
from tests.hub_double.server import Hub
from tests.hub_fixtures import WRITER
from tests.line import run_line
from tests.packages import make_package
from tests.publishing import publish

FLUX_LICENSE = "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_package(tmp_path / "package").manifest


def on(manifest: Manifest, model: str, **more: Any) -> Manifest:
    return manifest.model_copy(update={"base": manifest.base.model_copy(update={"model": model}), **more})


def front_matter(manifest: Manifest, *images: RenderedImage) -> dict[str, Any]:
    data: dict[str, Any] = ModelCard(make_card(manifest, images).decode()).data.to_dict()
    return data


def test_the_front_matter_says_base_library_task_licence_and_tags_as_the_hub_reads_them(manifest: Manifest) -> None:
    data = front_matter(on(manifest, "acme/base", license=License(id="mit"), family="flux"))
    assert data == {
        "base_model": "acme/base",
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "license": "mit",
        "pipeline_tag": "text-to-image",
        "tags": ["lora", "diffusers", "flux", "flux-diffusers", "text-to-image", "template:sd-lora"],
    }


def test_a_licence_is_the_bases_with_name_and_link_where_the_hub_has_no_identifier() -> None:
    assert licence_of("black-forest-labs/FLUX.1-dev") == License(
        id="other", name="flux-1-dev-non-commercial-license", link=FLUX_LICENSE
    )
    assert licence_of("runwayml/stable-diffusion-v1-5") == License(id="creativeml-openrail-m")
    assert licence_of("nvidia/Cosmos-Predict2.5-2B") == License(id="other")
    assert licence_of("somebody/else") is None


def test_the_card_names_a_licence_that_is_other_and_keeps_silent_of_one_that_is_not_known(manifest: Manifest) -> None:
    flux = "black-forest-labs/FLUX.1-dev"
    data = front_matter(on(manifest, flux, license=licence_of(flux)))
    assert (data["license"], data["license_name"], data["license_link"]) == (
        "other",
        "flux-1-dev-non-commercial-license",
        FLUX_LICENSE,
    )
    assert not [key for key in front_matter(on(manifest, "somebody/else")) if key.startswith("license")]


@pytest.mark.parametrize(
    "given",
    [
        {"license": "other"},
        {"license": "mit", "license_name": "mine"},
        {"license_link": "https://example.com/terms"},
        {"license": "MIT License"},
        {"license": "other", "license_name": "mine", "license_link": "file:///home/alice/LICENSE"},
        {"trigger": ("two\nlines",)},
        {"trigger": (" ",)},
    ],
)
def test_a_licence_that_the_hub_does_not_take_or_a_trigger_that_is_no_line_cannot_be_asked_for(
    given: dict[str, Any],
) -> None:
    with pytest.raises(ValidationError):
        ExportOptions(**given)


def test_trigger_words_are_the_instance_prompt_together_with_the_tokens_of_embeddings(manifest: Manifest) -> None:
    load = LoadCall(
        pipeline="StableDiffusionPipeline",
        method="load_textual_inversion",
        weight_name="embeddings.safetensors",
        kwargs={"token": "<s0>"},
    )
    called = manifest.model_copy(update={"trigger": ("sks dog",), "loads": (*manifest.loads, load)})
    assert front_matter(called)["instance_prompt"] == "sks dog, <s0>"
    assert "these call what was trained: sks dog, &lt;s0&gt;." in make_card(called).decode()
    assert "instance_prompt" not in front_matter(manifest)


def test_what_is_peft_alone_is_of_the_library_peft(manifest: Manifest) -> None:
    load = LoadCall(
        library="peft",
        pipeline="StableDiffusionPipeline",
        method="PeftModel.from_pretrained",
        weight_name="unet",
        attributes={"model": "unet"},
    )
    data = front_matter(manifest.model_copy(update={"loads": (load,)}))
    assert data["library_name"] == "peft"
    assert "diffusers" not in data["tags"]


def test_equal_manifests_give_equal_cards(manifest: Manifest) -> None:
    again = Manifest.model_validate_json(manifest.to_bytes())
    assert make_card(again) == make_card(manifest)


def test_the_options_decide_licence_and_trigger_and_the_base_only_what_was_not_said(
    trained: Trained, tmp_path: Path
) -> None:
    exported = run_line(trained.checkpoint, trained.base, tmp_path)
    fixed: dict[str, Any] = {
        "name": "x",
        "bundle": exported.bundle,
        "report": exported.report(),
        "source": exported.source,
        "base": exported.base,
        "components": {},
        "left_out": (),
        "run": TrainingRun(base_model="black-forest-labs/FLUX.1-dev"),
    }
    asked = make_manifest(**fixed, options=ExportOptions(license="mit", trigger=("sks",)))
    assert (asked.license, asked.trigger) == (License(id="mit"), ("sks",))
    assert make_manifest(**fixed).license == licence_of("black-forest-labs/FLUX.1-dev")


def test_the_snippet_of_the_card_runs_as_it_stands_in_the_folder_of_the_card(
    hub: Hub, trained: Trained, tmp_path: Path
) -> None:
    api = HfApi(endpoint=hub.url, token=WRITER)
    api.create_repo("acme/tiny-sd")
    files = [file for file in sorted(trained.base.rglob("*")) if file.is_file()]
    operations = [CommitOperationAdd(str(file.relative_to(trained.base)), str(file)) for file in files]
    api.create_commit("acme/tiny-sd", operations, commit_message="base")
    exported = run_line(trained.checkpoint, trained.base, tmp_path, ExportOptions(layouts=("diffusers", "peft")))
    folder = Path(publish(exported, "demo", tmp_path / "out", "acme/tiny-sd").load)
    codes = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.DOTALL)
    assert ["load_lora_weights" in code for code in codes] == [True, False]
    count = "print(sum('lora_A' in name for name in pipe.unet.state_dict()))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(f"{code}\n{count}" for code in codes)],
        cwd=folder,
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["128", "128"], done.stderr[-2000:]


@pytest.mark.parametrize(
    ("said", "public"),
    [
        ("dogs", "dogs"),
        ("acme/dogs@1f3a", "acme/dogs@1f3a"),
        ("hf://datasets/acme/dogs", "hf://datasets/acme/dogs"),
        ("git+https://github.com/acme/train@1f3a", "git+https://github.com/acme/train@1f3a"),
        ("https://github.com/acme/train/tree/1f3a", "https://github.com/acme/train/tree/1f3a"),
        ("/home/alice/dogs", None),
        ("./dogs", None),
        ("~/dogs", None),
        ("a/b/c", None),
        ("C:\\dogs", None),
        ("\\\\nas\\dogs", None),
        ("file:///home/alice/dogs", None),
        ("s3://private/dogs", None),
        ("git@gitlab.internal:acme/train.git", None),
        ("https://alice:hunter2@github.com/acme/train", None),
        ("https://example.com/dogs?X-Amz-Signature=1", None),
    ],
)
def test_of_a_training_run_names_and_web_addresses_are_public_and_places_on_a_machine_are_not(
    said: str, public: str | None
) -> None:
    run = public_run(TrainingRun(run_id="r", dataset=said, code=said, trainer=said))
    assert (run.dataset, run.code, run.trainer) == (public,) * 3
    assert run.run_id == "r"
