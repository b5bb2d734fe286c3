from __future__ import annotations

import argparse
import enum
import pathlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from adapterline.checkpoints.containers import open_container
from adapterline.checkpoints.containers.base import Contents, Wish
from adapterline.errors import CheckpointError

KEY = "base_model.model.mid_block.attn.to_q.lora_{}.weight"

Tensors = dict[str, torch.Tensor]


def factors(value: float = 1.0, key: str = KEY) -> Tensors:
    return {key.format("A"): torch.full((2, 3), value), key.format("B"): torch.full((4, 2), value)}


BASE = {"down_blocks.0.attn.to_q.weight": torch.ones(4, 4), "conv_in.bias": torch.ones(4)}
STATES = {"state": {0: {"exp_avg": torch.ones(9, 9), "step": torch.tensor(3.0)}}, "param_groups": [{"params": [0]}]}


class Mode(enum.Enum):
    LORA = "lora"


class Unknown:
    def __init__(self, value: Any = None) -> None:
        self.value = value


def saved(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


def opened(path: Path, weights: Any = "raw") -> Contents:
    return open_container(path, Wish(weights=weights))


def value_in(contents: Contents) -> float:
    """Which of the state dicts was read: each is filled with a number of its own."""
    return float(contents.read(next(iter(contents.tensors))).flatten()[0])


def refusal(path: Path, weights: Any = "raw") -> str:
    with pytest.raises(CheckpointError) as caught:
        opened(path, weights)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1500
    return message


# --- which state dict -------------------------------------------------------------------------------------------------

LIGHTNING = {
    "epoch": 3,
    "global_step": 40,
    "pytorch-lightning_version": "2.5.0",
    "state_dict": OrderedDict(factors()),
    "loops": {"fit_loop": {"state_dict": {"x": torch.ones(3)}}},
    "callbacks": {"EarlyStopping{'monitor': 'loss'}": {"wait_count": 0, "best_score": torch.tensor(1.0)}},
    "optimizer_states": [STATES],
    "lr_schedulers": [{"base_lrs": [0.1], "_last_lr": [0.1]}],
    "hparams_name": "args",
    "hyper_parameters": {
        "args": argparse.Namespace(rank=4, mode=Mode.LORA, out=pathlib.PosixPath("/home/me/run")),
        "model": Unknown(factors()),
        "many": defaultdict(list),
    },
}

HOLDING: dict[str, Any] = {
    "flat": factors(),
    "parameters": {key: torch.nn.Parameter(tensor) for key, tensor in factors().items()},
    "state_dict": {"state_dict": factors(), "epoch": 3},
    "model and optimizer": {"model": factors(), "optimizer": STATES, "scheduler": {"x": torch.ones(2)}, "epoch": 3},
    "lightning": LIGHTNING,
    "a name of its own": {"whatever": factors()},
    "deep": {"a": {"b": {"c": {"state_dict": factors()}}}},
    "beside a whole model": {"lora": factors(), "vae": BASE},
    "beside numbers and texts": factors() | {"step": 3, "note": "hello", "nothing": None, "shape": torch.Size([3])},
    "beside a counter": {"state_dict": factors(), "step": torch.tensor(3)},
    "with an attribute": lambda: _with_attribute(factors()),
    "beside random states": {"model": factors(), "rng_state": torch.ones(9), "cuda_rng_state": [torch.ones(9)]},
    "beside an optimizer that is broken": {"model": factors(), "optimizer": {"x": torch.empty(2, device="meta")}},
    "beside an EMA": {"model": factors(), "ema": factors(2.0)},
}


def _with_attribute(tensors: Tensors) -> Tensors:
    ordered = OrderedDict(tensors)
    ordered._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]
    return ordered


@pytest.mark.parametrize("what", HOLDING)
def test_the_one_state_dict_in_a_training_state_is_read(tmp_path: Path, what: str) -> None:
    held = HOLDING[what]
    contents = opened(saved(held() if callable(held) else held, tmp_path / "last.ckpt"))
    assert set(contents.tensors) == set(factors())
    assert value_in(contents) == 1.0


def test_component_state_dicts_get_the_component_in_front(tmp_path: Path) -> None:
    state = {
        "unet": factors(1.0),
        "text_encoder": factors(2.0, "text_model.layers.0.q_proj.lora_{}.default.weight"),
        "vae": BASE,
        "optimizer": STATES,
    }
    contents = opened(saved(state, tmp_path / "l.pt"))
    assert set(contents.tensors) == {
        *factors(key=f"unet.{KEY}"),
        *factors(key="text_encoder.base_model.model.text_model.layers.0.q_proj.lora_{}.default.weight"),
    }
    assert float(contents.read("unet." + KEY.format("A"))[0, 0]) == 1.0


