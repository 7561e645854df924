import numpy as np
import pytest
import torch

from pipeline.inference.preprocess import encoder_size, image_to_input
from pipeline.models import create_model
from pipeline.models._base import InteractiveModel


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (384, 512)),
        ((1080, 1920), (288, 512)),
        ((100, 50), (512, 256)),
        ((10, 4000), (32, 512)),
        ((1, 1), (512, 512)),
    ],
)
def test_longest_side_is_the_image_size_and_both_are_multiples_of_32(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert encoder_size(size, 512) == expected


def test_pixels_are_averaged_when_shrinking_and_scaled_to_one() -> None:
    model = create_model("toy-color")
    image = np.zeros((512, 512, 3), np.uint8)
    image[::2, :, 0] = 255
    inputs = image_to_input(model, image)
    assert inputs.shape == (1, 3, 256, 256)
    assert inputs.dtype == torch.float32
    assert torch.allclose(inputs[0, 0], torch.full((256, 256), 0.5), atol=0.003)
    assert not inputs[0, 1:].any()


def test_models_that_encode_crops_are_refused() -> None:
    with pytest.raises(ValueError, match="crop"):
        image_to_input(InteractiveModel(), np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize("image", [np.zeros((8, 8)), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8)])
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="HWC uint8 RGB"):
        image_to_input(create_model("toy-color"), image)
