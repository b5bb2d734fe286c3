"""Types that change single entries of a weight, or of its spectrum: SHiRA, FourierFT, WaveFT and Super."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from adapterline.checkpoints.form import Form, Layer, Tensors, first, untold
from adapterline.checkpoints.peft_types.base import PeftType, linear
from adapterline.checkpoints.scales import Config, brief, check_settings, number, unit_of_rank, whole_number
from adapterline.deltas import Delta, Full
from adapterline.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from adapterline.checkpoints.dialects.base import ScaleRule


def _scattered(shape: tuple[int, int], places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """A matrix of zeros but for `values` at flat `places`; what falls onto one place adds up."""
    import torch

    if places.shape != values.shape or places.dim() != 1 or (len(places) and int(places.min()) < 0):
        raise ValueError
    flat = torch.zeros(math.prod(shape), dtype=values.dtype)
    return flat.index_add(0, places, values).reshape(shape)


# --- SHiRA ------------------------------------------------------------------------------------------------------------


def _shira_rule(config: Config, where: str) -> ScaleRule:
    harmless = frozenset({"r", "mask_type", "random_seed", "init_weights"})
    check_settings(config, where, "a plain SHiRA", harmless)
    return lambda module, rank: 1.0


def _shira(tensors: Tensors, layer: Layer) -> Delta:
    """`values` at `indices` [2, n]: rows and columns. PEFT on Windows stores them as floats."""
    shape = linear(layer.shape)
    rows, columns = tensors["indices"].long()
    if len(columns) and not 0 <= int(columns.min()) <= int(columns.max()) < shape[1]:
        raise ValueError
    return Full(_scattered(shape, rows * shape[1] + columns, tensors["values"]), layer.scale)


SHIRA = PeftType(
    name="SHIRA",
    suffixes={"shira_weight": "values", "shira_indices": "indices"},
    rule=_shira_rule,
    forms=(
        Form(
            name="shira",
            needs=frozenset({"values", "indices"}),
            integers=frozenset({"indices"}),
            rank=untold,
            outputs=untold,
            build=_shira,
            on_base=True,
        ),
    ),
)

# --- FourierFT and WaveFT ---------------------------------------------------------------------------------------------

_SPECTRUM = frozenset({"n_frequency", "n_frequency_pattern", "scaling", "random_loc_seed", "init_weights"})


def _spectrum_rule(config: Config, where: str, harmless: frozenset[str], name: str) -> ScaleRule:
    check_settings(config, where, f"a plain {name}", harmless)
    scaling = number(config, "scaling", where)
    return lambda module, rank: scaling


def _places(shape: tuple[int, int], count: int, layer: Layer) -> torch.Tensor:
    """Where in the spectrum the coefficients lie: drawn from the configuration's seed, as PEFT draws them."""
    import torch

    generator = torch.Generator().manual_seed(whole_number(layer.config, "random_loc_seed", layer.where))
    return torch.randperm(math.prod(shape), generator=generator)[:count]


def _fourierft(tensors: Tensors, layer: Layer) -> Delta:
    """The real part of the inverse Fourier transform of a sparse spectrum."""
    import torch

    shape, coefficients = linear(layer.shape), tensors["fourier"].double()
    spectrum = _scattered(shape, _places(shape, len(coefficients), layer), coefficients)
    return Full(torch.fft.ifft2(spectrum).real.float(), layer.scale)


FOURIERFT = PeftType(
    name="FOURIERFT",
    suffixes={"fourierft_spectrum": "fourier"},
    rule=partial(_spectrum_rule, harmless=_SPECTRUM, name="FourierFT"),
    forms=(Form("fourierft", frozenset({"fourier"}), untold, untold, _fourierft, on_base=True),),
)


