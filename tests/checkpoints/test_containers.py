from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from adapterline.checkpoints import load_checkpoint, reopen
from adapterline.checkpoints.containers import open_container
from adapterline.checkpoints.containers.base import Contents, Wish
from adapterline.checkpoints.containers.torch_archive import read_archive
from adapterline.errors import AdapterlineError, CheckpointError, CheckpointIncompleteError
from adapterline.values import ExportOptions, Source

KEY = "base_model.model.mid_block.attn.to_q.lora_{}.weight"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "org/model"}


def factors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {KEY.format("A"): torch.full((2, 3), value), KEY.format("B"): torch.full((4, 2), value)}


def write_peft(folder: Path, value: float = 1.0, name: str = "adapter_model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    write(folder / name, value)
    return folder


def write(path: Path, value: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(factors(value), path)
    else:
        torch.save(factors(value), path)
    return path


def value_in(contents: Contents | Source) -> float:
    """Which of the files of a test was read: each is filled with a number of its own."""
    return float(contents.read(next(iter(contents.tensors))).flatten()[0])


def opened(path: Path, step: int | None = None) -> Contents:
    return open_container(path, Wish(step=step))


def refusal(path: Path, step: int | None = None) -> CheckpointError:
    """The refusal of a path: one paragraph, and not a page long."""
    with pytest.raises(CheckpointError) as caught:
        opened(path, step)
    message = str(caught.value)
    assert message.isprintable(), message
    assert len(message) < 1500
    return caught.value


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_peft_folder_gives_its_tensors_and_its_configuration(tmp_path: Path, name: str) -> None:
    contents = opened(write_peft(tmp_path / "adapter", 3.0, name))
    assert contents.container == "peft-folder"
    assert contents.configs == {"": CONFIG}
    assert contents.stated_base == "org/model"
    assert set(contents.tensors) == set(factors())
    assert contents.tensors[KEY.format("A")].shape == (2, 3)
    assert contents.tensors[KEY.format("A")].dtype == "F32"
    assert value_in(contents) == 3.0
    assert [file.name for file in contents.files] == ["adapter_config.json", name]


def test_weights_of_a_peft_folder_bring_the_configuration_beside_them(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "adapter")
    contents = opened(folder / "adapter_model.safetensors")
    assert (contents.container, contents.root, contents.configs) == ("peft-folder", folder, {"": CONFIG})


def test_folder_of_component_folders_gives_keys_with_the_component_in_front(tmp_path: Path) -> None:
    write_peft(tmp_path / "unet", 1.0)
    write_peft(tmp_path / "text_encoder", 2.0, "adapter_model.bin")
    contents = opened(tmp_path)
    assert set(contents.configs) == {"unet", "text_encoder"}
    assert set(contents.tensors) == {f"{name}.{key}" for name in ("unet", "text_encoder") for key in factors()}
    assert float(contents.read(f"unet.{KEY.format('A')}")[0, 0]) == 1.0
    assert float(contents.read(f"text_encoder.{KEY.format('A')}")[0, 0]) == 2.0


def test_several_peft_adapters_are_refused_with_their_names(tmp_path: Path) -> None:
    write_peft(tmp_path / "style")
    write_peft(tmp_path / "unet")
    assert "style, unet" in str(refusal(tmp_path))


def test_base_model_that_is_a_path_is_not_believed(tmp_path: Path) -> None:
    folder = write_peft(tmp_path)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"base_model_name_or_path": "/home/me/model"}))
    assert opened(folder).stated_base is None


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "style.safetensors", "style.bin"])
def test_final_file_is_preferred_to_steps_and_states(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, 1.0)
    for other in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl", "training_args.bin"):
        (tmp_path / other).write_bytes(b"not looked at")
    write(tmp_path / "checkpoint-10" / "pytorch_lora_weights.safetensors", 10.0)
    write_peft(tmp_path / "checkpoint-20", 20.0)
    contents = opened(tmp_path)
    assert (value_in(contents), contents.step) == (1.0, None)
    assert [file.name for file in contents.files] == [name]


def test_diffusers_final_file_is_preferred_to_other_files_and_to_peft_folders(tmp_path: Path) -> None:
    write(tmp_path / "pytorch_lora_weights.safetensors", 1.0)
    write(tmp_path / "other.safetensors", 2.0)
    write_peft(tmp_path / "unet", 3.0)
    write_peft(tmp_path, 4.0)
    assert value_in(opened(tmp_path)) == 1.0


