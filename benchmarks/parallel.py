"""One long sequence over several processes of this machine, each with its part of the tokens.

    python -m benchmarks.parallel gated-delta --tokens 1048576 --ranks 4
    python -m benchmarks.parallel gated-delta --tokens 1048576 --ranks 1

Rows, in Markdown: seconds of a forward and a backward pass between two meetings of all ranks, seconds of the
processor in the first rank meanwhile, and the most memory that any process held, libraries included. Each has
one thread. Where there are fewer cores than ranks they wait for one another, and the processor's seconds say
more.
"""

import argparse
import resource
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from subquad import Dims, build, find, parallel
from subquad.notation import read, read_options
from subquad.registry import options

HEADINGS = (
    "attention",
    "form",
    "tokens",
    "ranks",
    "tokens a rank",
    "forward s",
    "backward s",
    "peak MB a rank",
)


def measure(rank: int, asked: argparse.Namespace, folder: str) -> None:
    """One rank's part; the first prints the row."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=asked.ranks)
    torch.manual_seed(0)
    mechanism = attention(asked)
    torch.manual_seed(rank)
    tokens = len(torch.arange(asked.tokens).tensor_split(asked.ranks)[rank])
    inputs = [
        torch.randn(1, asked.heads, tokens, width, requires_grad=True)
        for width in mechanism.projections().values()
    ]
    times = []
    dist.barrier()
    start, busy = perf_counter(), process_time()
    out = parallel.attention(mechanism, *inputs)
    dist.barrier()
    times.append(perf_counter() - start)
    loss = out.square().mean()
    dist.barrier()
    start = perf_counter()
    loss.backward()
    parallel.sum_gradients(mechanism)
    dist.barrier()
    times.append(perf_counter() - start)
    times.append(process_time() - busy)
    peak = torch.tensor(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    if rank == 0:
        form = "causal" if asked.causal else "bidirectional"
        seconds = (f"{x:.1f}" for x in times)
        print_row(f"`{asked.attention}`", form, asked.tokens, asked.ranks, tokens, *seconds, f"{peak:.0f}")
    dist.destroy_process_group()


def attention(asked: argparse.Namespace):
    name, pairs = read(asked.attention)
    cls = find(name)
    chosen = read_options(cls, name, asked.attention, pairs, options(cls))
    dims = Dims(heads=asked.heads, head_dim=asked.head_dim, max_len=asked.tokens)
    return build(name, dims, causal=asked.causal, **chosen)


def print_row(*cells: object) -> None:
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("attention", help="NAME or NAME:option=value,…")
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--bidirectional", dest="causal", action="store_false")
    asked = parser.parse_args()
    print_row(*HEADINGS)
    print_row(*["---"] * len(HEADINGS))
    with tempfile.TemporaryDirectory() as folder:
        spawn(measure, args=(asked, str(Path(folder))), nprocs=asked.ranks)


if __name__ == "__main__":
    main()
