"""The versions of the consumers, each in a virtual environment of its own, as a user of that day has it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TORCH = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))


@dataclass(frozen=True)
class Environment:
    """diffusers of a day, with the transformers and the peft of that day; None: the newest, of constraints.txt."""

    diffusers: str
    transformers: str
    peft: str

    @property
    def pins(self) -> tuple[str, ...]:
        return (
            f"diffusers=={self.diffusers}",
            f"transformers=={self.transformers}",
            f"peft=={self.peft}",
            _TORCH,
            "accelerate",
            "safetensors",
        )

    def python(self, cache: Path) -> Path:
        """The interpreter of the environment, which is made unless it is there."""
        folder = cache / f"diffusers-{self.diffusers}-{hashlib.sha256(repr(self.pins).encode()).hexdigest()[:8]}"
        python = folder / "bin" / "python"
        if not (folder / "installed").is_file():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            quiet = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *self.pins], check=True, env=quiet)
            (folder / "installed").touch()
        return python


def _pinned(name: str) -> str:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


#: From the oldest. The last one is what `make install` installs, and proves each export by itself.
ENVIRONMENTS = (
    Environment("0.35.2", "4.57.6", "0.17.1"),
    Environment("0.38.0", "5.5.4", "0.19.1"),
    Environment(_pinned("diffusers"), _pinned("transformers"), _pinned("peft")),
)
