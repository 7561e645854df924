"""Puts the work on Ray actors and HTTP."""

import os
import sys

# Ray reads this when it is imported; where that was before, it turns authentication on by itself when it is started.
if "ray" not in sys.modules:
    os.environ["RAY_AUTH_MODE"] = "token"
# A call after Ray was let go of is an error, and does not start a Ray of its own that has none of the actors.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
