"""Which of the state dicts in a training state is the adapter's.

A training state is a tree of dicts. In it, in this order:

1. What is no weight is not looked at: optimizers, schedulers, scalers, random states, loops. Numbers and texts beside
   tensors have no effect, except one that is named like an alpha (below).
2. EMA weights (keys like `ema`, `model_ema`, `ema_state_dict`, `shadow_params`) are read if they are asked for, and
   only then; the others are read if they are not.
3. Of what is left, every dict that holds tensors is a candidate. One alone is taken, whatever its name. Of several,
   those with an adapter's keys are: one, or one for each component (`{"unet": ..., "text_encoder": ...}`).
   Anything else is refused with the list.

The keys of a component's own dict get the component in front, and those that PEFT spells also `base_model.model.`:
`unet.down.lora_A.weight` would be diffusers' format, in which a missing alpha means scale 1, and nobody has said that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from adapterline.checkpoints.containers.base import bad_key, has_adapter_keys, no_ema, only_ema
from adapterline.checkpoints.containers.pickles import Made, printable
from adapterline.checkpoints.containers.torch_archive import Unfit, opaque
from adapterline.errors import CheckpointError
from adapterline.families import COMPONENT_NAMES
from adapterline.values import TensorInfo

if TYPE_CHECKING:
    import torch

MAX_DEPTH: Final = 12
#: A pickle of a kilobyte can be walked on more paths than there are atoms.
MAX_VISITED: Final = 2_000_000

_NO_WEIGHTS = re.compile(
    r"optim(izers?)?([_.].*)?|.*_optimizers?|opt|lr_sched(ulers?)?([_.].*)?|schedulers?([_.].*)?|.*_schedulers?"
    r"|(grad_)?scalers?|amp|rng.*|random_states?.*|loops|callbacks|hyper_parameters|hparams|(ds_)?config|args"
    r"|datasets?|dataloaders?.*|samplers?|data_sampler|native_amp_scaling_state|_metadata"
)
_EMA = re.compile(r"(.*[_.])?ema([_.].*)?|shadow(_params|_state_dict)?|averaged_model")
#: EMA weights that lie among the others, as Lightning modules and ema-pytorch have them.
_EMA_PREFIX = re.compile(r"(?:model_ema|ema_model|ema_module|module_ema|ema)\.(?=.)")
_RAW_PREFIX = re.compile(r"online_model\.(?=.)")
_PEFT = re.compile(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector|E)\b")
_SAVE: Final = "torch.save(get_peft_model_state_dict(model), path)."
_ALPHA = re.compile(r"(.*[._])?((lora|network)_?)?(alpha|scale|scaling|multiplier)s?")


class Leaf(Protocol):
    """A tensor that has not been read yet."""

    @property
    def info(self) -> TensorInfo:
        """Its dtype and shape."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes once it is copied."""
        ...

    def load(self) -> torch.Tensor:
        """The tensor."""
        ...


@dataclass(frozen=True)
class Number:
    """An alpha that was saved as a number and not as a tensor."""

    value: float

    @property
    def info(self) -> TensorInfo:
        """A float64 of no dimensions."""
        return TensorInfo("F64", ())

    @property
    def nbytes(self) -> int:
        """Nothing in the file."""
        return 0

    def load(self) -> torch.Tensor:
        """The number, as a tensor."""
        import torch

        return torch.tensor(self.value, dtype=torch.float64)


@dataclass(frozen=True)
class _Candidate:
    path: tuple[str, ...]
    entries: Mapping[str, Leaf | Unfit]

    @property
    def adapts(self) -> bool:
        return has_adapter_keys(self.entries)

    @property
    def component(self) -> str | None:
        return self.path[-1] if self.path and self.path[-1] in COMPONENT_NAMES else None


def find_state_dict(where: str, root: Any, weights: str = "raw") -> dict[str, Leaf]:
    """The adapter's tensors in a training state. CheckpointError, with what was found, if that is not one state dict.

    `weights` is "raw", "ema", or "all" where the file's name already says which they are.
    `root` holds `Leaf` and `Unfit` in dicts; whatever else is in there has no effect.
    """
    if not isinstance(root, dict):
        raise CheckpointError(
            f"{where} holds a {opaque(root)}.",
            expected="a state dict: {name: tensor}",
            remedy=f"Save the adapter's state dict: {_SAVE}",
        )
    found = _Walk(where).candidates(root)
    chosen = _chosen(where, found, weights)
    if not chosen:
        raise _nothing(where, root)
    entries = _joined(where, chosen)
    if refusal := _lost_alpha(where, root, chosen, entries):
        raise refusal
    for key, leaf in entries.items():
        if refusal := bad_key(key):
            raise refusal
        if isinstance(leaf, Unfit):
            raise CheckpointError(
                f"{key!r} in {where} {leaf.what}.",
                expected="ordinary dense tensors",
                remedy=f"Save the adapter's state dict alone, with tensors that have values: {_SAVE}",
            )
    return {key: leaf for key, leaf in entries.items() if not isinstance(leaf, Unfit)}


