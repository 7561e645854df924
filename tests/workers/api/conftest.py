"""One gateway for all tests of this folder that do not break it."""

from collections.abc import Iterator

import httpx
import pytest

from tests.workers.api.gateway import Gateway, Work, gateway_in


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with many images to claim."""
    with gateway_in(tmp_path_factory.mktemp("gateway"), images=400, max_events_per_instance=40) as running:
        yield running


@pytest.fixture
def http(gateway: Gateway) -> Iterator[httpx.Client]:
    """A client on loopback without a token."""
    with gateway.http() as client:
        yield client


@pytest.fixture
def work(http: httpx.Client) -> Work:
    """A fresh session."""
    return Work(http)
