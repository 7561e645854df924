"""Tests of pipeline.imports."""
