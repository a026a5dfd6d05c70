"""Which checks apply to a mechanism, by the traits it claims."""

from collections.abc import Callable, Iterator

from subquad.mechanism import Mechanism
from subquad.testing import (
    copies,
    cost,
    graphs,
    meaning,
    nothing,
    numerics,
    order,
    padding,
    refusals,
    transforms,
)

Check = Callable[[type[Mechanism]], None]


def contract(cls: type[Mechanism]) -> Iterator[Check]:
    """The checks that apply to `cls`, cheapest knowledge first. Each raises `AssertionError`."""
    traits = cls.traits
    yield refusals.check_signature
    yield refusals.check_refuses_what_it_lacks
    yield refusals.check_refuses_bad_masks
    yield refusals.check_refuses_inputs_that_do_not_go_together
    yield refusals.check_refuses_inputs_of_other_dims
    if traits.state is not None:
        yield refusals.check_refuses_states_of_others
    yield meaning.check_shapes_and_dtypes
    yield meaning.check_matches_definition
    yield meaning.check_ties_match_definition
    yield meaning.check_gradients_reach_everything
    yield meaning.check_every_weight_takes_part
    yield meaning.check_batch_mates_do_not_matter
    yield padding.check_padding_is_invisible
    yield padding.check_a_row_of_padding_gives_zeros
    yield nothing.check_no_rows
    yield nothing.check_no_tokens
    if traits.cross:
        yield meaning.check_cross_attention
        yield nothing.check_nothing_to_see
    if traits.causal is not None:
        yield order.check_causal_by_gradients
        yield order.check_causal_by_resampling
    if traits.state is not None:
        yield order.check_stream_equals_sequence
        yield order.check_state_goes_by_row
        yield order.check_state_growth
    if traits.normalised:
        yield meaning.check_weights_sum_to_one
    if traits.limit is not None:
        yield meaning.check_limit_is_softmax
    yield transforms.check_forward_mode_is_right_or_refused
    yield transforms.check_second_derivatives_are_right_or_refused
    yield transforms.check_per_sample_gradients_are_right_or_refused
    yield transforms.check_transforms_leave_nothing_behind
    yield numerics.check_deterministic
    yield numerics.check_state_dict_round_trip
    yield numerics.check_gradients_when_checkpointed
    yield copies.check_is_loaded_into_new_memory
    yield copies.check_copies
    yield numerics.check_penalty
    yield numerics.check_half_precision
    yield cost.check_work
    yield cost.check_memory
    yield numerics.check_compiles
    yield graphs.check_exports_with_free_lengths
    yield graphs.check_compiles_once_for_several_lengths
