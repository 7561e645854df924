"""Ray actors, the gateway, the labeling page and simulated annotators. Nothing here imports Prefect."""

import os

# Ray reads these once, when it is imported: authentication is never off, and nothing is reported home.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
