"""From clicks on an image to masks: preprocessing, ZoomIn, the predictor and the live path."""

from pipeline.inference.predictor import Predictor
from pipeline.inference.preprocess import image_to_input

__all__ = ["Predictor", "image_to_input"]
