"""A small form of every architecture: the same code with few blocks, so that the registry-driven tests are quick.

Add a line per architecture; `test_models.py` holds that no registered class is left out.
"""

from collections.abc import Callable

from pipeline.models import create_model
from pipeline.models._base import InteractiveModel
from pipeline.models.adaptiveclick import AdaptiveClick, AdaptiveClickConfig
from pipeline.models.clickadapter import ClickAdapter
from pipeline.models.fdrn_published import Fdrn, HrnetEncoder, HrnetMaskNetwork, MixEncoder, MixMaskNetwork, TimmEncoder
from pipeline.models.icmformer import ICMFormer
from pipeline.models.icmformer_swin import ICMFormerSwin, SwinConfig
from pipeline.models.layers.mix_transformer import MixConfig
from pipeline.models.ritm import Ritm
from pipeline.models.segformer import SegFormer
from pipeline.models.simpleclick import PlainVitConfig, SimpleClick

SMALL_VIT = PlainVitConfig(
    image_size=64, embed_dim=32, depth=4, num_heads=4, pyramid_dims=(8, 16, 16, 32), head_channels=16
)

SMALL_MIX = MixConfig((1, 1, 1, 1), (8, 16, 20, 32))


def small_timm() -> Fdrn:
    """A timm encoder without a map at 1/4 of its own (a plain ViT), and a narrow mask network."""
    f1 = TimmEncoder("vit_tiny_patch16_224", 8)
    return Fdrn(f1, HrnetMaskNetwork(True, f1.low_channels, 4, 8), 64)


def small_ritm() -> Ritm:
    """HRNet of a few channels, on crops of 64 px."""
    model = Ritm(4, 8, small=True)
    model.input_size, model.input_side = (64, 64), 64
    return model


SMALL: dict[str, Callable[[], InteractiveModel]] = {
    "toy": lambda: create_model("toy-color"),
    "fdrn-compact": lambda: create_model("fdrn-compact"),
    "simpleclick": lambda: SimpleClick(SMALL_VIT),
    "icmformer": lambda: ICMFormer(SMALL_VIT),
    "icmformer-swin": lambda: ICMFormerSwin(
        SwinConfig(
            image_size=64,
            embed_dim=16,
            depths=(1, 2, 2, 1),
            num_heads=(1, 2, 4, 4),
            window=3,
            num_cross=1,
            head_channels=16,
        )
    ),
    "adaptiveclick": lambda: AdaptiveClick(
        AdaptiveClickConfig(
            vit=SMALL_VIT,
            pyramid_dims=(16, 16, 32, 32),
            dim=32,
            num_heads=4,
            num_queries=5,
            encoder_layers=1,
            decoder_layers=3,
            encoder_hidden=32,
            decoder_hidden=32,
        )
    ),
    "ritm": lambda: small_ritm(),
    "fdrn-hrnet": lambda: Fdrn(HrnetEncoder(True, 4, 8), HrnetMaskNetwork(True, 4, 4, 8), 64),
    "fdrn-segformer": lambda: Fdrn(
        MixEncoder(SMALL_MIX, 8), MixMaskNetwork(SMALL_MIX, SMALL_MIX.widths[0]), 64, has_refiner=True
    ),
    "fdrn-timm": lambda: small_timm(),
    "segformer": lambda: SegFormer(SMALL_MIX, 64),
    "clickadapter-segformer": lambda: ClickAdapter(SegFormer(SMALL_MIX, 64)),
    "clickadapter": lambda: ClickAdapter(SimpleClick(SMALL_VIT)),
    "clickadapter-fdrn": lambda: ClickAdapter(Fdrn(HrnetEncoder(True, 4, 8), HrnetMaskNetwork(True, 4, 4, 8), 64)),
}