def _waveft(tensors: Tensors, layer: Layer) -> Delta:
    """One level of an inverse wavelet transform of a sparse spectrum, or the sparse matrix itself."""
    shape, coefficients = linear(layer.shape), tensors["wavelet"].double()
    spectrum = _scattered(shape, _places(shape, len(coefficients), layer), coefficients)
    if layer.config.get("use_idwt", True):
        spectrum = _inverse_wavelet(spectrum, layer)
    return Full(spectrum.float(), layer.scale)


def _inverse_wavelet(spectrum: torch.Tensor, layer: Layer) -> torch.Tensor:
    """peft.tuners.waveft.layer.WaveFTLayer.get_delta_weight: padded, split into four bands, put together, cropped."""
    import torch
    from peft.tuners.waveft.constants import WAVELET_REDUCTIONS
    from peft.tuners.waveft.waverec2d import waverec2d

    family = layer.config.get("wavelet_family")
    if not isinstance(family, str) or family not in WAVELET_REDUCTIONS:
        raise CheckpointError(
            f"{layer.where} has the wavelet_family {brief(family)}.", expected="one that the installed peft knows"
        )
    out, width = spectrum.shape
    rows, columns = (size + more for size, more in zip(spectrum.shape, WAVELET_REDUCTIONS[family], strict=True))
    rows, columns = rows + rows % 2, columns + columns % 2
    top, left = (rows - out) // 2, (columns - width) // 2
    padded = torch.zeros(rows, columns, dtype=torch.float64)
    padded[top : top + out, left : left + width] = spectrum
    (low, horizontal), (vertical, diagonal) = (half.chunk(2, dim=1) for half in padded.chunk(2, dim=0))
    weight: torch.Tensor = waverec2d((low, (horizontal, vertical, diagonal)), family)
    top, left = (weight.shape[0] - out) // 2, (weight.shape[1] - width) // 2
    return weight[top : top + out, left : left + width]


WAVEFT = PeftType(
    name="WAVEFT",
    suffixes={"waveft_spectrum": "wavelet"},
    rule=partial(
        _spectrum_rule,
        harmless=_SPECTRUM | {"wavelet_family", "use_idwt", "proportional_parameters"},
        name="WaveFT",
    ),
    forms=(Form("waveft", frozenset({"wavelet"}), untold, untold, _waveft, on_base=True),),
)

# --- Super and Supra --------------------------------------------------------------------------------------------------


def _super_rule(config: Config, where: str) -> ScaleRule:
    harmless = {"sparsity", "select_top", "r", "lora_alpha", "lora_dropout", "init_weights", "save_precomputed_indices"}
    check_settings(config, where, "a plain Super or Supra", frozenset(harmless))
    if config.get("r") is not None:
        number(config, "lora_alpha", where)
        return unit_of_rank(config, where)
    return lambda module, rank: 1.0


def _super(tensors: Tensors, layer: Layer) -> Delta:
    """Values at flat indices and, for Supra, lora_alpha / r times B @ A."""
    weight = _scattered(linear(layer.shape), tensors["super_indices"].long(), tensors["super_values"].double())
    if "super_A" in tensors:
        a, b = tensors["super_A"].double(), tensors["super_B"].double()
        change = b @ a
        if change.shape != weight.shape:
            raise ValueError
        weight = weight + change * (number(layer.config, "lora_alpha", layer.where) / a.shape[0])
    return Full(weight.float(), layer.scale)


_VALUES, _INDICES = frozenset({"super_values", "super_indices"}), frozenset({"super_indices"})
SUPERTUNING = PeftType(
    name="SUPERTUNING",
    suffixes={
        "supertuning_values": "super_values",
        "supertuning_indices": "super_indices",
        "supertuning_lora_A.weight": "super_A",
        "supertuning_lora_B.weight": "super_B",
    },
    rule=_super_rule,
    forms=(
        Form("super", _VALUES, untold, untold, _super, integers=_INDICES, on_base=True),
        Form(
            name="supra",
            needs=_VALUES | {"super_A", "super_B"},
            integers=_INDICES,
            rank=first("super_A"),
            outputs=first("super_B"),
            build=_super,
            on_base=True,
        ),
    ),
)
