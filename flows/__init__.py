"""Decides when: flows, the supervisor and the command line."""
