"""Small models of timm, with weights large enough for attention to matter.

PyPI's torchvision, without which timm is not imported, has operators that PyTorch's build for CPUs cannot
load. No model here calls them: where they are missing they are declared, so that timm can be imported.
"""

# ruff: noqa: E402
# pyright: reportMissingImports=false

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

LOST: list[Any] = []


def declare_lost_operators() -> None:
    """Those of torchvision that its library would declare, if that cannot be loaded."""
    spec = find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    try:
        torch.ops.load_library(Path(spec.origin).with_name("_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        LOST.append(library)  # while it lives


if not all(map(find_spec, ("timm", "torchvision"))):
    pytest.skip("needs timm", allow_module_level=True)
declare_lost_operators()

from timm.layers.attention import Attention, AttentionRope
from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Beit
from timm.models.cait import Cait
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention
from timm.models.fastvit import Attention as FastVitAttention
from timm.models.metaformer import Attention as MetaFormerAttention
from timm.models.naflexvit import NaFlexVit, NaFlexVitCfg
from timm.models.resnet import resnet18
from timm.models.swin_transformer import SwinTransformer
from timm.models.visformer import Attention as VisformerAttention
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from timm.models.volo import Attention as VoloAttention
from timm.models.xcit import Xcit

SIZES: dict[str, Any] = {"patch_size": 4, "embed_dim": 32, "num_heads": 4, "num_classes": 5}
SMALL: dict[str, Any] = {**SIZES, "img_size": 16, "depth": 2}
TURNING: dict[str, Any] = {**SMALL, "use_rot_pos_emb": True, "dynamic_img_size": True}


def flexible(**named: Any) -> nn.Module:
    sizes = {name: SMALL[name] for name in ("patch_size", "embed_dim", "num_heads", "depth")}
    grid = {"pos_embed_grid_size": (4, 4), "global_pool": "avg"}
    return NaFlexVit(NaFlexVitCfg(**sizes, **grid, **named), img_size=16, num_classes=5)


class Tokens(nn.Module):
    """Patches of an image through one layer alone."""

    def __init__(self, layer: nn.Module, axes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, 4)
        self.layer = layer
        self.axes = axes

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        if self.axes == 3:
            x = x.flatten(2).mT
        return self.layer(x.movedim(1, -1) if isinstance(self.layer, VoloAttention) else x)


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "vit": lambda: VisionTransformer(**SMALL),
    "deit": lambda: VisionTransformerDistilled(**SMALL),
    "norms": lambda: VisionTransformer(
        **SMALL, qk_norm=True, scale_attn_norm=True, reg_tokens=3, init_values=1.0
    ),
    "pooled": lambda: VisionTransformer(**SMALL, class_token=False, global_pool="map"),
    "parallel": lambda: VisionTransformer(**SMALL, block_fn=ParallelScalingBlock),
    "eva": lambda: Eva(**TURNING, num_reg_tokens=2),
    "rope": lambda: Eva(**TURNING, attn_type="rope", num_reg_tokens=2, rope_type="mixed", qk_norm=True),
    "grouped": lambda: Eva(**TURNING, attn_type="rope", qkv_fused=False, num_kv_heads=2),
    "naflex": lambda: flexible(class_token=True, reg_tokens=2),
    "beit": lambda: Beit(**SMALL, use_abs_pos_emb=True),
}
LAYERS: Mapping[str, Callable[[], nn.Module]] = {
    "Attention": lambda: Tokens(Attention(32, 4, qkv_bias=True, gated=True)),
    "AttentionRope": lambda: Tokens(AttentionRope(32, 4)),
    "EvaAttention": lambda: Tokens(EvaAttention(32, 4, scale_norm=False, qkv_bias_separate=True)),
    "beit": lambda: Tokens(BeitAttention(32, 4, qkv_bias=True)),
    "fastvit": lambda: Tokens(FastVitAttention(32, 8), axes=4),
    "metaformer": lambda: Tokens(MetaFormerAttention(32, 8)),
    "visformer": lambda: Tokens(VisformerAttention(32, 4), axes=4),
    "volo": lambda: Tokens(VoloAttention(32, 4), axes=4),
}
UNFIT: Mapping[str, Callable[[], nn.Module]] = {
    "swin": lambda: SwinTransformer(16, 2, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=2),
    "beit": lambda: Beit(**SMALL, use_rel_pos_bias=True),
    "cait": lambda: Cait(**SMALL),
    "xcit": lambda: Xcit(img_size=32, patch_size=16, embed_dim=32, depth=1, num_heads=4),
    "dropout": lambda: VisionTransformer(**SMALL, attn_drop_rate=0.1),
    "resnet": resnet18,
}


def build_gemma() -> nn.Module:
    """Its layers are in timm from 1.0.27 on."""
    module = pytest.importorskip("timm.models.gemma4_vit")
    sizes = {name: SMALL[name] for name in ("patch_size", "embed_dim", "num_heads", "num_classes", "depth")}
    return module.Gemma4VitClassifier(
        img_size=16, **sizes, head_dim=8, intermediate_size=48, num_kv_heads=2, pooling_kernel_size=1
    )


SAMPLES = {**MODELS, "gemma": build_gemma, **{f"layer of {name}": make for name, make in LAYERS.items()}}


def make(name: str) -> Any:
    """A sample in evaluation, whose attention is far from uniform."""
    torch.manual_seed(1)
    model = {**SAMPLES, **{f"unfit {kind}": build for kind, build in UNFIT.items()}}[name]().eval()
    with torch.no_grad():
        for x in model.parameters():
            if x.ndim > 1:
                x.copy_(torch.randn_like(x) * 2 / max(x[0].numel(), 1) ** 0.5)
    return model


def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
