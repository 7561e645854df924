import numpy as np

from pipeline.clicks.misleading import draw_missteps, mislead
from schemas.clicks import Click


def test_the_same_object_meets_the_same_missteps_and_never_on_its_first_click() -> None:
    drawn = [draw_missteps(f"object {i}", seed=3) for i in range(200)]
    assert drawn == [draw_missteps(f"object {i}", seed=3) for i in range(200)]
    assert all(len(own) == 5 and min(own) >= 1 and max(own) < 20 for own in drawn)
    assert {place for own in drawn for place in own} == set(range(1, 20))
    assert {kind for own in drawn for kind in own.values()} == {"repeat", "false"}
    assert drawn[0] != draw_missteps("object 0", seed=4)


def test_a_false_click_has_the_other_sign_and_a_repeated_one_lies_in_the_mask() -> None:
    mask = np.zeros((20, 30), np.bool_)
    mask[4:6, 10:13] = True
    right = Click(x=2.0, y=3.0, is_positive=False)
    assert mislead(right, "false", mask, "a", 7, 0) == Click(x=2.0, y=3.0, is_positive=True)
    again = mislead(right, "repeat", mask, "a", 7, 0)
    assert again.is_positive and mask[int(again.y), int(again.x)]
    assert mislead(right, "repeat", np.zeros_like(mask), "a", 7, 0) == right
