"""Bugs planted in the kernel family's younger members."""

from mutants.mutant import Mutant

COSFORMER = "mechanisms/cosformer.py"
HEDGEHOG = "features/hedgehog.py"
OPTIMAL = "features/optimal.py"
SPECTRAL = "features/spectral.py"

MUTANTS = [
    Mutant(
        "cosformer",
        "padding_is_invisible",
        "padding counts as distance",
        COSFORMER,
        "return (valid.cumsum(1) - 1).clamp(min=0).to(dtype)[:, None, :, None]",
        "return torch.arange(length, dtype=dtype).expand(batch, 1, -1)[..., None]",
    ),
    Mutant(
        "cosformer",
        "batch_mates_do_not_matter",
        "the cosine reaches as far as the number of rows and tokens say",
        COSFORMER,
        "angles = math.pi / 2 * places(valid, like=q) / M[:, None, None, None]",
        "angles = math.pi / 2 * places(valid, like=q) / (M[:, None, None, None] * len(q))",
    ),
    Mutant(
        "cosformer",
        "causal_by_resampling",
        "the causal form's cosine reaches as far as the sequence at hand",
        COSFORMER,
        "angles = math.pi / 2 / self.dims.max_len * place",
        "angles = math.pi / 2 / counted(valid, like=q).clamp(min=1)[:, None, None, None] * place",
    ),
    Mutant(
        "cosformer",
        "stream_equals_sequence",
        "every chunk counts its tokens from zero",
        COSFORMER,
        "place, count = place + state.count[:, None, None, None], count + state.count",
        "count = count + state.count",
    ),
    Mutant(
        "cosformer",
        "matches_definition",
        "cosines without sines: distance does not matter, only place",
        COSFORMER,
        "torch.cat([x * angles.cos(), x * angles.sin()], -1)",
        "torch.cat([x * angles.cos(), x * angles.cos()], -1)",
    ),
    Mutant(
        "favor-plus-plus",
        "matches_definition",
        "the term in |w|^2 is left out, though it differs from feature to feature",
        OPTIMAL,
        "* W.mT) + A * W.square().sum(-1)",
        "* W.mT)",
    ),
    Mutant(
        "favor-plus-plus",
        "limit_is_softmax",
        "directions are not scaled to make up for A, and the estimate is biased",
        OPTIMAL,
        "(1 - 4 * A).sqrt()",
        "(1 - 0 * A).sqrt()",
    ),
    Mutant(
        "hedgehog",
        "matches_definition",
        "keys are normalised whether asked for or not",
        HEDGEHOG,
        "return log_phi.log_softmax(-1) if self.normalise else log_phi",
        "return log_phi.log_softmax(-1)",
    ),
    Mutant(
        "spectral",
        "gradients_reach_everything",
        "draws are cut off from the parameters of their density",
        SPECTRAL,
        "return (mean + deviation * eps).flatten(1, 2)",
        "return (mean + deviation * eps).detach().flatten(1, 2)",
    ),
    Mutant(
        "spectral",
        "state_dict_round_trip",
        "the noise is not saved with the weights",
        SPECTRAL,
        'self.register_buffer("eps", torch.empty(features, head_dim))',
        'self.register_buffer("eps", torch.empty(features, head_dim), persistent=False)',
    ),
]
