"""phi(x) = elu(x) + 1: the positive feature map of the Linear Transformer.

Katharopoulos, Vyas, Pappas, Fleuret: Transformers are RNNs. ICML 2020, arXiv:2006.16236, equation 7.
"""

import torch

from subquad.features.feature_map import FeatureMap, Features, Heads, Keys
from subquad.ops.linear_attention import FeatureKind, KernelInputs


class Elu(FeatureMap):
    @property
    def fused(self) -> bool:
        return True

    def forward(self, x: Heads) -> Features:
        # elu(x) + 1 would round to zero below -17 in float32, and a query could see no key
        return torch.where(x > 0, x + 1, x.clamp(max=0).exp())

    def prepare(self, q: Heads, k: Keys) -> KernelInputs:
        return KernelInputs(q, k, FeatureKind.ELU)
