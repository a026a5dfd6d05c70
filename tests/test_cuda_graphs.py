"""On a CUDA device: nothing waits for it, by its own account, and its work can be captured in a graph.

Once for FlexAttention and kernels (float32, heads of 32), once for what serves where they refuse (float64).

    pytest -o addopts= -o filterwarnings=default -m cuda      types are not checked, which no graph can hold
"""

import gc

import pytest
import torch
from torch.testing import assert_close

from subquad.config import SamplingConfig
from subquad.fields import Readout, Tokens
from subquad.mechanism import Dims
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.generation import Decoder
from subquad.nn.model import SequenceModel, SequenceModelConfig
from subquad.patterns.pattern_attention import flex
from subquad.registry import catalog
from subquad.testing.mechanism.cases import forms, random_inputs, tensors

if not torch.cuda.is_available():
    pytest.skip("there is no CUDA device", allow_module_level=True)
if hasattr(flex.blockwise, "__wrapped__"):
    pytest.skip(
        "types are checked here, which no graph can hold: pytest -o addopts= …", allow_module_level=True
    )

pytestmark = pytest.mark.cuda

DIMS, LENGTH = Dims(heads=2, head_dim=32, max_len=4096), 200
CASES = [
    (name, causal, dtype)
    for name, cls in catalog().items()
    if cls.traits.cost <= 2
    for causal in forms(cls)
    for dtype in (torch.float32, torch.float64)
]
STREAMS = [(name, dtype) for name, causal, dtype in CASES if causal and catalog()[name].traits.state]
TOLERANCE = {torch.float32: {"rtol": 2e-3, "atol": 2e-3}, torch.float64: {}}  # as TF32 is off


def built(name, causal, dtype):
    cls = catalog()[name]
    torch.manual_seed(0)
    mechanism = cls(DIMS, causal=causal, **cls.traits.tiny).to("cuda", dtype).eval()
    return mechanism, lambda seed, length=LENGTH: {
        key: x.cuda() for key, x in random_inputs(mechanism, length=length, seed=seed, dtype=dtype).items()
    }


