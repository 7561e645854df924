"""What all flows and flow steps share: their parameters are ids and their results are kept in `requests`, so Prefect
stores neither."""

from collections.abc import Callable
from typing import Any, TypeVar

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

Function = TypeVar("Function", bound=Callable[..., Any])


def as_flow(name: str) -> Callable[[Function], Function]:
    """Decorator: a Prefect flow that is called like the function."""
    decorate: Callable[[Function], Function] = flow(name=name, persist_result=False, validate_parameters=False)
    return decorate


def as_step(name: str) -> Callable[[Function], Function]:
    """Decorator: a step of a flow (Prefect says task) that is called like the function."""
    decorate: Callable[[Function], Function] = task(name=name, persist_result=False, cache_policy=NO_CACHE)
    return decorate
