"""Which embeddings lie beside an adapter or in its file, what their tokens are, and to which adapter they belong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapterline.checkpoints import load_checkpoint, reopen
from adapterline.errors import CheckpointError
from adapterline.values import ExportOptions, Source, StoredEmbedding
from tests.conftest import Trained

FINAL = "pytorch_lora_weights.safetensors"
KEY = "unet.down_blocks.0.attentions.0.proj_in"


def adapter(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{KEY}.lora_A.weight": torch.ones(2, 4), f"{KEY}.lora_B.weight": torch.ones(4, 2)}, file)
    return file


def rows(count: int, start: float = 0.0) -> torch.Tensor:
    return torch.arange(count * 4, dtype=torch.float32).reshape(count, 4) + start


def source(path: Path, step: int | None = None) -> Source:
    return load_checkpoint(str(path), ExportOptions(step=step), path)


def told(embeddings: tuple[StoredEmbedding, ...]) -> dict[tuple[str, str], list[float]]:
    """All values by token and text encoder, after comparing what was said of each with what is read."""
    for each in embeddings:
        assert tuple(each.read().shape) == each.info.shape
    return {(each.token, each.encoder): each.read().flatten().tolist() for each in embeddings}


def flat(tensor: torch.Tensor) -> list[float]:
    values: list[float] = tensor.flatten().tolist()
    return values


@pytest.mark.parametrize(
    ("name", "tensors", "expected"),
    [
        (
            "anyone_emb.safetensors",
            {"clip_l": rows(2), "clip_g": rows(2, 50)},
            {
                ("<s0>", "clip_l"): flat(rows(1)),
                ("<s1>", "clip_l"): flat(rows(2)[1]),
                ("<s0>", "clip_g"): flat(rows(1, 50)),
                ("<s1>", "clip_g"): flat(rows(2, 50)[1]),
            },
        ),
        (
            "anyone_emb.safetensors",
            {"text_encoders_0": rows(1), "text_encoders_1": rows(1, 50)},
            {("<s0>", "0"): flat(rows(1)), ("<s0>", "1"): flat(rows(1, 50))},
        ),
        ("anyone_emb.safetensors", {"t5": rows(1)}, {("<s0>", "t5"): flat(rows(1))}),
        ("learned_embeds.safetensors", {"<cat>": rows(1)[0]}, {("<cat>", "0"): flat(rows(1))}),
        ("learned_embeds_2.safetensors", {"<cat>": rows(3)}, {("<cat>", "1"): flat(rows(3))}),
        ("tok.safetensors", {"emb_params": rows(3)}, {("tok", ""): flat(rows(3))}),
        (
            "tok.safetensors",
            {"clip_l": rows(2), "clip_g": rows(2, 50)},
            {("tok", "clip_l"): flat(rows(2)), ("tok", "clip_g"): flat(rows(2, 50))},
        ),
        ("tok.safetensors", {"clip_l_out": rows(2)}, {("tok", "clip_l_out"): flat(rows(2))}),
        ("tok.safetensors", {"emp_params_out": rows(2)}, {("tok", "_out"): flat(rows(2))}),
    ],
)
def test_a_file_beside_the_adapter_is_read_as_its_trainer_wrote_it(
    tmp_path: Path,
    name: str,
    tensors: Mapping[str, torch.Tensor],
    expected: Mapping[tuple[str, str], list[float]],
) -> None:
    adapter(tmp_path / FINAL)
    save_file(dict(tensors), tmp_path / name)
    found = source(tmp_path)
    assert told(found.embeddings) == expected
    assert {file for file, _ in found.files} == {FINAL, name}
    assert found.tensors.keys() == {f"{KEY}.lora_A.weight", f"{KEY}.lora_B.weight"}
    assert told(reopen(found, ExportOptions()).embeddings) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("learned_embeds.bin", {"<cat>": rows(1)[0]}, {("<cat>", "0"): flat(rows(1))}),
        ("tok.pt", {"string_to_param": {"*": rows(2)}, "name": "cat", "step": 9}, {("cat", ""): flat(rows(2))}),
        ("tok.pt", {"string_to_param": {"*": torch.nn.Parameter(rows(2))}}, {("tok", ""): flat(rows(2))}),
    ],
)
def test_a_file_of_torch_save_beside_the_adapter_is_read(
    tmp_path: Path, name: str, content: object, expected: Mapping[tuple[str, str], list[float]]
) -> None:
    adapter(tmp_path / FINAL)
    torch.save(content, tmp_path / name)
    assert told(source(tmp_path).embeddings) == expected


@pytest.mark.parametrize("content", [{"<cat>": torch.zeros(1).expand(2**40)}, {"<cat>": "text"}, {7: torch.ones(4)}])
def test_a_file_that_is_no_file_of_embeddings_is_refused(tmp_path: Path, content: object) -> None:
    adapter(tmp_path / FINAL)
    torch.save(content, tmp_path / "learned_embeds.bin")
    with pytest.raises(CheckpointError, match="no file of embeddings"):
        source(tmp_path)


def test_embeddings_that_have_more_bytes_than_their_file_are_refused(tmp_path: Path) -> None:
    adapter(tmp_path / FINAL)
    torch.save(dict.fromkeys(map(str, range(9)), torch.ones(4096)), tmp_path / "learned_embeds.bin")
    with pytest.raises(CheckpointError, match="share memory"):
        source(tmp_path)


def test_a_pickle_that_wants_to_act_is_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    adapter(tmp_path / FINAL)
    torch.save({"<cat>": Trap()}, tmp_path / "learned_embeds.bin")
    with pytest.raises(CheckpointError):
        source(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_the_adapter_is_found_beside_embeddings_whatever_its_name(tmp_path: Path) -> None:
    adapter(tmp_path / "style.safetensors")
    save_file({"clip_l": rows(1)}, tmp_path / "tok.safetensors")
    found = source(tmp_path)
    assert told(found.embeddings) == {("tok", "clip_l"): flat(rows(1))}
    assert found.tensors.keys() == {f"{KEY}.lora_A.weight", f"{KEY}.lora_B.weight"}


def test_a_file_that_is_named_brings_nothing_of_what_lies_beside_it(tmp_path: Path) -> None:
    file = adapter(tmp_path / FINAL)
    save_file({"clip_l": rows(1)}, tmp_path / "tok.safetensors")
    assert source(file).embeddings == ()


@pytest.mark.parametrize("name", ["learned_embeds-of-mine.safetensors", "my_emb.safetensors"])
def test_what_is_called_embeddings_and_cannot_be_read_as_such_is_not_passed_over(tmp_path: Path, name: str) -> None:
    adapter(tmp_path / FINAL)
    save_file({"<cat>": rows(1)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"'<cat>' of {name} is no embedding that is known"):
        source(tmp_path)


def test_embeddings_beside_a_peft_folders_files_belong_to_it(tmp_path: Path, trained: Trained) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(trained.checkpoint, folder)
    save_file({"<cat>": rows(1)}, folder / "learned_embeds.safetensors")
    found = source(folder)
    assert found.container == "peft-folder"
    assert told(found.embeddings) == {("<cat>", "0"): flat(rows(1))}
    assert "learned_embeds.safetensors" in {file for file, _ in found.files}


def test_onetrainers_folder_of_embeddings_belongs_to_the_file_it_is_named_for(tmp_path: Path) -> None:
    adapter(tmp_path / "lora.safetensors")
    (tmp_path / "lora.safetensors_embeddings").mkdir()
    save_file({"emp_params": rows(2)}, tmp_path / "lora.safetensors_embeddings" / "tok.safetensors")
    found = source(tmp_path)
    assert told(found.embeddings) == {("tok", ""): flat(rows(2))}
    assert "lora.safetensors_embeddings/tok.safetensors" in dict(found.files)


def test_the_digest_covers_the_embeddings(tmp_path: Path) -> None:
    adapter(tmp_path / FINAL)
    alone = source(tmp_path).digest
    save_file({"<cat>": rows(1)}, tmp_path / "learned_embeds.safetensors")
    first = source(tmp_path).digest
    save_file({"<cat>": rows(1, 1)}, tmp_path / "learned_embeds.safetensors")
    assert len({alone, first, source(tmp_path).digest}) == 3


# --- steps ------------------------------------------------------------------------------------------------------------


def test_the_embeddings_of_a_step_belong_to_the_adapter_of_that_step(tmp_path: Path) -> None:
    adapter(tmp_path / FINAL)
    adapter(tmp_path / "checkpoint-500" / FINAL)
    save_file({"<cat>": rows(1)}, tmp_path / "learned_embeds.safetensors")
    save_file({"<cat>": rows(1, 5)}, tmp_path / "learned_embeds-steps-500.safetensors")
    assert told(source(tmp_path).embeddings) == {("<cat>", "0"): flat(rows(1))}
    assert told(source(tmp_path, step=500).embeddings) == {("<cat>", "0"): flat(rows(1, 5))}


def test_ai_toolkits_embeddings_are_named_by_the_step_as_its_adapters_are(tmp_path: Path) -> None:
    for suffix, start in (("", 0.0), ("_000000250", 5.0)):
        adapter(tmp_path / f"style{suffix}.safetensors")
        save_file({"emb_params": rows(2, start)}, tmp_path / f"tok{suffix}.safetensors")
    assert told(source(tmp_path).embeddings) == {("tok", ""): flat(rows(2))}
    assert told(source(tmp_path, step=250).embeddings) == {("tok", ""): flat(rows(2, 5))}


def test_embeddings_of_another_step_are_not_taken_for_those_of_the_adapter(tmp_path: Path) -> None:
    """diffusers' advanced script writes the embeddings of each step over those of the one before."""
    adapter(tmp_path / FINAL)
    step = adapter(tmp_path / "checkpoint-2" / FINAL)
    save_file({"clip_l": rows(2)}, tmp_path / "anyone_emb.safetensors")
    with pytest.raises(CheckpointError, match="of step 2: anyone_emb"):
        source(tmp_path, step=2)
    assert source(step).embeddings == ()
    (tmp_path / "anyone_emb.safetensors").rename(tmp_path / "learned_embeds-steps-7.safetensors")
    with pytest.raises(CheckpointError, match="the final one"):
        source(tmp_path)


# --- inside the file --------------------------------------------------------------------------------------------------


def test_bundled_embeddings_are_told_from_the_adapters_tensors(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    tensors = {f"{KEY}.lora_A.weight": torch.ones(2, 4), f"{KEY}.lora_B.weight": torch.ones(4, 2)}
    bundled = {
        "bundle_emb.a.b c.clip_l": rows(2),
        "bundle_emb.tok.clip_g_out": rows(1),
        "bundle_emb.cat.string_to_param.*": rows(1, 5),
    }
    save_file({**tensors, **bundled}, file)
    found = source(file)
    assert found.tensors.keys() == tensors.keys()
    assert told(found.embeddings) == {
        ("a.b c", "clip_l"): flat(rows(2)),
        ("tok", "clip_g_out"): flat(rows(1)),
        ("cat", ""): flat(rows(1, 5)),
    }
