"""What a click and a training step of the published systems cost beside each other, and what they take in memory.

Random weights: time and memory do not depend on them, quality does, so no figure here says which model is better (for
that `clickloop compare`; `fdrn-compact` ships with weights and its NoC is in docs/models/fdrn-compact.md). Each subject
lives in a process of its own; the subjects of a group take turns, so load from others falls on all of them. Time is CPU
time on one thread, median; memory is the peak of the process, and that beyond the interpreter with its libraries.

    python benchmarks/model_steps.py [--rounds 5] [--groups hit sequence training] [--size 512 512]

- hit: one click on an encoded image, against SimpleClick-Base, which has nothing to cache (aim >= 20)
- sequence: an image opened and clicked 20 times, against RITM-HRNet-32 (aim >= 4.25); on a square
  image each network sees its full nominal crop, on any other RITM keeps the aspect and computes less
- training: a step of ClickAdapter on SimpleClick-Base, against all of SimpleClick-Base (aim >= 1.3; memory <= 0.8)
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import numpy as np
import torch

from pipeline.evaluation.costs import count_gmacs, resident_mib
from pipeline.inference.predictor import Predictor
from pipeline.models import create_model
from pipeline.models._base import InteractiveModel
from pipeline.training.losses import nfl
from schemas.clicks import Click

CLICKS = 20
Size = tuple[int, int]
"""(height, width) in pixels."""
Step = Callable[[], float]
"""Does the work once; CPU milliseconds of what is timed."""


def timed(work: Callable[[], object]) -> float:
    """CPU milliseconds of a call."""
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began)


def noise(size: Size) -> np.ndarray:
    """An image of noise; costs do not depend on what is in it."""
    return np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)


def click_at(number: int, size: Size) -> Click:
    """The n-th of a fixed sequence of clicks around the middle, every third one negative."""
    x, y = 0.27 + 0.072 * number % 0.47, 0.31 + 0.104 * number % 0.35
    return Click(x=x * size[1], y=y * size[0], is_positive=number % 3 != 2)


def hit(model: InteractiveModel, size: Size) -> Step:
    """One click of a sequence on an image that is encoded."""
    predictor = Predictor(model)
    predictor.set_image(noise(size))

    def step() -> float:
        number = len(predictor.clicks)
        if number >= CLICKS:
            predictor.reset()
            number = 0
        return timed(lambda: predictor.click(click_at(number, size)))

    return step


def miss(model: InteractiveModel, size: Size) -> Step:
    """The first click on an image that is not encoded yet."""
    predictor = Predictor(model)

    def work() -> None:
        predictor.set_image(noise(size))
        predictor.click(click_at(0, size))

    return lambda: timed(work)


def sequence(model: InteractiveModel, size: Size) -> Step:
    """An image opened and clicked 20 times."""
    predictor = Predictor(model)

    def work() -> None:
        predictor.set_image(noise(size))
        for number in range(CLICKS):
            predictor.click(click_at(number, size))

    return lambda: timed(work)


def training(model: InteractiveModel, size: Size) -> Step:
    """A training step on one crop of the network's own size: forward, loss, backward, AdamW on what learns."""
    model.train()
    height, width = model.input_size
    crops = torch.rand(1, 3, height, width)
    previous, truth = torch.zeros(1, 1, height, width), torch.zeros(1, 1, height, width)
    truth[..., height // 4 : height // 2, width // 4 : width // 2] = 1
    clicks = [[Click(x=width * 0.4, y=height * 0.4, is_positive=True)]]
    learnable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnable, lr=1e-5)

    def work() -> None:
        optimizer.zero_grad(set_to_none=True)
        outputs = model.training_outputs(model.encode(crops), clicks, previous, crops)
        nfl(outputs["mask"], truth).mean().backward()
        optimizer.step()

    return lambda: timed(work)


