"""Mix transformer (MiT), SegFormer's hierarchical encoder, stage by stage.

Source: Xie et al., "SegFormer", NeurIPS 2021, section 3.1. Its layers are those of PVTv2 with other MLP ratios: timm's
are used (the parameter counts are SegFormer's).
"""

# B batch, C channels, h/w grid

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn


@dataclass(frozen=True)
class MixConfig:
    """Sizes of an encoder: blocks and channels of the stages at 1/4, 1/8, 1/16 and 1/32."""

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]


MIT_B0 = MixConfig((2, 2, 2, 2), (32, 64, 160, 256))
MIT_B1 = MixConfig((2, 2, 2, 2), (64, 128, 320, 512))
MIT_B3 = MixConfig((3, 4, 18, 3), (64, 128, 320, 512))


class MixTransformer(nn.Module):
    """See the module.

    Args:
        config: Sizes.
        num_stages: 3 leaves the last one out.
    """

    def __init__(self, config: MixConfig, num_stages: int = 4) -> None:
        from timm.models.pvt_v2 import PyramidVisionTransformerV2  # here: it takes a second, and few models need it

        super().__init__()
        whole = PyramidVisionTransformerV2(
            depths=config.depths, embed_dims=config.widths, num_heads=(1, 2, 5, 8), sr_ratios=(8, 4, 2, 1),
            mlp_ratios=(4, 4, 4, 4), num_classes=0, norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )  # fmt: skip
        self.widths = config.widths[:num_stages]
        self.patch_embed = whole.patch_embed
        self.stages = nn.ModuleList(list(whole.stages)[:num_stages])

    def first(self, images: Tensor, added: Tensor | None = None) -> Tensor:
        """Normalised RGB (B, 3, H, W) -> (B, C0, H/4, W/4); `added`, of that shape, joins the patch embedding."""
        x = self.patch_embed(images)
        out: Tensor = self.stages[0](x if added is None else x + added.permute(0, 2, 3, 1))
        return out

    def stage(self, index: int, x: Tensor) -> Tensor:
        """Stage `index` (from 1) on the map of the one before."""
        out: Tensor = self.stages[index](x)
        return out
