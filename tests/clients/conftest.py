"""Two servers for all clients: one that is open, and one with a key that knows one name only."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest

from server.settings import Settings
from tests.clients.asking import KEY, PICTURES
from tests.live import Live, serve

# A proxy or a key of whoever runs the tests would be used in place of what is tested.
SWITCHES = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    *("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"),
    *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"),
    *("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2", "LANGCHAIN_API_KEY", "LANGSMITH_API_KEY"),
)


@pytest.fixture(autouse=True)
def a_client_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the person's accounts takes part."""
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module", autouse=True)
def nothing_left_open() -> Iterator[None]:
    """Libraries leave connections to the collector; it is not a later test that is told so."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """A server without a key, as it is started at home; it may open the example pictures."""
    with serve(Settings(image_root=PICTURES)) as server:
        yield server


@pytest.fixture(scope="session")
def locked() -> Iterator[Live]:
    """A server that asks for a key and for the model's right name."""
    with serve(Settings(api_keys=frozenset({KEY}), strict_model=True)) as server:
        yield server
