"""The file's bytes, against literals, against the safetensors library, and against everything that may go wrong."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterline.errors import AdapterlineError, CheckpointError, ConversionError, MachineError
from adapterline.scratch import Scratch
from adapterline.serialize import serialize, write_safetensors
from adapterline.values import Bundle, FilePlan, LoadCall, Plan, TensorPlan, Transform

NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}


def planned(tensor: torch.Tensor) -> TensorPlan:
    return TensorPlan(NAMES[tensor.dtype], tuple(tensor.shape), lambda: tensor)


def plans(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorPlan]:
    return {name: planned(tensor) for name, tensor in tensors.items()}


def raw(tensor: torch.Tensor) -> bytes:
    """The item bytes, by a way that the writer does not take."""
    return bytes(tensor.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format).untyped_storage())


def written(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, str] | None = None) -> bytes:
    write_safetensors(path, plans(tensors), header or {})
    return path.read_bytes()


def python(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs a small file system, and mount was refused: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# --- the form ---------------------------------------------------------------------------------------------------------

EXACT = (
    b"\xd0\x01\x00\x00\x00\x00\x00\x00"
    b'{"__metadata__":{"a":"\xc3\xa9\xf0\x9f\x98\x80","b":"\\"\\\\\\n\\u0000\\u001f/\x7f"},'
    b'"z":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},'
    b'"b":{"dtype":"F32","shape":[],"data_offsets":[8,12]},'
    b'"empty":{"dtype":"F32","shape":[0,3],"data_offsets":[12,12]},'
    b'"B":{"dtype":"F16","shape":[1],"data_offsets":[12,14]},'
    b'"a":{"dtype":"BF16","shape":[2,2],"data_offsets":[14,22]},'
    b'"\xc3\xa9":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[22,23]},'
    b'"\xf0\x9f\x98\x80":{"dtype":"BOOL","shape":[2],"data_offsets":[23,25]}}       '
    b"\xfe\xff\xff\xff\xff\xff\xff\xff"  # -2
    b"\x00\x00\xc0\x3f"  # 1.5
    b"\x00\xc0"  # -2.0
    b"\x80\x3f\x00\x40\x40\x40\x80\x40"  # 1, 2, 3, 4
    b"\x38"  # 1.0
    b"\x01\x00"  # True, False
)


def exact_tensors() -> dict[str, torch.Tensor]:
    return {
        "😀": torch.tensor([True, False]),
        "a": torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16),
        "é": torch.tensor([1.0]).to(torch.float8_e4m3fn),
        "B": torch.tensor([-2.0], dtype=torch.float16),
        "empty": torch.zeros(0, 3),
        "b": torch.tensor(1.5),
        "z": torch.tensor([-2]),
    }


EXACT_HEADER = {"b": '"\\\n\0\x1f/\x7f', "a": "é😀"}


def test_bytes_are_these(tmp_path: Path) -> None:
    assert written(tmp_path / "f.safetensors", exact_tensors(), EXACT_HEADER) == EXACT


def test_bytes_of_a_file_without_tensors_are_these(tmp_path: Path) -> None:
    assert written(tmp_path / "f.safetensors", {}) == b"\x08\0\0\0\0\0\0\0{}      "
    assert safetensors.torch.load_file(tmp_path / "f.safetensors") == {}


def test_digests_and_size_are_of_what_lies_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    # 20 MiB: more than two chunks, and no multiple of one.
    result = write_safetensors(path, plans({**exact_tensors(), "large": torch.rand(5 << 20)}), EXACT_HEADER)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert result.size == len(data)
    assert result.sha256 == hashlib.sha256(data).hexdigest()
    assert result.tensors_sha256 == hashlib.sha256(data[start:]).hexdigest()


names = st.text(min_size=1, max_size=12).filter(lambda name: "\0" not in name and name != "__metadata__")
headers = st.dictionaries(st.text(max_size=6), st.text(max_size=12), max_size=4)
shapes = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def arrays(draw: st.DrawFn, dtypes: list[torch.dtype]) -> torch.Tensor:
    """Any bits, NaN payloads and subnormals included; sometimes transposed."""
    dtype, shape = draw(st.sampled_from(dtypes)), draw(shapes)
    count = torch.Size(shape).numel()
    if dtype is torch.bool:
        data = bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    else:
        data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    tensor = flat.reshape(shape)
    return tensor.transpose(0, -1) if shape and draw(st.booleans()) else tensor


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(names, arrays(list(NAMES)), max_size=6), headers)
def test_library_reads_back_every_bit_and_every_tensor_is_aligned(
    tensors: dict[str, torch.Tensor], header: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "f.safetensors")
        data = written(path, tensors, header)
        with safetensors.safe_open(path, "pt") as file:
            assert (file.metadata() or {}) == header
            assert set(file.keys()) == set(tensors)
            for name, tensor in tensors.items():
                read = file.get_tensor(name)
                assert (read.dtype, read.shape, raw(read)) == (tensor.dtype, tensor.shape, raw(tensor))
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    end = 0
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] == end
            assert end % tensors[name].dtype.itemsize == 0
            end = entry["data_offsets"][1]
    assert len(data) == 8 + length + end


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(names, arrays([torch.int64, torch.float32, torch.bfloat16, torch.float8_e5m2]), max_size=6),
    st.dictionaries(st.text(max_size=6), st.text(max_size=12), min_size=1, max_size=1),
)
def test_library_writes_the_same_bytes_where_it_is_deterministic(
    tensors: dict[str, torch.Tensor], header: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ours = written(Path(folder, "f.safetensors"), tensors, header)
    assert ours == safetensors.torch.save({name: each.contiguous() for name, each in tensors.items()}, header)


ODD = {
    "transposed": torch.arange(12.0).reshape(3, 4).t(),
    "strided": torch.arange(12.0)[::3],
    "one of many": torch.arange(12.0)[5::3][:1],
    "one column": torch.arange(12.0).reshape(3, 4)[:, 1:2],
    "one row of a transposed one": torch.arange(12.0).reshape(3, 4).t()[1:2],
    "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
    "expanded scalar": torch.tensor(7.0, dtype=torch.bfloat16).expand(4),
    "offset": torch.arange(12, dtype=torch.int16)[5:],
    "channels last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "conjugated": torch.tensor([1 + 2j, 3 - 4j]).conj(),
    "negated": torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
    "one negated": torch.tensor([1 + 2j]).conj().imag,
    "with gradient": torch.nn.Parameter(torch.ones(2)),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "fp8 scalar": torch.tensor(3.0).to(torch.float8_e5m2),
    "empty": torch.empty(3, 0, 2, dtype=torch.float16),
}


@pytest.mark.parametrize("name", ODD)
def test_values_are_written_however_they_lie_in_memory(tmp_path: Path, name: str) -> None:
    tensor = ODD[name]
    written(tmp_path / "f.safetensors", {name: tensor})
    read = safetensors.torch.load_file(tmp_path / "f.safetensors")[name]
    assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(read.float() if read.itemsize == 1 else read, tensor.float() if read.itemsize == 1 else tensor)


# --- the same on every machine ----------------------------------------------------------------------------------------


def test_bytes_unchanged_when_dictionaries_are_shuffled(tmp_path: Path) -> None:
    order = random.Random(0)
    for _ in range(20):
        tensors, header = list(exact_tensors().items()), list(EXACT_HEADER.items())
        order.shuffle(tensors)
        order.shuffle(header)
        assert written(tmp_path / "f.safetensors", dict(tensors), dict(header)) == EXACT


def test_bytes_unchanged_when_torch_has_another_number_of_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    large = torch.arange(1 << 20, dtype=torch.float32).reshape(1024, 1024).t()
    found = set()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.add(hashlib.sha256(written(tmp_path / "f.safetensors", {"large": large})).hexdigest())
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


FROM_SETS = r"""
import sys, torch
from pathlib import Path
from adapterline.serialize import write_safetensors
from adapterline.values import TensorPlan
names = {f"unet.b\xfcro.{i}" for i in range(50)}
tensors = {name: TensorPlan("F32", (1,), lambda name=name: torch.tensor([float(len(name))])) for name in names}
print(*list(names)[:5], file=sys.stderr)
print(write_safetensors(Path(sys.argv[1]), tensors, {f"k{i}": "\xfc" for i in {"\xe9", "b", "c", "d"}}).sha256)
"""


def test_bytes_unchanged_when_hash_seed_and_locale_differ(tmp_path: Path) -> None:
    runs = [
        python(FROM_SETS, tmp_path / "a", PYTHONHASHSEED="1", LC_ALL="C.UTF-8"),
        python(FROM_SETS, tmp_path / "b", PYTHONHASHSEED="2", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    ]
    assert [run.returncode for run in runs] == [0, 0], runs
    assert runs[0].stderr != runs[1].stderr, "the two must really iterate in different orders"
    assert runs[0].stdout == runs[1].stdout
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_big_endian_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(MachineError, match="big-endian"):
        write_safetensors(tmp_path / "f", {}, {})
    assert list(tmp_path.iterdir()) == []


# --- what is refused leaves nothing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a\0b", "__metadata__", "lone \ud800 surrogate"])
def test_unwritable_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConversionError):
        write_safetensors(tmp_path / "f", {name: planned(torch.zeros(1))}, {})
    assert list(tmp_path.iterdir()) == []


def test_surrogate_in_the_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no character"):
        write_safetensors(tmp_path / "f", {}, {"a": "\udcff"})
    assert list(tmp_path.iterdir()) == []


def test_header_that_no_library_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="at most 100000000"):
        write_safetensors(tmp_path / "f", {}, {"a": "x" * 100_000_000})
    assert list(tmp_path.iterdir()) == []


WRONG: dict[str, tuple[str, tuple[int, ...], Callable[[], torch.Tensor]]] = {
    "dtype": ("BF16", (2, 3), lambda: torch.zeros(2, 3)),
    "dtype of the same item size": ("BF16", (2, 3), lambda: torch.zeros(2, 3, dtype=torch.float16)),
    "shape": ("F32", (2, 3), lambda: torch.zeros(3, 2)),
    "scalar for a vector": ("F32", (1,), lambda: torch.tensor(1.0)),
    "meta": ("F32", (2, 3), lambda: torch.zeros(2, 3, device="meta")),
    "sparse": ("F32", (2, 3), lambda: torch.zeros(2, 3).to_sparse()),
    "unknown dtype": ("F4", (2, 3), lambda: torch.zeros(2, 3)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_tensor_that_is_not_as_planned_leaves_nothing(tmp_path: Path, kind: str) -> None:
    dtype, shape, make = WRONG[kind]
    tensors = {"a": planned(torch.zeros(8, dtype=torch.float64)), "b": TensorPlan(dtype, shape, make)}
    (tmp_path / "f").write_bytes(b"before")
    with pytest.raises(ConversionError, match="'b'"):
        write_safetensors(tmp_path / "f", tensors, {})
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"before"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), RuntimeError("a bug"), ConversionError("no")])
def test_exception_half_way_passes_and_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    seen = []

    def make() -> torch.Tensor:
        seen.extend(path.name for path in tmp_path.iterdir())
        raise error

    with pytest.raises(type(error)) as caught:
        write_safetensors(tmp_path / "f", {"a": planned(torch.zeros(9)), "b": TensorPlan("F32", (9,), make)}, {})
    assert caught.value is error
    assert len(seen) == 1, "there was a file at that moment"
    assert list(tmp_path.iterdir()) == []


def test_fault_while_reading_the_source_is_not_blamed_on_the_disk_that_is_written(tmp_path: Path) -> None:
    def make() -> torch.Tensor:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with pytest.raises(CheckpointError, match="Reading what becomes 'a'") as caught:
        write_safetensors(tmp_path / "f", {"a": TensorPlan("F32", (1,), make)}, {})
    assert caught.value.transient
    assert isinstance(caught.value.__cause__, OSError)


def test_missing_folder_is_a_machine_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="No such file"):
        write_safetensors(tmp_path / "absent" / "f", {}, {})


def test_full_disk_leaves_nothing(small_disk: Path) -> None:
    tensors = {f"t{i}": TensorPlan("F32", (1 << 20,), lambda: torch.ones(1 << 20)) for i in range(4)}
    with pytest.raises(MachineError, match="No space left") as caught:
        write_safetensors(small_disk / "f", tensors, {})
    assert caught.value.exit_code == 6
    assert list(small_disk.iterdir()) == []


# --- one tensor at a time ---------------------------------------------------------------------------------------------


def test_nothing_holds_a_tensor_when_the_next_one_is_made(tmp_path: Path) -> None:
    made: list[weakref.ref[torch.UntypedStorage]] = []
    alive: list[int] = []

    def make() -> torch.Tensor:
        alive.append(sum(each() is not None for each in made))
        tensor = torch.zeros(3 << 20).t()
        made.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    gc.disable()
    try:
        write_safetensors(tmp_path / "f", {f"t{i}": TensorPlan("F32", (3 << 20,), make) for i in range(4)}, {})
    finally:
        gc.enable()
    assert alive == [0, 0, 0, 0]


PEAK = """
import sys, torch
from pathlib import Path
from adapterline.serialize import write_safetensors
from adapterline.values import TensorPlan

