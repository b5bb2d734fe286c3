"""DeepSpeed folders, written by the recipe that DeepSpeed's zero_to_fp32.py reads.

DeepSpeed itself needs a compiler and a CPU or CUDA backend that not every machine has, so the files are made here: the
names, the nesting and the padding are those of DeepSpeed 0.19.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterline.checkpoints.containers import open_container
from adapterline.checkpoints.containers.base import Contents, Wish
from adapterline.errors import CheckpointError, CheckpointIncompleteError

Tensors = dict[str, torch.Tensor]

#: Two groups; sizes that no number of ranks divides.
GROUPS: tuple[dict[str, tuple[int, ...]], ...] = (
    {"base_model.model.q.lora_A.default.weight": (3, 7), "base_model.model.q.lora_B.default.weight": (5, 3)},
    {"base_model.model.q.lora_B.default.bias": (5,), "scale": ()},
)


def parameters(groups: tuple[dict[str, tuple[int, ...]], ...] = GROUPS) -> list[Tensors]:
    torch.manual_seed(0)
    return [{name: torch.randn(shape) for name, shape in group.items()} for group in groups]


def flat_groups(stage: int, ranks: int, groups: list[Tensors], sub_group: int = 20) -> list[list[torch.Tensor]]:
    """What each rank keeps: its part of every group (ZeRO 1, 2), or its parts of the parameters, in groups (ZeRO 3)."""
    if stage < 3:
        wholes = []
        for group in groups:
            whole = torch.cat([tensor.flatten() for tensor in group.values()])
            align = 2 * ranks
            padded = torch.zeros(math.ceil(len(whole) / align) * align)
            padded[: len(whole)] = whole
            wholes.append(padded)
        return [[whole.chunk(ranks)[rank].clone() for whole in wholes] for rank in range(ranks)]
    kept: list[list[torch.Tensor]] = [[] for _ in range(ranks)]
    for tensor in (tensor for group in groups for tensor in group.values()):
        size = math.ceil(tensor.numel() / ranks)
        padded = torch.full((size * ranks,), torch.nan)
        padded[: tensor.numel()] = tensor.flatten()
        for rank in range(ranks):
            kept[rank].append(padded[rank * size : (rank + 1) * size])
    # A parameter may lie across the border of two groups.
    return [[part.clone() for part in torch.cat(parts).split(sub_group)] for parts in kept]


def write_zero(folder: Path, stage: int, ranks: int, *, tag: str = "global_step4", **changes: Any) -> Tensors:
    """The checkpoint; gives the fp32 weights that it means."""
    groups = parameters()
    frozen = {"base_model.model.q.base_layer.weight": torch.randn(5, 7)}
    tensors = {name: tensor for group in groups for name, tensor in group.items()}
    save = folder / tag
    save.mkdir(parents=True)
    (folder / "latest").write_text(tag)
    sixteen = {name: tensor.bfloat16() for name, tensor in (tensors | frozen).items()}
    parts = flat_groups(3, ranks, [frozen], 10**6)
    model: dict[str, Any] = {
        "module": {name: torch.zeros(0) for name in sixteen} if stage == 3 else sixteen,
        "buffer_names": ["steps"],
        "param_shapes": [{name: tensor.shape for name, tensor in group.items()} for group in groups],
        "frozen_param_shapes": {name: tensor.shape for name, tensor in frozen.items()},
        "shared_params": {"tied": "base_model.model.q.lora_B.default.bias"},
        "ds_config": {"zero_optimization": {"stage": stage}},
        "ds_version": "0.19.8",
        "lr_scheduler": None,
    }
    model["module"]["steps"] = torch.arange(3.0)
    for rank in range(ranks if stage == 3 else 1):
        model["frozen_param_fragments"] = {name: parts[rank][0] for name in frozen} if stage == 3 else frozen
        name = f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
        torch.save(model | changes, save / name)
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    for rank, flat in enumerate(flat_groups(stage, ranks, groups) if stage else ()):
        state = {
            "zero_stage": stage,
            "partition_count": ranks if stage == 3 else [ranks] * len(groups),
            key: flat,
            "base_optimizer_state": {"state": {0: {"exp_avg": torch.ones(9)}}},
            "loss_scaler": torch.Size([1]),
        }
        torch.save({"optimizer_state_dict": state}, save / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return {**tensors, **frozen, "steps": torch.arange(3.0), "tied": tensors["base_model.model.q.lora_B.default.bias"]}


def opened(path: Path, step: int | None = None) -> Contents:
    return open_container(path, Wish(step=step))


def assert_reads(contents: Contents, wanted: Tensors) -> None:
    assert set(contents.tensors) == set(wanted)
    for name, tensor in wanted.items():
        assert contents.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(contents.read(name), tensor), name


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_weights_are_those_of_every_rank_put_together(tmp_path: Path, stage: int, ranks: int) -> None:
    wanted = write_zero(tmp_path, stage, ranks)
    contents = opened(tmp_path)
    assert (contents.container, contents.step) == ("deepspeed", 4)
    assert_reads(contents, wanted)
    assert {file.name for file in contents.files} == {
        "latest",
        *(p.name for p in (tmp_path / "global_step4").iterdir()),
    }
    assert_reads(opened(tmp_path / "global_step4"), wanted)
    assert contents.scalar("scale") == pytest.approx(float(wanted["scale"]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), max_size=3).map(tuple), min_size=1, max_size=5),
    st.sampled_from([1, 2, 3]),
    st.integers(1, 5),
    st.integers(1, 30),
)
def test_any_shapes_come_back_exactly(shapes: list[tuple[int, ...]], stage: int, ranks: int, sub_group: int) -> None:
    from adapterline.checkpoints.containers import zero

    groups = parameters(({f"p{number}": shape for number, shape in enumerate(shapes)},))
    flat = flat_groups(stage, ranks, groups, sub_group)
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    states = [{key: [Flat(part) for part in parts]} for parts in flat]
    root = {"param_shapes": [{name: tuple(tensor.shape) for name, tensor in groups[0].items()}]}
    merge = zero._whole_parameters if stage == 3 else zero._parameters_in_groups
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zero, "Stored", Flat)
        merged = dict(merge(Path("x"), root, states))
    assert all(torch.equal(merged[name].load(), tensor) for name, tensor in groups[0].items())
    assert len(merged) == len(shapes)


class Flat:
    """A flat tensor in memory, in the place of one in a file."""

    dtype = "F32"

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape = tuple(tensor.shape)
        self.load = lambda: tensor


def test_fp32_weights_are_preferred_to_the_16_bit_ones_unless_their_file_is_named(tmp_path: Path) -> None:
    wanted = write_zero(tmp_path, 2, 2)
    name = "base_model.model.q.lora_A.default.weight"
    assert torch.equal(opened(tmp_path).read(name), wanted[name])
    alone = opened(tmp_path / "global_step4" / "mp_rank_00_model_states.pt")
    assert torch.equal(alone.read(name), wanted[name].bfloat16())
    assert (alone.step, [file.name for file in alone.files]) == (4, ["mp_rank_00_model_states.pt"])


def test_model_states_of_zero_3_alone_are_refused_with_the_reason(tmp_path: Path) -> None:
    write_zero(tmp_path, 3, 2)
    with pytest.raises(CheckpointError, match="placeholders"):
        opened(tmp_path / "global_step4" / "zero_pp_rank_0_mp_rank_00_model_states.pt")


def test_without_zero_the_models_own_weights_are_read(tmp_path: Path) -> None:
    write_zero(tmp_path, 0, 1)
    contents = opened(tmp_path)
    assert contents.tensors["base_model.model.q.lora_A.default.weight"].dtype == "BF16"


def test_frozen_weights_may_be_left_out(tmp_path: Path) -> None:
    wanted = write_zero(tmp_path, 2, 2, frozen_param_shapes=None, frozen_param_fragments=None)
    del wanted["base_model.model.q.base_layer.weight"]
    assert_reads(opened(tmp_path), wanted)


def test_latest_decides_and_step_overrides_it(tmp_path: Path) -> None:
    write_zero(tmp_path, 2, 1, tag="global_step8")
    write_zero(tmp_path, 2, 1, tag="global_step4")
    assert opened(tmp_path).step == 4
    assert opened(tmp_path, 8).step == 8
    with pytest.raises(CheckpointError, match="4, 8"):
        opened(tmp_path, 5)
    (tmp_path / "latest").unlink()
    with pytest.raises(CheckpointError, match=r"4, 8.*--step"):
        opened(tmp_path)


@pytest.mark.parametrize("tag", ["../global_step4", "/etc", "", ".", "a/b", "x" * 300, "\x1b[2J"])
def test_latest_that_is_no_name_leads_nowhere(tmp_path: Path, tag: str) -> None:
    write_zero(tmp_path / "elsewhere", 2, 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "latest").write_text(tag)
    with pytest.raises(CheckpointError, match="no checkpoint|No adapter") as caught:
        opened(tmp_path / "run")
    assert str(caught.value).isprintable()


def test_latest_that_is_not_there_yet_may_still_be_written(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("global_step9")
    with pytest.raises(CheckpointIncompleteError, match="global_step9"):
        opened(tmp_path)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_missing_ranks_are_incomplete(tmp_path: Path, stage: int, rank: int) -> None:
    write_zero(tmp_path, stage, 3)
    (tmp_path / "global_step4" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(CheckpointIncompleteError):
        opened(tmp_path)


@pytest.mark.parametrize("pattern", ["*_optim_states.pt", "*_model_states.pt"])
@pytest.mark.parametrize("stage", [1, 3])
def test_states_of_one_kind_alone_are_incomplete(tmp_path: Path, stage: int, pattern: str) -> None:
    write_zero(tmp_path, stage, 2)
    for file in (tmp_path / "global_step4").glob(pattern):
        file.unlink()
    with pytest.raises(CheckpointIncompleteError):
        opened(tmp_path)


def test_model_states_of_a_rank_of_zero_3_cannot_be_missing(tmp_path: Path) -> None:
    write_zero(tmp_path, 3, 3)
    (tmp_path / "global_step4" / "zero_pp_rank_2_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(CheckpointIncompleteError, match="2 ranks, and was saved by 3"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["mp_rank_01_model_states.pt", "layer_00-model_00-model_states.pt"])
def test_models_that_were_cut_otherwise_are_refused(tmp_path: Path, name: str) -> None:
    write_zero(tmp_path, 2, 1)
    torch.save({}, tmp_path / "global_step4" / name)
    with pytest.raises(CheckpointError, match="data parallel"):
        opened(tmp_path)


SHAPES = [{name: torch.Size(shape) for name, shape in group.items()} for group in GROUPS]
BROKEN: dict[str, Any] = {
    "more parameters": {"param_shapes": [SHAPES[0] | {"more": torch.Size([50])}, SHAPES[1]]},
    "fewer parameters": {"param_shapes": [{}, SHAPES[1]]},
    "another number of groups": {"param_shapes": SHAPES[:1]},
    "a huge parameter": {"param_shapes": [{"x": (2**39, 2**39)}, SHAPES[1]]},
    "a negative shape": {"param_shapes": [{"x": (-1,)}, SHAPES[1]]},
    "shapes that are none": {"param_shapes": [{"x": "y"}, SHAPES[1]]},
    "no shapes": {"param_shapes": None},
    "numbers for names": {"param_shapes": [{1: torch.Size([3])}, SHAPES[1]]},
    "a path for a name": {"param_shapes": [{"../x": torch.Size([3, 12])}, SHAPES[1]]},
    "frozen parameters without shapes": {"frozen_param_shapes": {"x": 3}},
}


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("what", BROKEN)
def test_groups_that_do_not_fit_the_shapes_are_refused(tmp_path: Path, what: str, stage: int) -> None:
    write_zero(tmp_path, stage, 2, **BROKEN[what])
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path)
    assert not isinstance(caught.value, CheckpointIncompleteError)
    assert str(caught.value).isprintable()
