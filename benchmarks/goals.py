"""The performance goals as one table: each goal, the figure of this run, the limit, and what is missing.

    python benchmarks/goals.py [--only G1 G3 ...]

Each figure is a ratio from one run whose two sides take turns, a median, and CPU time of one thread where both sides
can be had in it; "wall" in a row says that it is wall clock, which other work on the machine spoils. The measurements
are those of the other benchmarks with fewer rounds, each in a process of its own; all take about 15 minutes on two
cores. A missed goal is no error; a measurement that breaks is: its rows say so, and the exit status is 1.
docs/goals.md explains the goals that are missed.
"""

import argparse
import functools
import multiprocessing
import os
import statistics
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import adapter_step
import click_latency
import clicks_while_training
import decoder_step
import encoder_actors
import export_speed
import first_click
import model_steps
import non_model_work
import numpy as np
import precompute_rate
import precompute_restart
import torch

VIT_B = "fdrn-timm:vit_base_patch16_224.mae"
"""FDRN with a plain ViT-B as image encoder, of random weights."""
SHIPPED = "fdrn-compact"
PEER = "simpleclick-base-448"
RESTART_IMAGES = 1500
EMBEDDING_BYTES = 256 * 64 * 64 * 4
"""Of SAM's image embedding as CVAT sends it to the browser: 4.2 MB."""


def model_clicks() -> dict[tuple[str, str], float]:
    """CPU milliseconds by kind of step and model."""
    pairs = [("hit", PEER), ("hit", VIT_B), ("miss", VIT_B), ("hit", SHIPPED)]
    return {(subject.kind, subject.model_id): subject.ms for subject in model_steps.measure(pairs, 8)}


def clicks() -> click_latency.Clicks:
    """Clicks through gateway, log and refiner."""
    return click_latency.measure(SHIPPED, instances=8)


def work_beside_model() -> dict[str, float]:
    """CPU milliseconds at 1080p."""
    return non_model_work.summary(non_model_work.SIZES["1080p"])


def rate_shipped() -> precompute_rate.Rates:
    """Precompute of the shipped model."""
    return precompute_rate.measure(SHIPPED, 48)


def rate_vit_b() -> precompute_rate.Rates:
    """Precompute of ViT-B, whose images take seconds."""
    return precompute_rate.measure(VIT_B, 5)


def actors() -> encoder_actors.Actors:
    """One encoder actor, two, and duplicates."""
    return encoder_actors.measure(SHIPPED, 128)


def heavy_actors() -> encoder_actors.Actors:
    """The same with an encoder that takes long."""
    return encoder_actors.measure(VIT_B, 16, rounds=1, chunk=2, pairs=1)


def restart() -> precompute_restart.Runs:
    """A finished precompute, asked for again."""
    return precompute_restart.measure(SHIPPED, RESTART_IMAGES)


def train_steps() -> list[adapter_step.Variant]:
    """A step from cached encodings and one of everything."""
    names = ("adapter, cached encoding", "full fine-tune with the encoder")
    return adapter_step.measure(VIT_B, steps=3, rounds=2, names=names)


def export() -> dict[str, Any]:
    """Parquet export and pyarrow."""
    return export_speed.measure(images=1000)


@dataclass(frozen=True)
class Goal:
    """A row of the table.

    Attributes:
        id: As the goals are known; some have several rows.
        what: Is compared with what.
        sign: ">=" or "<=".
        limit: Of the figure.
        measurement: What it is read from; run once for all goals that share it.
        figure: The ratio in a measurement.
        note: What else to say, from the measurement.
    """

    id: str
    what: str
    sign: str
    limit: float
    measurement: Callable[[], Any]
    figure: Callable[[Any], float]
    note: Callable[[Any], str] = lambda found: ""

    def is_met(self, figure: float) -> bool:
        """Whether a figure is on the right side of the limit."""
        return figure >= self.limit if self.sign == ">=" else figure <= self.limit


def beside(ms: float, other: float) -> str:
    """Both sides of a ratio."""
    return f"{ms:,.1f} / {other:,.1f} ms"


