"""What training wraps around a model leaves marks in the keys; they are peeled off between container and dialect.

module.X                     torch.nn.parallel.DistributedDataParallel
_orig_mod.X, X._orig_mod.Y   torch.compile, of the whole model or of blocks
X.lora_A.default.weight      the adapter's name, which PEFT takes out when it saves and state_dict() does not
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from adapterline.errors import CheckpointError

_ADAPTER_NAME = re.compile(
    r"(\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.([^.]+)(?=\.(?:weight|bias)$|$)"
)


def peel(keys: Iterable[str]) -> dict[str, str]:
    """{peeled key: key as written}. CheckpointError if two keys become one, or if several adapters are in there."""
    peeled: dict[str, str] = {}
    adapters: set[str] = set()
    for key in keys:
        plain = key.replace("_orig_mod.", "")
        while plain.startswith("module."):
            plain = plain.removeprefix("module.")
        match = _ADAPTER_NAME.search(plain)
        if match and match[2] not in ("weight", "bias"):
            adapters.add(match[2])
            plain = plain[: match.start()] + match[1] + plain[match.end() :]
        if plain in peeled:
            raise CheckpointError(
                f"Two tensors are the same once wrappers are taken off: {peeled[plain]!r} and {key!r}.",
                expected="one adapter" + (f", not {', '.join(sorted(adapters))}" if len(adapters) > 1 else ""),
                remedy="Save one adapter alone, from the unwrapped model.",
            )
        peeled[plain] = key
    if len(adapters) > 1:
        raise CheckpointError(
            f"The checkpoint holds several adapters: {', '.join(sorted(adapters))}.",
            expected="one",
            remedy="Save them one by one.",
        )
    return peeled
