from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterline.checkpoints.containers import open_container
from adapterline.checkpoints.containers.base import Contents, Wish
from adapterline.checkpoints.containers.distributed import Piece, _cover
from adapterline.errors import AdapterlineError, CheckpointError, CheckpointIncompleteError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore::FutureWarning:torch")

A, B = (f"base_model.model.q.lora_{letter}.weight" for letter in "AB")

#: Two ranks train a model under FSDP2, whose tensors no number of ranks divides, and save it with an optimizer.
SHARDED = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

folder = sys.argv[1]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=int(os.environ["RANK"]), world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
model = torch.nn.Sequential()
model.lora_A = torch.nn.Linear(7, 3, bias=False)
model.lora_B = torch.nn.Linear(3, 5)
plain = {key: tensor.clone() for key, tensor in model.state_dict().items()}
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
for parameter in model.parameters():
    parameter.grad = torch.zeros_like(parameter)
optimizer.step()
state, states = get_state_dict(model, optimizer)
columns = distribute_tensor(torch.arange(35.0).view(5, 7), mesh, [Shard(1)])
dcp.save({"model": state | {"columns": columns}, "optim": states, "step": 3}, checkpoint_id=f"{folder}/saved")
if dist.get_rank() == 0:
    torch.save(plain | {"columns": torch.arange(35.0).view(5, 7)}, f"{folder}/truth.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of two ranks; read only."""
    folder = tmp_path_factory.mktemp("sharded")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED, str(folder)],
            env=os.environ | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, said = rank.communicate(timeout=120)
            assert rank.returncode == 0, said[-2000:]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return folder


def opened(path: Path, weights: Any = "raw") -> Contents:
    return open_container(path, Wish(weights=weights))


def save(state: dict[str, Any], folder: Path) -> Path:
    import torch.distributed.checkpoint as dcp

    dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


def factors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {A: torch.full((2, 3), value), B: torch.full((4, 2), value)}


def assert_reads(contents: Contents, wanted: dict[str, torch.Tensor]) -> None:
    assert set(contents.tensors) == set(wanted)
    for name, tensor in wanted.items():
        assert contents.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(contents.read(name), tensor), name


# --- what is read -----------------------------------------------------------------------------------------------------


def test_sharded_tensors_of_two_ranks_are_put_together(sharded: Path) -> None:
    contents = opened(sharded / "saved")
    assert contents.container == "dcp"
    assert_reads(contents, torch.load(sharded / "truth.pt"))
    assert {file.name for file in contents.files} == {".metadata", "__0_0.distcp", "__1_0.distcp"}


def test_every_name_of_the_folder_leads_to_the_same(sharded: Path) -> None:
    wanted = opened(sharded / "saved").files
    assert opened(sharded / "saved" / ".metadata").files == wanted
    assert opened(sharded / "saved" / "__1_0.distcp").files == wanted


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"app": {"model": state, "optim": {"state": {A: {"exp_avg": torch.ones(2, 3)}}}}},
        lambda state: {
            "state_dict": state,
            "optimizer": {"state": [torch.ones(2, 3)]},
            "epoch": 3,
            "rng": torch.ones(9),
        },
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_nested_state_dicts_are_found_and_optimizers_left_alone(
    tmp_path: Path, wrap: Callable[[Any], Any], dtype: torch.dtype
) -> None:
    state = {name: tensor.to(dtype) for name, tensor in factors(2.0).items()}
    contents = opened(save(wrap(state), tmp_path / "saved"))
    assert set(contents.tensors) == {A, B}
    assert all(torch.equal(contents.read(name).float(), tensor.float()) for name, tensor in state.items())


def test_ema_weights_are_read_only_if_asked_for(tmp_path: Path) -> None:
    folder = save({"model": factors(1.0), "ema": factors(2.0)}, tmp_path / "both")
    assert_reads(opened(folder), factors(1.0))
    assert_reads(opened(folder, "ema"), factors(2.0))
    with pytest.raises(CheckpointError, match="--weights ema"):
        opened(save({"ema_model": factors()}, tmp_path / "ema_alone"))