def first_and_last(found: click_latency.Clicks, name: str) -> tuple[float, float]:
    """Medians of an attribute of click 1 and the last click."""
    return click_latency.p50(found.firsts, name), click_latency.p50(found.lasts, name)


def beside_model_ms(found: click_latency.Clicks) -> float:
    """Median of what the refiner does beside the model in a hit, as it says itself."""
    parts = [name for name in click_latency.STAGES if name != "model"]
    return float(np.median([sum(reply.stages.get(name, 0.0) for name in parts) for reply in found.hits]))


def taken(found: encoder_actors.Actors) -> str:
    """What the scaling of actors has to be read with."""
    return f"wall; {found.taken:.1f} of {os.cpu_count()} cores taken by other work"


GOALS = (
    Goal(
        "G1", "SimpleClick-B click / hit of FDRN with ViT-B", ">=", 20, model_clicks,
        lambda ms: ms["hit", PEER] / ms["hit", VIT_B], lambda ms: beside(ms["hit", PEER], ms["hit", VIT_B]),
    ),
    Goal(
        "G1", f"SimpleClick-B click / hit of {SHIPPED}", ">=", 20, model_clicks,
        lambda ms: ms["hit", PEER] / ms["hit", SHIPPED], lambda ms: beside(ms["hit", PEER], ms["hit", SHIPPED]),
    ),
    Goal(
        "G2", f"refine step of {SHIPPED} / SAM-style decoder", "<=", 0.6, decoder_step.measure,
        lambda found: found.ratio, lambda found: beside(found.refine_ms, found.decoder_ms),
    ),
    Goal(
        "G3", "click 20 / click 1, time", "<=", 1.05, clicks,
        lambda found: click_latency.p50(found.lasts, "mask_ms") / click_latency.p50(found.firsts, "mask_ms"),
        lambda found: "wall; " + beside(*first_and_last(found, "mask_ms")[::-1]),
    ),
    Goal(
        "G3", "click 20 / click 1, request bytes", "<=", 1.05, clicks,
        lambda found: click_latency.p50(found.lasts, "sent") / click_latency.p50(found.firsts, "sent"),
        lambda found: "{:.0f} / {:.0f} bytes".format(*first_and_last(found, "sent")[::-1]),
    ),
    Goal(
        "G4", "work beside the model of a click at 1080p, ms", "<=", 3, work_beside_model,
        lambda found: found["total"], lambda found: f"first click {found['first_total']:.1f} ms",
    ),
    Goal(
        "G4", "the same by the refiner's own account of a hit, ms", "<=", 3, clicks, beside_model_ms,
        lambda found: f"wall; model {np.median([reply.stages['model'] for reply in found.hits]):.1f} ms",
    ),
    Goal(
        "G6", "miss / hit of FDRN with ViT-B", ">=", 15, model_clicks,
        lambda ms: ms["miss", VIT_B] / ms["hit", VIT_B], lambda ms: beside(ms["miss", VIT_B], ms["hit", VIT_B]),
    ),
    Goal(
        "G6", f"{encoder_actors.DUPLICATES} misses on one image / one miss", "<=", 1.15, actors,
        lambda found: found.duplicate_ms / found.single_ms,
        lambda found: f"wall; {beside(found.duplicate_ms, found.single_ms)}; {found.encodes:.2f} encodes",
    ),
    Goal(
        "G7", "precompute / raw forward, FDRN with ViT-B", ">=", 0.9, rate_vit_b,
        lambda found: statistics.median(found.ratios), lambda found: f"wall; {found.busy:.2f} in the forward pass",
    ),
    Goal(
        "G7", f"precompute / raw forward, {SHIPPED}", ">=", 0.85, rate_shipped,
        lambda found: statistics.median(found.ratios), lambda found: f"wall; {found.busy:.2f} in the forward pass",
    ),
    Goal("G8", "2 encoder actors / 1, FDRN with ViT-B", ">=", 1.8, heavy_actors, lambda found: found.scaling, taken),
    Goal("G8", f"2 encoder actors / 1, {SHIPPED}", ">=", 1.8, actors, lambda found: found.scaling, taken),
    Goal(
        "G9", f"restart of a precompute of {RESTART_IMAGES} images / first run", "<=", 0.01, restart,
        lambda found: found.ratio,
        lambda found: (
            f"wall; {statistics.median(found.restarts):.2f} s, {found.restart_cpu:.2f} s CPU / {found.first:.1f} s"
        ),
    ),
    Goal(
        "G11", "click with log / without, p50", "<=", 1.01, clicks, lambda found: found.log_ratio,
        lambda found: (
            "wall; pairs; the ack takes "
            f"{click_latency.p50(found.hits, 'ack_ms') - click_latency.p50(found.plain, 'ack_ms'):+.2f} ms"
        ),
    ),
    Goal(
        "G12", "full fine-tune step / cached adapter step, ViT-B", ">=", 40, train_steps,
        lambda variants: variants[1].ms / variants[0].ms, lambda variants: beside(variants[1].ms, variants[0].ms),
    ),
    Goal(
        "G12", "cached / full, extra memory", "<=", 0.15, train_steps,
        lambda variants: variants[0].extra_mb / variants[1].extra_mb,
        lambda variants: f"{variants[0].extra_mb:.0f} / {variants[1].extra_mb:.0f} MB",
    ),
    Goal(
        "G13", "click p95 while an adapter trains / idle", "<=", 1.5, clicks_while_training.measure,
        lambda found: found.ratio(), lambda found: f"wall; p50 {found.ratio(50):.2f}",
    ),
    Goal(
        "G14", "pyarrow writing the same arrays / Parquet writer", ">=", 0.5, export,
        lambda found: found["ratios"]["parquet_writer_to_pyarrow"],
        lambda found: f"with reading the database {found['ratios']['parquet_to_floor']:.2f} of its floor",
    ),
    Goal(
        "G15", "embedding download (4.2 MB) / bytes of a click", ">=", 400, clicks,
        lambda found: EMBEDDING_BYTES / np.median([reply.sent + reply.size for reply in found.hits]),
        lambda found: f"{np.median([reply.sent + reply.size for reply in found.hits]):.0f} bytes both ways",
    ),
    Goal(
        "G16", "first click after boot / warm", "<=", 3, first_click.measure, lambda found: found.ratio,
        lambda found: "wall; " + beside(statistics.median(found.first), statistics.median(found.warm)),
    ),
)  # fmt: skip


