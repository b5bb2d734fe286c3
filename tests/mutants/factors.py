"""Damage to the numbers: of a factor, a magnitude or a bias. Each names the modules that it broke."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from tests.mutants.copy import Copy, Layer, modules


def _of(copy: Copy, part: str, suits: Callable[[torch.Tensor], bool] = lambda tensor: True) -> Layer:
    return copy.pick(lambda layer: part in layer.keys and suits(copy.get(layer, part)))


def _largest(tensor: torch.Tensor) -> torch.Tensor:
    """Its largest element, as a view."""
    return tensor.view(-1)[tensor.abs().argmax()]


def _next(tensor: torch.Tensor) -> None:
    """The next floating point number after the largest element, away from zero, whatever the dtype."""
    element = _largest(tensor)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    element.view(integer).add_(1)


def one_ulp_in_a(copy: Copy) -> tuple[str, ...]:
    """one element of an A is the next floating point number"""
    layer = _of(copy, "a")
    _next(copy.get(layer, "a"))
    return modules(layer)


def one_ulp_in_b(copy: Copy) -> tuple[str, ...]:
    """one element of a B is the next floating point number"""
    layer = _of(copy, "b")
    _next(copy.get(layer, "b"))
    return modules(layer)


def scaled_by_a_hundredth(copy: Copy) -> tuple[str, ...]:
    """B of a module is larger by 1 %"""
    layer = _of(copy, "b")
    copy.get(layer, "b").mul_(1.01 if copy.get(layer, "b").dtype != torch.bfloat16 else 1.015)
    return modules(layer)


def b_doubled(copy: Copy) -> tuple[str, ...]:
    """B of a module is twice as large"""
    layer = _of(copy, "b")
    copy.get(layer, "b").mul_(2)
    return modules(layer)


def a_halved(copy: Copy) -> tuple[str, ...]:
    """A of a module is half as large"""
    layer = _of(copy, "a")
    copy.get(layer, "a").mul_(0.5)
    return modules(layer)


def everything_scaled(copy: Copy) -> tuple[str, ...]:
    """every B of a component is larger by a quarter: a scale that is wrong everywhere"""
    layers = copy.of_component()
    for layer in layers:
        copy.get(layer, "b").mul_(1.25)
    return modules(*layers)


def one_row_of_b_scaled(copy: Copy) -> tuple[str, ...]:
    """one output of a module is twice as strong"""
    layer = _of(copy, "b")
    copy.get(layer, "b")[0].mul_(2)
    return modules(layer)


def one_direction_scaled(copy: Copy) -> tuple[str, ...]:
    """one row of an A, one of the rank's directions, is twice as long"""
    layer = _of(copy, "a")
    copy.get(layer, "a")[-1].mul_(2)
    return modules(layer)


def one_element_zeroed(copy: Copy) -> tuple[str, ...]:
    """the largest element of an A is zero"""
    layer = _of(copy, "a")
    _largest(copy.get(layer, "a")).zero_()
    return modules(layer)


def two_elements_exchanged(copy: Copy) -> tuple[str, ...]:
    """the largest and the smallest element of a B have changed places"""
    layer = _of(copy, "b", lambda b: b.numel() > 1)
    flat = copy.get(layer, "b").view(-1)
    places = torch.stack([flat.abs().argmax(), flat.abs().argmin()])
    flat[places] = flat[places.flip(0)]
    return modules(layer)


def sign_of_one_element_flipped(copy: Copy) -> tuple[str, ...]:
    """the largest element of a B has the other sign"""
    layer = _of(copy, "b")
    _largest(copy.get(layer, "b")).neg_()
    return modules(layer)


def b_zeroed(copy: Copy) -> tuple[str, ...]:
    """B of a module is zero, as before training"""
    layer = _of(copy, "b")
    copy.get(layer, "b").zero_()
    return modules(layer)


def every_b_zeroed(copy: Copy) -> tuple[str, ...]:
    """every B of a component is zero, as before training"""
    layers = copy.of_component()
    for layer in layers:
        copy.get(layer, "b").zero_()
    return modules(*layers)


def nan(copy: Copy) -> tuple[str, ...]:
    """one element of an A is NaN"""
    layer = _of(copy, "a")
    copy.get(layer, "a").view(-1)[0] = math.nan
    return modules(layer)


def infinity(copy: Copy) -> tuple[str, ...]:
    """one element of a B is infinite"""
    layer = _of(copy, "b")
    copy.get(layer, "b").view(-1)[-1] = math.inf
    return modules(layer)


def every_b_nan(copy: Copy) -> tuple[str, ...]:
    """every B of a component is NaN, as after an overflow in training"""
    layers = copy.of_component()
    for layer in layers:
        copy.get(layer, "b").fill_(math.nan)
    return modules(*layers)


