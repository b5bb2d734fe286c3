"""Control adapters: trained with the control image's channels beside the latent's, on a first layer twice as wide.

`load_lora_weights` of FLUX widens that layer itself, with zeros (diffusers.loaders.lora_pipeline
`_maybe_expand_transformer_param_shape_or_error_`); so the adapter fits a base whose own layer is half as wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from adapterline.families.base import Base
from adapterline.families.skeleton import Target, targets


def layers_for(base: Base, component: str, inputs: Mapping[str, int]) -> tuple[dict[str, Target], str | None]:
    """(the layers as they are once the adapter is loaded, the pipeline that it then takes; None: the base's own).

    `inputs` is how many inputs the adapter has by module. Only exactly twice as many as the layer has counts: anything
    else that does not fit is a mistake, which diffusers would pad with zeros.
    """
    layers = targets(base, component)
    control = base.family.control
    if control is None or control.component != component or control.layer not in layers:
        return layers, None
    own = layers[control.layer]
    if inputs.get(control.layer) != 2 * own.shape[1]:
        return layers, None
    wide = replace(own, shape=(own.shape[0], 2 * own.shape[1], *own.shape[2:]))
    return {**layers, control.layer: wide}, control.pipeline
