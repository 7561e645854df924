"""How much of the raw forward pass a precompute reaches: the encoder actor, driven as the flow drives it, against
`model.encode` on decoded inputs in memory, same batch, threads and images, in alternation.

    python benchmarks/precompute_rate.py [--model default] [--images 96] [--rounds 3] [--threads 1]

Prints images/s of both and their ratio (goal >= 0.85; on a quiet machine, since the actor is niced where cores are
few), and the share of the time that the actor was in the forward pass: an upper bound of it that load from others
does not spoil. The actor decodes JPEG and stores beside the forward pass, so with one thread it wants a second core.
"""

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from torch import Tensor

from pipeline.embeddings.key import key_of_model
from pipeline.inference.preprocess import image_to_input
from pipeline.ingest.decode import read_image
from pipeline.memory import keep_freed_memory
from pipeline.models import create_model, load_model, save_checkpoint
from pipeline.models._base import InteractiveModel
from pipeline.storage.weights import publish_model
from schemas.errors import NotFoundError
from schemas.predictions import Encoded, ImageRef
from schemas.settings import Settings
from workers.cluster import owned

CHUNK = 32
WINDOW = 2
WARM = 16


def make_images(folder: Path, count: int) -> list[ImageRef]:
    """JPEG pictures of 1024x768 with soft shapes and some grain, about 150 kB each."""
    images = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        soft = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (1024, 768), interpolation=cv2.INTER_CUBIC)
        picture = cv2.add(soft, rng.integers(0, 16, soft.shape, np.uint8))
        path = folder / f"{seed}.jpg"
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        images.append(ImageRef(sha256=digest, uri=str(path), width=1024, height=768))
    return images


def precompute(
    encoders: Sequence[ActorHandle], images: list[ImageRef], digest: str, key: str, chunk_size: int = CHUNK
) -> float:
    """Seconds to encode and store the images, with a window of chunks for each encoder, as `flows.precompute` does."""
    chunks = [images[at : at + chunk_size] for at in range(0, len(images), chunk_size)]
    started = time.perf_counter()
    running: dict[ray.ObjectRef, ActorHandle] = {}
    idle = [encoder for _ in range(WINDOW) for encoder in encoders]
    for chunk in chunks:
        if not idle:
            done, _ = ray.wait(list(running))
            check(ray.get(done[0]))
            idle.append(running.pop(done[0]))
        encoder = idle.pop(0)
        running[encoder.encode_chunk.remote(chunk, digest, key)] = encoder
    for answer in ray.get(list(running)):
        check(answer)
    return time.perf_counter() - started


def check(answers: list[object]) -> None:
    """Every image was really encoded."""
    assert all(isinstance(answer, Encoded) and answer.is_new for answer in answers), answers


def raw_forward(model: InteractiveModel, inputs: list[Tensor], batch: int) -> float:
    """Seconds of the forward pass alone."""
    started = time.perf_counter()
    with torch.inference_mode():
        for at in range(0, len(inputs), batch):
            model.encode(torch.cat(inputs[at : at + batch]))
    return time.perf_counter() - started


def published(storage_url: str, model_id: str) -> tuple[InteractiveModel, str]:
    """A model and the digest under which its weights are stored; random ones where none ship, since none are judged."""
    try:
        model = load_model(model_id)
        return model, publish_model(storage_url, model_id)[0]
    except NotFoundError:
        torch.manual_seed(0)
        model = create_model(model_id)
    with tempfile.TemporaryDirectory(prefix="cl-bench-") as folder:
        checkpoint = Path(folder) / "random.safetensors"
        save_checkpoint(model, checkpoint)
        return model, publish_model(storage_url, model_id, checkpoint)[0]


@dataclass(frozen=True)
class Rates:
    """What one run saw.

    Attributes:
        actor: Images per second of each round.
        raw: Those of the forward pass alone.
        busy: Share of the actor's time that it was in the forward pass.
        batch: Mean images of a forward batch of the actor.
    """

    actor: list[float]
    raw: list[float]
    busy: float
    batch: float

    @property
    def ratios(self) -> list[float]:
        """Actor / raw of each round."""
        return [own / other for own, other in zip(self.actor, self.raw, strict=True)]


def measure(model_id: str = "default", count: int = 96, rounds: int = 3, threads: int = 1) -> Rates:
    """Encode `count` new images per round by the actor, and as many by the bare forward pass, in alternation."""
    torch.set_num_threads(threads)
    keep_freed_memory()  # as the actor does, so that both sides have the same allocator
    with tempfile.TemporaryDirectory(prefix="cl-bench-") as folder:
        workspace = Path(folder)
        settings = Settings(workspace=workspace, encoder_threads=threads)
        model, digest = published(settings.resolved_storage_url, model_id)
        key, warm = key_of_model(model), min(WARM, count)
        images = make_images(workspace, warm + count * rounds)
        inputs = [image_to_input(model, read_image(image)) for image in images[:count]]
        with owned(settings) as pool:
            encoder = pool.encoders["encoder-0"]
            precompute([encoder], images[:warm], digest, key)
            raw_forward(model, inputs[:warm], min(4, warm))
            before = ray.get(encoder.stats.remote())
            actor, raw = [], []
            for number in range(rounds):
                at = warm + number * count
                actor.append(precompute([encoder], images[at : at + count], digest, key))
                after = ray.get(encoder.stats.remote())
                encoded, batches, forward_ms = (after[n] - before[n] for n in ("encoded", "batches", "forward_ms"))
                raw.append(raw_forward(model, inputs, max(1, round(encoded / batches))))
    return Rates(
        [count / s for s in actor], [count / s for s in raw], forward_ms / 1000 / sum(actor), encoded / batches
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help="random weights where none ship")
    parser.add_argument("--images", type=int, default=96, help="per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rates = measure(args.model, args.images, args.rounds, args.threads)
    print(f"model {args.model}, {args.threads} thread(s), mean batch {rates.batch:.1f}, chunk {CHUNK}")
    print(f"precompute  {statistics.median(rates.actor):7.2f} images/s")
    print(f"raw forward {statistics.median(rates.raw):7.2f} images/s")
    print(f"ratio       {statistics.median(rates.ratios):7.2f}  ({', '.join(f'{r:.2f}' for r in rates.ratios)})")
    print(f"busy        {rates.busy:7.2f}  of the precompute's time in the forward pass")
    print(f"load        {os.getloadavg()[0]:7.2f} on {len(os.sched_getaffinity(0))} cores")


if __name__ == "__main__":
    main()
