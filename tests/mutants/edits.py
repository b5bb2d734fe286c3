"""All ways in which the suite changes a good file. Each is a function of a `Copy`; its docstring says what it does.

It gives what a message about it must name: modules where it broke few of them, else components or files. It raises
NotApplicableError where there is nothing that it could break.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.mutants import factors, header, kept, keys, layers, raw
from tests.mutants.copy import Copy

Edit = Callable[[Copy], tuple[str, ...] | None]

#: Smaller than any rounding: caught where nothing had to be rounded, else within the stated bound.
SMALLEST: tuple[Edit, ...] = (factors.one_ulp_in_a, factors.one_ulp_in_b)
NAMES: tuple[Edit, ...] = (
    keys.prefix_dropped,
    keys.prefix_of_nothing,
    keys.prefix_of_comfyui,
    keys.prefix_of_peft,
    keys.prefix_of_another_component,
    keys.prefix_of_one_module_wrong,
    keys.wrapper_left_outside,
    keys.compiled_model_left_inside,
    keys.compiled_block_left_inside,
    keys.adapter_name_left_in,
    keys.two_key_styles,
    keys.one_module_misspelt,
    keys.dots_are_underscores,
)
BREAKING: dict[str, tuple[Edit, ...]] = {
    "numbers": (
        *SMALLEST,
        factors.scaled_by_a_hundredth,
        factors.b_doubled,
        factors.a_halved,
        factors.everything_scaled,
        factors.one_row_of_b_scaled,
        factors.one_direction_scaled,
        factors.one_element_zeroed,
        factors.two_elements_exchanged,
        factors.sign_of_one_element_flipped,
        factors.b_zeroed,
        factors.every_b_zeroed,
        factors.nan,
        factors.infinity,
        factors.every_b_nan,
        factors.sign_flipped_in_a,
        factors.rank_permuted_in_a,
        factors.row_duplicated,
        factors.inputs_permuted,
        factors.heads_permuted,
        factors.rows_interleaved,
        factors.change_transposed,
        factors.factor_reshaped,
        factors.kernel_flipped,
        factors.kernel_transposed,
        factors.rank_cut,
        factors.another_adapters_factor,
        factors.noise_above_the_bound,
        factors.one_module_in_float16,
        factors.one_module_in_bfloat16,
        factors.all_in_float16,
        factors.all_in_bfloat16,
        factors.bfloat16_and_back,
        factors.magnitude_lost,
        factors.every_magnitude_lost,
        factors.magnitude_permuted,
        factors.one_ulp_in_a_magnitude,
        factors.magnitudes_exchanged,
        factors.bias_lost,
        factors.every_bias_zeroed,
        factors.bias_scaled,
    ),
    "modules": (
        layers.a_dropped,
        layers.b_dropped,
        layers.module_dropped,
        layers.all_modules_of_one_name_dropped,
        layers.component_dropped,
        layers.file_missing,
        layers.files_exchanged,
        layers.components_exchanged,
        layers.modules_exchanged,
        layers.a_exchanged,
        layers.b_exchanged,
        layers.queries_and_keys_exchanged,
        layers.module_copied_over_another,
        layers.factors_exchanged,
        layers.block_added,
        layers.block_renumbered,
        layers.untrained_module_added,
        layers.module_moved,
        layers.empty_file,
        layers.input_cut,
        layers.output_added,
    ),
    "names": NAMES,
    "metadata": (
        header.alpha_lost,
        header.alpha_of_one_component_lost,
        header.alpha_doubled,
        header.alpha_one_off,
        header.stale_metadata,
        header.metadata_of_another_adapter,
        header.rank_pattern_lost,
        header.alpha_pattern_lost,
        header.alpha_pattern_edited,
        header.alpha_pattern_added,
        header.rslora_switched_on,
        header.dora_switched_off,
        header.dora_switched_on,
        header.target_left_out,
        header.unknown_setting,
        header.metadata_is_no_json,
    ),
    "bytes": (
        raw.truncated,
        raw.trailing_bytes,
        raw.cut_in_the_header,
        raw.nothing_left,
        raw.git_lfs_pointer,
        raw.offsets_exchanged,
        raw.shape_edited,
        raw.dtype_edited,
        raw.key_edited,
    ),
}
#: Other ways to say what is there: right after all where a loader knows them, which a second witness must then say.
ANOTHER_WAY: tuple[Edit, ...] = (*NAMES, header.target_left_out)
KEEPING: tuple[Edit, ...] = (
    kept.signs_flipped_in_both,
    kept.a_doubled_b_halved,
    kept.one_direction_doubled_and_halved,
    kept.rank_permuted_in_both,
    kept.ranks_of_zeros_added,
    kept.order_of_tensors,
    kept.spaces_in_the_header,
    kept.other_metadata,
    kept.metadata_in_another_order,
    kept.metadata_that_says_a_scale_of_one,
    kept.text_encoder_without_text_model,
)
EDITS: tuple[Edit, ...] = (*(edit for edits in BREAKING.values() for edit in edits), *KEEPING)


def name_of(edit: Edit) -> str:
    """As tests and reports call it."""
    return edit.__name__.replace("_", " ")


def meaning_of(edit: Edit) -> str:
    """What it does, in words."""
    return (edit.__doc__ or "").strip()
