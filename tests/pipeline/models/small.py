"""A small form of every architecture: the same code with few blocks, so that the registry-driven tests are quick.

Add a line per architecture; `test_models.py` holds that no registered class is left out.
"""

from collections.abc import Callable

from pipeline.models import create_model
from pipeline.models._base import InteractiveModel
from pipeline.models.adaptiveclick import AdaptiveClick, AdaptiveClickConfig
from pipeline.models.clickadapter import ClickAdapter
from pipeline.models.icmformer import ICMFormer
from pipeline.models.icmformer_swin import ICMFormerSwin, SwinConfig
from pipeline.models.ritm import Ritm
from pipeline.models.simpleclick import PlainVitConfig, SimpleClick

SMALL_VIT = PlainVitConfig(
    image_size=64, embed_dim=32, depth=4, num_heads=4, pyramid_dims=(8, 16, 16, 32), head_channels=16
)


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
    "clickadapter": lambda: ClickAdapter(SimpleClick(SMALL_VIT)),
}
