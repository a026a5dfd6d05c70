"""Bugs planted in Triton kernels, each for a test of `tests/interpreted`."""

from mutants.mutant import KernelMutant

MUTANTS = [
    KernelMutant(
        "test_linear_attention.py::test_outputs_and_gradients_are_those_of_the_reference[1-False-torch.float32]",
        "keys at padding are features of zero",
        "triton_feature_kernels.key_features",
        "tl.where(seen[:, None] & (f < features)[None, :], elu(",
        "tl.where((f < features)[None, :], elu(",
    ),
    KernelMutant(
        "test_linear_attention.py::test_lengths_beside_those_of_tiles_and_segments[1-True-65]",
        "a query does not see its own key",
        "triton_feature_kernels.averages",
        "at[:, None] >= past[None, :]",
        "at[:, None] > past[None, :]",
    ),
    KernelMutant(
        "test_linear_attention.py::test_lengths_beside_those_of_tiles_and_segments[1-True-200]",
        "earlier segments are forgotten",
        "triton_feature_kernels.averages",
        "o += mm(phi, S, LOW, PRECISION)",
        "o += 0 * mm(phi, S, LOW, PRECISION)",
    ),
    KernelMutant(
        "test_linear_attention.py::test_lengths_beside_those_of_tiles_and_segments[1-False-64]",
        "denominators have no gradient for queries",
        "triton_feature_kernels.query_gradients",
        "mm(g, tl.trans(S), LOW, PRECISION) + w[:, None] * z[None, :]",
        "mm(g, tl.trans(S), LOW, PRECISION)",
    ),
    KernelMutant(
        "test_linear_attention.py::test_lengths_beside_those_of_tiles_and_segments[2-True-64]",
        "features of keys lose their shifts",
        "triton_causal_kernels.causal_averages",
        "+ key_top[None, :] + (query_top - 2 * HEAD)[:, None]",
        "+ (query_top - 2 * HEAD)[:, None]",
    ),
    KernelMutant(
        "test_linear_attention.py::test_a_stream_in_parts_is_the_whole[2-False]",
        "sums are not scaled when the shift grows",
        "exponential_step",
        "* old[:, None]",
        "* 1.0",
    ),
    KernelMutant(
        "test_recurrence.py::test_any_sizes_give_the_recurrence_and_its_gradients[130-20-8-one decay]",
        "states do not fade from chunk to chunk",
        "triton_fading.faded",
        "return state * tl.exp(log)\n",
        "return state\n",
    ),
    KernelMutant(
        "test_recurrence.py::test_any_sizes_give_the_recurrence_and_its_gradients[130-20-8-one decay]",
        "the rest of a chunk is written one token late",
        "triton_decay_kernels.recall",
        "at = first + r\n",
        "at = first + r + (i > 0)\n",
    ),
    KernelMutant(
        "test_recurrence.py::test_any_sizes_give_the_recurrence_and_its_gradients[63-8-8-delta]",
        "rates have no gradient through the chunk's own system",
        "of_queries",
        "of_rates - tl.sum(system, 1)",
        "of_rates",
    ),
]
