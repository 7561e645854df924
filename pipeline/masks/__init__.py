"""Masks as bits, runs, boxes and boundary bands: pure numpy and OpenCV, one conversion per function."""
