"""A learnt spectral kernel: attention by random features whose distribution is trained.

    out_i = sum_j (phi(q_i) . phi(k_j)) v_j / sum_j phi(q_i) . phi(k_j)

A kernel that depends on q - k alone is the Fourier transform of a density (Bochner), and draws from the
density are directions of random features. Where Performer's density is N(0, I), this one is a mixture of
Gaussians, and gradients reach its parameters through the draws (`features/spectral.py`).

Chowdhury, Solomou, Dubey, Sachan: Learning the Transformer Kernel. TMLR 2022, arXiv:2110.08323, section 3:
GMM-PRF is `form="positive"`, GMM-RKS `form="fourier"`. Departs from the authors' code:

- every head has `components` Gaussians of diagonal covariance and learnt weights; there it has one, which for
  GMM-RKS is of full covariance;
- the weights of GMM-RKS are half as large before 1 is added to them, and its Gaussians stand at mu, there at
  mu and -mu;
- the noise is drawn once, and anew only where `redraw_every` asks for it; there, at every call;
- deviations start at 1, so that training starts near a known kernel.
"""

from dataclasses import replace
from types import MappingProxyType
from typing import Annotated

from subquad.bounds import Count, Steps, one_of
from subquad.features.spectral import FourierSpectral, Mixture, PositiveSpectral
from subquad.mechanism import Dims
from subquad.mechanisms.kernel import KERNEL, KernelAttention
from subquad.ops.shared.generators import seeded

FORMS = MappingProxyType({"positive": PositiveSpectral, "fourier": FourierSpectral})

Form = Annotated[str, one_of(*FORMS)]


class SpectralAttention(KernelAttention):
    """Random directions of a learnt density, as many from each of its Gaussians.

    form: "positive", exponential features and weights above zero; "fourier", cosines and sines, to whose
        weights 1 is added so that none is below zero.
    components: Gaussians of the density.
    features: random directions, a multiple of `components`.
    seed: from which the noise is drawn, with the layer's number.
    orthogonal: whether the noise is so within blocks of the head's width.
    redraw_every: steps of training until the noise is drawn anew, 0 for never; the training loop calls
        `subquad.nn.redraw`.

    Approximates the Gaussian kernel exp(-|q - k|^2 / (2 sqrt(d))) at the start, but for its random means,
    and then whatever kernel the task teaches it. It is equal to softmax attention for no options; where all
    keys are equally long, the Gaussian kernel is.

    Not for copying a trained softmax layer, whose kernel depends on the lengths of keys in another way. Nor
    where the Fourier form must be sharp: its weights are below 2, and 1 of that is the same for every key.
    """

    traits = replace(KERNEL, name="spectral", paper="arXiv:2110.08323", tiny={"features": 16})

    def __init__(
        self,
        dims: Dims,
        *,
        causal: bool,
        form: Form = "positive",
        components: Count = 2,
        features: Count = 256,
        seed: int = 0,
        orthogonal: bool = False,
        redraw_every: Steps = 0,
    ) -> None:
        if features % components:
            raise ValueError(
                f"'spectral': features must be a multiple of the {components} components, not {features!r}"
            )
        mixture = Mixture(
            dims.heads,
            dims.head_dim,
            components=components,
            features=features,
            orthogonal=orthogonal,
            generator=seeded(seed, dims.layer),
        )
        super().__init__(dims, causal=causal, features=FORMS[form](mixture))
        self.redraw_every = redraw_every