def test_component_that_is_named_already_is_not_named_twice(tmp_path: Path) -> None:
    wanted = factors(key="unet.mid.lora.down_{}.weight")
    assert set(opened(saved({"unet": wanted}, tmp_path / "l.pt")).tensors) == set(wanted)


def test_keys_of_a_component_do_not_become_diffusers_format(tmp_path: Path) -> None:
    # unet.mid.lora_A.weight would mean scale 1, and this file does not say what it is.
    contents = opened(saved({"unet": factors(key="mid.lora_{}.weight")}, tmp_path / "l.pt"))
    assert set(contents.tensors) == set(factors(key="unet.base_model.model.mid.lora_{}.weight"))


@pytest.mark.parametrize("extra", [{"alpha": 8}, {"lora_alpha": 8.0}, {"network_alphas": {"x": 8}}, {"scale": 2.0}])
def test_alpha_beside_keys_that_mean_scale_1_is_not_passed_by(tmp_path: Path, extra: dict[str, Any]) -> None:
    path = tmp_path / "l.pt"
    assert "beside" in refusal(saved({"state_dict": factors(key="unet.mid.lora_{}.weight"), **extra}, path))
    assert "beside" in refusal(saved(factors(key="unet.mid.lora_{}.weight") | extra, path))
    assert opened(saved({"state_dict": factors(), **extra}, path)).tensors  # asked for later, with --alpha


def test_alpha_of_a_module_that_is_a_number_is_a_tensor(tmp_path: Path) -> None:
    contents = opened(
        saved({"lora_unet_mid.lora_down.weight": torch.ones(2, 3), "lora_unet_mid.alpha": 8}, tmp_path / "l.pt")
    )
    assert contents.tensors["lora_unet_mid.alpha"].shape == ()
    assert contents.scalar("lora_unet_mid.alpha") == 8.0
    assert float(contents.read("lora_unet_mid.alpha")) == 8.0


@pytest.mark.parametrize(
    ("state", "names"),
    [
        ({"generator": factors(), "critic": factors()}, "generator, critic"),
        ({"first": BASE, "second": BASE}, "first, second"),
        (factors() | {"more": factors()}, r"\(the top\), more"),
        ({"a": {"unet": factors()}, "b": {"unet": factors()}}, "a.unet, b.unet"),
        ({"unet": factors(), "other": factors()}, "unet, other"),
    ],
)
def test_several_state_dicts_are_refused_with_the_list(tmp_path: Path, state: Any, names: str) -> None:
    with pytest.raises(CheckpointError, match=names):
        opened(saved(state, tmp_path / "l.pt"))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "empty"),
        ({"epoch": 3}, "epoch"),
        ({"model": Unknown(factors())}, "Unknown"),
        ({"optimizer": STATES}, "no weights"),
        ([factors()], "a list"),
        (torch.ones(3), "a tensor"),
        (Unknown(factors()), "Unknown"),
        (torch.nn.Linear(2, 2), "Linear"),
        ({"model": {1: torch.ones(1)}}, "no name"),
        ({"model": [torch.ones(1)]}, "no name"),
    ],
)
def test_file_without_a_state_dict_is_refused_with_what_it_holds(tmp_path: Path, state: Any, words: str) -> None:
    assert words in refusal(saved(state, tmp_path / "l.pt"))


# --- EMA --------------------------------------------------------------------------------------------------------------

WITH_EMA: dict[str, Callable[[Tensors, Tensors], Any]] = {
    "ema": lambda raw, ema: {"model": raw, "ema": ema},
    "ema_state_dict": lambda raw, ema: {"state_dict": raw, "ema_state_dict": ema},
    "state_dict_ema": lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema},
    "model_ema": lambda raw, ema: {"model": raw, "model_ema": {"module": ema, "decay": 0.99}},
    "a callback's": lambda raw, ema: {"state_dict": raw, "ema": {"ema_weights": ema, "decay": 0.99}},
    "ema-pytorch": lambda raw, ema: (
        {f"online_model.{key}": tensor for key, tensor in raw.items()}
        | {f"ema_model.{key}": tensor for key, tensor in ema.items()}
        | {"initted": torch.tensor(True), "step": torch.tensor(3)}
    ),
    "lightning's": lambda raw, ema: {
        "state_dict": raw | {f"model_ema.{key}": tensor for key, tensor in ema.items()}
    },
    "without dots": lambda raw, ema: {
        "state_dict": raw | {f"model_ema.{key.replace('.', '')}": tensor for key, tensor in ema.items()}
    },
}  # fmt: skip


