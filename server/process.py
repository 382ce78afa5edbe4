"""The server as a process: its port, its signals and how it ends.

The first SIGTERM or SIGINT lets accepted requests finish, for a while; the second ends at once.
Until then the port stays open, so that who comes is told in HTTP that the server is ending.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from mlx_qwenvl.errors import QwenVLError
from mlx_qwenvl.vlm import QwenVL

from .app import create_app
from .engine import Engine
from .listen import uvicorn_config
from .settings import Settings

# Between the event loop and the engine's thread, in seconds. Python's own 5 ms are as long as
# several steps of a small model; with these one asker heard a tenth more tokens a second.
SWITCH_S = 0.0005
END_S = 3.0  # for what is still on the wire after the answers have ended, in seconds


def serve(load: Callable[[], QwenVL], settings: Settings, name: str) -> None:
    """Serve a model until a signal, or until it cannot go on.

    Args:
        load: Loads the model.
        settings: The operator's.
        name: What the model is called.

    Raises:
        QwenVLError: The port is taken, the model cannot be loaded, or the engine failed.
    """
    sys.setswitchinterval(SWITCH_S)
    # A port that is taken is told before anything large is downloaded or loaded.
    with listener(settings.host, settings.port) as sock:
        engine = Engine(
            load,
            settings,
            name,
            on_failure=lambda: server.end(),
            on_ready=lambda: server.tell(),
        )
        server = _Server(uvicorn_config(create_app(engine, settings), settings), engine, sock)
        server.run(sockets=[sock])
    if not engine.has_ended:
        # A step, a load or a picture's host that cannot be broken off; nobody waits for it.
        _leave(1 if engine.failure else 0)
    if isinstance(engine.failure, QwenVLError):
        raise engine.failure
    if engine.failure is not None:
        raise QwenVLError(f"the engine failed: {type(engine.failure).__name__}; see above")


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        QwenVLError: It is taken, or not ours to take.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or "I/O error").split(" (")[0]  # Python adds the address
        raise QwenVLError(f"{host}:{port} cannot be listened on: {reason}") from None
    # Connections inherit it. Without it a piece of a stream waits until the one before is
    # acknowledged, 40 ms later; asyncio sets it on sockets only that it has made itself.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class _Server(uvicorn.Server):
    """uvicorn's server, with our signals."""

    def __init__(self, config: uvicorn.Config, engine: Engine, sock: socket.socket) -> None:
        config.timeout_graceful_shutdown = round(2 * END_S)  # never reached: see `shutdown`
        super().__init__(config)
        self._ends_at: float | None = None  # in `time.monotonic` seconds
        self._engine, self._sock = engine, sock
        self._is_told = False

    def end(self) -> None:
        """Take no requests any more and end once the last answer is out, or its time is."""
        if self._ends_at is None:
            self._ends_at = time.monotonic() + self._engine.settings.drain_s
        self._engine.drain()

    async def on_tick(self, counter: int) -> bool:
        """Whether to close the port; asked ten times a second."""
        if self._ends_at is not None:
            if time.monotonic() >= self._ends_at:
                self._engine.end_calls()
            self.should_exit = not self._engine.open_calls
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, and hang up on who does not take what is left or never asked to an end.

        uvicorn would cancel what they wait for, with a trace in the log for each.
        """
        late = asyncio.get_running_loop().call_later(END_S, self._hang_up)
        await super().shutdown(sockets)
        late.cancel()

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Obey a signal. It is not raised again afterwards, so that a clean end is exit code 0."""
        if self._ends_at is not None:
            os._exit(128 + sig)
        self.end()  # before it is said, or the answer to what is said might find it undone
        # Not by `print`: the signal may have come within one, and the next within this one.
        with suppress(OSError):
            os.write(2, f"{signal.Signals(sig).name}: ending; once more ends at once\n".encode())

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen; the model may have been loaded before or not yet."""
        await super().startup(sockets)
        self.tell()

    def tell(self) -> None:
        """Say once that questions are answered, as soon as they are."""
        if not self.started or self._engine.state != "ready" or self._is_told:
            return
        self._is_told = True
        host, port = self._sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"mlx-qwenvl serves {self._engine.name} at http://{shown}:{port}/v1", file=sys.stderr)


def _leave(code: int) -> None:
    """End the process now, whatever its threads do."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # none, or nobody who reads it
            stream.flush()
    os._exit(code)
