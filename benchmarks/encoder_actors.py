"""What a second encoder actor adds, and what several annotators who wait for one missing image cost.

    python benchmarks/encoder_actors.py [--model default] [--images 128] [--rounds 3] [--chunk 32]

- scaling: images/s of two actors of one thread each / of one, in alternation (aim >= 1.8 with a free core for each;
  with less than four cores encoders take turns while people click, which nobody does here)
- duplicates: time until the last of eight requests for one image that is not encoded is answered / until a single one
  is; and how often the image was encoded (aim: 1.15; 1)
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from precompute_rate import CHUNK, WARM, make_images, precompute, published
from ray.actor import ActorHandle

from pipeline.embeddings.key import key_of_model
from schemas.predictions import ImageRef
from schemas.settings import Settings
from workers.cluster import owned
from workers.cores import people_click

DUPLICATES = 8
PAIRS = 12


@dataclass(frozen=True)
class Actors:
    """What one run saw.

    Attributes:
        one: Images per second of one actor, by round.
        two: Of two.
        taken: Cores that other work took before anything was started here.
        single_ms: Until one request for a missing image was answered, median.
        duplicate_ms: Until the last of `DUPLICATES` was.
        encodes: Of the image, per group of duplicates.
    """

    one: list[float]
    two: list[float]
    taken: float
    single_ms: float
    duplicate_ms: float
    encodes: float

    @property
    def scaling(self) -> float:
        """Two actors / one, median of the rounds."""
        return statistics.median(two / one for one, two in zip(self.one, self.two, strict=True))


def cores_taken(seconds: float = 2.0) -> float:
    """Cores that were busy meanwhile."""
    return psutil.cpu_percent(seconds) / 100 * (psutil.cpu_count() or 1)


def request(encoder: ActorHandle, image: ImageRef, times: int, digest: str, key: str) -> float:
    """Milliseconds until so many requests for an image are answered."""
    began = time.perf_counter()
    ray.get([encoder.encode.remote(image, digest, key) for _ in range(times)])
    return 1000 * (time.perf_counter() - began)


def measure(
    model_id: str = "default", count: int = 128, rounds: int = 3, chunk: int = CHUNK, pairs: int = PAIRS
) -> Actors:
    """Run it with a local Ray of its own.

    Args:
        model_id: The model.
        count: Images per round.
        rounds: Of one actor, then two.
        chunk: Images of one call; fewer for models that take long.
        pairs: Requests for one image, and groups of duplicates.
    """
    warm = min(WARM, chunk)
    while people_click():  # as another benchmark may have done
        time.sleep(1)
    taken = cores_taken()
    with tempfile.TemporaryDirectory(prefix="cl-bench-") as folder:
        settings = Settings(workspace=Path(folder), encoders=2)
        model, digest = published(settings.resolved_storage_url, model_id)
        key = key_of_model(model)
        images = make_images(settings.workspace, 2 * warm + 2 * count * rounds + 2 * pairs)
        with owned(settings) as pool:
            encoders = [pool.encoders[name] for name in sorted(pool.encoders)]
            for encoder in encoders:
                precompute([encoder], [images.pop() for _ in range(warm)], digest, key)
            one, two = [], []
            for _ in range(rounds):
                for rates, some in ((one, encoders[:1]), (two, encoders)):
                    rates.append(count / precompute(some, [images.pop() for _ in range(count)], digest, key, chunk))
            single, duplicate = [], []
            before = ray.get(encoders[0].stats.remote())["encoded"]
            for _ in range(pairs):
                single.append(request(encoders[0], images.pop(), 1, digest, key))
                duplicate.append(request(encoders[0], images.pop(), DUPLICATES, digest, key))
            encoded = ray.get(encoders[0].stats.remote())["encoded"] - before
    return Actors(one, two, taken, statistics.median(single), statistics.median(duplicate), (encoded - pairs) / pairs)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default", help="random weights where none ship")
    parser.add_argument("--images", type=int, default=128, help="per round; a multiple of 4 chunks fills both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=CHUNK, help="images of one call; fewer for models that take long")
    args = parser.parse_args()
    actors = measure(args.model, args.images, args.rounds, args.chunk)
    print(f"one actor            {statistics.median(actors.one):7.2f} images/s")
    print(f"two actors           {statistics.median(actors.two):7.2f} images/s")
    print(f"two / one            {actors.scaling:7.2f}   {actors.taken:.1f} cores were taken by others")
    print(f"one request          {actors.single_ms:7.1f} ms")
    print(f"{DUPLICATES} for one image      {actors.duplicate_ms:7.1f} ms, {actors.encodes:.2f} encodes")
    print(f"ratio                {actors.duplicate_ms / actors.single_ms:7.2f}")
    print(f"load                 {os.getloadavg()[0]:7.2f} on {len(os.sched_getaffinity(0))} cores")


if __name__ == "__main__":
    main()
