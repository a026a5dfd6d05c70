"""One token after many others, as a server computes it: in a CUDA graph, which costs the host one launch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cuda.contenders import Call, Contenders, by_backend, inputs, mechanism
from benchmarks.cuda.plan import Scale
from benchmarks.cuda.targets import FUSED, Work
from subquad.testing.mechanism.cases import tensors

PREFIX = 512  # tokens before; ours remembers them in a state whose size they do not change
WARM_UP = 3  # calls before a capture, as PyTorch's manual asks for


def steps(work: Work, tokens: int, *, scale: Scale) -> Contenders:
    """The next token of a stream, whose state is carried on, and softmax over all keys so far."""
    ours = mechanism(work, tokens, scale=scale)
    token = inputs(ours, 1, scale=scale)

    def stream() -> Call:
        """Of its own, since backends need not have states in common."""
        state = None

        def step() -> Tensor:
            nonlocal state
            if state is None:
                _, state = ours.step(**inputs(ours, PREFIX, scale=scale), state=None)
            out, after = ours.step(**token, state=state)
            for x, y in zip(tensors(state), tensors(after), strict=True):
                x.copy_(y)
            return out

        return step

    shape = (scale.batch, scale.heads, tokens, scale.width)
    k, v = (torch.randn(shape, device=scale.device, dtype=torch.bfloat16) for _ in range(2))
    q = torch.randn_like(k[:, :, :1])
    contenders: Contenders = {
        name: in_graph(step, scale.device) for name, step in by_backend(work, stream).items()
    }
    contenders[FUSED] = in_graph(lambda: F.scaled_dot_product_attention(q, k, v), scale.device)
    return contenders


def in_graph(step: Call, device: str) -> Call:
    """Captured when it is called first, and replayed after that; on a CPU as it is."""
    graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def run() -> object:
        nonlocal graph
        if device != "cuda":
            return step()
        if graph is None:
            graph = captured(step)
        return graph.replay()

    return run


def captured(step: Call) -> torch.cuda.CUDAGraph:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph
