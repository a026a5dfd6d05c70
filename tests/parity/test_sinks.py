"""Attention sinks beside gpt-oss, beside the cache of StreamingLLM, and beside our own patterns."""

from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from subquad import Dims, build
from subquad.mechanisms.sinks import SinkAttention

B, H, T, D = 2, 3, 150, 8
WIDTH, SINKS = 20, 4
DIMS = Dims(heads=H, head_dim=D)


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, H, T, D, dtype=torch.float64, generator=generator) for _ in range(3)]


def test_the_learnt_logit_is_that_of_gpt_oss(tokens):
    gpt_oss = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss")
    ours = SinkAttention(DIMS, causal=True, width=WIDTH, sinks=0, learnt=True).double()
    torch.nn.init.normal_(ours.get_parameter("s"))
    i = torch.arange(T)
    seen = (i <= i[:, None]) & (i[:, None] - i < WIDTH + 1)  # its windows count the token itself
    mask = torch.zeros(T, T, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    layer = SimpleNamespace(sinks=ours.s, num_key_value_groups=1, training=False)
    theirs, _ = gpt_oss.eager_attention_forward(layer, *tokens, mask, scaling=D**-0.5)
    assert_close(ours(*tokens), theirs.transpose(1, 2))


def test_a_token_sees_what_the_cache_of_streaming_llm_holds(tokens):
    """Token by token on a cache of lists, from whose middle the oldest is dropped."""
    ours = SinkAttention(DIMS, causal=True, width=WIDTH, sinks=SINKS).double()
    cache, state = [], None
    for q, *token in zip(*(x.split(1, 2) for x in tokens), strict=True):
        cache.append(token)
        if len(cache) > SINKS + WIDTH + 1:
            del cache[SINKS]
        k, v = (torch.cat(x, 2) for x in zip(*cache, strict=True))
        expected = (q @ k.mT / D**0.5).softmax(-1) @ v
        out, state = ours.step(q, *token, state=state)
        assert_close(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_pattern_of_a_window_and_global_tokens(tokens, dtype):
    tokens = [x.to(dtype) for x in tokens]
    ours = build("sinks", DIMS, causal=True, width=WIDTH, sinks=SINKS)
    pattern = build("pattern", DIMS, causal=True, expr=f"Local({WIDTH}) | Global({SINKS})")
    valid = torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.8
    for mask in (None, valid):
        assert_close(ours(*tokens, valid=mask), pattern(*tokens, valid=mask))


def test_without_sinks_it_is_local_attention(tokens):
    ours = build("sinks", DIMS, causal=True, width=WIDTH, sinks=0)
    assert_close(ours(*tokens), build("local", DIMS, causal=True, width=WIDTH)(*tokens))