class _Walk:
    """Finds the dicts that hold tensors, in the order in which they are written."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._visited = 0

    def candidates(self, node: dict[Any, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], _Candidate]:
        if is_optimizer(node):
            return {}
        if len(path) > MAX_DEPTH:
            raise CheckpointError(
                f"{self._where} is nested more than {MAX_DEPTH} deep.",
                expected="a training state, or a state dict",
                remedy=f"Save the adapter's state dict alone: {_SAVE}",
            )
        found: dict[tuple[str, ...], _Candidate] = {}
        own: dict[str, Leaf | Unfit] = {}
        for key, value in node.items():
            self._count()
            name = key if isinstance(key, str) else ""
            if _is_tensor(value) and not isinstance(key, str):
                own[str(key) if isinstance(key, int) and key < 1 << 64 else "?"] = Unfit("has no name")
            elif _NO_WEIGHTS.fullmatch(name):
                continue
            elif _is_tensor(value):
                own[name] = value
            elif isinstance(value, dict):
                found |= self.candidates(value, (*path, name))
            elif isinstance(value, list) and any(map(_is_tensor, value[:1])):
                found[(*path, name)] = _Candidate((*path, name), dict.fromkeys(["0"], Unfit("has no name")))
            elif type(value) in (int, float) and "." in name and _ALPHA.fullmatch(name) and abs(value) < 1e30:
                own[name] = Number(float(value))
        if any(not isinstance(leaf, Number) for leaf in own.values()):
            found = {path: _Candidate(path, own)} | found
        return found

    def _count(self) -> None:
        self._visited += 1
        if self._visited > MAX_VISITED:
            raise CheckpointError(
                f"{self._where} has more than {MAX_VISITED} entries.",
                expected="a training state, or a state dict",
                remedy=f"Save the adapter's state dict alone: {_SAVE}",
            )


def is_optimizer(node: Any) -> bool:
    """Is it the state dict of a `torch.optim.Optimizer`, under whatever name it was saved?"""
    return isinstance(node, dict) and node.keys() == {"state", "param_groups"}


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Unfit) or hasattr(value, "nbytes")


def _chosen(where: str, found: Mapping[tuple[str, ...], _Candidate], weights: str) -> list[_Candidate]:
    raw, ema = [], []
    for candidate in found.values():
        if any(_EMA.fullmatch(part) for part in candidate.path):
            ema.append(candidate)
        else:
            plain, averaged = split_ema(candidate.entries)
            raw += [_Candidate(candidate.path, plain)] if plain else []
            ema += [_Candidate((*candidate.path, "ema"), averaged)] if averaged else []
    if weights == "all":
        return _best(where, raw + (_named(where, ema) if ema else []))
    if weights == "ema":
        return _best(where, _named(where, ema) if ema else [], needed=True)
    if ema and not raw:
        raise only_ema(where)
    # A counter beside the state dicts, saved as a tensor, is not one of them.
    dotted = [candidate for candidate in raw if candidate.path or any("." in key for key in candidate.entries)]
    return _best(where, dotted or raw)


def _best(where: str, candidates: list[_Candidate], *, needed: bool = False) -> list[_Candidate]:
    if needed and not candidates:
        raise no_ema(where)
    if len(candidates) <= 1:
        return candidates
    adapting = [candidate for candidate in candidates if candidate.adapts]
    components = [candidate.component for candidate in adapting]
    if len(adapting) == 1 or (adapting and None not in components and len(set(components)) == len(components)):
        return adapting
    names = ", ".join(printable(".".join(candidate.path) or "(the top)") for candidate in (adapting or candidates)[:12])
    raise CheckpointError(
        f"{where} holds several state dicts that could be the adapter: {names}.",
        expected="one, or one for each component",
        remedy=f"Save the adapter's state dict alone: {_SAVE}",
    )


def _named(where: str, candidates: list[_Candidate]) -> list[_Candidate]:
    """Without what has no names: diffusers and OneTrainer keep EMA weights as a list, in the parameters' order."""
    nameless = re.compile(r"(shadow_params|ema_parameters)(\.\d+)?|\d+")
    named = [item for item in candidates if not all(nameless.fullmatch(key) for key in item.entries)]
    if not named:
        raise CheckpointError(
            f"The EMA weights in {where} are a list without names.",
            expected="EMA weights under the names of the parameters",
            remedy="Copy them into the model with the trainer (EMAModel.copy_to), and save the adapter from there.",
        )
    return named


