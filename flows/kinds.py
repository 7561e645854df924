"""Which flow does a kind of request."""

from importlib import import_module
from typing import Any, get_args

from schemas.tables import RequestKind

_MODULES = {"import": "imports", "propose": "imports"}
"""Of kinds that do not name theirs."""


def flow_of(kind: str) -> Any:
    """The flow of a kind of request.

    Imported when it is asked for: with those that use models come torch and timm, 0.7 GB and seconds, which reading,
    importing and exporting do without.
    """
    return getattr(import_module(f"flows.{_MODULES.get(kind, kind)}"), f"{kind}_flow")


def all_flows() -> list[Any]:
    """One for each kind of request."""
    return [flow_of(kind) for kind in get_args(RequestKind)]