def test_missing_optimizer_files_are_not_missed(tmp_path: Path) -> None:
    folder = save({"model": factors(), "optim": {"state": {A: torch.ones(2, 3)}}}, tmp_path / "saved")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for index, info in metadata.storage_data.items():
        if index.fqn.startswith("optim"):
            info.relative_path = "__9_0.distcp"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert_reads(opened(folder), factors())


def test_step_is_known_of_the_folder_of_a_step(tmp_path: Path) -> None:
    assert opened(save(factors(), tmp_path / "checkpoint-70")).step == 70
    assert opened(save(factors(), tmp_path / "saved")).step is None


def test_single_piece_is_mapped_and_not_copied(tmp_path: Path) -> None:
    contents = opened(save({"model": factors()}, tmp_path / "saved"))
    contents.read(A).fill_(7)  # of a private map: the file stays as it is
    assert_reads(opened(tmp_path / "saved"), factors())


# --- what is refused --------------------------------------------------------------------------------------------------


def test_missing_files_may_still_be_written(tmp_path: Path, sharded: Path) -> None:
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
        folder = shutil.copytree(sharded / "saved", tmp_path / name)
        (folder / name).unlink()
        with pytest.raises(CheckpointIncompleteError, match=name.removesuffix(".distcp")):
            opened(folder)


def test_cut_files_may_still_be_written(tmp_path: Path, sharded: Path) -> None:
    folder = shutil.copytree(sharded / "saved", tmp_path / "cut")
    whole = (folder / "__1_0.distcp").read_bytes()
    (folder / "__1_0.distcp").write_bytes(whole[:1000])
    with pytest.raises(CheckpointIncompleteError, match="in part"):
        opened(folder)


def _entry(metadata: Any, name: str = "model.columns") -> Any:
    return metadata.state_dict_metadata[name]


def _place(metadata: Any, name: str = "model.columns") -> Any:
    return next(info for index, info in metadata.storage_data.items() if index.fqn == name)


def _set_chunk(metadata: Any, number: int, **changes: Any) -> None:
    for key, value in changes.items():
        setattr(_entry(metadata).chunks[number], key, value)


def _rename(metadata: Any) -> None:
    entry = metadata.state_dict_metadata.pop("model.columns")
    metadata.state_dict_metadata["../columns"] = entry
    metadata.planner_data["../columns"] = ("model", "../columns")
    for index in metadata.storage_data:
        if index.fqn == "model.columns":
            object.__setattr__(index, "fqn", "../columns")