def status(field):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(field))) << 10

items = 8 << 20  # 16 MiB
def tensors(count):
    return {f"t{i:02}": TensorPlan("BF16", (items,), lambda i=i: torch.full((items,), i, dtype=torch.bfloat16))
            for i in range(count)}

write_safetensors(Path(sys.argv[1]), {"warm": TensorPlan("F32", (1,), lambda: torch.zeros(1))}, {})
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = status("VmRSS")
assert write_safetensors(Path(sys.argv[1]), tensors(24), {}).size > 24 * 16 << 20
print((status("VmHWM") - before) / (16 << 20))
"""


def test_peak_memory_is_that_of_one_tensor(tmp_path: Path) -> None:
    # Left to itself, glibc moves blocks of 16 MiB into a heap that it gives back late: up to two tensors that are free.
    run = python(PEAK, tmp_path / "f", MALLOC_MMAP_THRESHOLD_="1000000")
    assert run.returncode == 0, run.stderr
    assert 0.9 < float(run.stdout) < 1.5


# --- on the disk for good ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_mode_follows_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        written(tmp_path / "f", exact_tensors())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o666 & ~umask


def test_file_is_synced_whole_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    synced: list[tuple[int, int, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        found = os.fstat(descriptor)
        synced.append((found.st_ino, 0 if stat.S_ISDIR(found.st_mode) else found.st_size, path.exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    data = written(path, exact_tensors())
    assert synced == [(path.stat().st_ino, len(data), False), (tmp_path.stat().st_ino, 0, True)]


def test_link_at_the_path_is_replaced_and_its_target_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "f").symlink_to("target")
    written(tmp_path / "f", {})
    assert not (tmp_path / "f").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"mine"


# --- bundles ----------------------------------------------------------------------------------------------------------


def a_plan(*paths: str, value: float = 1.0) -> Plan:
    tensors = {"unet.a": planned(torch.full((3, 2), value)), "unet.b": planned(torch.ones(2, dtype=torch.bfloat16))}
    return Plan(
        files=tuple(FilePlan("weights", "diffusers", path, tensors, {"path": path}) for path in paths),
        loads=(LoadCall(pipeline="P", method="load_lora_weights", weight_name=paths[0]),),
        transforms=(Transform(kind="fold-scale", detail="by 2"),),
    )


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "scratch", 10**9, 86400.0)


def leftovers(scratch: Scratch) -> list[Path]:
    return [path for path in scratch.root.rglob("*") if path.is_file() and path.name != "lock"]


def test_bundle_lies_under_its_digest_and_says_what_lies_there(scratch: Scratch) -> None:
    plan = a_plan("a.safetensors", "more/b.safetensors")
    bundle = serialize(plan, scratch)
    folder = scratch.folder(bundle.digest)
    assert folder == scratch.root / "bundles" / bundle.digest
    assert sorted(leftovers(scratch)) == [folder / "a.safetensors", folder / "more/b.safetensors"]
    assert list((scratch.root / "temporary").iterdir()) == []
    for file, wanted in zip(bundle.files, plan.files, strict=True):
        data = (folder / file.path).read_bytes()
        assert (file.role, file.layout, file.path) == (wanted.role, wanted.layout, wanted.path)
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert set(safetensors.torch.load(data)) == {"unet.a", "unet.b"}
    assert bundle.digest == Bundle.digest_of(bundle.files)
    assert (bundle.loads, bundle.transforms) == (plan.loads, plan.transforms)


def test_same_plan_gives_the_same_bundle_and_the_files_that_are_there_stay(scratch: Scratch) -> None:
    first = serialize(a_plan("a"), scratch)
    file = scratch.folder(first.digest) / "a"
    inode = file.stat().st_ino
    assert serialize(a_plan("a"), scratch) == first
    assert file.stat().st_ino == inode
    assert leftovers(scratch) == [file]


def test_another_value_gives_another_bundle(scratch: Scratch) -> None:
    assert serialize(a_plan("a"), scratch).digest != serialize(a_plan("a", value=2.0), scratch).digest


@pytest.mark.parametrize("damage", ["bit", "truncated", "absent", "folder"])
def test_damaged_bundle_is_replaced(scratch: Scratch, damage: str) -> None:
    bundle = serialize(a_plan("a", "b"), scratch)
    file = scratch.folder(bundle.digest) / "a"
    data = file.read_bytes()
    match damage:
        case "bit":
            file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "truncated":
            file.write_bytes(data[:-1])
        case "absent":
            file.unlink()
        case "folder":
            file.unlink()
            file.mkdir()
    assert not scratch.has(bundle)
    assert serialize(a_plan("a", "b"), scratch) == bundle
    assert file.read_bytes() == data
    assert scratch.has(bundle)
    assert list((scratch.root / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    "paths", [("/a",), ("../a",), ("a/../b",), ("",), (".",), ("a//b",), ("a/",), ("a\0",), ("a", "a")]
)
def test_path_that_is_not_plainly_below_is_refused(scratch: Scratch, paths: tuple[str, ...]) -> None:
    with pytest.raises(ConversionError):
        serialize(a_plan(*paths), scratch)
    assert leftovers(scratch) == []


def test_refused_plan_leaves_nothing_in_the_scratch_folder(scratch: Scratch) -> None:
    wrong = FilePlan("weights", "diffusers", "b", {"x": TensorPlan("F16", (1,), lambda: torch.zeros(1))}, {})
    plan = a_plan("a")
    with pytest.raises(ConversionError):
        serialize(Plan((*plan.files, wrong), plan.loads, plan.transforms), scratch)
    assert leftovers(scratch) == []
    assert list((scratch.root / "temporary").iterdir()) == []


def test_full_disk_leaves_no_bundle(small_disk: Path) -> None:
    scratch = Scratch(small_disk / "scratch", 10**9, 86400.0)
    big = {"t": TensorPlan("F32", (1, 3 << 20), lambda: torch.ones(1, 3 << 20))}
    plan = Plan((*a_plan("a").files, FilePlan("weights", "diffusers", "b", big, {})), (), ())
    with pytest.raises(AdapterlineError, match="No space left") as caught:
        serialize(plan, scratch)
    assert caught.value.exit_code == 6
    assert leftovers(scratch) == []
    assert serialize(a_plan("a"), scratch)


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from adapterline.scratch import Scratch
from adapterline.serialize import serialize
from adapterline.values import FilePlan, Plan, TensorPlan

def last():
    os.kill(os.getpid(), signal.SIGKILL)

tensors = {"a": TensorPlan("F32", (4 << 20,), lambda: torch.ones(4 << 20)), "b": TensorPlan("F32", (1,), last)}
plan = Plan((FilePlan("weights", "diffusers", "f", tensors, {}),), (), ())
serialize(plan, Scratch(Path(sys.argv[1]), 10**9, 86400.0))
"""


def test_killed_half_way_there_is_no_bundle_and_trim_removes_the_rest(scratch: Scratch) -> None:
    assert python(KILLED, scratch.root).returncode == -signal.SIGKILL
    assert not (scratch.root / "bundles").exists()
    (left,) = leftovers(scratch)
    assert left.stat().st_size >= 8 << 20, "it was killed in the middle"
    scratch.trim()
    assert leftovers(scratch) == []
    assert list((scratch.root / "temporary").iterdir()) == []
