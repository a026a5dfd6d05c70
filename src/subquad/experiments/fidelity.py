"""How far mechanisms are from softmax attention: on random q, k and v by norm and angle, and on a model's."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, stdev

from subquad.experiments.config import FidelityStudy
from subquad.experiments.rows import mechanisms
from subquad.experiments.spec import MechanismSpec
from subquad.measure.activations import random_activations
from subquad.measure.fidelity import Differences, Fidelity, Spread, fidelity
from subquad.measure.layer_fidelity import Activations, ModelFidelity, layer_fidelities
from subquad.mechanism import Dims, Mechanism
from subquad.nn.layers.named import has_whole_layers
from subquad.stand_in import build_stand_in, stand_ins

OF_MECHANISM = ("output_cosine", "kl", "lost", "negative", "mass", "entropy", "effective_rank")
OF_SOFTMAX = ("softmax_entropy", "softmax_effective_rank")


@dataclass(frozen=True, kw_only=True)
class FidelityRow(Differences):
    """One mechanism at one norm and angle. Each seed draws activations, weights and random features anew.

    The relative error is that of all heads together, the other figures are means over heads; None where one
    is not known, for the reason given.
    """

    attention: str
    norm: float
    cosine: float
    softmax_entropy: Spread | None
    softmax_effective_rank: Spread | None
    reason: str


def by_norm_and_angle(
    study: FidelityStudy, *, tell: Callable[[str, float | None], None] = lambda doing, share: None
) -> list[FidelityRow]:
    """A row for each norm, cosine and mechanism, in this order.

    tell: is called with what is done, and the share of it that is.

    Raises `ValueError` before anything is measured for what is not known or cannot stand in for softmax.
    """
    wanted = study.activations
    dims = Dims(heads=wanted.heads, head_dim=wanted.head_dim, max_len=wanted.length)
    chosen = mechanisms(study.attention, every=stand_ins(dims, causal=study.causal))
    for each in chosen:
        built(each, dims, causal=study.causal, seed=0)
    cases = list(product(study.norms, study.cosines))
    rows: list[FidelityRow] = []
    for norm, cosine in cases:
        inputs = [
            random_activations(
                norm=norm,
                cosine=cosine,
                length=wanted.length,
                heads=wanted.heads,
                head_dim=wanted.head_dim,
                clusters=wanted.clusters,
                causal=study.causal,
                seed=seed,
            )
            for seed in range(study.seeds)
        ]
        for each in chosen:
            measured: list[Fidelity] = []
            for seed, qkv in enumerate(inputs):
                done = (len(rows) * study.seeds + seed) / (len(cases) * len(chosen) * study.seeds)
                tell("measuring", done)
                mechanism = built(each, dims, causal=study.causal, seed=seed)
                measured.append(fidelity(mechanism, *qkv, causal=study.causal, most_tokens=wanted.length))
            figures = {name: over_seeds(measured, name) for name in OF_MECHANISM + OF_SOFTMAX}
            errors = [one.relative_error and one.relative_error.mean for one in measured]
            rows.append(
                FidelityRow(
                    attention=each.label,
                    norm=norm,
                    cosine=cosine,
                    relative_error=spread_of(errors),
                    reason=next((one.reason for one in measured if one.reason), ""),
                    **figures,
                )
            )
    return rows


def by_layer(
    study: FidelityStudy,
    layers: Sequence[Activations],
    *,
    threshold: float,
    tell: Callable[[str, float | None], None] = lambda doing, share: None,
) -> list[ModelFidelity]:
    """For each mechanism how far it is from softmax in each layer of a model.

    threshold: the relative error up to which a layer bears the conversion.
    tell: is called with what is done, and the share of it that is.

    Raises `ValueError` before anything is measured for what is not known or cannot stand in for softmax.
    """
    first = layers[0]
    dims = Dims(heads=first.q.shape[1], head_dim=first.q.shape[3], max_len=study.activations.length)
    chosen = mechanisms(study.attention, every=stand_ins(dims, causal=first.causal))
    for each in chosen:
        built(each, dims, causal=first.causal, seed=0)
    found: list[ModelFidelity] = []
    for place, each in enumerate(chosen):

        def telling(place: int = place) -> Iterator[Activations]:
            for done, layer in enumerate(layers):
                tell("measuring", (place + done / len(layers)) / len(chosen))
                yield layer

        found.append(
            layer_fidelities(
                each.attention,
                telling(),
                threshold=threshold,
                draws=study.seeds,
                most_tokens=study.activations.length,
                **each.options,
            )
        )
    return found


def built(row: MechanismSpec, dims: Dims, *, causal: bool, seed: int) -> Mechanism:
    """A mechanism with what is random in it drawn from a seed. Raises `ValueError` for a whole layer."""
    if has_whole_layers(row.attention, row.options):
        raise ValueError(
            f"{row.label!r} has whole layers, and fidelity is of attention by itself: leave them out"
        )
    return build_stand_in(row.attention, dims, causal=causal, draw=seed, **row.options)


def over_seeds(measured: Sequence[Fidelity], name: str) -> Spread | None:
    """A figure of `HeadFidelity`, averaged over heads first."""
    by_head = [[mean_over_draws(getattr(head, name)) for head in one.heads] for one in measured]
    known = [[value for value in values if value is not None] for values in by_head]
    return spread_of([fmean(values) if len(values) == len(measured[0].heads) else None for values in known])


def mean_over_draws(figure: Spread | float | None) -> float | None:
    return figure.mean if isinstance(figure, Spread) else figure


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """The mean and deviation over seeds; None where one seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return Spread(mean=fmean(known), deviation=stdev(known) if len(known) > 1 else None)
