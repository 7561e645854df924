"""Which version of this package runs."""

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """Of the installed package; "unknown" where the code runs without having been installed."""
    try:
        return version("clickloop")
    except PackageNotFoundError:
        return "unknown"