STEPS: dict[str, Callable[[InteractiveModel, Size], Step]] = {
    "hit": hit,
    "miss": miss,
    "sequence": sequence,
    "training": training,
}
GROUPS = {
    "hit": ("simpleclick-base-448", "fdrn-b0-segformerb0", "fdrn-compact"),
    "sequence": ("ritm-hrnet32", "fdrn-h2-hrnet18s"),
    "training": ("simpleclick-base-448", "clickadapter-simpleclick-base-448"),
}
"""Name of a group -> models; the first is what the others are compared with."""


def body(pipe: Connection, kind: str, model_id: str, size: Size) -> None:
    """Process of one subject: a step per message, until told to stop; then its memory, size and arithmetic."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = resident_mib() or 0.0
    model = create_model(model_id)
    step = STEPS[kind](model, size)
    while pipe.recv():
        pipe.send(step())
    peak = resident_mib(peak=True) or 0.0
    learnable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.requires_grad_(False)  # the counter follows gradients, which a click computes without
    gmacs = count_gmacs(step) if kind == "hit" else 0.0
    pipe.send((peak, peak - before, learnable / 1e6, gmacs))


@dataclass
class Subject:
    """A model at one kind of step, in its process."""

    kind: str
    model_id: str
    pipe: Connection
    times: list[float] = field(default_factory=list)
    peak: float = 0.0
    extra: float = 0.0
    learnable: float = 0.0
    gmacs: float = 0.0

    @property
    def ms(self) -> float:
        """Median of the timed steps."""
        return statistics.median(self.times)


def measure(pairs: Sequence[tuple[str, str]], rounds: int, size: Size = (512, 512)) -> list[Subject]:
    """Run (kind of step, model) pairs in turn; the first round warms up and is not counted."""
    spawn = multiprocessing.get_context("spawn")
    subjects, processes = [], []
    for kind, model_id in pairs:
        ours, theirs = spawn.Pipe()
        processes.append(spawn.Process(target=body, args=(theirs, kind, model_id, size), daemon=True))
        processes[-1].start()
        subjects.append(Subject(kind, model_id, ours))
    for number in range(rounds + 1):
        for subject in subjects:
            subject.pipe.send(True)
            spent = subject.pipe.recv()
            if number:
                subject.times.append(spent)
    for subject, process in zip(subjects, processes, strict=True):
        subject.pipe.send(False)
        subject.peak, subject.extra, subject.learnable, subject.gmacs = subject.pipe.recv()
        process.join()
    return subjects


def gemm_gmacs_per_second() -> float:
    """What one thread reaches in a float32 matrix product: the floor under a click's arithmetic."""
    torch.set_num_threads(1)
    a, b = torch.rand(1024, 3072), torch.rand(3072, 1024)
    return a.shape[0] * a.shape[1] * b.shape[1] / 1e6 / min(timed(lambda: a @ b) for _ in range(8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--groups", nargs="+", choices=sorted(GROUPS), default=list(GROUPS))
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"), help="of the image")
    options = parser.parse_args()
    size = (options.size[0], options.size[1])
    print("random weights: these figures say nothing about quality")
    for group in options.groups:
        print(f"{group}:")
        pairs = [(group, model_id) for model_id in GROUPS[group]]
        subjects = measure(pairs, 2 * options.rounds if group == "hit" else options.rounds, size)
        for subject in subjects:
            print(
                f"  {subject.model_id:36} {subject.ms:9.1f} CPU ms  peak {subject.peak:6.0f} MiB"
                f" ({subject.extra:5.0f} beyond the libraries)  {subject.learnable:6.2f} M learn",
                flush=True,
            )
        first, *others = subjects
        if group == "hit":
            rate = gemm_gmacs_per_second()
            floor = 1000 * first.gmacs / rate
            print(
                f"  floor of {first.model_id}: {first.gmacs:.1f} GMAC at {rate:.0f} GMAC/s of a matrix product ="
                f" {floor:.0f} ms; the click takes {first.ms / floor:.2f} times that"
            )
        for other in others:
            text = f"  {first.model_id} / {other.model_id}: time {first.ms / other.ms:.2f}"
            print(text + (f"; memory {other.extra / first.extra:.2f} of it" if group == "training" else ""))


if __name__ == "__main__":
    main()