@pytest.mark.parametrize("kind", ["file", "peft", "components"])
def test_step_picks_its_folder(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "pytorch_lora_weights.safetensors", 1.0)
    for step in (10, 20):
        folder = tmp_path / f"checkpoint-{step}"
        match kind:
            case "file":
                write(folder / "pytorch_lora_weights.safetensors", step)
            case "peft":
                write_peft(folder, step)
            case "components":
                write_peft(folder / "unet", step)
    contents = opened(tmp_path, 20)
    assert (value_in(contents), contents.step) == (20.0, 20)
    assert "10, 20" in str(refusal(tmp_path, 30))


@pytest.mark.parametrize("peft", [False, True])
def test_step_is_known_of_the_folder_of_a_step(tmp_path: Path, peft: bool) -> None:
    folder = tmp_path / "checkpoint-700"
    write_peft(folder) if peft else write(folder / "pytorch_lora_weights.safetensors")
    assert opened(folder).step == 700


@pytest.mark.parametrize("peft", [False, True])
@pytest.mark.parametrize("steps", [(10,), (5, 10)])
def test_steps_without_a_final_file_are_refused_with_the_list(
    tmp_path: Path, steps: tuple[int, ...], peft: bool
) -> None:
    for step in steps:
        folder = tmp_path / f"checkpoint-{step}"
        write_peft(folder, step) if peft else write(folder / "pytorch_lora_weights.safetensors", step)
    message = str(refusal(tmp_path))
    assert ", ".join(map(str, steps)) in message
    assert "--step" in message


def test_several_candidates_are_refused_with_the_list(tmp_path: Path) -> None:
    write(tmp_path / "a.safetensors")
    write(tmp_path / "b.safetensors")
    assert "a.safetensors, b.safetensors" in str(refusal(tmp_path))


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".ckpt"])
def test_flat_state_dict_is_read_whatever_its_suffix(tmp_path: Path, suffix: str) -> None:
    contents = opened(write(tmp_path / f"lora{suffix}", 2.5))
    assert contents.container == "torch"
    assert value_in(contents) == 2.5
    assert contents.tensors[KEY.format("B")].shape == (4, 2)


def test_model_card_states_the_base(tmp_path: Path) -> None:
    write(tmp_path / "pytorch_lora_weights.safetensors")
    (tmp_path / "README.md").write_text("---\nbase_model: org/base\n---\n")
    assert opened(tmp_path).stated_base == "org/base"
    (tmp_path / "README.md").write_text("---\nbase_model: /data/base\n---\n")
    assert opened(tmp_path).stated_base is None
    (tmp_path / "README.md").write_text("---\nbase_model: [\n---\n")
    assert opened(tmp_path).stated_base is None


# --- the source -------------------------------------------------------------------------------------------------------


def test_digest_is_of_the_bytes_that_are_read_and_of_their_names(tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return load_checkpoint(str(folder), ExportOptions(), tmp_path).digest

    first, second = write_peft(tmp_path / "first"), write_peft(tmp_path / "elsewhere" / "second")
    (second / "optimizer.bin").write_bytes(b"whatever")
    assert digest(first) == digest(second)
    before = digest(first)
    (first / "adapter_config.json").write_text(json.dumps(CONFIG | {"lora_alpha": 5}))
    assert digest(first) != before
    write(second / "adapter_model.safetensors", 2.0)
    assert digest(second) != before


def test_checkpoint_that_changed_is_not_reopened(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "adapter")
    source = load_checkpoint(str(folder), ExportOptions(), tmp_path)
    assert reopen(source, ExportOptions()).digest == source.digest
    os.unlink(folder / "adapter_model.safetensors")
    write(folder / "adapter_model.safetensors", 2.0)
    with pytest.raises(CheckpointError, match="changed"):
        reopen(source, ExportOptions())


def test_wrapped_keys_are_read_under_their_plain_names(tmp_path: Path) -> None:
    save_file({f"module._orig_mod.{key}": tensor for key, tensor in factors(6.0).items()}, tmp_path / "l.safetensors")
    source = load_checkpoint(str(tmp_path / "l.safetensors"), ExportOptions(), tmp_path)
    assert set(source.tensors) == set(factors())
    assert value_in(source) == 6.0


# --- paths that hold nothing ------------------------------------------------------------------------------------------


def test_missing_path_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in str(refusal(tmp_path / "nothing"))
    assert isinstance(refusal(Path("x" * 300)), CheckpointError)
    assert isinstance(refusal(tmp_path / "a\0b"), CheckpointError)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "empty" in str(refusal(tmp_path))


def test_folder_without_an_adapter_is_refused_with_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "optimizer.bin").write_bytes(b"x")
    message = str(refusal(tmp_path))
    assert "notes.txt" in message
    assert "pytorch_lora_weights.safetensors" in message