BROKEN: dict[str, Callable[[Any], Any]] = {
    "a hole": lambda m: _entry(m).chunks.pop(),
    "an overlap": lambda m: _set_chunk(m, 1, offsets=torch.Size([0, 0]), sizes=_entry(m).chunks[0].sizes),
    "a piece twice": lambda m: _entry(m).chunks.append(_entry(m).chunks[0]),
    "a piece outside": lambda m: _set_chunk(m, 1, sizes=torch.Size([5, 9])),
    "another rank": lambda m: _set_chunk(m, 1, sizes=torch.Size([5])),
    "a larger tensor": lambda m: setattr(_entry(m), "size", torch.Size([5, 2**50])),
    "a giant in one piece": lambda m: (
        setattr(_entry(m), "size", torch.Size([2**50, 8])),
        setattr(_entry(m), "chunks", _entry(m).chunks[:1]),
        _set_chunk(m, 0, sizes=torch.Size([2**50, 8])),
    ),
    "a negative size": lambda m: setattr(_entry(m), "size", (-5, 7)),
    "a size that is a text": lambda m: setattr(_entry(m), "size", "57"),
    "pieces that are none": lambda m: setattr(_entry(m), "chunks", [1, 2]),
    "a path out": lambda m: setattr(_place(m), "relative_path", "../saved/__0_0.distcp"),
    "an absolute path": lambda m: setattr(_place(m), "relative_path", "/etc/passwd"),
    "the metadata as a file": lambda m: setattr(_place(m), "relative_path", ".metadata"),
    "an offset below zero": lambda m: setattr(_place(m), "offset", -1),
    "a length that is none": lambda m: setattr(_place(m), "length", None),
    "a transformed tensor": lambda m: setattr(_place(m), "transform_descriptors", ["zstd"]),
    "no places": lambda m: m.storage_data.clear(),
    "places that are none": lambda m: setattr(m, "storage_data", [1]),
    "no tensors": lambda m: m.state_dict_metadata.clear(),
    "a path for a name": _rename,
    "an unknown dtype": lambda m: setattr(_entry(m).properties, "dtype", "float33"),
    "a name inside a tensor": lambda m: m.planner_data.update({"model.lora_A.weight": ("model", "columns", "x")}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_metadata_that_does_not_add_up_is_refused(tmp_path: Path, sharded: Path, what: str) -> None:
    folder = shutil.copytree(sharded / "saved", tmp_path / "saved")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    BROKEN[what](metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError) as caught:
        opened(folder)
    assert str(caught.value).isprintable()
    assert not isinstance(caught.value, CheckpointIncompleteError)


def test_piece_of_another_shape_than_said_is_refused_when_it_is_read(tmp_path: Path, sharded: Path) -> None:
    folder = shutil.copytree(sharded / "saved", tmp_path / "saved")
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    entry = _entry(metadata, "model.lora_B.weight")
    entry.size = torch.Size([3, 5])
    for chunk in entry.chunks:
        chunk.offsets, chunk.sizes = chunk.offsets[::-1], chunk.sizes[::-1]
    for index in list(metadata.storage_data):
        if index.fqn == "model.lora_B.weight":
            other = copy.copy(index)
            object.__setattr__(other, "offset", index.offset[::-1])
            metadata.storage_data[other] = metadata.storage_data.pop(index)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    contents = opened(folder)
    with pytest.raises(CheckpointError, match="as .metadata says"):
        contents.read("lora_B.weight")


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_code_in_the_metadata_or_in_a_piece_is_not_run(tmp_path: Path) -> None:
    folder = save({"model": factors()}, tmp_path / "saved")
    sprung = tmp_path / "sprung"
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data["trap"] = Trap(sprung)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="open"):
        opened(folder)
    assert not sprung.exists()
    pickle.loads((folder / ".metadata").read_bytes()).planner_data["trap"].close()
    assert sprung.exists()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), min_size=1, max_size=4), st.booleans())
def test_mutated_files_give_a_value_or_a_typed_error(
    sharded: Path, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], metadata: bool
) -> None:
    folder = tmp_path_factory.getbasetemp() / "mutated_dcp"
    if not folder.exists():
        shutil.copytree(sharded / "saved", folder)
    name = ".metadata" if metadata else "__0_0.distcp"
    content = bytearray((sharded / "saved" / name).read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    try:
        contents = opened(folder)
        for key, info in contents.tensors.items():
            assert tuple(contents.read(key).shape) == info.shape
        message = ""
    except AdapterlineError as error:
        message = str(error)
    finally:
        shutil.copyfile(sharded / "saved" / name, folder / name)
    assert message.isprintable()


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=3, max_size=3), max_size=5),
)
def test_cover_means_that_every_element_lies_in_one_piece(shape: list[int], cuts: list[list[tuple[int, int]]]) -> None:
    pieces = []
    for cut in cuts:
        places = [(min(o, size), min(s, size - min(o, size))) for size, (o, s) in zip(shape, cut, strict=False)]
        offsets, sizes = tuple(o for o, _ in places), tuple(s for _, s in places)
        pieces.append(Piece(offsets, sizes, Path("x"), 0, 0))
    counted = torch.zeros(shape)
    for piece in pieces:
        places = zip(piece.offsets, piece.sizes, strict=True)
        counted[tuple(slice(offset, offset + size) for offset, size in places)] += 1
    assert _cover(tuple(shape), tuple(pieces)) == bool((counted == 1).all())
