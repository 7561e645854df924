"""Puts the work on Ray actors and HTTP."""
