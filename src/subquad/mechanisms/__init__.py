"""The mechanisms that ship with subquad, and the bases of whole families.

To add one: write its file, then name it here.
"""

from subquad.mechanism import Mechanism
from subquad.mechanisms.bigbird import BigBird
from subquad.mechanisms.compressive import CompressiveAttention
from subquad.mechanisms.cosformer import CosFormer
from subquad.mechanisms.delta import DeltaAttention
from subquad.mechanisms.dpfp import DpfpAttention
from subquad.mechanisms.favor_plus_plus import FavorPlusPlus
from subquad.mechanisms.feedforward import PAPERS_KERNELS, FeedForwardKernel
from subquad.mechanisms.forgetting import ForgettingAttention
from subquad.mechanisms.gated_delta import GatedDeltaAttention
from subquad.mechanisms.gated_linear import GatedLinearAttention
from subquad.mechanisms.hedgehog import HedgehogAttention
from subquad.mechanisms.infinity import InfinityAttention, InfinityGpt2Attention
from subquad.mechanisms.informer import Informer
from subquad.mechanisms.kda import KdaAttention
from subquad.mechanisms.kernel import KernelAttention
from subquad.mechanisms.lightning import LightningAttention
from subquad.mechanisms.linear import LinearAttention
from subquad.mechanisms.linformer import Linformer
from subquad.mechanisms.local import LocalAttention
from subquad.mechanisms.longformer import LongformerAttention
from subquad.mechanisms.moba import MobaAttention
from subquad.mechanisms.nsa import NsaAttention
from subquad.mechanisms.nystromformer import Nystromformer
from subquad.mechanisms.pattern import PatternAttention
from subquad.mechanisms.performer import Performer
from subquad.mechanisms.poolingformer import Poolingformer
from subquad.mechanisms.recurrent import RecurrentAttention
from subquad.mechanisms.reformer import Reformer
from subquad.mechanisms.retention import Retention
from subquad.mechanisms.routing import RoutingAttention
from subquad.mechanisms.sinks import SinkAttention
from subquad.mechanisms.softmax import SoftmaxAttention
from subquad.mechanisms.sparse import SparseAttention
from subquad.mechanisms.sparse_transformer import SparseTransformer
from subquad.mechanisms.spectral import SpectralAttention
from subquad.mechanisms.ssd import SsdAttention
from subquad.mechanisms.star import StarAttention
from subquad.mechanisms.svd import SvdAttention
from subquad.mechanisms.taylor import TaylorAttention
from subquad.mechanisms.transformer_xl import TransformerXL

__all__ = [
    "BUILTIN",
    "BigBird",
    "CompressiveAttention",
    "CosFormer",
    "DeltaAttention",
    "DpfpAttention",
    "FavorPlusPlus",
    "FeedForwardKernel",
    "ForgettingAttention",
    "GatedDeltaAttention",
    "GatedLinearAttention",
    "HedgehogAttention",
    "InfinityAttention",
    "InfinityGpt2Attention",
    "Informer",
    "KdaAttention",
    "KernelAttention",
    "LightningAttention",
    "LinearAttention",
    "Linformer",
    "LocalAttention",
    "LongformerAttention",
    "MobaAttention",
    "NsaAttention",
    "Nystromformer",
    "PatternAttention",
    "Performer",
    "Poolingformer",
    "RecurrentAttention",
    "Reformer",
    "Retention",
    "RoutingAttention",
    "SinkAttention",
    "SoftmaxAttention",
    "SparseAttention",
    "SparseTransformer",
    "SpectralAttention",
    "SsdAttention",
    "StarAttention",
    "SvdAttention",
    "TaylorAttention",
    "TransformerXL",
]

KERNELS = (
    LinearAttention,
    Performer,
    FavorPlusPlus,
    SpectralAttention,
    FeedForwardKernel,
    *PAPERS_KERNELS,
    HedgehogAttention,
    TaylorAttention,
    DpfpAttention,
    CosFormer,
)
SPARSE = (
    LocalAttention,
    SinkAttention,
    LongformerAttention,
    BigBird,
    SparseTransformer,
    StarAttention,
    PatternAttention,
)
LOW_RANK = (Linformer, Nystromformer, Poolingformer, SvdAttention)
BY_CONTENT = (Reformer, RoutingAttention, Informer, MobaAttention, NsaAttention)
RECURRENT = (
    Retention,
    LightningAttention,
    GatedLinearAttention,
    SsdAttention,
    DeltaAttention,
    GatedDeltaAttention,
    KdaAttention,
)
MEMORIES = (TransformerXL, CompressiveAttention, InfinityAttention, InfinityGpt2Attention)

BUILTIN: tuple[type[Mechanism], ...] = (
    SoftmaxAttention,
    ForgettingAttention,
    *KERNELS,
    *SPARSE,
    *LOW_RANK,
    *BY_CONTENT,
    *RECURRENT,
    *MEMORIES,
)