def sign_flipped_in_a(copy: Copy) -> tuple[str, ...]:
    """A of a module has the other sign, and B has not"""
    layer = _of(copy, "a")
    copy.get(layer, "a").neg_()
    return modules(layer)


def rank_permuted_in_a(copy: Copy) -> tuple[str, ...]:
    """the rows of an A, its rank, are in another order, and the columns of B are not"""
    layer = _of(copy, "a", lambda a: a.shape[0] > 1)
    copy.put(layer, "a", copy.get(layer, "a").roll(1, 0))
    return modules(layer)


def row_duplicated(copy: Copy) -> tuple[str, ...]:
    """the first row of an A lies over the second"""
    layer = _of(copy, "a", lambda a: a.shape[0] > 1)
    a = copy.get(layer, "a")
    a[1] = a[0]
    return modules(layer)


def inputs_permuted(copy: Copy) -> tuple[str, ...]:
    """the inputs of an A are in another order"""
    layer = _of(copy, "a", lambda a: a.shape[1] > 1)
    copy.put(layer, "a", copy.get(layer, "a").roll(1, 1))
    return modules(layer)


def heads_permuted(copy: Copy) -> tuple[str, ...]:
    """the two halves of the output rows of a B have changed places, as heads or a fused layer's parts do"""
    layer = _of(copy, "b", lambda b: b.shape[0] % 2 == 0)
    b = copy.get(layer, "b")
    copy.put(layer, "b", torch.cat(b.chunk(2)[::-1]))
    return modules(layer)


def rows_interleaved(copy: Copy) -> tuple[str, ...]:
    """the output rows of a B are interleaved, as rotary embeddings of two conventions have them"""
    layer = _of(copy, "b", lambda b: b.shape[0] % 2 == 0 and b.shape[0] > 2)
    b = copy.get(layer, "b")
    copy.put(layer, "b", b.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1).contiguous())
    return modules(layer)


def change_transposed(copy: Copy) -> tuple[str, ...]:
    """the change of a square weight is its transpose: A is B's, and B is A's"""

    def square(layer: Layer) -> bool:
        return {"a", "b"} <= set(layer.keys) and copy.get(layer, "a").T.shape == copy.get(layer, "b").shape

    layer = copy.pick(lambda layer: copy.get(layer, "a").dim() == 2 and square(layer))
    a, b = copy.get(layer, "a"), copy.get(layer, "b")
    copy.put(layer, "a", b.T.contiguous())
    copy.put(layer, "b", a.T.contiguous())
    return modules(layer)


def factor_reshaped(copy: Copy) -> tuple[str, ...]:
    """an A is written as if it were stored by columns: the same shape, the elements of its transpose"""
    layer = _of(copy, "a", lambda a: a.dim() == 2 and min(a.shape) > 1)
    a = copy.get(layer, "a")
    copy.put(layer, "a", a.T.reshape(a.shape))
    return modules(layer)


def kernel_flipped(copy: Copy) -> tuple[str, ...]:
    """the kernel of a convolution is mirrored"""
    layer = _of(copy, "a", lambda a: a.dim() > 2 and a.shape[-1] > 1)
    copy.put(layer, "a", copy.get(layer, "a").flip(-1))
    return modules(layer)


def kernel_transposed(copy: Copy) -> tuple[str, ...]:
    """height and width of the kernel of a convolution are exchanged"""
    layer = _of(copy, "a", lambda a: a.dim() > 3 and a.shape[-1] == a.shape[-2] > 1)
    copy.put(layer, "a", copy.get(layer, "a").transpose(-1, -2).contiguous())
    return modules(layer)


def rank_cut(copy: Copy) -> tuple[str, ...]:
    """the last direction of the rank of every module of a component is cut off"""
    layers = [layer for layer in copy.of_component() if copy.get(layer, "b").shape[1] == len(copy.get(layer, "a"))]
    layers = [layer for layer in layers if len(copy.get(layer, "a")) > 1]
    copy.pick(lambda layer: layer in layers)
    for layer in layers:
        copy.put(layer, "a", copy.get(layer, "a")[:-1].clone())
        copy.put(layer, "b", copy.get(layer, "b")[:, :-1].clone())
    return modules(*layers)


def another_adapters_factor(copy: Copy) -> tuple[str, ...]:
    """A of a module is another adapter's, or as it was before training"""
    layer = _of(copy, "a")
    a = copy.get(layer, "a")
    generator = torch.Generator().manual_seed(7)
    a.copy_(torch.randn(a.shape, generator=generator) * 0.2)
    return modules(layer)


