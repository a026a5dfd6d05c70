"""Features of a learnt spectral density: random directions drawn from a mixture of Gaussians.

    p(w) = sum_c pi_c N(mu_c, diag(sigma_c)^2),    w = mu_c + sigma_c eps,    eps ~ N(0, I)

For a fixed eps the direction w is a smooth function of mu and sigma, and so are the features; each head has
its own pi, mu and sigma. With x' = x / d^(1/4), and m directions of each component,

    Fourier     phi(x) = sqrt(pi_c / m) [cos(w . x'), sin(w . x')]  for all w, and a last feature of 1
                E[phi(q) . phi(k)] = sum_c pi_c cos(mu_c . y) exp(-|sigma_c y|^2 / 2) + 1,    y = q' - k'
    positive    phi(x) = sqrt(pi_c / m) exp(w . x' - |x'|^2)
                E[phi(q) . phi(k)] = sum_c pi_c exp(mu_c . z + |sigma_c z|^2 / 2 - |q'|^2 - |k'|^2),
                z = q' + k'

Both are the Gaussian kernel exp(-|q' - k'|^2 / 2), the Fourier one plus 1, for one component of mean 0 and
deviation 1. The last Fourier feature keeps weights from falling below zero.

Chowdhury, Solomou, Dubey, Sachan: Learning the Transformer Kernel. TMLR 2022, arXiv:2110.08323, section 3.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subquad.features.directions import gaussian, orthogonal_gaussian
from subquad.features.feature_map import ExponentialFeatureMap, FeatureMap, Features, Heads


class Mixture(nn.Module):
    """The density, `components` Gaussians for each of `heads` heads, and `features` draws of it."""

    eps: Float[Tensor, "f d"]

    def __init__(
        self,
        heads: int,
        head_dim: int,
        *,
        components: int,
        features: int,
        orthogonal: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.orthogonal = orthogonal
        # one component weighs 1 and has nothing to learn
        self.logits = nn.Parameter(torch.zeros(heads, components), requires_grad=components > 1)
        self.mean = nn.Parameter((2 * torch.rand(heads, components, head_dim) - 1) * head_dim**-0.5)
        self.log_deviation = nn.Parameter(torch.zeros(heads, components, head_dim))
        self.register_buffer("eps", torch.empty(features, head_dim))
        self.redraw(generator=generator)

    def redraw(self, *, generator: torch.Generator) -> None:
        draw = orthogonal_gaussian if self.orthogonal else gaussian
        self.eps.copy_(draw(*self.eps.shape, generator=generator))

    def directions(self, dtype: torch.dtype) -> tuple[Float[Tensor, "h f d"], Float[Tensor, "h 1 f"]]:
        """The draws w, and the logarithm of what each counts, pi_c / m."""
        components = self.logits.shape[1]
        eps = self.eps.to(dtype).unflatten(0, (components, -1))
        mean, deviation = self.mean.to(dtype)[:, :, None], self.log_deviation.to(dtype).exp()[:, :, None]
        log_weight = self.logits.to(dtype).log_softmax(-1) - math.log(eps.shape[1])
        log_counts = log_weight[..., None].expand(-1, -1, eps.shape[1])
        return (mean + deviation * eps).flatten(1, 2), log_counts.flatten(1)[:, None]


class FourierSpectral(FeatureMap):
    """Cosines and sines: twice as many features as directions, and one more."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x: Heads) -> Features:
        w, log_count = self.mixture.directions(x.dtype)
        angles = x @ (x.shape[-1] ** -0.25 * w.mT)
        root = (log_count / 2).exp()
        return torch.cat([root * angles.cos(), root * angles.sin(), torch.ones_like(x[..., :1])], -1)

    def redraw(self, *, generator: torch.Generator) -> None:
        self.mixture.redraw(generator=generator)


class PositiveSpectral(ExponentialFeatureMap):
    """Exponentials, as many as directions."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture = mixture

    def forward(self, x: Heads) -> Features:
        w, log_count = self.mixture.directions(x.dtype)
        x = x * x.shape[-1] ** -0.25
        return (log_count / 2).exp() * (x @ w.mT - x.square().sum(-1, keepdim=True)).exp()

    def log_queries(self, q: Heads) -> Features:
        w, log_count = self.mixture.directions(q.dtype)
        return q @ (q.shape[-1] ** -0.25 * w.mT) + log_count / 2

    def log_keys(self, k: Heads) -> Features:
        return self.log_queries(k) - k.square().sum(-1, keepdim=True) * k.shape[-1] ** -0.5

    def redraw(self, *, generator: torch.Generator) -> None:
        self.mixture.redraw(generator=generator)
