"""Does the work on one machine: plain Python and torch, no cluster."""
