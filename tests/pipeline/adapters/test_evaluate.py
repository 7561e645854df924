"""Held-out figures are those of the live path; broken promises are found; recorded clicks are replayed."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.adapters.evaluate import EvaluationConfig, choose_objects, evaluate_adapter
from pipeline.adapters.monotone import probe_clicks
from pipeline.adapters.validation import click_edit
from pipeline.inference.instance import apply_edit, final_mask, start
from pipeline.masks.rle import mask_to_rle
from pipeline.models._base import Encoding, InteractiveModel, Prediction
from pipeline.models.toy import ToyColor
from schemas.clicks import Click
from tests.pipeline.adapters.worlds import memory_source, toy, world


class Contrary(ToyColor):
    """Learns its lesson backwards: the newest click counts with the opposite sign, once there is a mask."""

    def refine(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Prediction:
        turned = [
            [*own[:-1], replace(own[-1], is_positive=not own[-1].is_positive)] if len(own) > 1 else own
            for own in clicks
        ]
        return super().refine(encoding, turned, previous, crops, rois)


def test_report() -> None:
    images, pixels = world(4)
    told: list[dict[str, object]] = []
    report = evaluate_adapter(toy(), images, memory_source(toy(), pixels), EvaluationConfig(), told.append)
    assert report is not None
    assert [o.mask_id for o in report.objects] == [f"{i}-{n}" for i in range(4) for n in range(2)]
    assert all(curve[-1] >= 0.9 and max(curve[:-1], default=0) < 0.9 for curve in report.curves)
    assert [o.noc for o in report.objects] == [len(curve) for curve in report.curves]
    assert told[-1] == {"object": 8, "objects": 8}
    summary = report.summary()
    assert summary["noc"]["90"] == np.mean([len(curve) for curve in report.curves])
    assert summary["nof"] == {"85": 0, "90": 0}
    assert summary["monotone"]["violations"] == 0 and summary["monotone"]["clicks"] >= 16
    assert summary["recorded"]["objects"] == 0
    json.dumps(summary)


def test_the_same_twice() -> None:
    images, pixels = world(2)
    first, second = (
        evaluate_adapter(toy(), images, memory_source(toy(), pixels), EvaluationConfig()) for _ in range(2)
    )
    assert first == second


def test_never_reached_counts_as_the_cap() -> None:
    images, pixels = world(1)
    report = evaluate_adapter(
        toy(), images, memory_source(toy(), pixels), EvaluationConfig(target_iou=1.01, max_clicks=3)
    )
    assert report is not None
    assert [o.noc for o in report.objects] == [3, 3]
    assert [len(curve) for curve in report.curves] == [3, 3]


def test_broken_promises_are_found_and_the_live_path_breaks_none(monkeypatch: pytest.MonkeyPatch) -> None:
    images, pixels = world(2)
    contrary = Contrary().eval()
    contrary.load_state_dict(toy().state_dict())

    def monotone() -> dict[str, int]:
        report = evaluate_adapter(contrary, images, memory_source(toy(), pixels), EvaluationConfig(max_clicks=4))
        assert report is not None
        found: dict[str, int] = report.summary()["monotone"]
        return found

    held = monotone()
    assert held["clicks"] and not held["violations"]
    monkeypatch.setattr("pipeline.inference.instance.hold_confirmed", lambda prediction, *_: prediction)
    bare = monotone()
    assert bare["violations"] > 0.5 * bare["clicks"]


def test_probe_clicks_lie_where_all_is_right() -> None:
    truth = np.zeros((40, 60), bool)
    truth[10:30, 20:40] = True
    mask = np.roll(truth, 5, 1)
    inside, outside = probe_clicks(truth, mask)
    assert inside.is_positive and truth[int(inside.y), int(inside.x)] and mask[int(inside.y), int(inside.x)]
    assert not outside.is_positive
    assert not truth[int(outside.y), int(outside.x)] and not mask[int(outside.y), int(outside.x)]
    assert probe_clicks(np.ones((5, 5), bool), np.zeros((5, 5), bool)) == []


def test_recorded_clicks_are_replayed_exactly() -> None:
    """Under the model that they were made with, the replay ends at the accepted mask."""
    images, pixels = world(1, objects=1)
    model, image = toy(), images[0]
    source = memory_source(model, pixels)
    scene = source.scene(image)
    edits = tuple(click_edit(Click(x=x, y=y, is_positive=p)) for x, y, p in [(80, 72, True), (30, 20, False)])
    state = start(scene.image)
    for edit in edits:
        state = apply_edit(model, scene.image, scene.encoding, state, edit)
    target = replace(image.targets[0], rle=mask_to_rle(final_mask(state, scene.size)), edits=edits)
    recorded = replace(image, targets=(target,))
    report = evaluate_adapter(model, [recorded], source, EvaluationConfig())
    assert report is not None
    (curve,) = report.recorded
    assert curve.final_iou == 1.0 and curve.ious[-1] == 1.0 and len(curve.ious) == 2
    other = toy()
    with torch.no_grad():
        other.get_parameter("reach").fill_(0.3)
    changed = evaluate_adapter(other, [recorded], source, EvaluationConfig())
    assert changed is not None and changed.recorded[0].final_iou < 1.0


def test_objects_opened_from_a_mask_are_not_replayed() -> None:
    images, pixels = world(1, objects=1)
    opened = click_edit(Click(x=1, y=1, is_positive=True)).model_copy(
        update={"kind": "open", "payload": {"v": 1, "mask_id": "m"}}
    )
    target = replace(images[0].targets[0], edits=(opened, click_edit(Click(x=80, y=72, is_positive=True))))
    assert target.clicks == ()
    report = evaluate_adapter(
        toy(), [replace(images[0], targets=(target,))], memory_source(toy(), pixels), EvaluationConfig()
    )
    assert report is not None and report.recorded == ()


def test_the_choice_of_objects_is_spread_over_the_images() -> None:
    images, _ = world(3, objects=3)
    assert [t.mask_id for _, t in choose_objects(images, 4)] == ["0-0", "0-1", "1-0", "2-0"]
    assert len(choose_objects(images, 100)) == 9


def test_stops_when_told() -> None:
    images, pixels = world(2)
    source = memory_source(toy(), pixels)
    assert evaluate_adapter(toy(), images, source, EvaluationConfig(), should_stop=lambda: True) is None


def test_models_of_cut_crop_work_as_well() -> None:
    """Their encoding is made per crop, so a scene has none."""

    class Cropped(Contrary):
        cut = "crop"

        def refine(self, *args: object, **kwargs: object) -> Prediction:  # type: ignore[override]
            return ToyColor.refine(self, *args, **kwargs)  # type: ignore[arg-type]

    model: InteractiveModel = Cropped().eval()
    model.load_state_dict(toy().state_dict())
    images, pixels = world(1)
    source = memory_source(model, pixels)
    assert source.scene(images[0]).encoding is None
    report = evaluate_adapter(model, images, source, EvaluationConfig(max_clicks=3))
    assert report is not None and len(report.objects) == 2
