import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.metrics import iou
from pipeline.inference import Predictor
from pipeline.inference.instance import InstanceState, apply_edit, final_mask, start
from pipeline.inference.step import encode_image
from pipeline.inference.zoom import expand
from pipeline.masks.digest import mask_digest
from pipeline.masks.rle import mask_to_rle
from pipeline.models import create_model
from schemas.clicks import Click
from schemas.errors import BadInputError, ClickOutsideImageError, EmbeddingMissingError
from schemas.events import normalise_payload
from schemas.predictions import Edit
from tests.pipeline.scenes import ellipse_scene

SIZE = (120, 160)
NAN = float("nan")
MODEL = create_model("toy-color")
IMAGE, TRUTH = ellipse_scene(11)
ENCODING = encode_image(MODEL, IMAGE)
ROW, COLUMN = (int(v) for v in np.argwhere(TRUTH).mean(0).round())


def make_edit(kind: str, **payload: object) -> Edit:
    stored, digest = normalise_payload(kind, payload)
    return Edit(kind=kind, payload=stored, payload_sha256=digest)  # type: ignore[arg-type]


def click(x: float, y: float, is_positive: bool = True) -> Edit:
    return make_edit("click", x=x, y=y, is_positive=is_positive)


def brush(box: tuple[int, int, int, int], is_positive: bool = True) -> Edit:
    rle = mask_to_rle(np.ones((box[3] - box[1], box[2] - box[0]), np.bool_))
    return make_edit("brush", is_positive=is_positive, box=box, rle=rle.model_dump())


def fold(edits: list[Edit], initial: np.ndarray | None = None) -> InstanceState:
    state = start(IMAGE, initial)
    for edit in edits:
        state = apply_edit(MODEL, IMAGE, ENCODING, state, edit)
    return state


def mask_of(edits: list[Edit], initial: np.ndarray | None = None) -> np.ndarray:
    return final_mask(fold(edits, initial), SIZE)


def random_edit(draw: st.DrawFn) -> Edit:
    kind = draw(st.sampled_from(["click", "click", "click", "brush", "candidate"]))
    x, y = draw(st.integers(0, 159)), draw(st.integers(0, 119))
    if kind == "click":
        return click(x + draw(st.floats(0, 0.99)), y + draw(st.floats(0, 0.99)), draw(st.booleans()))
    if kind == "brush":
        return brush((x, y, min(160, x + 20), min(120, y + 15)), draw(st.booleans()))
    return make_edit("candidate", index=draw(st.integers(0, 2)))


@st.composite
def edit_lists(draw: st.DrawFn) -> list[Edit]:
    return [click(COLUMN, ROW), *(random_edit(draw) for _ in range(draw(st.integers(0, 5))))]


def test_nothing_is_selected_before_the_first_edit_or_the_initial_mask_is() -> None:
    assert not mask_of([make_edit("open")]).any()
    assert np.array_equal(mask_of([make_edit("open", mask_id="m1")], TRUTH), TRUTH)


def test_one_click_finds_the_object() -> None:
    assert iou(TRUTH, mask_of([click(COLUMN, ROW)])) > 0.85


def test_live_path_and_predictor_make_the_same_steps() -> None:
    clicks = [(COLUMN, ROW, True), (3, 3, False), (COLUMN + 3, ROW, True)]
    predictor = Predictor(MODEL)
    predictor.set_image(IMAGE)
    state = start(IMAGE)
    for x, y, sign in clicks:
        state = apply_edit(MODEL, IMAGE, ENCODING, state, click(x, y, sign))
        predictor.click(Click(x, y, sign))
    assert state.roi == predictor.roi
    assert state.prediction is not None
    assert np.mean((predictor.probability() > 0.5) != final_mask(state, SIZE)) < 0.001


@settings(max_examples=25)
@given(edit_lists())
def test_folding_again_gives_the_same_bits(edits: list[Edit]) -> None:
    assert mask_digest(mask_of(edits)) == mask_digest(mask_of(edits))


@settings(max_examples=25)
@given(edit_lists())
def test_undo_is_the_shorter_list_and_restores_everything(edits: list[Edit]) -> None:
    """No step changes an earlier state: mask, previous probability and ROI of a prefix stay as they were."""
    states = [start(IMAGE)]
    for edit in edits:
        states.append(apply_edit(MODEL, IMAGE, ENCODING, states[-1], edit))
    for length in range(len(edits) + 1):
        again = fold(edits[:length])
        assert again.roi == states[length].roi
        assert np.array_equal(final_mask(again, SIZE), final_mask(states[length], SIZE))
        if again.prediction is not None:
            kept = states[length].prediction
            assert kept is not None
            assert np.array_equal(again.prediction.probabilities, kept.probabilities)


@settings(max_examples=25)
@given(edit_lists())
def test_clicked_pixels_are_as_clicked_whatever_else_happened(edits: list[Edit]) -> None:
    mask, last = mask_of(edits), {}
    for edit in edits:
        if edit.kind == "click":
            last[int(edit.payload["y"]), int(edit.payload["x"])] = edit.payload["is_positive"]
    for (row, column), is_positive in last.items():
        assert mask[row, column] == is_positive


def test_painted_and_erased_pixels_stay_under_later_clicks() -> None:
    edits = [click(COLUMN, ROW), brush((0, 0, 10, 8)), brush((0, 4, 10, 8), False), click(100, 110, False)]
    mask = mask_of(edits)
    assert mask[:4, :10].all()
    assert not mask[4:8, :10].any()


