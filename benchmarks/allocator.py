"""What `keep_freed_memory` gives: forward passes with and without it, each in a process of its own, in alternation.

    python benchmarks/allocator.py [--rounds 3]

Prints images/s of the default model's encoder and clicks/s of its refiner, and the ratios; one thread.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch

from pipeline.memory import keep_freed_memory
from pipeline.models import load_model
from schemas.clicks import Click


def measure(keeps: bool) -> None:
    """Print passes per CPU second of encoder and refiner."""
    if keeps and not keep_freed_memory():
        raise SystemExit("This system has no glibc.")
    torch.set_num_threads(1)
    model = load_model("default")
    images, crops, previous = torch.rand(2, 3, 384, 512), torch.rand(1, 3, 256, 256), torch.zeros(1, 1, 256, 256)
    with torch.inference_mode():
        encoding = model.encode(images).select(0)
        for name, call, per_call in (
            ("encode", lambda: model.encode(images), 2),
            ("refine", lambda: model.refine(encoding, [[Click(99.0, 99.0, True)]], previous, crops), 1),
        ):
            for _ in range(5):
                call()
            began = time.process_time()
            for _ in range(25):
                call()
            print(name, 25 * per_call / (time.process_time() - began))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=("kept", "given-back"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure == "kept")
        return
    rates: dict[tuple[str, str], list[float]] = {}
    for _ in range(args.rounds):
        for how in ("given-back", "kept"):
            command = [sys.executable, __file__, "--measure", how]
            for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
                name, rate = line.split()
                rates.setdefault((name, how), []).append(float(rate))
    for name in ("encode", "refine"):
        kept, given = (statistics.median(rates[name, how]) for how in ("kept", "given-back"))
        print(f"{name}  kept {kept:6.2f}/s  given back {given:6.2f}/s  ratio {kept / given:.2f}  (per CPU second)")
    print(f"load {os.getloadavg()[0]:.2f} on {len(os.sched_getaffinity(0))} cores")


if __name__ == "__main__":
    main()
