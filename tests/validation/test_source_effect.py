"""What a module does with a change of any form is what it does with that change added to its weight."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from adapterline.deltas import Delta, Full, Hadamard, Kronecker, LowRank, take_rows
from adapterline.validation.source_effect import changed_by, rounded_otherwise

Module = torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d

LINEAR = torch.nn.Linear(6, 8)
CONV1D = torch.nn.Conv1d(6, 8, 3, padding=1)
CONV2D = torch.nn.Conv2d(6, 8, (3, 2), stride=2, padding="valid", dilation=(1, 2))
CONV3D = torch.nn.Conv3d(6, 8, 2, bias=False)
GROUPED = torch.nn.Conv2d(6, 8, 3, groups=2)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def low_rank(module: Module, rank: int = 4, **more: torch.Tensor) -> LowRank:
    kernel = tuple(module.weight.shape[2:])
    groups = getattr(module, "groups", 1)
    return LowRank(normal(rank, 6, *kernel), normal(8, rank // groups, *[1] * len(kernel)), 0.7, groups=groups, **more)


def input_of(module: Module) -> torch.Tensor:
    return normal(2, 5, 6) if isinstance(module, torch.nn.Linear) else normal(2, 6, *[7] * (module.weight.dim() - 2))


def dense(delta: Delta) -> torch.Tensor:
    """By its own factors, not by `apply`."""
    found = delta.low_rank()
    b, a = found.matrices()
    return (found.scale * b @ a).reshape(delta.shape)


def merged(module: Module, change: torch.Tensor) -> Module:
    """The module with the change added; a grouped one without its groups, because the change sees all inputs."""
    weight = module.weight.detach()
    groups = getattr(module, "groups", 1)
    if groups > 1:
        whole = torch.zeros(change.shape, dtype=weight.dtype)
        for group, rows in enumerate(weight.chunk(groups)):
            outputs, inputs = rows.shape[:2]
            whole[group * outputs : (group + 1) * outputs, group * inputs : (group + 1) * inputs] = rows
        weight = whole
    new = copy.deepcopy(module)
    new.weight = torch.nn.Parameter(weight + change)
    if groups > 1:
        new.groups = 1
    return new


def computed(module: Module, delta: Delta) -> torch.Tensor:
    with torch.no_grad(), changed_by(torch.nn.Sequential(module), {"0": delta}):
        out: torch.Tensor = module(input_of(module))
    return out


CASES: list[tuple[Module, Delta]] = [
    *((module.double(), low_rank(module)) for module in (LINEAR, CONV1D, CONV2D, CONV3D, GROUPED)),
    (LINEAR, Hadamard(normal(2, 6), normal(8, 2), normal(2, 6), normal(8, 2), 0.3)),
    (LINEAR, Full(normal(8, 6), 0.5)),
    (CONV2D, Full(normal(8, 6, 3, 2), 0.5)),
    (LINEAR, Kronecker(normal(1, 2), normal(2, 1), normal(2, 3), normal(4, 2), 0.5)),
    (LINEAR, take_rows(Full(normal(16, 6), 0.5), [(8, 16)])),
]


@pytest.mark.parametrize(("module", "delta"), CASES, ids=lambda value: type(value).__name__)
def test_a_hooked_module_is_the_module_with_the_change_in_its_weight(module: Module, delta: Delta) -> None:
    with torch.no_grad():
        wanted = merged(module, dense(delta))(input_of(module))
        before = module(input_of(module))
    found = computed(module, delta)
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found, before, rtol=1e-2)
    with torch.no_grad():
        assert torch.equal(module(input_of(module)), before)  # the hooks are gone


@pytest.mark.parametrize("module", [LINEAR, CONV1D, CONV2D, CONV3D], ids=lambda value: type(value).__name__)
def test_dora_takes_the_norm_of_the_changed_weight(module: Module) -> None:
    module.double()
    magnitude = normal(8).abs() + 0.5
    delta = low_rank(module, magnitude=magnitude.reshape(1, 8, *[1] * (module.weight.dim() - 2)))
    weight = module.weight.detach() + dense(delta)
    norm = weight.flatten(1).norm(dim=1)
    shape = (8, *[1] * (weight.dim() - 1))
    new = copy.deepcopy(module)
    new.weight = torch.nn.Parameter(weight * (magnitude / norm).reshape(shape))
    with torch.no_grad():
        assert torch.allclose(computed(module, delta), new(input_of(module)), rtol=1e-9, atol=1e-9)


def test_a_bias_is_scaled_like_the_factors() -> None:
    bias = normal(8)
    LINEAR.double()
    difference = computed(LINEAR, low_rank(LINEAR, bias=bias)) - computed(LINEAR, low_rank(LINEAR))
    assert torch.allclose(difference, (0.7 * bias).expand_as(difference))


def test_the_change_is_added_in_the_modules_dtype() -> None:
    half = torch.nn.Linear(6, 8).half()
    with torch.no_grad(), changed_by(torch.nn.Sequential(half), {"0": low_rank(half)}):
        assert half(torch.ones(1, 6).half()).dtype == torch.float16


def test_a_module_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="nowhere is no module"), changed_by(LINEAR, {"nowhere": low_rank(LINEAR)}):
        pass


def test_other_last_bits_are_no_more_than_that() -> None:
    module = torch.nn.Linear(6, 8)
    x = input_of(module).float()
    with torch.no_grad():
        before = module(x)
        with rounded_otherwise(torch.nn.Sequential(module), ["0"]):
            after = module(x)
    relative = ((after - before) / before).abs()
    assert math.isclose(float(relative.max()), 2**-23, rel_tol=1.01)
    assert bool((after != before).all())