def test_tool_edit_adds_and_erases_in_its_box() -> None:
    added, erased = np.zeros((10, 10), np.bool_), np.zeros((10, 10), np.bool_)
    added[:5], erased[3:] = True, True
    edit = make_edit(
        "mask_edit", tool="polygon", box=(20, 30, 30, 40), added=mask_to_rle(added).model_dump(),
        erased=mask_to_rle(erased).model_dump(),
    )  # fmt: skip
    mask = mask_of([edit])
    assert mask[30:33, 20:30].all()
    assert mask.sum() == 30


def test_candidate_changes_the_mask_and_what_the_next_click_starts_from() -> None:
    first, loose = [click(COLUMN, ROW)], make_edit("candidate", index=2)
    assert mask_of([*first, loose]).sum() > mask_of(first).sum()
    after = fold([*first, loose, click(3, 3, False)])
    assert after.candidate == 0
    without = fold([*first, click(3, 3, False)])
    assert after.prediction is not None and without.prediction is not None
    assert not np.array_equal(after.prediction.probabilities, without.prediction.probabilities)


def test_box_looks_at_the_box_and_stays_near_it() -> None:
    rows, columns = np.nonzero(TRUTH)
    x0, y0, x1, y1 = int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1
    state = fold([make_edit("box", x0=x0, y0=y0, x1=x1, y1=y1)])
    assert state.roi == expand((y0, x0, y1, x1), SIZE)
    assert state.clicks == ()
    mask = final_mask(state, SIZE)
    assert iou(TRUTH, mask) > 0.8
    inside = np.argwhere(mask)
    assert inside[:, 0].min() >= y0 - 0.1 * (y1 - y0) - 2 and inside[:, 1].max() < x1 + 0.1 * (x1 - x0) + 2


def test_box_over_part_of_an_object_cuts_it() -> None:
    edits = [make_edit("box", x0=COLUMN - 6, y0=ROW - 6, x1=COLUMN + 6, y1=ROW + 6)]
    mask = mask_of(edits)
    assert mask[ROW, COLUMN]
    assert mask[ROW - 6 : ROW + 6, COLUMN - 6 : COLUMN + 6].mean() > 0.8
    assert mask.sum() <= 17 * 17
    assert mask_of([*edits, click(COLUMN + 9, ROW)])[ROW, COLUMN + 9]


def test_instance_opened_from_a_mask_is_refined_from_it() -> None:
    edits = [make_edit("open", mask_id="m1"), click(COLUMN, ROW)]
    from_mask, from_nothing = fold(edits, TRUTH), fold(edits)
    assert from_mask.initial is None and from_mask.prediction is not None and from_nothing.prediction is not None
    assert not np.array_equal(from_mask.prediction.probabilities, from_nothing.prediction.probabilities)
    assert np.array_equal(
        mask_of([edits[0], brush((0, 0, 5, 5))], TRUTH), TRUTH | np.pad(np.ones((5, 5), bool), ((0, 115), (0, 155)))
    )


def test_threshold_is_strict() -> None:
    state = fold([click(COLUMN, ROW)])
    assert state.prediction is not None
    half = np.full_like(state.prediction.probabilities, 0.5)
    above = np.full_like(half, np.nextafter(np.float16(0.5), np.float16(1)))
    for probabilities, expected in ((half, 1), (above, SIZE[0] * SIZE[1])):
        prediction = type(state.prediction)(probabilities, (0, 0, *SIZE), state.scores)
        assert final_mask(InstanceState(clicks=state.clicks, prediction=prediction), SIZE).sum() == expected


def test_half_precision_encodings_are_used_as_stored() -> None:
    assert ENCODING is not None
    stored = ENCODING.to(dtype=torch.float16)
    state = apply_edit(MODEL, IMAGE, stored, start(IMAGE), click(COLUMN, ROW))
    assert iou(mask_of([click(COLUMN, ROW)]), final_mask(state, SIZE)) > 0.98


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (click(160, 5), ClickOutsideImageError, "outside the image"),
        (Edit(kind="click", payload={"x": "a", "y": 1, "is_positive": True}, payload_sha256=""), BadInputError, "x"),
        (Edit(kind="click", payload={"x": NAN, "y": 1, "is_positive": True}, payload_sha256=""), BadInputError, "x"),
        (make_edit("candidate", index=3), BadInputError, "no candidate"),
        (make_edit("box", x0=50, y0=50, x1=50.5, y1=90), BadInputError, "less than a pixel"),
        (make_edit("box", x0=500, y0=50, x1=600, y1=90), BadInputError, "less than a pixel"),
        (brush((150, 0, 170, 10)), BadInputError, "leaves the image"),
    ],
)  # fmt: skip
def test_bad_edits_are_refused_by_name(edit: Edit, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fold([click(COLUMN, ROW), edit])


def test_stroke_of_another_size_than_its_box_is_refused() -> None:
    rle = mask_to_rle(np.ones((3, 3), np.bool_)).model_dump()
    with pytest.raises(BadInputError, match="its box"):
        fold([make_edit("brush", is_positive=True, box=(0, 0, 3, 4), rle=rle)])


def test_candidate_before_any_prediction_is_refused() -> None:
    with pytest.raises(BadInputError, match="no candidate"):
        fold([make_edit("candidate", index=0)])


def test_missing_encoding_and_foreign_initial_mask_are_refused() -> None:
    with pytest.raises(EmbeddingMissingError):
        apply_edit(MODEL, IMAGE, None, start(IMAGE), click(COLUMN, ROW))
    with pytest.raises(BadInputError, match="exactly the size"):
        start(IMAGE, np.zeros((5, 5), np.bool_))


def test_states_count_their_memory_and_refuse_writes() -> None:
    state = fold([click(COLUMN, ROW)])
    assert state.prediction is not None
    assert state.size_bytes >= state.prediction.probabilities.nbytes
    with pytest.raises(ValueError, match="read-only"):
        state.prediction.probabilities[0, 0, 0] = 1
