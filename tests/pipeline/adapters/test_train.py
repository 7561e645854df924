"""Training an adapter helps on what it has not seen, resumes exactly, and leaves the rest of the model alone."""

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.adapters.evaluate import EvaluationConfig, evaluate_adapter
from pipeline.adapters.gate import GateConfig, decide
from pipeline.adapters.kinds import adapted
from pipeline.adapters.scenes import AdapterImage, AdapterTarget
from pipeline.adapters.steps import AdapterConfig
from pipeline.adapters.train import train_adapter
from pipeline.adapters.validation import split_images
from pipeline.masks.rle import mask_to_rle, rle_to_mask
from pipeline.models import create_model
from schemas.errors import BadCheckpointError, BadInputError
from schemas.predictions import Edit
from tests.pipeline.adapters.worlds import QUICK, memory_source, spoiled_toy, toy, world

HELD_OUT, HELD_OUT_PIXELS = world(16, first_seed=1000)


def edits(clicks: list[tuple[float, float, bool]]) -> tuple[Edit, ...]:
    return tuple(
        Edit(kind="click", payload={"v": 1, "x": x, "y": y, "is_positive": p}, payload_sha256="") for x, y, p in clicks
    )


def moved(images: list[AdapterImage]) -> list[AdapterImage]:
    """Every mask shifted by a third of the image."""
    return [
        replace(
            image, targets=tuple(replace(t, rle=mask_to_rle(np.roll(rle_to_mask(t.rle), 50, 0))) for t in image.targets)
        )
        for image in images
    ]


