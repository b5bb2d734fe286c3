"""A folder that DeepSpeed's `save_checkpoint` wrote: the fp32 weights of ZeRO, put together without DeepSpeed.

    latest                                              the name of the folder below
    global_step4/mp_rank_00_model_states.pt             ZeRO 1, 2: names, shapes, and the model's own 16-bit weights
    global_step4/zero_pp_rank_0_mp_rank_00_model_states.pt     ZeRO 3: the same for each rank, with placeholders
    global_step4/zero_pp_rank_0_mp_rank_00_optim_states.pt     each rank's part of the flat fp32 groups

The protocol is that of DeepSpeed's zero_to_fp32.py. In ZeRO 1 and 2 the ranks' parts of a group follow one another, and
the parameters lie in the whole, with padding at its end. In ZeRO 3 every parameter is cut into as many equal parts as
there are ranks, padded at its end, and a rank's parts lie in its groups one after the other, across their borders.

The fp32 weights are preferred to the 16-bit ones: those are their rounding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterline.checkpoints.containers.base import Contents, NotMyKindError, Wish
from adapterline.checkpoints.containers.files import is_plain_name, refuse_where_final, step_of
from adapterline.checkpoints.containers.leaves import contents_of
from adapterline.checkpoints.containers.nested import Leaf, find_state_dict
from adapterline.checkpoints.containers.pickles import Made, printable
from adapterline.checkpoints.containers.tensors import Unread, is_shape
from adapterline.checkpoints.containers.torch_archive import Stored, Unfit, read_archive
from adapterline.errors import CheckpointError, CheckpointIncompleteError

if TYPE_CHECKING:
    import torch

LATEST: Final = "latest"
STEP: Final = re.compile(r"global_step(\d{1,18})")
_MODEL = re.compile(r"(?:zero_pp_rank_(\d{1,6})_)?mp_rank_(\d{1,4})_model_states\.pt")
_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d{1,6})_mp_rank_(\d{1,4})_optim_states\.pt")


class ZeroFolder:
    """Reads DeepSpeed checkpoints of ZeRO 1, 2 and 3, and without ZeRO."""

    name = "deepspeed"

    def open(self, path: Path, wish: Wish) -> Contents:
        """See `Container.open`. A model states file that is named is read alone, with the weights that are in it."""
        if path.is_file():
            if not _MODEL.fullmatch(path.name):
                raise NotMyKindError("no model states file")
            return replace(self._module(path, _root(path), wish), step=step_of(path.parent, STEP))
        if not path.is_dir():
            raise NotMyKindError("not a folder")
        refuse_where_final(path)
        folder = _tag(path, wish)
        if wish.weights == "ema":
            raise NotMyKindError("EMA weights were asked for, and DeepSpeed keeps none")
        files = _Files(folder)
        contents = self._merged(files, wish)
        return replace(
            contents, root=path, files=_with_latest(path, folder, contents.files), step=step_of(folder, STEP)
        )

    def _module(self, path: Path, root: dict[Any, Any], wish: Wish) -> Contents:
        module = root.get("module")
        if not isinstance(module, dict):
            raise _broken(path, "it has no module")
        if _stage(root) == 3 or (module and all(isinstance(item, Unfit) for item in module.values())):
            raise CheckpointError(
                f"{path.name} is of ZeRO 3: it has the names of the weights, and placeholders for them.",
                expected="the folder with the states of every rank",
                remedy=f"Name the folder {path.parent.name}, or save with stage3_gather_16bit_weights_on_model_save.",
            )
        return contents_of(self.name, path.parent, (path,), find_state_dict(path.name, module, wish.weights))

    def _merged(self, files: _Files, wish: Wish) -> Contents:
        roots = [_root(path) for path in files.models]
        stage = _stage(roots[0])
        if not files.optimizers:
            if stage:
                raise files.missing("no optim_states.pt of any rank, which hold its weights")
            return self._module(files.models[0], roots[0], wish)
        states = [_optimizer(path) for path in files.optimizers]
        said = _number(states[0].get("zero_stage"))
        stage = stage if said is None else said
        count = states[0].get("partition_count")
        ranks = max(count) if isinstance(count, list) and count else count
        if type(ranks) is not int or ranks != len(states):
            raise files.missing(f"the optimizer states of {len(states)} ranks, and was saved by {printable(ranks)}")
        merge = _whole_parameters if stage == 3 else _parameters_in_groups
        if stage == 3 and len(roots) != ranks:
            raise files.missing(f"the model states of {len(roots)} ranks, and was saved by {ranks}")
        leaves: dict[str, Leaf] = dict(_frozen(files.models[0], roots, stage))
        for name, leaf in merge(files.models[0], roots[0], states):
            leaves[name] = leaf
        for alias, name in _mapping(roots[0].get("shared_params")).items():
            if isinstance(alias, str) and name in leaves:
                leaves[alias] = leaves[name]
        chosen = find_state_dict(files.folder.name, leaves)
        return contents_of(self.name, files.folder, (*files.models, *files.optimizers), chosen)


class _Files:
    """The state files of one folder, each in the order of the ranks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = sorted(entry.name for entry in folder.iterdir())
        if odd := next((name for name in names if re.match(r"(layer_\d|expp_rank|.*expert_\d)", name)), None):
            raise _cut(f"{folder.name} is of a model that was cut by layers or experts ({odd}).")
        self.models = self._ranked(names, _MODEL)
        self.optimizers = self._ranked(names, _OPTIMIZER)
        if not self.models:
            raise self.missing("no model_states.pt")

    def _ranked(self, names: list[str], pattern: re.Pattern[str]) -> tuple[Path, ...]:
        matches = [match for name in names if (match := pattern.fullmatch(name))]
        if any(int(match[2]) for match in matches):
            raise _cut(
                f"{self.folder.name} is of tensor parallel training: each of its files has a part of each weight."
            )
        ranks = {int(match[1] or 0): match.string for match in matches}
        if sorted(ranks) != list(range(len(matches))):
            raise self.missing(f"no states of some rank: only of {', '.join(map(str, sorted(ranks)[:20]))}")
        return tuple(self.folder / ranks[rank] for rank in sorted(ranks))

    def missing(self, what: str) -> CheckpointIncompleteError:
        return CheckpointIncompleteError(
            f"{self.folder.name} has {what}.",
            expected="the model and optimizer states of every rank",
            remedy="If the run is still saving, wait; otherwise copy the files of all ranks into one folder.",
        )


