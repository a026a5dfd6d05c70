"""The mechanisms that ship with subquad. To add one: write its file, then name it here."""

from subquad.mechanism import Mechanism
from subquad.mechanisms.feedforward import PAPERS_KERNELS, FeedForwardKernel
from subquad.mechanisms.infinity import InfinityAttention
from subquad.mechanisms.linear import LinearAttention
from subquad.mechanisms.performer import Performer
from subquad.mechanisms.softmax import SoftmaxAttention

BUILTIN: tuple[type[Mechanism], ...] = (
    SoftmaxAttention,
    LinearAttention,
    Performer,
    FeedForwardKernel,
    *PAPERS_KERNELS,
    InfinityAttention,
)
