"""What each row of the table has to compute at the least, counted by hand from its formula.

For a head of n tokens, width d, m features (or landmarks, or rank), w keys a query. Useful work only: what
a chunked form does besides, such as the masked half of a product, makes a smaller part of the roofline.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from benchmarks.targets import Row
from subquad.measure.roofline import Work
from subquad.mechanism import Mechanism

Products = Callable[[float, float, float], tuple[float, float]]  # n, d, m → flops, exponentials


def work(row: Row, mechanism: Mechanism, length: int) -> Work | None:
    """Of one call; None where what is done depends on the data, or the call is too small to be computing."""
    operation = (row.attention, row.operation)
    if operation not in COUNTED:
        return None
    d, heads = mechanism.dims.head_dim, mechanism.dims.heads
    m = size(row, mechanism, length)
    flops, exponentials = COUNTED[operation](length, d, m)
    numbers = length * (sum(mechanism.projections().values()) + d)
    if row.operation != "forward":
        numbers *= 2  # and their gradients
    return Work(flops=heads * flops, bytes=4 * heads * numbers, exponentials=heads * exponentials)


def size(row: Row, mechanism: Mechanism, length: int) -> float:
    """Features, rank or landmarks; for patterns the mean number of keys of a query."""
    for option in ("features", "rank", "landmarks"):
        if option in row.options:
            return row.options[option]
    if row.attention in ("local", "pattern", "bigbird"):
        return length * density(mechanism, length)
    return mechanism.dims.head_dim


def density(mechanism: Mechanism, length: int) -> float:
    """The part of all pairs of query and key that a pattern has."""
    return getattr(mechanism, "pairs")(length).double().mean().item()  # noqa: B009


def pinv(m: float) -> float:
    return 6 * 4 * 2 * m**3  # six iterations of four products (Nystromformer, section 3.2)


COUNTED: Mapping[tuple[str, str], Products] = MappingProxyType(
    {
        # features of q and of k, phi(k)^T v, phi(q) (phi(k)^T v)
        ("performer", "forward"): lambda n, d, m: (8 * n * d * m, 2 * n * m),
        # and twice each of them, with the features computed again
        ("performer", "forward and backward"): lambda n, d, m: (28 * n * d * m, 4 * n * m),
        ("linear", "forward"): lambda n, d, m: (4 * n * d * m, 2 * n * m),
        ("linear", "forward and backward"): lambda n, d, m: (12 * n * d * m, 4 * n * m),
        ("retention", "forward"): lambda n, d, m: (4 * n * d * d, n * d),
        ("gated-linear", "forward"): lambda n, d, m: (4 * n * d * d, 2 * n * d),
        # what a key recalls, what is written, what a query reads
        ("delta", "forward"): lambda n, d, m: (6 * n * d * d, 2 * n * d),
        **dict.fromkeys(
            [(name, "forward") for name in ("local", "pattern", "bigbird")],
            lambda n, d, w: (4 * n * w * d, n * w),
        ),
        # five products back
        **dict.fromkeys(
            [(name, "forward and backward") for name in ("local", "pattern", "bigbird")],
            lambda n, d, w: (14 * n * w * d, 2 * n * w),
        ),
        ("linformer", "forward"): lambda n, d, m: (8 * n * d * m, n * m),
        ("nystromformer", "forward"): lambda n, d, m: (8 * n * d * m + pinv(m), 2 * n * m),
    }
)
