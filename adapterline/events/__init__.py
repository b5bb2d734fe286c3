"""What is told when a training run ends, and who is told it: `training.run.completed`, an event of Prefect."""

from __future__ import annotations

from adapterline.events.training_completed import EVENT, RESOURCE, TrainingCompleted

__all__ = ["EVENT", "RESOURCE", "TrainingCompleted"]