@dataclass(frozen=True)
class Gathered(Unread):
    """A parameter that lies in several places: (flat tensor, first element, number of elements), one after another."""

    shape: tuple[int, ...]
    dtype: str
    places: tuple[tuple[Stored, int, int], ...]

    def load(self) -> torch.Tensor:
        """The parameter: memory-mapped if it is in one place. The padding at the end is left off."""
        import torch

        parts = [flat.load()[start : start + count] for flat, start, count in self.places]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole[: math.prod(self.shape)].view(self.shape)


def _parameters_in_groups(
    path: Path, root: dict[Any, Any], states: list[dict[Any, Any]]
) -> Iterator[tuple[str, Gathered]]:
    """ZeRO 1 and 2."""
    groups = [_flat(path, state.get("single_partition_of_fp32_groups")) for state in states]
    shapes = _shapes(path, root)
    if any(len(group) != len(shapes) for group in groups):
        raise _broken(path, "it has other parameter groups than the optimizer's states")
    for number, named in enumerate(shapes):
        parts = [group[number] for group in groups]
        room, start = sum(part.shape[0] for part in parts), 0
        for name, shape in named.items():
            count = math.prod(shape)
            if start + count > room:
                raise _broken(path, f"{printable(name)!r} exceeds its group")
            yield name, Gathered(shape, parts[0].dtype, tuple(_spread(parts, start, count)))
            start += count
        # ZeRO 2 aligns to twice the number of ranks, and pads once more for itself.
        align = 2 * len(states)
        if math.ceil(start / align) != math.ceil(room / align):
            raise _broken(path, f"a group has {room} elements, and its parameters {start}")


def _whole_parameters(path: Path, root: dict[Any, Any], states: list[dict[Any, Any]]) -> Iterator[tuple[str, Gathered]]:
    """ZeRO 3."""
    groups = [_flat(path, state.get("fp32_flat_groups")) for state in states]
    sizes = [[part.shape[0] for part in group] for group in groups]
    if any(row != sizes[0] for row in sizes):
        raise _broken(path, "its ranks have groups of different sizes")
    start = 0
    for named in _shapes(path, root):
        for name, shape in named.items():
            count = math.ceil(math.prod(shape) / len(states))
            if start + count > sum(sizes[0]):
                raise _broken(path, f"{printable(name)!r} exceeds the groups")
            places = tuple(place for group in groups for place in _spread(group, start, count))
            yield name, Gathered(shape, groups[0][0].dtype, places)
            start += count
    if start != sum(sizes[0]):
        raise _broken(path, f"its groups have {sum(sizes[0])} elements for each rank, and its parameters {start}")


def _spread(parts: list[Stored], start: int, count: int) -> Iterator[tuple[Stored, int, int]]:
    """Where `count` elements from `start` of the parts, laid one after another, lie in each."""
    for part in parts:
        size = part.shape[0]
        taken = min(count, max(0, size - start))
        if taken and start < size:
            yield part, start, taken
            count -= taken
        start = max(0, start - size)
        if not count:
            return


