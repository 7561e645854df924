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
from pathlib import Path

import cv2
import numpy as np
import ray
import torch
from torch import Tensor

from pipeline.embeddings.key import key_of_model
from pipeline.inference.preprocess import image_to_input
from pipeline.ingest.decode import read_image
from pipeline.memory import keep_freed_memory
from pipeline.models import load_model
from pipeline.models._base import InteractiveModel
from pipeline.storage.weights import publish_model
from schemas.predictions import Encoded, ImageRef
from schemas.settings import Settings
from workers.cluster import owned
from workers.pool import Pool

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


def precompute(pool: Pool, images: list[ImageRef], digest: str, key: str) -> float:
    """Seconds to encode and store the images, with a window of chunks, as `flows.precompute` does."""
    encoder = pool.encoders["encoder-0"]
    chunks = [images[at : at + CHUNK] for at in range(0, len(images), CHUNK)]
    started = time.perf_counter()
    running: list[ray.ObjectRef] = []
    for chunk in chunks:
        if len(running) == WINDOW:
            done, running = ray.wait(running)
            check(ray.get(done[0]))
        running.append(encoder.encode_chunk.remote(chunk, digest, key))
    for answer in ray.get(running):
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


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--images", type=int, default=96, help="per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as the actor does, so that both sides have the same allocator
    model = load_model(args.model)
    with tempfile.TemporaryDirectory(prefix="cl-bench-") as folder:
        workspace = Path(folder)
        settings = Settings(workspace=workspace, encoder_threads=args.threads)
        digest, _ = publish_model(settings.resolved_storage_url, args.model)
        images = make_images(workspace, WARM + args.images * args.rounds)
        inputs = [image_to_input(model, read_image(image)) for image in images[: args.images]]
        with owned(settings) as pool:
            precompute(pool, images[:WARM], digest, key_of_model(model))
            raw_forward(model, inputs[:WARM], 4)
            before = ray.get(pool.encoders["encoder-0"].stats.remote())
            actor, raw = [], []
            for number in range(args.rounds):
                at = WARM + number * args.images
                actor.append(precompute(pool, images[at : at + args.images], digest, key_of_model(model)))
                after = ray.get(pool.encoders["encoder-0"].stats.remote())
                encoded, batches = (after[name] - before[name] for name in ("encoded", "batches"))
                busy = (after["forward_ms"] - before["forward_ms"]) / 1000 / sum(actor)
                raw.append(raw_forward(model, inputs, max(1, round(encoded / batches))))
            print(
                f"model {model.model_id}, {args.threads} thread(s), mean batch {encoded / batches:.1f}, chunk {CHUNK}"
            )
            print(f"precompute  {args.images / statistics.median(actor):7.2f} images/s")
            print(f"raw forward {args.images / statistics.median(raw):7.2f} images/s")
            ratios = [r / a for a, r in zip(actor, raw, strict=True)]
            print(f"ratio       {statistics.median(ratios):7.2f}  ({', '.join(f'{r:.2f}' for r in ratios)})")
            print(f"busy        {busy:7.2f}  of the precompute's time in the forward pass")
            print(f"load        {os.getloadavg()[0]:7.2f} on {len(os.sched_getaffinity(0))} cores")


if __name__ == "__main__":
    main()