@pytest.mark.parametrize("what", WITH_EMA)
def test_ema_weights_are_read_if_asked_for_and_only_then(tmp_path: Path, what: str) -> None:
    path = saved(WITH_EMA[what](factors(1.0), factors(2.0)), tmp_path / "l.ckpt")
    for weights, value in (("raw", 1.0), ("ema", 2.0)):
        contents = opened(path, weights)
        assert set(contents.tensors) == set(factors())
        assert all(float(contents.read(key).mean()) == value for key in factors())


def test_ema_that_is_asked_for_and_not_there_is_refused(tmp_path: Path) -> None:
    assert "no EMA weights" in refusal(saved({"model": factors()}, tmp_path / "l.pt"), "ema")
    save_file(factors(), tmp_path / "l.safetensors")
    assert "no EMA weights" in refusal(tmp_path / "l.safetensors", "ema")


@pytest.mark.parametrize(
    "name", ["l.pt", "lora_ema.pt", "lora_ema.safetensors", "ema_model.safetensors", "x.safetensors"]
)
def test_file_of_ema_weights_alone_is_refused_unless_they_are_asked_for(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".pt":
        saved({"ema": factors(2.0)} if name == "l.pt" else factors(2.0), path)
    else:
        named = {f"model_ema.{key}": tensor for key, tensor in factors(2.0).items()}
        save_file(named if name[0] == "x" else factors(2.0), path)
    assert "--weights ema" in refusal(path)
    contents = opened(path, "ema")
    assert set(contents.tensors) == set(factors())
    assert value_in(contents) == 2.0


def test_safetensors_file_with_both_gives_what_was_asked_for(tmp_path: Path) -> None:
    save_file(factors(1.0) | factors(2.0, f"ema.{KEY}"), tmp_path / "l.safetensors")
    for weights, value in (("raw", 1.0), ("ema", 2.0)):
        contents = opened(tmp_path / "l.safetensors", weights)
        assert set(contents.tensors) == set(factors())
        assert value_in(contents) == value


@pytest.mark.parametrize(
    "state",
    [
        {"model": factors(), "ema": {"shadow_params": list(factors(2.0).values()), "decay": 0.99}},
        {"model": factors(), "ema": {"shadow_params.0": torch.ones(2), "shadow_params.1": torch.ones(2)}},
        {"model": factors(), "ema": {"ema_parameters": list(factors(2.0).values()), "decay": 0.99}},
    ],
)
def test_ema_weights_without_names_are_refused_with_the_way_out(tmp_path: Path, state: Any) -> None:
    path = saved(state, tmp_path / "l.pt")
    assert value_in(opened(path)) == 1.0
    assert "without names" in refusal(path, "ema")


# --- hostile, at any depth --------------------------------------------------------------------------------------------

HOSTILE: dict[str, Callable[[], Any]] = {
    "expanded": lambda: torch.zeros(1).expand(2**40),
    "expanded to nothing": lambda: torch.zeros(0, 2**50),
    "meta": lambda: torch.empty(2, 2, device="meta"),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "csr": lambda: torch.eye(3).to_sparse_csr(),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8),
    "complex": lambda: torch.ones(2, dtype=torch.complex128),
}


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore:.*(Sparse|nested|quant).*")
@pytest.mark.parametrize("depth", [0, 1, 4])
@pytest.mark.parametrize("what", HOSTILE)
def test_tensors_that_are_not_dense_are_refused_at_any_depth(tmp_path: Path, what: str, depth: int) -> None:
    state: Any = factors() | {"x.weight": HOSTILE[what]()}
    for _ in range(depth):
        state = {"inner": state}
    path = saved(state, tmp_path / "l.pt")
    assert path.stat().st_size < 1_000_000
    assert "'x.weight'" in refusal(path)


class Rebuilt:
    """A tensor that its pickle puts together otherwise than it was."""

    def __init__(self, *view: Any) -> None:
        self._view = view

    def __reduce__(self) -> tuple[Any, ...]:
        storage = torch.arange(4.0)._typed_storage()
        return torch._utils._rebuild_tensor_v2, (storage, *self._view, False, OrderedDict())


