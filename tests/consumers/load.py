"""Runs in the environment of a consumer's version, without adapterline: `python load.py CASES.json RESULTS.json`.

Each case is loaded with the library's own calls onto small models built from their configurations, and every layer's
change of its weight is compared with what the trainer's factors say, in float64. The answer is one of

    right       every layer changes its weight as it should, and no other layer does
    wrong: …    it loads without an error, and does something else
    refuses: …  it raises
    absent: …   this version has no such model or pipeline
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import traceback
import warnings
from operator import attrgetter
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")
import diffusers  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

#: The stored dtype is rounded to on the way (`adapterline.validation.tolerances`); this is the loosest of them.
LIMIT = 8e-3


class AbsentError(Exception):
    """This version does not have it."""


def main(cases: Path, results: Path) -> None:
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    found = {}
    for case in json.loads(cases.read_text()):
        found[case["name"]] = judge(case)
        print(f"  {case['name']:<40} {found[case['name']]}", flush=True)
    results.write_text(json.dumps(found, indent=1))


def judge(case: dict[str, Any]) -> str:
    try:
        models = {name: build(Path(case["base"], name), *where) for name, where in case["models"].items()}
        pipeline = build_pipeline(case["pipeline"], models)
    except AbsentError as error:
        return f"absent: {error}"
    except Exception as error:
        return f"absent: it cannot be built ({said(error)})"
    try:
        for call in case["loads"]:
            load(case["folder"], call, pipeline, models)
    except Exception as error:
        if "-v" in sys.argv:
            traceback.print_exc()
        return f"refuses: {said(error)}"
    return compare(models, load_file(case["expected"]), case["limit"])


def build(folder: Path, library: str, name: str) -> torch.nn.Module:
    """With random weights: of zeros, some models cannot be built."""
    module = importlib.import_module(library)
    cls = getattr(module, name, None)
    if cls is None:
        raise AbsentError(f"no {name}")
    config = json.loads((folder / "config.json").read_text())
    torch.manual_seed(0)
    if library == "transformers":
        return cls(cls.config_class.from_dict(config)).eval()
    return cls.from_config(config).eval()


def build_pipeline(name: str, models: dict[str, torch.nn.Module]) -> Any:
    """Around these models, without the constructor: some want a VAE, and loading LoRA needs none."""
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise AbsentError(f"no {name}")
    if "Modular" in name:
        built = cls()
        built.update_components(**models)
        return built
    import inspect

    required = [p.name for p in inspect.signature(cls.__init__).parameters.values() if p.default is p.empty]
    names = dict.fromkeys((*required[1:], *cls._optional_components, *models))
    built = cls.__new__(cls)
    built.register_modules(**{each: models.get(each) for each in names})
    return built


def load(folder: str, call: dict[str, Any], pipeline: Any, models: dict[str, torch.nn.Module]) -> None:
    if call["library"] == "peft":
        component = call["attributes"]["model"]
        models[component] = attrgetter(call["method"])(peft)(
            models[component], folder, subfolder=call["weight_name"], **call["kwargs"]
        )
    else:
        attrgetter(call["method"])(pipeline)(folder, weight_name=call["weight_name"], **call["kwargs"])


# --- what the models are then -----------------------------------------------------------------------------------------


def compare(models: dict[str, torch.nn.Module], expected: dict[str, torch.Tensor], limit: float) -> str:
    found = {key: value for name, model in models.items() for key, value in changes(name, model).items()}
    missing = sorted(key for key in expected if key not in found and bool(expected[key].any()))
    extra = sorted(key for key in found if key not in expected and bool(found[key].any()))
    worst, where = 0.0, ""
    for key in expected.keys() & found.keys():
        if found[key].is_meta:
            return f"wrong: {key} has no data"
        wanted = expected[key].double().reshape(found[key].shape)
        error = float((found[key] - wanted).norm() / wanted.norm().clamp(min=1e-30))
        worst, where = max((worst, where), (error, key))
    if missing:
        return f"wrong: {len(missing)} of {len(expected)} are not there, such as {missing[0]}"
    if extra:
        return f"wrong: {len(extra)} that were not trained, such as {extra[0]}"
    if not worst <= min(limit, LIMIT):
        return f"wrong: off by {worst:.2g} of itself, at {where}"
    return "right"


def changes(component: str, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """By `component|module|part`: the additive change of the weight, a magnitude and a bias, each in float64."""
    found: dict[str, torch.Tensor] = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or not (active := [a for a in layer.active_adapters if a in layer.scaling]):
            continue
        (adapter,) = active
        plain = re.sub(r"^(base_model\.model\.)?(text_model\.)?", "", name)
        stem = f"{component}|{plain}"
        a, b = layer.lora_A[adapter].weight.detach().double(), layer.lora_B[adapter].weight.detach().double()
        scale = 0.0 if layer.disable_adapters else float(layer.scaling[adapter])
        found[stem] = product(a, b, layer.get_base_layer()) * scale
        if (bias := getattr(layer.lora_B[adapter], "bias", None)) is not None:
            found[f"{stem}|bias"] = bias.detach().double() * scale
        if getattr(layer, "use_dora", {}).get(adapter):
            found[f"{stem}|magnitude"] = layer.lora_magnitude_vector[adapter].weight.detach().double().flatten()
    return found


def product(a: torch.Tensor, b: torch.Tensor, base: torch.nn.Module) -> torch.Tensor:
    """[out, in * kernel]; PEFT's A sees all inputs, B of a grouped layer the ranks of its group."""
    groups = getattr(base, "groups", 1)
    flat_a, flat_b = a.flatten(1), b.flatten(1)
    if groups == 1 or flat_b.shape[1] == flat_a.shape[0]:
        return flat_b @ flat_a
    parts = zip(flat_b.chunk(groups), flat_a.chunk(groups), strict=True)
    return torch.cat([part_b @ part_a for part_b, part_a in parts])


def said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
