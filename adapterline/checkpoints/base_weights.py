"""The base's own weights in a checkpoint of the whole model: frozen if all are there, trained if only some are."""

from __future__ import annotations

from collections.abc import Mapping

from adapterline.errors import CheckpointError
from adapterline.families.base import Base
from adapterline.families.skeleton import build_model, plain_name


def check_base_weights(found: Mapping[str, tuple[int, ...]], base: Base, component: str) -> None:
    """CheckpointError unless `found` (name -> shape) is every parameter of the base's model, with its shape.

    Whoever saves a whole model saves the frozen weights too. A part of them alone (PEFT's modules_to_save, `bias`) was
    saved because it was trained, and a LoRA file has no place for it.
    """
    if not found:
        return
    model = build_model(base.models[component])
    wanted = {plain_name(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    buffers = {plain_name(name) for name, _ in model.named_buffers()}
    named = {plain_name(name): shape for name, shape in found.items()}
    strange = sorted(set(named) - set(wanted) - buffers)
    missing = sorted(set(wanted) - set(named))
    other = sorted(name for name, shape in named.items() if name in wanted and wanted[name] != shape)
    if strange or other:
        name = (strange or other)[0]
        raise CheckpointError(
            f"{name!r} {'is no weight' if strange else 'has another shape than that'} of {component} of this base.",
            expected=f"the weights of a {base.models[component].model_class}, under the adapter's layers",
            remedy="Pass the --base that it was trained on, or save the adapter alone.",
        )
    if missing:
        raise CheckpointError(
            f"The checkpoint has {len(named)} of the {len(wanted)} weights of {component} itself ({missing[0]!r} is "
            "not among them): those that are there may have been trained.",
            expected="all of them, as a state dict of the whole model has, or none",
            remedy="If they were trained, a LoRA file cannot carry them; otherwise save the adapter without them.",
        )