def _frozen(path: Path, roots: list[dict[Any, Any]], stage: int) -> Iterator[tuple[str, Leaf]]:
    """Buffers, and the parameters that were not trained, as far as they were saved."""
    module, buffers = _mapping(roots[0].get("module")), roots[0].get("buffer_names")
    for name in buffers if isinstance(buffers, list) else ():
        if isinstance(name, str) and isinstance(buffer := module.get(name), Stored):
            yield name, buffer
    parts = [_mapping(root.get("frozen_param_fragments")) for root in roots]
    for name, shape in _mapping(roots[0].get("frozen_param_shapes")).items():
        fragments = [part.get(name) for part in (parts if stage == 3 else parts[:1])]
        if not isinstance(name, str) or not _is_shape(shape):
            raise _broken(path, "a frozen parameter has no name or no shape")
        if not all(isinstance(fragment, Stored) for fragment in fragments):
            continue  # saved without them (exclude_frozen_parameters)
        stored = [fragment for fragment in fragments if isinstance(fragment, Stored)]
        if stage != 3:
            yield name, stored[0]
            continue
        places = tuple((fragment, 0, fragment.shape[0]) for fragment in stored if len(fragment.shape) == 1)
        if sum(count for _, _, count in places) < math.prod(shape):
            raise _broken(path, f"the parts of {printable(name)!r} are too few")
        yield name, Gathered(shape, stored[0].dtype, places)


def _tag(path: Path, wish: Wish) -> Path:
    """The folder of one save: the one of --step, the one that `latest` names, or `path` itself."""
    if any(_MODEL.fullmatch(entry.name) or _OPTIMIZER.fullmatch(entry.name) for entry in path.iterdir()):
        if wish.step not in (None, step_of(path, STEP)):
            raise NotMyKindError("another step was asked for")
        return path
    saves = {step: entry for entry in sorted(path.iterdir()) if (step := step_of(entry, STEP)) is not None}
    steps = sorted(saves)
    if wish.step is not None:
        if not steps:
            raise NotMyKindError("no global_stepN in it")
        if wish.step not in steps:
            raise CheckpointError(
                f"{path.name} has no global_step{wish.step}.",
                expected=f"one of the steps {', '.join(map(str, steps))}",
                remedy="Pass one that is there, or leave --step out.",
            )
        return saves[wish.step]
    if not (path / LATEST).is_file():
        if len(steps) == 1:
            return saves[steps[0]]
        if steps:
            raise CheckpointError(
                f"{path.name} has several DeepSpeed checkpoints and no file {LATEST}: {', '.join(map(str, steps))}.",
                expected=f"the file {LATEST} that names one",
                remedy="Pass --step N to export one of them.",
            )
        raise NotMyKindError(f"no {LATEST}, no global_stepN and no model states in it")
    with (path / LATEST).open("rb") as file:
        tag = file.read(300).decode(errors="replace").strip()
    if not is_plain_name(tag):
        raise NotMyKindError(f"{LATEST} in it names no folder")
    if not (path / tag).is_dir():
        raise CheckpointIncompleteError(
            f"{path.name} says that its latest checkpoint is {tag}, which is not there.",
            expected=f"the folder {tag}",
            remedy="If the run is still saving, wait; otherwise copy that folder too, or pass --step N.",
        )
    return path / tag


def _with_latest(path: Path, folder: Path, files: tuple[Path, ...]) -> tuple[Path, ...]:
    latest = path / LATEST
    return (latest, *files) if folder != path and latest.is_file() else files


def _root(path: Path) -> dict[Any, Any]:
    root = read_archive(path)
    if not isinstance(root, dict):
        raise _broken(path, "it holds no dict")
    return root


def _optimizer(path: Path) -> dict[Any, Any]:
    state = _root(path).get("optimizer_state_dict")
    if not isinstance(state, dict):
        raise _broken(path, "it has no optimizer_state_dict")
    return state


def _stage(root: dict[Any, Any]) -> int:
    """The stage that the DeepSpeed configuration in the file says; 0 is no ZeRO."""
    config = _mapping(_mapping(root.get("ds_config")).get("zero_optimization"))
    return _number(config.get("stage")) or 0


def _number(value: Any) -> int | None:
    if isinstance(value, Made) and value.args:  # DeepSpeed's ZeroStageEnum
        value = value.args[0]
    return value if type(value) is int and 0 <= value <= 3 else None


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}


def _shapes(path: Path, root: dict[Any, Any]) -> list[dict[str, tuple[int, ...]]]:
    groups = root.get("param_shapes")
    if not isinstance(groups, list) or not groups or not all(isinstance(group, dict) for group in groups):
        raise _broken(path, "it has no param_shapes")
    if not all(isinstance(name, str) and _is_shape(shape) for group in groups for name, shape in group.items()):
        raise _broken(path, "its param_shapes are no names and shapes")
    return groups


def _is_shape(shape: Any) -> bool:
    return is_shape(shape) and 0 not in shape


def _flat(path: Path, groups: Any) -> list[Stored]:
    if isinstance(groups, list) and groups:
        flat = [group for group in groups if isinstance(group, Stored) and len(group.shape) == 1]
        if len(flat) == len(groups):
            return flat
    raise _broken(path, "the optimizer's states beside it have no flat fp32 groups")


def _cut(found: str) -> CheckpointError:
    return CheckpointError(
        found,
        expected="data parallel training: ZeRO 1, 2 or 3",
        remedy="Save the adapter's state dict alone, best as .safetensors.",
    )


def _broken(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path.parent.name}/{path.name} cannot be read: {what}.",
        expected="what DeepSpeed's save_checkpoint writes",
        remedy="Save it again, or save the adapter's state dict alone, best as .safetensors.",
    )