@pytest.mark.parametrize("name", ["lora.safetensors", "lora.pt", "lora.txt", "adapter_model.bin"])
def test_empty_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "empty" in str(refusal(tmp_path / name))


def test_file_of_another_kind_is_refused_with_the_kinds_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "lora.gguf").write_bytes(b"GGUF")
    message = str(refusal(tmp_path / "lora.gguf"))
    assert all(word in message for word in ("'.gguf'", "a folder", ".safetensors", ".index.json", ".pt", ".bin"))


def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lora.safetensors")
    assert isinstance(refusal(tmp_path / "lora.safetensors"), CheckpointError)


def test_peft_folder_without_weights_may_still_be_written(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert isinstance(refusal(tmp_path), CheckpointIncompleteError)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"peft_type": "LO', CheckpointIncompleteError),
        ("", CheckpointIncompleteError),
        ("[]", CheckpointError),
        ("{}", CheckpointError),
        ('{"peft_type": 3}', CheckpointError),
        ("[" * 100_000, CheckpointError),
        ("\udcff", CheckpointError),
    ],
)
def test_peft_configuration_that_is_none_is_refused(tmp_path: Path, text: str, kind: type[CheckpointError]) -> None:
    write_peft(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(text.encode(errors="surrogateescape"))
    assert isinstance(refusal(tmp_path), kind)


# --- safetensors ------------------------------------------------------------------------------------------------------


def with_header(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(start: int, end: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def test_truncation_at_every_length_is_told_from_damage(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        error = refusal(path)
        assert isinstance(error, CheckpointIncompleteError) or length == 0, length


def test_valid_header_of_ones_own_is_read(tmp_path: Path) -> None:
    path = with_header(tmp_path / "l.safetensors", {"x": entry(0, 8), "y": entry(8, 12, [])}, b"\0" * 12)
    assert set(opened(path).tensors) == {"x", "y"}


DEEP = b'{"a":' * 50_000 + b"1" + b"}" * 50_000
MALFORMED: dict[str, tuple[Any, bytes]] = {
    "no JSON": (b"{nothing}", b""),
    "another encoding": ('{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.encode("utf-16"), b"\0" * 4),
    "a list": ([], b""),
    "duplicate keys": (b'{"x":%b,"x":%b}' % ((json.dumps(entry(0, 4)).encode(),) * 2), b"\0" * 4),
    "a hole": ({"x": entry(0, 4), "y": entry(8, 12)}, b"\0" * 12),
    "a hole at the start": ({"x": entry(4, 8)}, b"\0" * 8),
    "an overlap": ({"x": entry(0, 8), "y": entry(4, 12)}, b"\0" * 12),
    "trailing bytes": ({"x": entry(0, 4)}, b"\0" * 5),
    "an empty giant": ({"x": entry(0, 0, [0, 2**50])}, b""),
    "a shape whose product overflows": ({"x": entry(0, 0, [2**62, 2**62, 0])}, b""),
    "a shape of giants": ({"x": entry(0, 4, [10**300] * 500)}, b"\0" * 4),
    "many dimensions": ({"x": entry(0, 4, [1] * 60)}, b"\0" * 4),
    "a shape that is no list": ({"x": entry(0, 4, "1")}, b"\0" * 4),
    "offsets that are texts": ({"x": {"dtype": "F32", "shape": [1], "data_offsets": ["a", "b"]}}, b"\0" * 4),
    "offsets that are none": ({"x": {"dtype": "F32", "shape": [1], "data_offsets": None}}, b"\0" * 4),
    "offsets of three": ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1, 4]}}, b"\0" * 4),
    "offsets of fractions": ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}, b"\0" * 4),
    "offsets below zero": ({"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, b"\0" * 4),
    "offsets in reverse": ({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, b"\0" * 4),
    "a true dimension": ({"x": entry(0, 4, [True])}, b"\0" * 4),
    "an unknown dtype": ({"x": entry(0, 4, [1], "F33")}, b"\0" * 4),
    "a dtype that is a list": ({"x": entry(0, 4, [1], ["F32"])}, b"\0" * 4),
    "half a byte": ({"x": entry(0, 1, [1], "F4")}, b"\0"),
    "an entry that is no object": ({"x": 1}, b""),
    "metadata that is a list": ({"__metadata__": []}, b""),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b""),
    "deep nesting": (DEEP, b""),
    "an endless number": (b'{"x":' + b"1" * 100_000 + b"}", b""),
    "NUL in a key": ({"a\0b": entry(0, 4)}, b"\0" * 4),
    "an empty key": ({"": entry(0, 4)}, b"\0" * 4),
    "a path for a key": ({"../../etc/passwd": entry(0, 4)}, b"\0" * 4),
    "half a surrogate pair": ({"\ud800": entry(0, 4)}, b"\0" * 4),
    "a terminal sequence": ({"\x1b[2J": entry(0, 4)}, b"\0" * 4),
    "a page for a key": ({"x" * 5000: entry(0, 4)}, b"\0" * 4),
}  # fmt: skip


@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_safetensors_file_is_refused(tmp_path: Path, what: str) -> None:
    header, data = MALFORMED[what]
    error = refusal(with_header(tmp_path / "l.safetensors", header, data))
    assert not isinstance(error, CheckpointIncompleteError)


@pytest.mark.parametrize("claim", [100_000_001, 2**40, 2**64 - 1])
def test_header_that_claims_to_be_huge_is_refused_unread(tmp_path: Path, claim: int) -> None:
    (tmp_path / "l.safetensors").write_bytes(claim.to_bytes(8, "little") + b"{}")
    assert str(claim) in str(refusal(tmp_path / "l.safetensors"))


def test_too_many_tensors_are_refused(tmp_path: Path) -> None:
    row = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(row % number for number in range(200_001)) + b"}"
    assert "200001" in str(refusal(with_header(tmp_path / "l.safetensors", header)))


def test_misaligned_header_does_no_harm(tmp_path: Path) -> None:
    values = torch.arange(2.0)
    header = json.dumps({"x": entry(0, 8)}).encode()
    header += b" " * (7 - len(header) % 8)
    assert len(header) % 8 == 7
    path = with_header(tmp_path / "l.safetensors", header, values.numpy().tobytes())
    with suppress(CheckpointError):  # whether the library takes it may change; what it gives may not
        assert torch.equal(opened(path).read("x"), values)


SMALL = {"x": entry(0, 8), "y": entry(8, 12), "__metadata__": {"format": "pt"}}


def _harmless(path: Path) -> None:
    """Reading all of it ends, and in nothing but a value or a typed error."""
    try:
        contents = opened(path)
        for key, info in contents.tensors.items():
            assert tuple(contents.read(key).shape) == info.shape
        message = ""
    except AdapterlineError as error:
        message = str(error)
    assert message.isprintable(), message


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6), st.integers(-8, 8))
def test_mutated_bytes_give_a_value_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.unlink(missing_ok=True)
    content = bytearray(with_header(path, SMALL, bytes(12)).read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path.unlink()
    path.write_bytes(content[:length] if length < 0 else content + bytes(length))
    _harmless(path)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["F32", "BF16", "F4"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
_NUMBERS = st.lists(st.integers(-1, 20) | _JSON, max_size=3)
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F4", "BOOL"]) | _JSON,
        "shape": _NUMBERS | _JSON,
        "data_offsets": _NUMBERS | _JSON,
    }
)


