"""What a family is: data."""

from __future__ import annotations

from dataclasses import dataclass

from adapterline.values import WEIGHT_NAME


@dataclass(frozen=True)
class Component:
    """A model of a pipeline that an adapter may change.

    `models` are the classes that the family's pipelines have there; one of another class is not the family's to adapt.
    `loads` is False for one that trainers adapt and `load_lora_weights` drops without a word. `text_model` is True for
    a CLIP text encoder, whose keys carry `text_model.` in files, whatever the installed transformers calls its modules.

    It is loaded by `pipe.{method}(folder, weight_name=file)`, with `flag=True` if there is a flag; components with the
    same three share one file and one call. Keys begin with `prefix`, by default the component's name.
    """

    name: str
    models: tuple[str, ...]
    loads: bool = True
    text_model: bool = False
    file: str = WEIGHT_NAME
    method: str = "load_lora_weights"
    flag: str = ""
    prefix: str = ""

    @property
    def key_prefix(self) -> str:
        """What its keys begin with, up to the first dot."""
        return self.prefix or self.name


@dataclass(frozen=True)
class Control:
    """The layer that `load_lora_weights` makes twice as wide for a control adapter, and the pipeline that it is for."""

    component: str
    layer: str
    pipeline: str


@dataclass(frozen=True)
class Family:
    """A family of pipelines that one mixin loads LoRA weights into.

    `marks` are regular expressions on `component.module`; all must occur in an adapter, and none of `never`, for
    `inspect` to name the family without a base. They are evidence, not proof: the skeleton decides.

    `architecture` is the ModelSpec identifier of a LoRA for the family's first model, as sd-scripts, musubi-tuner or
    else OneTrainer writes it; `kohya_version` is `ss_base_model_version`, as the first two do. Empty: none of them
    trains it, or what they write depends on which model of the family it is. `loads_lokr`: the mixin's
    `load_lora_weights` takes LoKr as it is.
    """

    name: str
    title: str
    mixin: str
    pipeline: str
    components: tuple[Component, ...]
    tags: tuple[str, ...]
    marks: tuple[str, ...]
    never: tuple[str, ...] = ()
    architecture: str = ""
    kohya_version: str = ""
    control: Control | None = None
    loads_lokr: bool = False

    def component(self, name: str) -> Component | None:
        """The component of this name, or None."""
        return next((component for component in self.components if component.name == name), None)


def transformer(*models: str) -> Component:
    """The denoiser of most families."""
    return Component("transformer", models)


def clip(name: str, *models: str) -> Component:
    """A CLIP text encoder that loads."""
    return Component(name, models, text_model=True)


def dropped(name: str, *models: str) -> Component:
    """A text encoder that trainers adapt, and no loader of diffusers takes."""
    return Component(name, models, loads=False)
