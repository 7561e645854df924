"""What all flows and flow steps share: their parameters are ids and their results are kept in `requests`, so Prefect
stores neither."""

from typing import Any

from prefect.cache_policies import NO_CACHE

FLOW: dict[str, Any] = {"persist_result": False, "validate_parameters": False}
STEP: dict[str, Any] = {"persist_result": False, "cache_policy": NO_CACHE}
