"""Bugs planted in what goes on under transforms, and in what is kept from them."""

from mutants.mutant import Mutant

MUTANTS = [
    Mutant(
        "linear",
        "forward_mode_derivatives",
        "an operator drops tangents without a word",
        "call_op",
        "if not transformed():",
        "if True:",
    ),
    Mutant(
        "local",
        "forward_mode_derivatives",
        "tangents of zeros are given in place of a refusal",
        "under_transforms",
        "def jvp(ctx: Any, *tangents: Tensor | None) -> Any:\n",
        "def jvp(ctx: Any, *tangents: Tensor | None) -> Any:\n            return None, None\n",
    ),
    Mutant(
        "svd",
        "second_derivatives",
        "what is held constant in the gradient is held constant in the gradient's gradient",
        "SvdAttention.forward",
        "A, v = once(A, NO_SECOND), once(v, NO_SECOND)\n",
        "pass\n",
    ),
    Mutant(
        "retention",
        "per_sample_gradients",
        "every sample is taken for the first",
        "under_transforms",
        "x.select(dim, i)",
        "x.select(dim, 0)",
    ),
    Mutant(
        "bigbird",
        "transforms_leak_nothing",
        "layouts that fake tensors made are kept for real ones",
        "tensors_last",
        "or fakes_tensors())",
        ")",
    ),
    Mutant(
        "routing",
        "transforms_leak_nothing",
        "what was gathered under a transform is added to what comes after",
        "RoutingAttention._route",
        "if torch.compiler.is_dynamo_compiling() or not passing():",
        "if True:",
    ),
    Mutant(
        "poolingformer",
        "exports_with_dynamic_lengths",
        "a window is cut to the length that is traced",
        "window_attention",
        "return call_op(window_op, q, k, v, lengths, left, right)",
        "return call_op(window_op, q, k, v, lengths, min(left, q.shape[2] - 1), right)",
    ),
    Mutant(
        "local",
        "compiles_with_dynamic_lengths",
        "tiles are laid out in the graph, for one length",
        "tiles.packed",
        "if torch.compiler.is_compiling():",
        "if False:",
    ),
    Mutant(
        "compressive",
        "exports_with_dynamic_lengths",
        "the graph's memory lacks what leaves it last",
        "Segments.evicted",
        "total, front = self.count * self.size,",
        "total, front = self.size,",
    ),
]