def split_ema(entries: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the others, EMA weights under their plain names) of one flat state dict in which both lie.

    Stable Diffusion's `model_ema.` writes the names without dots; they are found by those of the others.
    """
    averaged = {key[match.end() :]: key for key in entries if (match := _EMA_PREFIX.match(key))}
    if not averaged:
        return dict(entries), {}
    taken = set(averaged.values())
    raw = {key: leaf for key, leaf in entries.items() if key not in taken}
    if any(_RAW_PREFIX.match(key) for key in raw):
        raw = {_RAW_PREFIX.sub("", key, count=1): leaf for key, leaf in raw.items() if _RAW_PREFIX.match(key)}
    undotted = {name.replace(".", ""): name for key in raw for name in (key, key.removeprefix("model."))}
    names = {name if "." in name else undotted.get(name, name): key for name, key in averaged.items()}
    return raw, {name: entries[key] for name, key in names.items()}


def _joined(where: str, chosen: Iterable[_Candidate]) -> dict[str, Leaf | Unfit]:
    joined: dict[str, Leaf | Unfit] = {}
    for candidate in chosen:
        for key, leaf in candidate.entries.items():
            name = prefixed(candidate.component, key)
            if name in joined:
                raise CheckpointError(
                    f"{where} holds {printable(name)!r} twice.",
                    expected="one tensor under one name",
                    remedy=f"Save the adapter's state dict alone: {_SAVE}",
                )
            joined[name] = leaf
    return joined


def prefixed(component: str | None, key: str) -> str:
    """The key of a component's own state dict, in one state dict for all."""
    if component is None or key.startswith(f"{component}."):
        return key
    bare = _PEFT.search(key) and "base_model.model." not in key
    return f"{component}.base_model.model.{key}" if bare else f"{component}.{key}"


def _lost_alpha(
    where: str, root: dict[Any, Any], chosen: list[_Candidate], entries: Mapping[str, Any]
) -> CheckpointError | None:
    """A number named alpha beside the state dict, where the keys alone would mean scale 1.

    Elsewhere it is no harm to pass it by: the export then asks for alpha.
    """
    if not any(key.split(".")[0] in COMPONENT_NAMES and "base_model.model." not in key for key in entries):
        return None
    for candidate in chosen:
        node: Any = root
        for part in (None, *candidate.path):
            node = node.get(part) if part is not None and isinstance(node, dict) else node
            for key, value in node.items() if isinstance(node, dict) else ():
                if isinstance(key, str) and _ALPHA.fullmatch(key) and type(value) in (int, float, dict):
                    return CheckpointError(
                        f"{where} says {printable(key)} beside the adapter's state dict, in a form of its own.",
                        expected="keys that say the scale, or an adapter without one",
                        remedy="Save it with PEFT's save_pretrained or diffusers' save_lora_weights.",
                    )
    return None


def _nothing(where: str, root: dict[Any, Any]) -> CheckpointError:
    if not root:
        return CheckpointError(
            f"{where} holds an empty state dict.",
            expected="the adapter's tensors",
            remedy="get_peft_model_state_dict finds nothing under a torch.compile wrapper: save the inner model's.",
        )
    if is_optimizer(root):
        return CheckpointError(
            f"{where} holds the state of an optimizer, and no weights.",
            expected="the adapter's state dict",
            remedy="Name the file that the weights were saved to; it often lies beside this one.",
        )
    names = ", ".join(printable(key) if isinstance(key, str) else type(key).__name__ for key in list(root)[:8])
    made = next((value for value in root.values() if isinstance(value, Made)), None)
    return CheckpointError(
        f"{where} holds no weights: only {names}" + (f", of which one is a {printable(made.name)}." if made else "."),
        expected="the adapter's state dict",
        remedy=f"Save the adapter's state dict: {_SAVE}",
    )
