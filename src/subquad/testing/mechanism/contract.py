"""Which checks apply to a mechanism, by the traits it claims."""

from collections.abc import Callable, Iterator

from subquad.mechanism import Mechanism
from subquad.testing.mechanism import (
    causality,
    copies,
    cost,
    empty,
    graphs,
    in_place,
    meaning,
    memory,
    numerics,
    padding,
    rejections,
    sharing,
    transforms,
    turning,
    waiting,
)

Check = Callable[[type[Mechanism]], None]


def contract(cls: type[Mechanism]) -> Iterator[Check]:
    """The checks that apply to `cls`, cheapest knowledge first. Each raises `AssertionError`."""
    traits = cls.traits
    yield rejections.check_signature
    yield rejections.check_rejects_unsupported_forms
    yield rejections.check_rejects_bad_masks
    yield rejections.check_rejects_mismatched_inputs
    yield rejections.check_rejects_other_dims
    if traits.state is not None:
        yield rejections.check_rejects_foreign_states
    yield meaning.check_shapes_and_dtypes
    yield meaning.check_matches_definition
    yield meaning.check_ties_match_definition
    yield meaning.check_gradients_reach_everything
    yield meaning.check_no_unused_parameters
    yield meaning.check_batch_invariance
    yield padding.check_padding_is_invisible
    yield padding.check_all_padding_gives_zeros
    yield empty.check_empty_batch
    yield empty.check_empty_sequence
    if traits.cross:
        yield meaning.check_cross_attention
        yield empty.check_empty_cross_attention
    if traits.causal is not None:
        yield causality.check_causal_by_gradients
        yield causality.check_causal_by_resampling
    if traits.state is not None:
        yield causality.check_stream_equals_sequence
        yield causality.check_state_is_batch_first
        yield causality.check_state_growth
        yield in_place.check_steps_in_place
        yield in_place.check_rejects_steps_in_place
    if traits.exchange is None:
        yield sharing.check_refuses_to_be_shared
    else:
        yield sharing.check_ranks_equal_one_process
    yield turning.check_turned_inputs_meet_one_another
    yield turning.check_turning_all_alike_changes_nothing
    if traits.normalised:
        yield meaning.check_weights_sum_to_one
    if traits.limit is not None:
        yield meaning.check_limit_is_softmax
    if traits.family == "memory":
        if traits.lossless is not None:
            yield memory.check_segments_equal_one_long_pass
        if memory.can_detach(cls):
            yield memory.check_gradients_stop_between_segments
        if traits.state is not None:
            yield memory.check_module_remembers_nothing
            yield memory.check_rows_reset_and_reorder
        if traits.state == "bounded":
            yield memory.check_state_stays_constant
    yield transforms.check_forward_mode_derivatives
    yield transforms.check_second_derivatives
    yield transforms.check_per_sample_gradients
    yield transforms.check_transforms_leak_nothing
    yield numerics.check_deterministic
    yield numerics.check_state_dict_round_trip
    yield numerics.check_gradient_checkpointing
    yield copies.check_meta_device_loading
    yield copies.check_copying_and_pickling
    yield numerics.check_penalty
    yield numerics.check_half_precision
    if traits.cost <= 2:  # what costs more is an oracle, and may decompose matrices, which waits
        yield waiting.check_never_waits_for_the_device
    yield cost.check_flop_growth
    yield cost.check_memory_growth
    yield numerics.check_compiles
    yield graphs.check_exports_with_dynamic_lengths
    yield graphs.check_compiles_with_dynamic_lengths
