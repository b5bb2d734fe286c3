"""Damage to what belongs together: tensors, modules, components and files that are missing, exchanged or added."""

from __future__ import annotations

import re

import torch

from adapterline.families.skeleton import targets
from tests.mutants.copy import Copy, Layer, NotApplicableError, components, modules


def a_dropped(copy: Copy) -> tuple[str, ...]:
    """A of a module is gone"""
    layer = copy.pick()
    copy.files[layer.file].drop([layer.keys["a"]])
    return modules(layer)


def b_dropped(copy: Copy) -> tuple[str, ...]:
    """B of a module is gone"""
    layer = copy.pick()
    copy.files[layer.file].drop([layer.keys["b"]])
    return modules(layer)


def module_dropped(copy: Copy) -> tuple[str, ...]:
    """a module is gone"""
    layer = copy.pick()
    copy.drop(layer)
    return modules(layer)


def all_modules_of_one_name_dropped(copy: Copy) -> tuple[str, ...]:
    """all modules whose name ends alike are gone, as if the trainer had not been told of them"""
    name = copy.pick().module.rpartition(".")[2]
    layers = [layer for layer in copy.layers if layer.module.rpartition(".")[2] == name]
    if len(layers) == len(copy.layers):
        raise NotApplicableError
    copy.drop(*layers)
    return modules(*layers)


def component_dropped(copy: Copy) -> tuple[str, ...]:
    """a component is gone: the text encoder, or the model beside it"""
    layers = copy.of_component(several=True)
    copy.drop(*layers)
    return components(*layers)


def file_missing(copy: Copy) -> tuple[str, ...]:
    """the second of two files is gone"""
    if len(copy.files) < 2:
        raise NotApplicableError
    path = list(copy.files)[-1]
    del copy.files[path]
    return components(*(layer for layer in copy.layers if layer.file == path))


def files_exchanged(copy: Copy) -> tuple[str, ...]:
    """two files have each other's names: the experts of Wan"""
    if len(copy.files) < 2:
        raise NotApplicableError
    one, other = list(copy.files)[:2]
    copy.files[one], copy.files[other] = copy.files[other], copy.files[one]
    return components(*copy.layers)


def components_exchanged(copy: Copy) -> tuple[str, ...]:
    """two components have each other's modules, as far as they have them by the same names"""
    names = sorted({layer.component for layer in copy.layers})
    pairs = [(one, other) for one in copy.layers for other in copy.layers if _are_twins(copy, one, other)]
    if not pairs:
        raise NotApplicableError
    for one, other in pairs:
        for part in one.keys:
            mine, yours = copy.get(one, part), copy.get(other, part)
            copy.put(one, part, yours)
            copy.put(other, part, mine)
    broken = {layer.component for pair in pairs for layer in pair}
    return tuple(name for name in names if name in broken)


def _are_twins(copy: Copy, one: Layer, other: Layer) -> bool:
    if one.component >= other.component or one.module != other.module or set(one.keys) != set(other.keys):
        return False
    return all(copy.get(one, part).shape == copy.get(other, part).shape for part in one.keys)


def modules_exchanged(copy: Copy) -> tuple[str, ...]:
    """two modules of one shape have changed places"""
    one, other = copy.pair()
    copy.exchange(one, other, *one.keys)
    return modules(one, other)


def a_exchanged(copy: Copy) -> tuple[str, ...]:
    """two modules of one shape have each other's A, and their own B"""
    one, other = copy.pair()
    copy.exchange(one, other, "a")
    return modules(one, other)


def b_exchanged(copy: Copy) -> tuple[str, ...]:
    """two modules of one shape have each other's B, and their own A"""
    one, other = copy.pair()
    copy.exchange(one, other, "b")
    return modules(one, other)


def queries_and_keys_exchanged(copy: Copy) -> tuple[str, ...]:
    """the queries of an attention are its keys, and the other way round"""
    one, other = copy.pair(
        lambda one, other: _as_key(one.module) == other.module or _as_key(other.module) == one.module
    )
    copy.exchange(one, other, *one.keys)
    return modules(one, other)


def _as_key(module: str) -> str:
    return re.sub(r"(?<=[._])q(?=_proj|$)", "k", module).replace("to_q", "to_k").replace("query", "key")


def module_copied_over_another(copy: Copy) -> tuple[str, ...]:
    """a module has the tensors of another one, which has them too"""
    one, other = copy.pair()
    for part in one.keys:
        copy.put(other, part, copy.get(one, part).clone())
    return modules(other)


def factors_exchanged(copy: Copy) -> tuple[str, ...]:
    """A of a module is under B's key, and B under A's"""
    layer = copy.pick(lambda layer: copy.get(layer, "a").shape != copy.get(layer, "b").shape)
    a, b = copy.get(layer, "a"), copy.get(layer, "b")
    copy.put(layer, "a", b)
    copy.put(layer, "b", a)
    return modules(layer)


def block_added(copy: Copy) -> tuple[str, ...]:
    """there is a block that the model does not have"""
    layer = copy.pick(lambda layer: re.search(r"\.\d+\.", layer.stem) is not None)
    module = re.sub(r"\.\d+\.", ".77.", layer.module, count=1)
    _copy_as(copy, layer, module)
    return (module,)


def block_renumbered(copy: Copy) -> tuple[str, ...]:
    """a block has a number that the model does not have"""
    layer = copy.pick(lambda layer: re.search(r"\.\d+\.", layer.stem) is not None)
    copy.rename([layer], lambda key: re.sub(r"\.\d+\.", ".77.", key, count=1))
    return modules(layer)


def untrained_module_added(copy: Copy) -> tuple[str, ...]:
    """a module of the model that was not trained has the tensors of one that was"""
    layer, module = copy.choose.choice(_free_places(copy))
    _copy_as(copy, layer, module)
    return (module,)


def module_moved(copy: Copy) -> tuple[str, ...]:
    """a module's tensors are under the name of another one, which was not trained"""
    layer, module = copy.choose.choice(_free_places(copy))
    copy.rename([layer], lambda key: key.replace(layer.module, module))
    return (module,)


def _free_places(copy: Copy) -> list[tuple[Layer, str]]:
    """Pairs of a layer and a module of the model that is not in the files, with the same shape."""
    base = copy.exported.base
    known = {name: targets(base, name) for name in {layer.component for layer in copy.layers}}
    taken = {(layer.component, layer.module) for layer in copy.layers}
    found = [
        (layer, module)
        for layer in copy.layers
        for module, target in known[layer.component].items()
        if (layer.component, module) not in taken and target == known[layer.component].get(layer.module)
    ]
    if not found:
        raise NotApplicableError
    return found


def _copy_as(copy: Copy, layer: Layer, module: str) -> None:
    tensors = copy.files[layer.file].tensors
    for key in layer.keys.values():
        tensors[key.replace(layer.module, module)] = tensors[key].clone()


def empty_file(copy: Copy) -> tuple[str, ...]:
    """there is no tensor in any of the files"""
    for file in copy.files.values():
        file.tensors.clear()
    return components(*copy.layers)


def input_cut(copy: Copy) -> tuple[str, ...]:
    """an A has one input less than its module; diffusers pads it with zeros"""
    layer = copy.pick(lambda layer: copy.get(layer, "a").shape[1] > 1)
    copy.put(layer, "a", copy.get(layer, "a")[:, :-1].clone())
    return modules(layer)


def output_added(copy: Copy) -> tuple[str, ...]:
    """a B has one output more than its module"""
    layer = copy.pick()
    b = copy.get(layer, "b")
    copy.put(layer, "b", torch.cat([b, b[:1]]))
    return modules(layer)
