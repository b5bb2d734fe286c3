"""LoHa and LoKr, which store what LyCORIS stores, but for the scale and for convolutions' kernels, which lie flat.

PEFT divides alpha by the rank of the configuration also where both factors of LoKr are whole.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from adapterline.checkpoints.peft_types.base import PeftType
from adapterline.checkpoints.scales import Config, alpha_over_rank, check_settings

if TYPE_CHECKING:
    from adapterline.checkpoints.dialects.base import ScaleRule

_BOTH = frozenset(
    {
        *("r", "alpha", "rank_pattern", "alpha_pattern", "rank_dropout", "module_dropout", "init_weights"),
        "use_effective_conv2d",
    }
)


def _rule(config: Config, where: str, harmless: frozenset[str], name: str) -> ScaleRule:
    check_settings(config, where, f"a plain {name}", harmless)
    return alpha_over_rank(config, where)


LOHA = PeftType(
    name="LOHA",
    suffixes={
        "hada_w1_a": "b1",
        "hada_w1_b": "a1",
        "hada_w2_a": "b2",
        "hada_w2_b": "a2",
        "hada_t1": "core1",
        "hada_t2": "core2",
    },
    rule=partial(_rule, harmless=_BOTH, name="LoHa"),
)
LOKR = PeftType(
    name="LOKR",
    suffixes={
        "lokr_w1": "w1",
        "lokr_w1_a": "w1_b",
        "lokr_w1_b": "w1_a",
        "lokr_w2": "w2",
        "lokr_w2_a": "w2_b",
        "lokr_w2_b": "w2_a",
        "lokr_t2": "w2_core",
    },
    rule=partial(_rule, harmless=_BOTH | {"decompose_both", "decompose_factor", "rank_dropout_scale"}, name="LoKr"),
)
