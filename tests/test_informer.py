"""Whom ProbSparse attention chooses, what the others get, and that its sample is nobody else's."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from subquad import Dims
from subquad.mechanisms.informer import Informer, choose, scramble

HEADS, HEAD_DIM = 2, 4


def informer(*, causal=False, **options):
    return Informer(Dims(heads=HEADS, head_dim=HEAD_DIM), causal=causal, **options).double()


def inputs(length, *, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, HEADS, length, HEAD_DIM, dtype=torch.float64, generator=generator).unbind(0)


@pytest.mark.parametrize("causal", [True, False])
def test_the_queries_that_are_far_from_uniform_attend_and_the_others_get_the_mean(causal):
    q, k, v = inputs(40)
    sharp = torch.tensor([3, 17, 30, 39])
    q = q / 100
    q[:, :, sharp] *= 2000
    out = informer(causal=causal, factor=1)(q, k, v)
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert_close(out[:, :, sharp], exact[:, :, sharp])
    blunt = [i for i in range(40) if i not in sharp]
    counts = torch.arange(1, 41, dtype=v.dtype)[:, None]
    mean = v.cumsum(2) / counts if causal else v.mean(2, keepdim=True).expand(v.shape)
    assert_close(out[:, :, blunt], mean[:, :, blunt])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 57])
def test_any_length_means_what_the_definition_says(causal, length):
    mechanism = informer(causal=causal, factor=2)
    assert_close(mechanism(*inputs(length)), mechanism.definition(*inputs(length)))


@pytest.mark.parametrize("causal", [True, False])
def test_of_equal_queries_the_first_attend_and_no_more_than_one_asks_for(causal):
    q, k, v = inputs(40)
    q = q[:, :, :1].expand(q.shape).round()
    exact = F.scaled_dot_product_attention(q, k.round(), v, is_causal=causal)
    mechanism = informer(causal=causal, factor=2)
    for form in (mechanism, mechanism.definition):
        attend = (form(q, k.round(), v) - exact).abs().amax(-1) < 1e-9
        assert attend[:, :, :8].all()  # 2 ceil(ln 40)
        assert not attend[:, :, 8:].any()


def test_a_running_mean_does_not_grow_with_the_position_as_a_sum_would():
    q, k, v = inputs(200)
    out = informer(causal=True, factor=1)(0 * q, k, torch.ones_like(v))
    assert_close(out, torch.ones_like(v))


def test_the_sample_is_untouched_by_global_random_numbers():
    mechanism = informer(factor=1).train()
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        outputs.append(mechanism(*inputs(60)))
    assert_close(outputs[0], outputs[1], rtol=0, atol=0)


def test_layers_seeds_and_redraws_sample_differently():
    dims = (Dims(heads=1, head_dim=4, layer=layer) for layer in (0, 1))
    mechanisms = [Informer(d, causal=False) for d in dims] + [informer(seed=1)]
    other = informer()
    other.redraw(generator=torch.Generator().manual_seed(1))
    orders = {tuple(m._shuffled(30).tolist()) for m in (*mechanisms, other)}
    assert len(orders) == 4


def test_every_token_is_sampled_equally_often():
    keys = torch.randint(2**31, (1000, 2), generator=torch.Generator().manual_seed(0))
    first = torch.stack([scramble(torch.arange(20), key).argsort()[:5] for key in keys])
    share = torch.bincount(first.flatten(), minlength=20) / len(keys)
    allowed = 4 * (0.25 * 0.75 / len(keys)) ** 0.5
    assert_close(share, torch.full((20,), 0.25), rtol=0, atol=allowed)


def test_the_sample_ranks_queries_nearly_as_all_keys_do():
    q, k, _ = inputs(400)
    mechanism = informer(factor=5)
    count, u = torch.full((2,), 400), torch.full((2,), 30)
    chosen = choose(q, k, count, u, 30, mechanism.key)
    scores = q @ k.mT
    best = (scores.amax(-1) - scores.mean(-1)).argsort(-1, descending=True)[..., :30]
    shared = (chosen[..., None] == best[..., None, :]).any(-1).double().mean()
    assert shared > 0.5  # 30 of 400 at random would share 0.075


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="'informer': factor must be at least 1"):
        informer(factor=0)
