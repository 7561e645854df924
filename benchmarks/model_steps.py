"""What a click and a training step of the published systems cost beside each other, and what they take in memory.

Random weights: time and memory do not depend on them, quality does, so no figure here says which model is better (for
that `clickloop compare`; `fdrn-compact` ships with weights and its NoC is in docs/models/fdrn-compact.md). Each subject
lives in a process of its own; the subjects of a group take turns, so load from others falls on all of them. Time is CPU
time on one thread, median; memory is the peak of the process, and that beyond the interpreter with its libraries.

    python benchmarks/model_steps.py [--rounds 5] [--groups hit sequence training]

- hit: one click on an encoded image, against SimpleClick-Base, which has nothing to cache (aim >= 20)
- sequence: an image opened and clicked 20 times, against RITM-HRNet-32 (aim >= 4.25)
- training: a step of ClickAdapter on SimpleClick-Base, against all of SimpleClick-Base (aim >= 1.3; memory <= 0.8)
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import numpy as np
import torch

from pipeline.evaluation.costs import resident_mib
from pipeline.inference.predictor import Predictor
from pipeline.models import create_model
from pipeline.models._base import InteractiveModel
from pipeline.training.losses import nfl
from schemas.clicks import Click

CLICKS = 20
SIMPLECLICK_GMACS = 80.8
"""Of SimpleClick-Base at 448 (MODELS.md section 8 of the design)."""

Step = Callable[[], float]
"""Does the work once; CPU milliseconds of what is timed."""


def timed(work: Callable[[], object]) -> float:
    """CPU milliseconds of a call."""
    began = time.process_time()
    work()
    return 1000 * (time.process_time() - began)


def photograph() -> np.ndarray:
    """512 x 512 of noise; square, so that every network sees its full nominal crop (RITM keeps the aspect)."""
    return np.random.default_rng(0).integers(0, 255, (512, 512, 3), np.uint8)


def click_at(number: int) -> Click:
    """The n-th of a fixed sequence of clicks around the middle, every third one negative."""
    return Click(x=140.0 + 37 * number % 240, y=160.0 + 53 * number % 180, is_positive=number % 3 != 2)


def hit(model: InteractiveModel) -> Step:
    """One click of a sequence on an image that is encoded."""
    predictor = Predictor(model)
    predictor.set_image(photograph())

    def step() -> float:
        number = len(predictor.clicks)
        if number >= CLICKS:
            predictor.reset()
            number = 0
        return timed(lambda: predictor.click(click_at(number)))

    return step


def sequence(model: InteractiveModel) -> Step:
    """An image opened and clicked 20 times."""
    predictor = Predictor(model)

    def work() -> None:
        predictor.set_image(photograph())
        for number in range(CLICKS):
            predictor.click(click_at(number))

    return lambda: timed(work)


def training(model: InteractiveModel) -> Step:
    """A training step on one crop: forward, loss, backward, AdamW on what learns."""
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


SUBJECTS: dict[str, Callable[[InteractiveModel], Step]] = {"hit": hit, "sequence": sequence, "training": training}
GROUPS = {
    "hit": ("simpleclick-base-448", "fdrn-b0-segformerb0", "fdrn-compact"),
    "sequence": ("ritm-hrnet32", "fdrn-h2-hrnet18s"),
    "training": ("simpleclick-base-448", "clickadapter-simpleclick-base-448"),
}
"""Name of a group -> models; the first is what the others are compared with."""


def body(pipe: Connection, group: str, model_id: str) -> None:
    """Process of one subject: a step per message, until told to stop; then its memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = resident_mib() or 0.0
    model = create_model(model_id)
    step = SUBJECTS[group](model)
    while pipe.recv():
        pipe.send(step())
    peak = resident_mib(peak=True) or 0.0
    learnable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    pipe.send((peak, peak - before, learnable / 1e6))


@dataclass
class Subject:
    """One model of a group in its process."""

    model_id: str
    pipe: Connection
    times: list[float] = field(default_factory=list)
    peak: float = 0.0
    extra: float = 0.0

    @property
    def ms(self) -> float:
        """Median of the timed steps."""
        return statistics.median(self.times)


def measure(group: str, rounds: int) -> list[Subject]:
    """Run a group's subjects in turn; the first round warms up and is not counted."""
    spawn = multiprocessing.get_context("spawn")
    subjects, processes = [], []
    for model_id in GROUPS[group]:
        ours, theirs = spawn.Pipe()
        processes.append(spawn.Process(target=body, args=(theirs, group, model_id), daemon=True))
        processes[-1].start()
        subjects.append(Subject(model_id, ours))
    for number in range(rounds + 1):
        for subject in subjects:
            subject.pipe.send(True)
            spent = subject.pipe.recv()
            if number:
                subject.times.append(spent)
    for subject, process in zip(subjects, processes, strict=True):
        subject.pipe.send(False)
        subject.peak, subject.extra, learnable = subject.pipe.recv()
        process.join()
        print(
            f"  {subject.model_id:36} {subject.ms:9.1f} CPU ms  peak {subject.peak:6.0f} MiB"
            f" ({subject.extra:5.0f} beyond the libraries)  {learnable:6.2f} M learn",
            flush=True,
        )
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
    options = parser.parse_args()
    print("random weights: these figures say nothing about quality")
    for group in options.groups:
        print(f"{group}:")
        first, *others = measure(group, 2 * options.rounds if group == "hit" else options.rounds)
        if group == "hit":
            rate = gemm_gmacs_per_second()
            floor = 1000 * SIMPLECLICK_GMACS / rate
            print(
                f"  floor of {first.model_id}: {SIMPLECLICK_GMACS} GMAC at {rate:.0f} GMAC/s of a matrix product ="
                f" {floor:.0f} ms; the click takes {first.ms / floor:.2f} times that"
            )
        for other in others:
            text = f"  {first.model_id} / {other.model_id}: time {first.ms / other.ms:.2f}"
            print(text + (f"; memory {other.extra / first.extra:.2f} of it" if group == "training" else ""))


if __name__ == "__main__":
    main()
