"""Fixtures of the tests of actors."""

from tests.rays import ray_workers

__all__ = ["ray_workers"]
