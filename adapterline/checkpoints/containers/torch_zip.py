"""One `.pt`, `.pth`, `.bin` or `.ckpt` file of `torch.save`: a state dict, or a training state with one in it."""

from __future__ import annotations

from pathlib import Path

from adapterline.checkpoints.containers.base import Contents, NotMyKindError, Wish
from adapterline.checkpoints.containers.leaves import open_state_dict

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


class TorchFile:
    """Reads state dicts, also nested ones: PyTorch Lightning's, `{"model": ..., "optimizer": ..., "ema": ...}`."""

    name = "torch"

    def open(self, path: Path, wish: Wish) -> Contents:
        """See `Container.open`."""
        if not path.is_file():
            raise NotMyKindError("not a file")
        if path.suffix not in SUFFIXES:
            raise NotMyKindError(f"its name ends in {path.suffix!r}, not in one of {', '.join(SUFFIXES)}")
        return open_state_dict(self.name, path, wish)
