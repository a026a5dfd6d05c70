"""That a layer's work and memory grow with length as claimed."""

import math

from subquad.measure.flops import count_flops
from subquad.measure.memory import peak_bytes
from subquad.nn.layers.layer import Layer
from subquad.testing.layer.cases import build_network, cases, random_tokens
from subquad.testing.mechanism.cost import SLACK


def check_layers_cost(cls: type[Layer]) -> None:
    """Operations in products, and peak memory, grow with length no faster than the traits say."""
    for case in cases(cls):
        network = build_network(cls, case, max_len=512)
        for what, measure in {"work": count_flops, "memory": peak_bytes}.items():
            short, long = (measure(network, x=random_tokens(length=n)) for n in (256, 512))
            exponent = math.log2(long / short)
            limit = case.claims.cost + SLACK
            assert exponent < limit, f"{case}: {what} grows as length ** {exponent:.2f}, claimed {limit:.1f}"
