"""The flow and the Hub: published there it loads by its name, and base and checkpoint are read from there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from adapterline.errors import PublishError
from adapterline.values import WEIGHT_NAME
from tests.conftest import Trained
from tests.hub_double.server import Hub
from tests.hub_fixtures import READER, WRITER

pytestmark = pytest.mark.usefixtures("prefect_api", "records")


def upload(hub: Hub, repository: str, folder: Path, pattern: str) -> str:
    """Puts the files of `folder` that match into a repository of the Hub; gives the commit."""
    api = HfApi(endpoint=hub.url, token=WRITER)
    api.create_repo(repository, private=True)
    files = [file for file in sorted(folder.rglob(pattern)) if file.is_file()]
    operations = [CommitOperationAdd(str(file.relative_to(folder)), str(file)) for file in files]
    return str(api.create_commit(repository, operations, commit_message="upload").oid)


def test_what_is_published_loads_by_its_repository_name(hub: Hub, trained: Trained, tmp_path: Path) -> None:
    from flows.export import export_adapter

    record = export_adapter(
        str(trained.checkpoint), base=str(trained.base), name="sks-dog", to=("hf://acme", str(tmp_path / "out"))
    )
    in_hub, in_folder = record.publications
    assert in_hub.load == "acme/sks-dog"
    code = textwrap.dedent(
        f"""
        import torch
        from diffusers import StableDiffusionPipeline
        from tests.bases import forward

        def output(place):
            pipe = StableDiffusionPipeline.from_pretrained({str(trained.base)!r}, safety_checker=None)
            pipe.load_lora_weights(place)
            return forward(pipe.unet)

        assert torch.equal(output("acme/sks-dog"), output({in_folder.load!r}))
        print("equal")
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_TOKEN": WRITER},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]
    again = export_adapter(
        str(trained.checkpoint), base=str(trained.base), name="sks-dog", to=("hf://acme", str(tmp_path / "out"))
    )
    assert again.outcome == "already-exported"
    refs = HfApi(endpoint=hub.url, token=WRITER).list_repo_refs("acme/sks-dog")
    assert [branch.name for branch in refs.branches] == ["main"]
    assert record.manifest is not None
    assert [tag.name for tag in refs.tags] == [f"sha-{record.manifest.digest[:12]}"]


def test_base_and_checkpoint_are_read_from_the_hub_and_their_commits_are_known(
    hub: Hub, trained: Trained, tmp_path: Path
) -> None:
    from flows.export import export_adapter

    commit = upload(hub, "acme/tiny-sd", trained.base, "*.json")
    upload(hub, "acme/training", trained.checkpoint, "*")
    record = export_adapter("hf://acme/training", base="acme/tiny-sd", name="sks-dog", to=(str(tmp_path / "hub"),))
    local = export_adapter(
        str(trained.checkpoint), base=str(trained.base), name="sks-dog", to=(str(tmp_path / "local"),)
    )
    assert record.manifest is not None
    assert local.manifest is not None
    assert record.manifest.digest == local.manifest.digest
    assert record.manifest.base.architecture == local.manifest.base.architecture
    assert (record.manifest.base.model, record.manifest.base.revision) == ("acme/tiny-sd", commit)
    card = (Path(record.publications[0].load) / "README.md").read_text()
    assert "base_model: acme/tiny-sd" in card
    assert "base_model_relation: adapter" in card
    assert (Path(record.publications[0].load) / WEIGHT_NAME).read_bytes() == (
        Path(local.publications[0].load) / WEIGHT_NAME
    ).read_bytes()


def test_a_token_without_rights_is_refused_and_nothing_is_visible_anywhere(
    hub: Hub, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.export import export_adapter

    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(PublishError) as caught:
        export_adapter(
            str(trained.checkpoint), base=str(trained.base), name="sks-dog", to=("hf://acme", str(tmp_path / "out"))
        )
    assert not caught.value.transient
    assert not (tmp_path / "out" / "sks-dog").exists()
