"""A refine step against the mask decoder of SAM and MobileSAM: CPU time, one thread, taking turns.

The decoder is a stand-in with random weights that computes what theirs does: two two-way layers over 64 x 64 cells of
256 channels, a last attention, two transposed convolutions and four masks' hypernetworks; time does not depend on
weights. The step is the model alone on an encoded image (crop, clicks and previous mask to logits), as is the decoder.

    python benchmarks/decoder_step.py [--model fdrn-compact] [--rounds 30]
"""

import argparse
import statistics
from dataclasses import dataclass

import torch
from model_steps import timed
from torch import Tensor, nn

from pipeline.memory import keep_freed_memory
from pipeline.models import create_model
from pipeline.models.layers.two_way import CrossAttention, TwoWayLayer
from schemas.clicks import Click

DIM, SIDE, MASKS = 256, 64, 4
OWN_TOKENS = MASKS + 1
"""One for each mask and one for their quality; the others are the prompt's."""
WARM = 3


class SamDecoder(nn.Module):
    """Embedding of an image and prompt tokens -> mask logits (B, 4, 256, 256) and their qualities (B, 4).

    Source: Kirillov et al., "Segment Anything", ICCV 2023, section A; MobileSAM keeps it as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(1, OWN_TOKENS, DIM))
        self.register_buffer("places", torch.randn(1, SIDE * SIDE, DIM))
        self.layers = nn.ModuleList(TwoWayLayer(DIM, 8, 2048) for _ in range(2))
        self.last = CrossAttention(DIM, 8, downsample=2)
        self.norm = nn.LayerNorm(DIM)
        self.up1 = nn.ConvTranspose2d(DIM, DIM // 4, 2, 2)
        self.norm1 = nn.GroupNorm(1, DIM // 4)
        self.up2 = nn.ConvTranspose2d(DIM // 4, DIM // 8, 2, 2)
        self.hypernetworks = nn.ModuleList(_mlp(DIM, DIM // 8) for _ in range(MASKS))
        self.quality = _mlp(DIM, MASKS)

    def forward(self, embedding: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 256, 64, 64) and (B, N, 256)."""
        first = tokens = torch.cat([self.own.expand(len(prompt), -1, -1), prompt], 1)
        cells = embedding.flatten(2).transpose(1, 2) + self.places
        for layer in self.layers:
            tokens, cells = layer(tokens, cells, first)
        tokens = self.norm(tokens + self.last(tokens + first, cells + self.places, cells))
        grid = cells.transpose(1, 2).unflatten(2, (SIDE, SIDE))
        fine = nn.functional.gelu(self.up2(nn.functional.gelu(self.norm1(self.up1(grid)))))
        kernels = torch.stack([mlp(tokens[:, 1 + index]) for index, mlp in enumerate(self.hypernetworks)], 1)
        return (kernels @ fine.flatten(2)).unflatten(2, (4 * SIDE, 4 * SIDE)), self.quality(tokens[:, 0])


def _mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, DIM), nn.ReLU(), nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, outputs))


@dataclass(frozen=True)
class Steps:
    """Median CPU milliseconds."""

    refine_ms: float
    decoder_ms: float

    @property
    def ratio(self) -> float:
        """Ours / theirs."""
        return self.refine_ms / self.decoder_ms


def measure(model_id: str = "fdrn-compact", rounds: int = 30, prompts: int = 3) -> Steps:
    """Run both in turn.

    Args:
        model_id: A registered model; its weights do not matter.
        rounds: Of each; some more warm up.
        prompts: Tokens beside the decoder's own: one click, the padding that goes with it, and one click more.
    """
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, decoder = create_model(model_id), SamDecoder().eval()
    height, width = model.input_size
    crops, previous = torch.rand(1, 3, height, width), torch.zeros(1, 1, height, width)
    clicks = [[Click(width * 0.4, height * 0.4, True), Click(width * 0.6, height * 0.5, False)]]
    embedding, prompt = torch.randn(1, DIM, SIDE, SIDE), torch.randn(1, prompts, DIM)
    refine, decode = [], []
    with torch.inference_mode():
        encoding = model.encode(torch.rand(1, 3, 384, 512))
        for _ in range(WARM + rounds):
            refine.append(timed(lambda: model.refine(encoding, clicks, previous, crops)))
            decode.append(timed(lambda: decoder(embedding, prompt)))
    return Steps(statistics.median(refine[WARM:]), statistics.median(decode[WARM:]))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fdrn-compact")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    steps = measure(args.model, args.rounds)
    print(f"{args.model}, random weights")
    print(f"refine step  {steps.refine_ms:7.1f} CPU ms")
    print(f"SAM decoder  {steps.decoder_ms:7.1f} CPU ms")
    print(f"ratio        {steps.ratio:7.2f}   aim <= 0.6")


if __name__ == "__main__":
    main()
