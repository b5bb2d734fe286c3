"""Telling that a run ended, from inside of a trainer: transformers' callback, and accelerate's tracker.

trainer = Trainer(..., callbacks=[transformers_callback(name="sks-dog")])
accelerator = Accelerator(log_with=accelerate_tracker(checkpoint=args.output_dir, name="sks-dog"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapterline.values import TrainingRun

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker
    from transformers import TrainerCallback


def transformers_callback(
    *, base: str | None = None, name: str | None = None, run: TrainingRun | None = None
) -> TrainerCallback:
    """A callback of `transformers.Trainer`: notifies of `args.output_dir` once training has ended.

    The run's id and step are those of the trainer where `run` says none. See `adapterline.notify` for errors: one of
    them ends the script, after what was trained is saved.
    """
    from transformers import TrainerCallback

    class Notify(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                told = {"run_id": getattr(args, "run_name", None), "step": state.global_step}
                _notify(str(args.output_dir), base, name, run, told)

    return Notify()


def accelerate_tracker(
    *, checkpoint: str, base: str | None = None, name: str | None = None, run: TrainingRun | None = None
) -> GeneralTracker:
    """A tracker of `accelerate`: notifies of `checkpoint` when the script calls `accelerator.end_training()`.

    The step is the last that the script logged, where `run` says none.
    """
    from accelerate.tracking import GeneralTracker, on_main_process

    class Notify(GeneralTracker):  # type: ignore[misc]  # accelerate is untyped
        name = "adapterline"
        requires_logging_directory = False

        def __init__(self) -> None:
            super().__init__()
            self._step: int | None = None

        @property
        def tracker(self) -> None:
            return None

        @on_main_process  # type: ignore[untyped-decorator]
        def store_init_configuration(self, values: dict[str, Any]) -> None:
            pass

        @on_main_process  # type: ignore[untyped-decorator]
        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            self._step = step if step is not None else self._step

        @on_main_process  # type: ignore[untyped-decorator]
        def finish(self) -> None:
            _notify(checkpoint, base, given_name, run, {"step": self._step})

    given_name = name
    return Notify()


def _notify(checkpoint: str, base: str | None, name: str | None, run: TrainingRun | None, told: dict[str, Any]) -> None:
    from adapterline import api

    run = run or TrainingRun()
    missing = {field: value for field, value in told.items() if getattr(run, field) is None and value is not None}
    api.notify(checkpoint, base=base, name=name, run=run.model_copy(update=missing))
