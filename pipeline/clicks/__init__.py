"""Clicks as network input, and clicks as a simulated annotator makes them."""
