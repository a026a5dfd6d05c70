"""Ranks that share a sequence give what one process gives for the whole.

The contract says so of every mechanism, with threads for ranks. Here are options, whole networks, refusals,
and processes that exchange tensors by gloo.
"""

import os

import pytest
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from torch.testing import assert_close
from variants import variant

from subquad import Dims, build, catalog, parallel
from subquad.fields import Pair, Readout, Tokens
from subquad.nn.encoder import Encoder, EncoderConfig
from subquad.nn.model import SequenceModel, SequenceModelConfig
from subquad.testing.mechanism.cases import padding_masks
from subquad.testing.mechanism.sharing import check_ranks_equal_one_process, on_ranks

CUT = [2, 0, 9, 13]
NETWORK = "linear+local:width=3,dilation=2+softmax"
OPTIONS = [
    *(("performer", {"map": name}) for name in ("hyperbolic", "trigonometric", "relu", "gelu", "exp")),
    ("performer", {"normalise": True}),
    ("hedgehog", {"halves": True}),
    ("local", {"dilation": 1}),
    ("local", {"width": 20, "dilation": 1}),  # wider than a shard
    ("sinks", {"sinks": 0}),
    ("sinks", {"sinks": 7}),  # more than a shard holds
    ("sinks", {"learnt": True, "normalised": False}),
    ("retention", {"form": "fla"}),
    ("delta", {"swish_values": False}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_ranks_equal_one_process_whatever_the_options(name, options):
    check_ranks_equal_one_process(variant(catalog()[name], **options))


def network(attention=NETWORK, *, positions="sinusoidal", causal=True, per="token", fields=None):
    torch.manual_seed(0)
    encoder = EncoderConfig(
        attention=attention, dim=8, depth=3, heads=2, causal=causal, positions=positions, max_len=24
    )
    readout = Readout(outputs=3, per="token" if per == "token" else "sequence")
    fields = Tokens(vocabulary=9) if fields is None else fields
    return SequenceModel(SequenceModelConfig(fields=fields, readout=readout, encoder=encoder)).double()


def gradients_of(model):
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


@pytest.mark.parametrize("padding", [None, "anywhere"])
@pytest.mark.parametrize(
    ("attention", "positions", "causal", "per"),
    [
        (NETWORK, "sinusoidal", True, "token"),
        (NETWORK, "learnt", False, "sequence"),
        ("retention", "rotary", True, "token"),
    ],
)
def test_ranks_that_share_a_model_equal_one(attention, positions, causal, per, padding):
    shared = network(attention, positions=positions, causal=causal, per=per)
    alone = network(attention, positions=positions, causal=causal, per=per)
    valid = padding_masks()[padding] if padding else None
    ids = torch.randint(9, (2, 24))
    real = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
    parts, masks = ids.split(CUT, 1), real.split(CUT, 1)

    def run(shards):
        own = None if valid is None else masks[shards.rank]
        return shared((parts[shards.rank],), own, shards=shards)

    outputs = on_ranks(run, torch.stack([mask.sum(1) for mask in masks]), CUT)
    expected = alone((ids,), valid)
    if per == "token":
        out = torch.cat(outputs, 1).masked_fill(~real[..., None], 0)
        expected = expected.masked_fill(~real[..., None], 0)
    else:
        for output in outputs:
            assert_close(output, expected)
        out = torch.stack(outputs).mean(0)
    assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    assert_close(gradients_of(shared), gradients_of(alone))


def one_rank(rank, folder):
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=4)
    results = shared_by(None)
    two = distributed.new_group([1, 2])
    if rank in (1, 2):
        results["two"] = shared_by(two)
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # a thread of gloo that outlives the interpreter aborts the process now and then


MECHANISMS = [
    ("performer", {"features": 16}, False),
    ("cosformer", {}, True),
    ("gated-linear", {}, False),
    ("gated-delta", {}, True),
    ("local", {"width": 4, "dilation": 2}, False),
    ("softmax", {}, True),
]


def built(name, options, causal):
    """A mechanism, and the whole inputs of a sequence with padding anywhere."""
    torch.manual_seed(0)
    mechanism = build(name, Dims(heads=2, head_dim=4, max_len=24), causal=causal, **options).double()
    widths = mechanism.projections().values()
    return mechanism, [torch.randn(2, 2, 24, width, dtype=torch.float64) for width in widths]


def shared_by(group):
    """Outputs and gradients of one rank's part; gradients of weights are those of all ranks."""
    results = {}
    valid = parallel.part(padding_masks()["anywhere"], group=group)
    for name, options, causal in MECHANISMS:
        mechanism, whole = built(name, options, causal)
        inputs = [parallel.part(x, dim=2, group=group).contiguous().requires_grad_() for x in whole]
        out = parallel.attention(mechanism, *inputs, valid=valid, group=group)
        out.masked_fill(~valid[:, None, :, None], 0).square().sum().backward()
        parallel.sum_gradients(mechanism, group=group)
        results[name] = out.detach(), [x.grad for x in inputs], gradients_of(mechanism)
    model = network()
    ids = parallel.part(torch.arange(48).reshape(2, 24) % 9, group=group)
    out = model((ids,), valid, shards=parallel.share(ids, valid, group=group))
    out.masked_fill(~valid[..., None], 0).square().sum().backward()
    parallel.sum_gradients(model, group=group)
    results["network"] = out.detach(), [], gradients_of(model)
    return results


@pytest.mark.slow
def test_processes_equal_one(tmp_path):
    spawn(one_rank, args=(tmp_path,), nprocs=4)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    valid = padding_masks()["anywhere"]
    for ranks_that_share in (ranks, [ranks[1]["two"], ranks[2]["two"]]):
        for name, options, causal in MECHANISMS:
            mechanism, inputs = built(name, options, causal)
            inputs = [x.requires_grad_() for x in inputs]
            expected = mechanism(*inputs, valid=valid)
            real = valid[:, None, :, None]
            expected.masked_fill(~real, 0).square().sum().backward()
            outputs, of_inputs, of_weights = zip(*(rank[name] for rank in ranks_that_share), strict=True)
            assert_close(torch.cat(outputs, 2) * real, expected * real)
            found = [torch.cat(parts, 2) for parts in zip(*of_inputs, strict=True)]
            assert_close(found, [x.grad for x in inputs])
            for weights in of_weights:
                assert_close(weights, gradients_of(mechanism))
        model = network()
        expected = model((torch.arange(48).reshape(2, 24) % 9,), valid)
        expected.masked_fill(~valid[..., None], 0).square().sum().backward()
        outputs, _, of_weights = zip(*(rank["network"] for rank in ranks_that_share), strict=True)
        assert_close(torch.cat(outputs, 1) * valid[..., None], expected * valid[..., None])
        for weights in of_weights:
            assert_close(weights, gradients_of(model))


@pytest.fixture
def world(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("world")
def test_a_rank_alone_has_the_whole():
    mechanism, inputs = built("local", {"width": 4}, False)
    assert_close(parallel.attention(mechanism, *inputs), mechanism(*inputs))


def test_outside_a_group_the_remedy_is_named():
    with pytest.raises(ValueError, match="torchrun"):
        parallel.share(torch.zeros(2, 3, 4))


def test_a_mechanism_that_cannot_be_shared_names_those_that_can():
    mechanism, inputs = built("reformer", {"bucket": 4, "rounds": 2}, False)
    with pytest.raises(ValueError, match=r"'reformer' needs the whole sequence.* performer, .* gated-delta"):
        parallel.attention(mechanism, *inputs)


def on_one(call):
    return on_ranks(call, torch.tensor([[24, 24]]), [24])


def encoder(attention):
    torch.manual_seed(0)
    return Encoder(EncoderConfig(attention=attention, dim=8, depth=1, heads=2, max_len=24))


@pytest.mark.parametrize(
    ("attention", "reason"),
    [("conformer", "'conformer' mixes tokens beside"), ("nystromformer", "'nystromformer' needs the whole")],
)
def test_a_network_that_cannot_be_shared_is_refused(attention, reason):
    with pytest.raises(ValueError, match=reason):
        on_one(lambda shards: encoder(attention)(torch.zeros(2, 24, 8), shards=shards))


def test_packed_documents_are_not_shared():
    documents = torch.zeros(2, 24, dtype=torch.int64)
    with pytest.raises(ValueError, match="leave out documents or shards"):
        on_one(lambda shards: encoder("linear")(torch.zeros(2, 24, 8), documents=documents, shards=shards))


def test_pairs_are_not_shared():
    model = network(fields=Pair(side=Tokens(vocabulary=9)), per="sequence")
    with pytest.raises(ValueError, match="not pairs of them"):
        on_one(lambda shards: model((torch.zeros(2, 2, 24, dtype=torch.int64),), None, shards=shards))


def test_those_that_can_are_those_with_the_trait():
    assert {"softmax", "linear", "cosformer", "local", "gated-delta"} <= set(parallel.names())
    assert "infinity" not in parallel.names()
