"""How far the exported change of a module's weight may be from the trained one, by Frobenius norm.

Data of what was done to the factors, never a global allowance. Rounding a factor to a dtype with p bits of precision
moves each element by at most 2**-p of itself, uniformly: about 2**-p / sqrt(3) of the norm, and both factors may be
rounded. The limits are about four times what that gives, so that they hold for small modules too.
"""

from __future__ import annotations

#: The same change, however its factors are arranged: what float64 loses in comparing two products (`exact_error`).
EXACT = 1e-13
#: Folding the scale without a change of dtype: more than this, and the module is stored in fp32 instead.
FOLD = 5e-4
#: LoHa, LoKr and the like written as LoRA: products of their entries, rounded to float32.
REWRITTEN = 2e-6
#: A dtype that the user asked for, by its safetensors name.
CAST = {"F64": 1e-12, "F32": 1e-6, "F16": 1e-3, "BF16": 8e-3}

#: What comes out of a whole model in float32, whose factors were not rounded: the order of sums (`forward`).
FORWARD = 2e-4
#: Room for rounding in a model's output: so many times what the last bit of each adapted module's output makes there.
ROUNDINGS = 8.0


def limit(stored: str, requested: bool) -> float:
    """The limit for a module whose factors are stored as `stored`, `requested` by --dtype or not."""
    return CAST[stored] if requested else FOLD


def forward(stored: str, requested: bool) -> float:
    """The limit for what comes out of a whole model, relative to what the adapter changes there.

    Four times that of a weight, because errors meet in the model; float32 arithmetic in another order has its own.
    """
    return 4 * limit(stored, requested) if stored not in ("F32", "F64") else FORWARD
