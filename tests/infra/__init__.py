"""Tests of what brings Clickloop up."""
