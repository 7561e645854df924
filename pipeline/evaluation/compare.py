"""Several models (with adapters) on one data set in one run: quality and costs side by side.

Each model is measured in a process of its own, one after the other, so that memory is its own and nothing is left over
from the one before. Knows nothing about files of results or plots.
"""

import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import torch

from pipeline.adapters.files import load_adapted, read_adapter
from pipeline.evaluation.costs import measure_costs, resident_mib
from pipeline.evaluation.run import Sample, evaluate
from pipeline.models import create_model, default_weights_path, load_model, resolve_model_id, weights_digest
from pipeline.models._base import InteractiveModel
from schemas.errors import BadInputError, ClickloopError, NotFoundError
from schemas.evaluation import Comparison

MISLEADING_CLICKS = 5
_COSTED_IMAGES = 3


class OpenSamples(Protocol):
    """Gives the data set's objects; called in the process that measures, so it must pickle."""

    def __call__(self) -> Iterable[Sample]: ...


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model to compare.

    Attributes:
        model_id: Registered id.
        checkpoint: Weights; None: what ships, or random weights where nothing does and `random_weights` allows it.
        adapter: Laid over the weights.
    """

    model_id: str
    checkpoint: Path | None = None
    adapter: Path | None = None

    @property
    def name(self) -> str:
        """As people write it."""
        named = self.model_id if self.checkpoint is None else f"{self.model_id}={self.checkpoint}"
        return named if self.adapter is None else f"{named}+{self.adapter}"


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """How models are compared.

    Attributes:
        targets: IoU thresholds of NoC and NoF.
        max_clicks: Of the robot user.
        limit: The first objects of the data set only.
        flip: Average with the mirrored view when quality is measured; costs are those of serving, without it.
        misled: Also click with 5 misleading clicks in each sequence.
        seed: Of random weights and misleading clicks.
        threads: Torch threads.
        data: Name of the data set, for the reports.
        random_weights: Take random weights where none ship, to compare costs.
        keep: File that results of objects are kept in, so that the comparison can go on after a stop.
        identity: The state of the data, see `evaluate`.
    """

    targets: tuple[float, ...] = (0.85, 0.90)
    max_clicks: int = 20
    limit: int | None = None
    flip: bool = True
    misled: bool = False
    seed: int = 0
    threads: int = 1
    data: str = ""
    random_weights: bool = False
    keep: Path | None = None
    identity: str = ""


def parse_entry(text: str) -> Entry:
    """`ID`, `ID=CHECKPOINT`, `ID+ADAPTER` or `ID=CHECKPOINT+ADAPTER`.

    Raises:
        NotFoundError: No such model.
        BadInputError: A file is not there.
    """
    cut = next((index for index, sign in enumerate(text) if sign in "=+"), len(text))
    model_id, sign, files = text[:cut], text[cut : cut + 1], text[cut + 1 :]
    checkpoint, adapter = _checkpoint_and_adapter(files) if sign == "=" else (None, Path(files) if sign else None)
    for path in (checkpoint, adapter):
        if path is not None and not path.is_file():  # "." for none: a variable that is not set
            raise BadInputError(f"{text}: there is no file {path}.")
    return Entry(model_id=resolve_model_id(model_id), checkpoint=checkpoint, adapter=adapter)


def _checkpoint_and_adapter(files: str) -> tuple[Path, Path | None]:
    """`CHECKPOINT` or `CHECKPOINT+ADAPTER`: a "+" is also one in a name of a file, as long as there is that file."""
    ways: list[tuple[Path, Path | None]] = [(Path(files), None)]
    ways += [(Path(files[:i]), Path(files[i + 1 :])) for i, sign in enumerate(files) if sign == "+"]
    return max(ways, key=lambda way: (way[0].is_file(), way[1] is None or way[1].is_file()))


def compare(
    entries: Sequence[Entry],
    open_samples: OpenSamples,
    options: CompareOptions,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> list[Comparison]:
    """Measure each model in turn, in a fresh process.

    Args:
        entries: At least one.
        open_samples: Opens the data set.
        options: How.
        progress: Told {"step", "model", "done", ...}.

    Raises:
        BadInputError: A model has no weights, or the data set has no object.
        ClickloopError: Whatever else a model's process reported.
    """
    context = multiprocessing.get_context("spawn")
    results: list[Comparison] = []
    for entry in entries:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(theirs, entry, open_samples, options), daemon=True)
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it is deaf to Ctrl-C, and killed below
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        theirs.close()
        try:
            results.append(_receive(ours, entry, progress))
            process.join(timeout=5)
        finally:
            process.kill()
    return results


def _receive(pipe: Connection, entry: Entry, progress: Callable[[dict[str, Any]], None] | None) -> Comparison:
    while True:
        try:
            kind, value = pipe.recv()
        except EOFError:
            raise ClickloopError(
                f"The process that measured {entry.name} died; it may have run out of memory."
            ) from None
        if kind == "done":
            return Comparison.model_validate(value)
        if kind == "error":
            raise value
        if progress is not None:
            progress({"model": entry.name, **value})


def _measure(pipe: Connection, entry: Entry, open_samples: OpenSamples, options: CompareOptions) -> None:
    """Body of the process."""
    try:
        torch.set_num_threads(options.threads)
        baseline = resident_mib()
        model, weights, learnable = _load(entry, options)
        sampled = list(itertools.islice(_different_images(open_samples()), _COSTED_IMAGES))
        if not sampled:
            raise BadInputError("There is no object to compare on: the data hold none.")
        costs = measure_costs(model, sampled, learnable, baseline)

        def run(misleading: int) -> Any:
            digest = (
                None
                if weights == "random"
                else weights_digest(entry.checkpoint or default_weights_path(entry.model_id))
            )
            return evaluate(
                model,
                open_samples(),
                options.targets,
                options.max_clicks,
                options.flip,
                options.limit,
                checkpoint_sha256=digest,
                data=options.data,
                progress=lambda facts: pipe.send(("progress", facts)),
                misleading=misleading,
                seed=options.seed,
                keep=options.keep,
                identity=f"{options.identity} {weights_digest(entry.adapter) if entry.adapter else ''}",
            )

        report = run(0)
        misled = run(MISLEADING_CLICKS) if options.misled else None
        result = Comparison(name=entry.name, weights=weights, costs=costs, report=report, misled=misled)
        pipe.send(("done", result.model_dump()))
    except ClickloopError as error:
        pipe.send(("error", error))


def _load(entry: Entry, options: CompareOptions) -> tuple[InteractiveModel, str, int | None]:
    """The model, what its weights are, and how many parameters its adapter has."""
    try:
        model = load_model(entry.model_id, entry.checkpoint, entry.adapter)
        weights = "shipped" if entry.checkpoint is None else entry.checkpoint.name
    except NotFoundError:
        if not options.random_weights or entry.checkpoint is not None:
            raise
        torch.manual_seed(options.seed)
        model, weights = create_model(entry.model_id), "random"
        if entry.adapter is not None:
            model, _ = load_adapted(model, entry.adapter)
    if entry.adapter is None:
        return model, weights, None
    return model, weights, sum(tensor.numel() for tensor in read_adapter(entry.adapter)[0].values())


def _different_images(samples: Iterable[Sample]) -> Iterable[Any]:
    last = None
    for sample in samples:
        image = sample.read_image()
        if image is not last:
            yield image
        last = image
