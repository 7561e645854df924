"""Puts the work on Ray actors and HTTP."""

import os
import sys

# Ray reads this when it is imported; where that was before, it turns authentication on by itself when it is started.
if "ray" not in sys.modules:
    os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