def test_training_helps_on_held_out_images_and_passes_the_gate() -> None:
    model = spoiled_toy()
    images, pixels = world(8)
    source = memory_source(model, pixels | HELD_OUT_PIXELS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[dict[str, object]] = []
    result = train_adapter(model, images, source, QUICK, progress=seen.append)
    assert result.finished and result.steps == 30 and [row["step"] for row in seen] == list(range(1, 31))
    assert result.best_iou is not None and result.live_iou is not None and result.best_iou > result.live_iou
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "live is left as it is"

    live = evaluate_adapter(model, HELD_OUT, source, EvaluationConfig())
    candidate = evaluate_adapter(adapted(model, result.tensors), HELD_OUT, source, EvaluationConfig())
    assert live is not None and candidate is not None
    decision = decide(live.objects, candidate.objects, GateConfig())
    assert decision.promote, decision.reasons
    assert decision.figures["improvement"]["low"] > 3


def test_training_on_wrong_masks_does_not_pass_the_gate() -> None:
    """A good model must not be replaced by what learns that. (It replays nothing, which would soften the lesson.)"""
    model = toy()
    images, pixels = world(8)
    source = memory_source(model, pixels | HELD_OUT_PIXELS)
    result = train_adapter(model, moved(images), source, replace(QUICK, validation_share=0.0, replay_share=0.0))
    live = evaluate_adapter(model, HELD_OUT, source, EvaluationConfig())
    candidate = evaluate_adapter(adapted(model, result.tensors), HELD_OUT, source, EvaluationConfig())
    assert live is not None and candidate is not None
    assert not decide(live.objects, candidate.objects, GateConfig()).promote


def test_a_stopped_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    model = spoiled_toy()
    images, pixels = world(6)
    config = replace(QUICK, max_steps=12, validate_every=5, checkpoint_every=3)
    whole = train_adapter(model, images, memory_source(model, pixels), config)

    checkpoint = tmp_path / "adapter.checkpoint"
    asked = itertools.count()
    part = train_adapter(
        model, images, memory_source(model, pixels), config, checkpoint, should_stop=lambda: next(asked) == 7
    )
    assert not part.finished and part.steps == 7
    steps: list[int] = []
    rest = train_adapter(
        model, images, memory_source(model, pixels), config, checkpoint, progress=lambda p: steps.append(p["step"])
    )
    assert steps == list(range(8, 13))
    assert rest.finished and rest.best_step == whole.best_step
    assert [row["iou"] for row in rest.history] == [row["iou"] for row in whole.history]
    assert all(torch.equal(rest.tensors[name], tensor) for name, tensor in whole.tensors.items())


def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    model = spoiled_toy()
    images, pixels = world(6)
    config = replace(QUICK, max_steps=8, validate_every=4, checkpoint_every=3)
    whole = train_adapter(model, images, memory_source(model, pixels), config)

    class Killed(BaseException):
        pass

    def kill(progress: dict[str, object]) -> None:
        if progress["step"] == 5:
            raise Killed

    checkpoint = tmp_path / "adapter.checkpoint"
    with pytest.raises(Killed):
        train_adapter(model, images, memory_source(model, pixels), config, checkpoint, progress=kill)
    steps: list[int] = []
    rest = train_adapter(
        model, images, memory_source(model, pixels), config, checkpoint, progress=lambda p: steps.append(p["step"])
    )
    assert steps[0] == 4, "the checkpoint of step 3 is continued"
    assert all(torch.equal(rest.tensors[name], tensor) for name, tensor in whole.tensors.items())


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    model = spoiled_toy()
    images, pixels = world(3)
    config = replace(QUICK, max_steps=1)
    train_adapter(model, images, memory_source(model, pixels), config, tmp_path / "c")
    with pytest.raises(BadCheckpointError, match="another adapter training"):
        train_adapter(model, images[:2], memory_source(model, pixels), config, tmp_path / "c")
    with pytest.raises(BadCheckpointError, match="another adapter training"):
        train_adapter(model, images, memory_source(model, pixels), replace(config, seed=1), tmp_path / "c")
    (tmp_path / "c").write_bytes(b"no state")
    with pytest.raises(BadCheckpointError, match="no readable training state"):
        train_adapter(model, images, memory_source(model, pixels), config, tmp_path / "c")


def test_recorded_clicks_are_learned_from() -> None:
    """With recorded clicks only, the first click of every trajectory is the person's."""
    model = spoiled_toy()
    images, pixels = world(4)
    with_clicks = [
        replace(
            image,
            targets=tuple(replace(t, edits=edits([(40.0 + 80 * i, 72.0, True)])) for i, t in enumerate(image.targets)),
        )
        for image in images
    ]
    config = replace(QUICK, max_steps=6, recorded_share=1.0, hold_share=0.0, replay_share=0.0, max_clicks=1)
    with_record = train_adapter(model, with_clicks, memory_source(model, pixels), config)
    without = train_adapter(model, images, memory_source(model, pixels), config)
    assert any(not torch.equal(with_record.tensors[name], t) for name, t in without.tensors.items())
    assert all(torch.isfinite(t).all() for t in with_record.tensors.values())


def test_holding_only_keeps_the_live_weights() -> None:
    model = toy()
    images, pixels = world(3)
    config = replace(QUICK, max_steps=5, hold_share=1.0, replay_share=0.0, mirror=False)
    result = train_adapter(model, images, memory_source(model, pixels), config)
    for name, tensor in result.tensors.items():
        assert torch.allclose(tensor, model.get_parameter(name).detach(), atol=1e-3), name


def test_replayed_scenes_say_nothing_of_the_masks() -> None:
    model = spoiled_toy()
    images, pixels = world(3)
    config = replace(QUICK, max_steps=5, validation_share=0.0, hold_share=0.0)
    for share in (1.0, 0.5):
        whole = replace(config, replay_share=share)
        right, wrong = (
            train_adapter(model, some, memory_source(model, pixels), whole).tensors for some in (images, moved(images))
        )
        assert all(torch.equal(tensor, wrong[name]) for name, tensor in right.items()) == (share == 1.0)
        assert any(not torch.equal(tensor, model.get_parameter(name)) for name, tensor in right.items())


def test_what_is_kept_lies_the_stride_from_the_live_weights_towards_the_trained_ones() -> None:
    model = toy()
    images, pixels = world(2)
    config = replace(QUICK, max_steps=4, validation_share=0.0, hold_share=0.0)
    whole, some, none = (
        train_adapter(model, images, memory_source(model, pixels), replace(config, stride=stride)).tensors
        for stride in (1.0, 0.25, 0.0)
    )
    for name, tensor in none.items():
        live = model.get_parameter(name).detach()
        assert torch.equal(tensor, live)
        assert torch.allclose(some[name] - live, (whole[name] - live) / 4, atol=1e-6)
    assert any(not torch.allclose(whole[name], tensor, atol=1e-4) for name, tensor in none.items())


def test_early_stopping() -> None:
    """A learning rate that ruins the model ends the training after `patience` validations."""
    model = toy()
    images, pixels = world(6)
    config = replace(QUICK, max_steps=40, learning_rate=5.0, validate_every=2, patience=3, hold_share=0.0)
    result = train_adapter(model, images, memory_source(model, pixels), config)
    assert result.steps < 40
    assert result.steps == result.best_step + 2 * 3


def test_nothing_to_train_on() -> None:
    model = toy()
    images, pixels = world(2, objects=0)
    with pytest.raises(BadInputError, match="no accepted mask"):
        train_adapter(model, images, memory_source(model, pixels), QUICK)


def test_split_keeps_near_duplicates_together() -> None:
    images, _ = world(20)
    paired = [replace(image, group=f"g{index // 2}") for index, image in enumerate(images)]
    training, validation = split_images(paired, 0.2, 100, seed=0)
    aside = {image.group for image, _ in validation}
    assert len(aside) == 2 and not aside & {image.group for image in training}
    assert len(training) == 16 and len(validation) == 8
    assert split_images(paired, 0.2, 3, seed=0)[1] == validation[:3]
    assert split_images(paired[:8], 0.2, 100, seed=0)[1] == [], "too few groups to set any aside"


def test_the_shipped_architecture_trains_its_head_only() -> None:
    torch.manual_seed(0)
    model = create_model("fdrn-compact", image_size=64, input_size=(64, 64))
    images, pixels = world(1)
    config = replace(QUICK, max_steps=2, learning_rate=1e-3, objects_per_step=1, max_clicks=2, warmup_steps=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = train_adapter(model, images, memory_source(model, pixels), config)
    assert result.tensors.keys() == set(model.adapter_parameter_names("head"))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in result.tensors.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_trajectories_of_a_step_run_side_by_side_and_their_order_changes_nothing() -> None:
    model = spoiled_toy()
    images, pixels = world(4)
    source = memory_source(model, pixels)
    config = replace(QUICK, max_steps=3, validation_share=0.0)
    both, lock, met = threading.Barrier(2), threading.Lock(), threading.Event()

    @contextmanager
    def together() -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread() and not met.is_set():
            both.wait(timeout=30)  # broken where one trajectory waits for the other's end
            met.set()
        yield

    side_by_side = train_adapter(model, images, source, config, turn=together)
    one_at_a_time = train_adapter(model, images, source, config, turn=lambda: lock)
    assert met.is_set()
    assert all(torch.equal(one_at_a_time.tensors[name], tensor) for name, tensor in side_by_side.tensors.items())


def test_empty_images_are_left_out() -> None:
    model = spoiled_toy()
    images, pixels = world(2)
    empty = replace(images[0], targets=())
    result = train_adapter(
        model, [empty, images[1]], memory_source(model, {images[1].ref.sha256: pixels[images[1].ref.sha256]}),
        replace(QUICK, max_steps=2),
    )  # fmt: skip
    assert result.steps == 2


def test_images_are_read_once_while_they_fit() -> None:
    images, pixels = world(3)
    model = toy()
    source = memory_source(model, pixels)
    first = source.scene(images[0])
    assert source.scene(images[0]) is first
    assert source.scene(images[0], mirrored=True).mirrored
    small = type(source)(model, lambda image: pixels[image.ref.sha256], max_bytes=1)
    scene = small.scene(images[0])
    small.scene(images[1])
    assert small.scene(images[0]) is not scene


def test_targets_and_clicks_follow_mirroring_and_shrinking() -> None:
    model = toy()
    images, pixels = world(1)
    target = AdapterTarget(
        mask_id="m",
        category=None,
        rle=images[0].targets[0].rle,
        edits=edits([(40.0, 60.0, True), (159.5, 143.5, False)]),
    )
    image = AdapterImage(ref=images[0].ref, group="g", targets=(target,))
    source = memory_source(model, pixels)
    plain, half = source.scene(image), source.scene(image, mirrored=True, max_side=80)
    assert half.size == (72, 80)
    mask, small = plain.target_mask(target), half.target_mask(target)
    assert abs(small.sum() * 4 - mask.sum()) < 0.05 * mask.sum()
    assert (small[:, ::-1] & mask[::2, ::2]).sum() > 0.9 * small.sum()
    assert [(c.x, c.y) for c in plain.place_clicks(target.clicks)] == [(40.0, 60.0), (159.0, 143.0)]
    assert [(c.x, c.y) for c in half.place_clicks(target.clicks)] == [(59.0, 30.0), (0.0, 71.0)]


@pytest.mark.parametrize(("masks", "steps"), [(1, 300), (50, 300), (100, 600), (150, 900), (10**6, 900)])
def test_more_masks_are_learned_for_longer(masks: int, steps: int) -> None:
    config = AdapterConfig.for_masks(masks, kind="full", max_minutes=1.0, max_steps=None)
    assert (config.max_steps, config.kind, config.max_minutes) == (steps, "full", 1.0)
    assert config.max_steps == 12 * config.validate_every, "as often, whatever the length"
