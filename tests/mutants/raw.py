"""Damage to the bytes of a file."""

from __future__ import annotations

from typing import Any

from tests.mutants.copy import Copy, modules
from tests.mutants.tensorfile import joined, parted


def truncated(copy: Copy) -> tuple[str, ...]:
    """a file ends too early"""
    path, content = _content(copy)
    copy.files[path].final.append(content[:-5])
    return (path,)


def trailing_bytes(copy: Copy) -> tuple[str, ...]:
    """a file goes on after its last tensor"""
    path, content = _content(copy)
    copy.files[path].final.append(content + b"\0" * 8)
    return (path,)


def cut_in_the_header(copy: Copy) -> tuple[str, ...]:
    """a file ends within its header"""
    path, content = _content(copy)
    copy.files[path].final.append(content[:100])
    return (path,)


def nothing_left(copy: Copy) -> tuple[str, ...]:
    """a file has no byte"""
    path, _ = _content(copy)
    copy.files[path].final.append(b"")
    return (path,)


def git_lfs_pointer(copy: Copy) -> tuple[str, ...]:
    """a file is a pointer to what was never fetched"""
    path, _ = _content(copy)
    copy.files[path].final.append(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    return (path,)


def offsets_exchanged(copy: Copy) -> tuple[str, ...]:
    """the header says of two tensors of one shape that each lies where the other does"""
    one, other = copy.pair()
    path, content = one.file, copy.files[one.file].to_bytes()
    header, data = parted(content)
    entries: list[Any] = [header[layer.keys["a"]] for layer in (one, other)]
    entries[0]["data_offsets"], entries[1]["data_offsets"] = entries[1]["data_offsets"], entries[0]["data_offsets"]
    copy.files[path].final.append(joined(header, data))
    return modules(one, other)


def shape_edited(copy: Copy) -> tuple[str, ...]:
    """the header says the shape of an A the other way round"""
    layer = copy.pick(lambda layer: copy.get(layer, "a").dim() == 2 and len(set(copy.get(layer, "a").shape)) == 2)
    header, data = parted(copy.files[layer.file].to_bytes())
    entry: Any = header[layer.keys["a"]]
    entry["shape"] = entry["shape"][::-1]
    copy.files[layer.file].final.append(joined(header, data))
    return modules(layer)


def dtype_edited(copy: Copy) -> tuple[str, ...]:
    """the header says of a B that it is of another dtype of that size"""
    layer = copy.pick()
    header, data = parted(copy.files[layer.file].to_bytes())
    entry: Any = header[layer.keys["b"]]
    entry["dtype"] = {"F32": "I32", "F16": "BF16", "BF16": "F16"}[entry["dtype"]]
    copy.files[layer.file].final.append(joined(header, data))
    return modules(layer)


def key_edited(copy: Copy) -> tuple[str, ...]:
    """one letter of a key is another one"""
    layer = copy.pick(lambda layer: "lora_A" in layer.keys["a"])
    content = copy.files[layer.file].to_bytes()
    key = layer.keys["a"].encode()
    copy.files[layer.file].final.append(content.replace(key, key.replace(b"lora_A", b"lora_C")))
    return modules(layer)


def _content(copy: Copy) -> tuple[str, bytes]:
    path = copy.choose.choice(list(copy.files))
    return path, copy.files[path].to_bytes()
