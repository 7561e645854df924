"""Decides when: flows, the supervisor and the command line."""

import workers  # noqa: F401  sets what Ray reads when it is imported, which some flows do first
