"""Damage to names: what trainers, wrappers and other programs leave in keys."""

from __future__ import annotations

from tests.mutants.copy import Copy, Layer, NotApplicableError, components, modules


def _renamed(copy: Copy, prefix: str) -> tuple[str, ...]:
    """The component's name in keys gives way to another prefix."""
    layers = copy.of_component()
    copy.rename(layers, lambda key: f"{prefix}{key.partition('.')[2]}")
    return components(*layers)


def prefix_dropped(copy: Copy) -> tuple[str, ...]:
    """the keys of a component begin with the module"""
    return _renamed(copy, "")


def prefix_of_nothing(copy: Copy) -> tuple[str, ...]:
    """the keys of a component begin with a name that no component has"""
    return _renamed(copy, "denoiser.")


def prefix_of_comfyui(copy: Copy) -> tuple[str, ...]:
    """the keys of a component begin with `diffusion_model.`"""
    return _renamed(copy, "diffusion_model.")


def prefix_of_peft(copy: Copy) -> tuple[str, ...]:
    """the keys of a component begin with `base_model.model.`"""
    return _renamed(copy, "base_model.model.")


def prefix_of_another_component(copy: Copy) -> tuple[str, ...]:
    """the keys of a component begin with the name of another one"""
    layers = copy.of_component()
    base = copy.exported.base
    own = layers[0].stem.partition(".")[0]
    others = [c for c in base.family.components if c.key_prefix != own and c.name in base.models]
    others = [c for c in others if not any(layer.component == c.name for layer in copy.layers)] or others
    if not others:
        raise NotApplicableError
    return _prefixed(copy, layers, others[-1].key_prefix)


def _prefixed(copy: Copy, layers: list[Layer], prefix: str) -> tuple[str, ...]:
    taken = {layer.stem for layer in copy.layers}
    free = [layer for layer in layers if f"{prefix}.{layer.stem.partition('.')[2]}" not in taken]
    copy.rename(free, lambda key: f"{prefix}.{key.partition('.')[2]}")
    return components(*layers)


def prefix_of_one_module_wrong(copy: Copy) -> tuple[str, ...]:
    """the keys of one module begin with a name that no component has"""
    layer = copy.pick()
    copy.rename([layer], lambda key: f"denoiser.{key.partition('.')[2]}")
    return modules(layer)


def wrapper_left_outside(copy: Copy) -> tuple[str, ...]:
    """the keys of a component begin with `module.`, as in a distributed model's state dict"""
    layers = copy.of_component()
    copy.rename(layers, lambda key: f"module.{key}")
    return components(*layers)


def compiled_model_left_inside(copy: Copy) -> tuple[str, ...]:
    """`_orig_mod.` follows the component's name, as in a compiled model's state dict"""
    layers = copy.of_component()
    copy.rename(layers, lambda key: key.replace(".", "._orig_mod.", 1))
    return components(*layers)


def compiled_block_left_inside(copy: Copy) -> tuple[str, ...]:
    """`_orig_mod.` is in the middle of one module's keys, as blocks have it that were compiled on their own"""
    layer = copy.pick(lambda layer: "." in layer.module)
    block, _, name = layer.module.rpartition(".")
    copy.rename([layer], lambda key: key.replace(layer.module, f"{block}._orig_mod.{name}"))
    return modules(layer)


def adapter_name_left_in(copy: Copy) -> tuple[str, ...]:
    """keys have the adapter's name, `lora_A.default.weight`"""
    layers = copy.of_component()
    copy.pick(lambda layer: layer in layers and "left" not in layer.keys)
    copy.rename(layers, lambda key: key.replace(".weight", ".default.weight"))
    return components(*layers)


def two_key_styles(copy: Copy) -> tuple[str, ...]:
    """half of a component's modules have `lora.down` and `lora.up`, and half `lora_A` and `lora_B`"""
    layers = [layer for layer in copy.of_component() if "left" not in layer.keys]
    if len(layers) < 2:
        raise NotApplicableError
    old = layers[: len(layers) // 2]
    copy.rename(old, lambda key: key.replace("lora_A.", "lora.down.").replace("lora_B.", "lora.up."))
    return components(*old)


def one_module_misspelt(copy: Copy) -> tuple[str, ...]:
    """one module's name has a letter too many"""
    layer = copy.pick()
    copy.rename([layer], lambda key: key.replace(layer.module, f"{layer.module}s"))
    return modules(layer)


def dots_are_underscores(copy: Copy) -> tuple[str, ...]:
    """one module's name has underscores for dots"""
    layer = copy.pick(lambda layer: "." in layer.module)
    copy.rename([layer], lambda key: key.replace(layer.module, layer.module.replace(".", "_")))
    return modules(layer)
