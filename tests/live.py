"""A server that listens: the application in uvicorn, on a loopback port that the system chose."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from mlx_qwenvl import QwenVL, load
from server.app import create_app
from server.engine import Engine
from server.listen import uvicorn_config
from server.logs import log_config
from server.settings import Settings

START_S = 60.0  # in which the model is loaded and the port answers, in seconds
END_S = 30.0  # in which the server ends once it is told to, in seconds


@dataclass(frozen=True)
class Live:
    """A running server.

    Attributes:
        url: Where it listens, without a path.
        engine: What answers.
    """

    url: str
    engine: Engine

    @property
    def v1(self) -> str:
        """What clients call the base URL."""
        return f"{self.url}/v1"


@contextmanager
def kept_loggers() -> Iterator[None]:
    """Put the log back as it was: a server writes its own, to this test's stderr."""
    names = ("uvicorn", "uvicorn.error", "uvicorn.access", *log_config(Settings())["loggers"])
    loggers = [logging.getLogger(name) for name in names]
    before = [(log, log.level, log.handlers[:], log.propagate) for log in loggers]
    try:
        yield
    finally:
        for log, level, handlers, propagate in before:
            log.level, log.handlers, log.propagate = level, handlers, propagate


@contextmanager
def serve(
    settings: Settings,
    model: str = "demo",
    *,
    load: Callable[..., QwenVL] = load,
    started: Callable[[str], object] = lambda url: None,
) -> Iterator[Live]:
    """Serve a model until the block ends.

    Args:
        settings: The operator's; its port is not used.
        model: Name or folder.
        load: Loads it.
        started: Called with the URL before the model is waited for.
    """
    with (
        kept_loggers(),
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        engine = Engine(lambda: load(model, dtype="float32"), settings, model)
        server = uvicorn.Server(uvicorn_config(create_app(engine, settings), settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            end = time.monotonic() + START_S
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            is_told = False
            while not server.started or engine.state == "loading":
                assert thread.is_alive() and time.monotonic() < end, "the server does not start"
                time.sleep(0.01)
                if server.started and not is_told:
                    started(url)
                    is_told = True
            yield Live(url, engine)
        finally:
            server.should_exit = True
            thread.join(END_S)
            assert not thread.is_alive(), "the server does not end"