def noise_above_the_bound(copy: Copy) -> tuple[str, ...]:
    """every element of a B is off by 3 %, up or down"""
    layer = _of(copy, "b")
    b = copy.get(layer, "b")
    generator = torch.Generator().manual_seed(7)
    b.mul_((1 + 0.03 * (torch.rand(b.shape, generator=generator) - 0.5).sign()).to(b.dtype))
    return modules(layer)


def one_module_in_float16(copy: Copy) -> tuple[str, ...]:
    """a module is stored in float16, which nobody asked for"""
    layer = _of(copy, "a", lambda a: a.dtype != torch.float16)
    return _cast(copy, [layer], torch.float16)


def one_module_in_bfloat16(copy: Copy) -> tuple[str, ...]:
    """a module is stored in bfloat16, which nobody asked for"""
    layer = _of(copy, "a", lambda a: a.dtype != torch.bfloat16)
    return _cast(copy, [layer], torch.bfloat16)


def all_in_float16(copy: Copy) -> tuple[str, ...]:
    """a component is stored in float16, which nobody asked for"""
    layers = copy.of_component()
    copy.pick(lambda layer: layer in layers and copy.get(layer, "a").dtype != torch.float16)
    return _cast(copy, layers, torch.float16)


def all_in_bfloat16(copy: Copy) -> tuple[str, ...]:
    """a component is stored in bfloat16, which nobody asked for"""
    layers = copy.of_component()
    copy.pick(lambda layer: layer in layers and copy.get(layer, "a").dtype != torch.bfloat16)
    return _cast(copy, layers, torch.bfloat16)


def _cast(copy: Copy, layers: list[Layer], dtype: torch.dtype) -> tuple[str, ...]:
    for layer in layers:
        for key in layer.keys.values():
            tensors = copy.files[layer.file].tensors
            tensors[key] = tensors[key].to(dtype)
    return modules(*layers)


def bfloat16_and_back(copy: Copy) -> tuple[str, ...]:
    """both factors of a component went through bfloat16, and are stored as before"""
    layers = copy.of_component()
    copy.pick(lambda layer: layer in layers and copy.get(layer, "a").dtype in (torch.float32, torch.float64))
    for layer in layers:
        for part in ("a", "b"):
            copy.put(layer, part, copy.get(layer, part).bfloat16().to(copy.get(layer, part).dtype))
    return modules(*layers)


# --- magnitude and bias -----------------------------------------------------------------------------------------------


def magnitude_lost(copy: Copy) -> tuple[str, ...]:
    """the DoRA magnitude of a module is gone"""
    layer = _of(copy, "magnitude")
    copy.files[layer.file].drop([layer.keys["magnitude"]])
    return modules(layer)


def every_magnitude_lost(copy: Copy) -> tuple[str, ...]:
    """the DoRA magnitudes of a component are gone"""
    layers = [layer for layer in copy.of_component() if "magnitude" in layer.keys]
    copy.pick(lambda layer: layer in layers)
    for layer in layers:
        copy.files[layer.file].drop([layer.keys["magnitude"]])
    return modules(*layers)


def magnitude_permuted(copy: Copy) -> tuple[str, ...]:
    """the DoRA magnitudes of a module are in another order"""
    layer = _of(copy, "magnitude")
    magnitude = copy.get(layer, "magnitude")
    copy.put(layer, "magnitude", magnitude.flatten().roll(1).reshape(magnitude.shape))
    return modules(layer)


def one_ulp_in_a_magnitude(copy: Copy) -> tuple[str, ...]:
    """one DoRA magnitude is the next floating point number"""
    layer = _of(copy, "magnitude")
    _next(copy.get(layer, "magnitude"))
    return modules(layer)


def magnitudes_exchanged(copy: Copy) -> tuple[str, ...]:
    """two modules have each other's DoRA magnitudes"""
    one, other = copy.pair(lambda one, other: "magnitude" in one.keys)
    copy.exchange(one, other, "magnitude")
    return modules(one, other)


def bias_lost(copy: Copy) -> tuple[str, ...]:
    """the bias of a module is gone"""
    layer = _of(copy, "bias")
    copy.files[layer.file].drop([layer.keys["bias"]])
    return modules(layer)


def every_bias_zeroed(copy: Copy) -> tuple[str, ...]:
    """the biases of a component are zero"""
    layers = [layer for layer in copy.of_component() if "bias" in layer.keys]
    copy.pick(lambda layer: layer in layers)
    for layer in layers:
        copy.get(layer, "bias").zero_()
    return modules(*layers)


def bias_scaled(copy: Copy) -> tuple[str, ...]:
    """the bias of a module is twice as large"""
    layer = _of(copy, "bias")
    copy.get(layer, "bias").mul_(2)
    return modules(layer)