def in_new_process(measurement: Callable[[], Any]) -> Any:
    """What a measurement finds in a process of its own, which may start others."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measurement).result()


def row(*columns: str) -> None:
    """Print a row."""
    goal, what, figure, limit, verdict, note = columns
    print(f"{goal:<5}{what:<55}{figure:>9}  {limit:<9}{verdict:<14}{note}", flush=True)


def main() -> int:
    """Run and print; 1 if a measurement broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ids = list(dict.fromkeys(goal.id for goal in GOALS))
    parser.add_argument("--only", nargs="+", metavar="GOAL", choices=ids, default=ids, help=", ".join(ids))
    wanted = parser.parse_args().only
    print(f"{len(os.sched_getaffinity(0))} cores, load average {_load()}, torch {torch.__version__}, one thread each")
    row("goal", "what", "figure", "limit", "", "what is missing, and what it was read from")
    once = functools.cache(_outcome)
    broken = False
    for goal in (goal for goal in GOALS if goal.id in wanted):
        limit = f"{goal.sign} {goal.limit:g}"
        found, error = once(goal.measurement)
        if error:
            broken = True
            row(goal.id, goal.what, "-", limit, "not measured", error)
            continue
        figure = goal.figure(found)
        gap = "" if goal.is_met(figure) else f"{max(figure / goal.limit, goal.limit / figure):.2f} times off; "
        row(goal.id, goal.what, f"{figure:.3g}", limit, "missed" if gap else "met", gap + goal.note(found))
    print(f"load average at the end {_load()}")
    return int(broken)


def _load() -> str:
    """The system's load over 1, 5 and 15 minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def _outcome(measurement: Callable[[], Any]) -> tuple[Any, str]:
    """What it found, or what stopped it."""
    try:
        return in_new_process(measurement), ""
    except Exception as error:
        traceback.print_exc()
        return None, f"{type(error).__name__}: {error}".splitlines()[0][:200]


if __name__ == "__main__":
    sys.exit(main())