def masks():
    holes = torch.rand(2, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.6
    return {"no padding": None, "holes": holes.cuda()}


def captured(call):
    """The graph of a call that has been made before, and the tensors in which its results will lie.

    Nothing is freed meanwhile: an older graph that goes would end the capture.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    gc.collect()
    gc.disable()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = call()
    finally:
        gc.enable()
    return graph, results


@pytest.fixture
def no_synchronisation():
    """To be entered: within, CUDA raises an error where the host waits."""

    class Watched:
        def __enter__(self):
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    yield Watched()
    torch.cuda.set_sync_debug_mode("default")


def passes(mechanism, inputs, valid):
    """Outputs and gradients."""
    leaves = [x.requires_grad_() for x in (*inputs.values(), *mechanism.parameters())]
    out = mechanism(**inputs, valid=valid)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    real = out if valid is None else out.masked_fill(~valid[:, None, :, None], 0)
    return real, *torch.autograd.grad((real * weights).sum(), leaves, materialize_grads=True)


@pytest.mark.parametrize("padding", ["no padding", "holes"])
@pytest.mark.parametrize(("name", "causal", "dtype"), CASES)
def test_neither_pass_waits_for_the_device(name, causal, dtype, padding, no_synchronisation):
    mechanism, inputs = built(name, causal, dtype)
    given, valid = inputs(1), masks()[padding]
    passes(mechanism, given, valid)  # compiles
    with no_synchronisation:
        passes(mechanism, given, valid)


@pytest.mark.parametrize("padding", ["no padding", "holes"])
@pytest.mark.parametrize(("name", "causal", "dtype"), CASES)
def test_both_passes_can_be_captured(name, causal, dtype, padding):
    mechanism, inputs = built(name, causal, dtype)
    given, others, valid = inputs(1), inputs(2), masks()[padding]
    graph, results = captured(lambda: passes(mechanism, given, valid))
    with torch.no_grad():
        for key, x in others.items():
            given[key].copy_(x)
    graph.replay()
    expected = passes(mechanism, others, valid)
    assert_close(results, expected, **TOLERANCE[dtype])


def test_a_models_passes_can_be_captured():
    torch.manual_seed(0)
    config = EncoderConfig(dim=64, depth=2, heads=2, attention="local", positions="learnt", max_len=LENGTH)
    model = Encoder(config).cuda()
    x, other, valid = torch.randn(2, LENGTH, 64).cuda(), torch.randn(2, LENGTH, 64).cuda(), masks()["holes"]

    def both(x):
        out = model(x, valid).masked_fill(~valid[..., None], 0)
        return out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))

    graph, results = captured(lambda: both(x))
    x.copy_(other)
    graph.replay()
    assert_close(results, both(other), **TOLERANCE[torch.float32])


@pytest.mark.parametrize("padding", ["no padding", "holes"])
@pytest.mark.parametrize(("name", "dtype"), STREAMS)
@torch.no_grad()
def test_steps_in_place_can_be_captured_and_wait_for_nothing(name, dtype, padding, no_synchronisation):
    mechanism, inputs = built(name, True, dtype)
    tokens, valid = inputs(1, length=24), masks()[padding]

    def chunk(part):
        mask = {} if valid is None else {"valid": valid[:, part].contiguous()}
        return {**{key: x[:, :, part].contiguous() for key, x in tokens.items()}, **mask}

    _, own = mechanism.step(**chunk(slice(8)))
    state = mechanism.reserve(own, 16)
    state = type(state)(*(x.clone() for x in state))  # which `own` is not
    before, token = [x.clone() for x in state], chunk(slice(8, 9))
    graph, (out, _) = captured(lambda: mechanism.step(**token, state=state, in_place=True))
    for x, y in zip(state, before, strict=True):
        x.copy_(y)  # as it was before the rehearsals
    for n in range(8, 24):
        for key, x in chunk(slice(n, n + 1)).items():
            token[key].copy_(x)
        graph.replay()
        with no_synchronisation:
            expected, own = mechanism.step(**chunk(slice(n, n + 1)), state=own)
        real = torch.ones_like(out, dtype=torch.bool) if valid is None else token["valid"][:, None, :, None]
        assert_close(out * real, expected * real, **TOLERANCE[dtype])


@torch.no_grad()
def test_a_models_decoding_can_be_captured():
    torch.manual_seed(0)
    config = EncoderConfig(
        dim=64, depth=2, heads=2, attention="softmax", causal=True, positions="rotary", max_len=LENGTH
    )
    model, x = Encoder(config).cuda().eval(), torch.randn(2, 24, 64).cuda()
    _, state = model.step(x[:, :8])
    state = model.reserve(state, 16)
    before, token = [y.clone() for y in tensors(state)], x[:, 8:9].clone()
    graph, (out, _) = captured(lambda: model.step(token, state=state, in_place=True))
    for y, first in zip(tensors(state), before, strict=True):
        y.copy_(first)  # as it was before the rehearsals
    expected = model(x)
    for n in range(8, 24):
        token.copy_(x[:, n : n + 1])
        graph.replay()
        assert_close(out, expected[:, n : n + 1], **TOLERANCE[torch.float32])


@pytest.mark.parametrize("attention", ["softmax", "linear", "local", "gated-delta", "transformer-xl"])
def test_generation_can_be_captured_and_waits_for_nothing(attention, no_synchronisation):
    torch.manual_seed(0)
    encoder = EncoderConfig(dim=64, depth=2, heads=2, attention=attention, causal=True, max_len=LENGTH)
    fields, readout = Tokens(vocabulary=9), Readout(outputs=8, per="token")
    model = SequenceModel(SequenceModelConfig(fields=fields, readout=readout, encoder=encoder)).cuda().eval()

    def decoder():
        sampling = SamplingConfig(top_k=5, top_p=0.9, repetition_penalty=1.2)
        return Decoder(model, [[8, 1, 2], [8]], tokens=40, sampling=sampling, stop=[[3, 3]], samples=2)

    expected, own = torch.stack([step.ids for step in decoder()], 1), decoder()
    own.refill()
    found, aside = [own.pick().ids], decoder()
    next(aside)
    with no_synchronisation:
        for _ in range(3):  # rehearsals
            next(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        own.read()
        step = own.pick()
    for _ in range(expected.shape[1] - 1):
        graph.replay()
        found.append(step.ids.clone())
    assert_close(torch.stack(found, 1), expected)
