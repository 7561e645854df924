"""Runs as functions that return their full configuration."""