@pytest.mark.parametrize(
    ("view", "fits"),
    [
        ((0, (4,), (1,)), True),
        ((1, (3,), (1,)), True),
        ((0, (2,), (3,)), True),
        ((1, (4,), (1,)), False),
        ((4, (1,), (1,)), False),
        ((0, (4,), (2,)), False),
        ((0, (2, 2), (4, 1)), False),
        ((0, (8,), (0,)), False),
        ((-1, (2,), (1,)), False),
        ((0, (-2,), (1,)), False),
        ((3, (2,), (-1,)), False),
        ((0, (2**61, 2**61), (0, 0)), False),
        ((0, (2,), (1, 1)), False),
        ((0, (1,) * 65, (1,) * 65), False),
        ((0, ("4",), (1,)), False),
        ((0, 4, 1), False),
        ((2**70, (1,), (1,)), False),
    ],
)
def test_view_stays_inside_the_bytes_of_its_tensor(tmp_path: Path, view: Any, fits: bool) -> None:
    path = saved({"model": {"x.weight": Rebuilt(*view)}}, tmp_path / "l.pt")
    if fits:
        read = opened(path).read("x.weight")
        assert torch.equal(read, torch.as_strided(torch.arange(4.0), view[1], view[2], view[0]))
    else:
        assert "'x.weight'" in refusal(path)


def test_shared_memory_is_counted(tmp_path: Path) -> None:
    one = torch.ones(1000)
    assert "share memory" in refusal(saved({"model": {f"x{n}": one for n in range(1000)}}, tmp_path / "l.pt"))
    tied = opened(saved({"model": {"a": one, "b": torch.ones(2000), "ema": {}}}, tmp_path / "l.pt"))
    assert torch.equal(tied.read("a"), one)


def test_depth_and_width_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state: Any = factors()
    for _ in range(40):
        state = {"inner": state}
    assert "deep" in refusal(saved(state, tmp_path / "deep.pt"))
    state = {"x": 1}
    for _ in range(10):
        state = {str(number): state for number in range(10)}  # 10**10 paths in a few kilobytes
    assert "entries" in refusal(saved({"model": factors(), "more": state}, tmp_path / "wide.pt"))
    looped: dict[str, Any] = dict(factors())
    looped["again"] = looped
    assert "deep" in refusal(saved(looped, tmp_path / "looped.pt"))


def test_reading_does_not_change_the_file(tmp_path: Path) -> None:
    path = saved({"model": factors()}, tmp_path / "l.pt")
    before = path.read_bytes()
    opened(path).read(KEY.format("A")).fill_(9)
    assert path.read_bytes() == before
    assert value_in(opened(path)) == 1.0


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(
        [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
         torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.float8_e4m3fn, torch.float8_e5m2]
    ),
    st.lists(st.integers(1, 4), max_size=4),
    st.data(),
)  # fmt: skip
def test_views_of_any_dtype_are_read_as_torch_reads_them(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, shape: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "views.pt"
    path.unlink(missing_ok=True)
    order = data.draw(st.permutations(range(len(shape))))
    whole = torch.arange(1, 1 + torch.Size(shape).numel()).view(shape).to(dtype)
    view = whole.permute(order)[..., :1] if shape else whole
    saved({"whole.x": whole, "view.x": view, "single.x": whole.clone()}, path)
    contents = opened(path)
    for key, tensor in torch.load(path, weights_only=True).items():
        read = contents.read(key)
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read.to(torch.float64), tensor.to(torch.float64))


# --- single numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
     torch.uint8],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_scalar_is_the_value_of_the_tensor(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...], suffix: str
) -> None:
    state = {"before": torch.ones(3), "x.alpha": torch.full(shape, 13.0).to(dtype), "z": torch.ones(2, 2)}
    path = tmp_path / f"l{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    contents = opened(path)
    assert contents.scalar("x.alpha") == 13.0
    for other in ("before", "z"):
        with pytest.raises(CheckpointError, match="one number"):
            contents.scalar(other)


def test_scalar_that_is_no_number_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([True]), "b": torch.ones(1).to(torch.float8_e4m3fn)}, tmp_path / "l.safetensors")
    contents = opened(tmp_path / "l.safetensors")
    for key in "ab":
        with pytest.raises(CheckpointError, match="one number"):
            contents.scalar(key)


def test_scalar_of_a_safetensors_file_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    save_file({"x.alpha": torch.tensor(2.5, dtype=torch.bfloat16)}, tmp_path / "l.safetensors")
    program = (
        "import sys, pathlib\n"
        "from adapterline.checkpoints.containers import open_container\n"
        "from adapterline.checkpoints.containers.base import Wish\n"
        "print(open_container(pathlib.Path(sys.argv[1]), Wish()).scalar('x.alpha'), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "l.safetensors")], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["2.5", "False"], done.stderr
