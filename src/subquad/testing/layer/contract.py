"""Which checks apply to a whole layer, by the traits it claims."""

from collections.abc import Callable, Iterator

from subquad.nn.layers.layer import Layer
from subquad.testing.layer import absence, claims, cost, numerics, recomputing, streams

LayerCheck = Callable[[type[Layer]], None]


def layer_contract(cls: type[Layer]) -> Iterator[LayerCheck]:
    """The checks that apply to `cls`, cheapest knowledge first. Each raises `AssertionError`."""
    traits = cls.traits
    yield claims.check_layer_signature
    yield claims.check_rejects_forms_it_has_not
    yield claims.check_sequences_come_out
    yield claims.check_gradients_reach_all
    yield absence.check_padding_is_absent
    yield absence.check_rows_are_independent
    yield absence.check_rows_of_padding
    yield absence.check_nothing_at_all
    if traits.causal is not None:
        yield streams.check_no_future_by_gradients
        yield streams.check_no_future_by_resampling
    if traits.state is not None:
        yield streams.check_stream_is_sequence
        yield streams.check_rows_of_a_stream
        yield streams.check_streams_in_place
        yield streams.check_size_of_the_state
    if traits.recomputes:
        yield recomputing.check_gradients_are_the_plain_ones
        yield recomputing.check_gradients_hold_in_half_precision
        yield recomputing.check_frozen_weights
        yield recomputing.check_memory_does_not_grow_with_depth
    yield numerics.check_same_every_time
    yield numerics.check_saved_and_copied
    yield numerics.check_layers_checkpointed
    yield numerics.check_layers_in_half_precision
    if traits.cost < 2:
        yield cost.check_layers_cost
    yield numerics.check_layers_compile