@settings(max_examples=400, deadline=None)
@given(
    st.dictionaries(st.text(max_size=6) | st.just("__metadata__"), _ENTRY | _JSON, max_size=3) | _JSON,
    st.integers(0, 20),
)
def test_random_headers_give_a_value_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, header: Any, size: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    path.unlink(missing_ok=True)
    _harmless(with_header(path, header, bytes(size)))


# --- torch ------------------------------------------------------------------------------------------------------------


class Trap:
    """Its pickle makes a file when it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["lora.pt", "lora.bin", "adapter_model.bin", "pytorch_lora_weights.bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, name: str, legacy: bool) -> None:
    trap, folder = tmp_path / "sprung", tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    torch.save(factors() | {"trap": Trap(trap)}, folder / name, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError):
        load_checkpoint(str(folder if name.startswith(("a", "py")) else folder / name), ExportOptions(), tmp_path)
    assert not trap.exists()
    torch.load(folder / name, weights_only=False)["trap"].close()
    assert trap.exists(), "the trap works, so that its silence above says something"


def test_plain_pickle_is_refused_unread(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    (tmp_path / "lora.ckpt").write_bytes(pickle.dumps({"x": Trap(trap)}))
    assert "zip" in str(refusal(tmp_path / "lora.ckpt"))
    assert not trap.exists()


def test_archive_that_was_compressed_again_is_refused(tmp_path: Path) -> None:
    stored, packed = write(tmp_path / "lora.pt"), tmp_path / "packed.pt"
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            new.writestr(item.filename, old.read(item))
    assert "compressed" in str(refusal(packed))


@pytest.mark.parametrize("part", [False, True])
def test_archive_whose_directory_points_before_the_file_is_refused(tmp_path: Path, part: bool) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}.")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    end = data.rindex(b"PK\x05\x06")
    data[end + 16] += 1  # where the directory begins: zipfile takes the difference off every offset in it
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(CheckpointError):
        read_archive(tmp_path / "a.pt", 0, len(data) if part else None)


def test_truncated_archive_may_still_be_written(tmp_path: Path) -> None:
    whole = write(tmp_path / "lora.pt").read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(4, len(whole), 13):
        path.write_bytes(whole[:length])
        assert isinstance(refusal(path), CheckpointIncompleteError), length


def _save(value: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, path)
    return path


HOSTILE: dict[str, Callable[[], Any]] = {
    "expanded": lambda: {"x": torch.zeros(1).expand(2**40)},
    "expanded to nothing": lambda: {"x": torch.zeros(0, 2**50)},
    "meta": lambda: {"x": torch.empty(2, 2, device="meta")},
    "sparse": lambda: {"x": torch.eye(3).to_sparse()},
    "csr": lambda: {"x": torch.eye(3).to_sparse_csr()},
    "nested tensor": lambda: {"x": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
    "quantized": lambda: {"x": torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)},
    "shared": lambda: dict(zip(map(str, range(1000)), [torch.ones(1000)] * 1000, strict=True)),
    "keys that are numbers": lambda: {1: torch.ones(1)},
    "a page for a key": lambda: {"x" * 100_000: 1},
    "a tensor": lambda: torch.ones(3),
    "a list": lambda: [torch.ones(3)],
    "nothing": lambda: None,
    "empty": lambda: {},
    "a path for a key": lambda: {"../x": torch.ones(1)},
    "NUL in a key": lambda: {"a\0": torch.ones(1)},
}


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore:.*(Sparse|nested|quant).*")
@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_state_dict_of_dense_tensors_is_refused(tmp_path: Path, what: str) -> None:
    path = _save(HOSTILE[what](), tmp_path / "lora.pt")
    assert path.stat().st_size < 1_000_000
    refusal(path)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_archive_gives_a_value_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.pt"
    path.unlink(missing_ok=True)
    content = bytearray(write(path).read_bytes())
    for position, value in changes:
        content[position % len(content)] = value
    path.unlink()
    path.write_bytes(content)
    _harmless(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_pickle_gives_a_value_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    whole, path = write(folder / "whole.pt"), folder / "mutated_pickle.pt"
    path.unlink(missing_ok=True)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for item in old.infolist():
            content = bytearray(old.read(item))
            if item.filename.endswith("data.pkl"):
                for _ in range(data.draw(st.integers(1, 4))):
                    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
            new.writestr(item.filename, bytes(content))
    _harmless(path)


# --- whole models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_whole_model_is_refused_as_such(tmp_path: Path, name: str) -> None:
    weights = {"down_blocks.0.attn.to_q.weight": torch.ones(4, 4), "conv_in.bias": torch.ones(4)}
    path = tmp_path / name
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    with pytest.raises(CheckpointError, match="whole model"):
        load_checkpoint(str(path), ExportOptions(), tmp_path)
    torch.save({"state_dict": weights, "global_step": 3}, tmp_path / "v1.ckpt")
    with pytest.raises(CheckpointError, match="whole model"):
        load_checkpoint(str(tmp_path / "v1.ckpt"), ExportOptions(), tmp_path)
