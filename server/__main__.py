"""`python -m mlx_qwenvl.server --model NAME`: serve a model on this machine."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mlx_qwenvl.command import EXIT_OK, Parser, run
from mlx_qwenvl.errors import OptionError, QwenVLError
from mlx_qwenvl.vlm import load
from mlx_qwenvl.weights.choice import default_model
from mlx_qwenvl.weights.resolve import resolve_model

PROGRAM = "mlx-qwenvl serve"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    p = Parser(prog=PROGRAM, description="Answer over HTTP, as OpenAI's chat API does.")
    p.add_argument("--model", metavar="NAME|DIR", help="demo, 2b, owner/model, or a folder")
    p.add_argument("--host", default="127.0.0.1", help="loopback address to listen on")
    p.add_argument("--port", type=int, default=8000, metavar="N")
    p.add_argument("--quantize", metavar="RECIPE", help="quantize at load: 4bit, 8bit, ...")
    p.add_argument("--topology", metavar="FILE", help="YAML: which parts to quantize otherwise")
    p.add_argument("--variant", metavar="NAME", help="which of a model's stored quantizations")
    arguments = p.parse_args(argv)

    def body() -> int:
        if arguments.host not in LOOPBACK:
            raise OptionError(
                f"--host is {arguments.host!r}, expected one of {', '.join(LOOPBACK)}"
            )
        try:
            import uvicorn

            from .app import create_app
            from .engine import Engine
            from .settings import Settings
        except ImportError as error:
            raise QwenVLError(
                f"the server needs {error.name}; pip install 'mlx-qwenvl[server]'"
            ) from None
        name = default_model() if arguments.model is None else arguments.model
        # A port that is taken is told before anything large is downloaded or loaded.
        with _listener(arguments.host, arguments.port) as listener:
            # Downloaded in this thread, which Ctrl-C reaches.
            resolve_model(name, arguments.variant, progress=sys.stderr.isatty())
            with ThreadPoolExecutor(1, thread_name_prefix="engine") as engine:
                vlm = engine.submit(
                    load,
                    name,
                    quantize=arguments.quantize,
                    topology=arguments.topology,
                    variant=arguments.variant,
                ).result()
                settings = Settings(host=arguments.host, port=arguments.port)
                app = create_app(Engine(vlm, engine, settings), settings)
                config = uvicorn.Config(app, log_level="warning")
                uvicorn.Server(config).run(sockets=[listener])
        return EXIT_OK

    return run(body, PROGRAM)


def _listener(host: str, port: int) -> socket.socket:
    if not 0 <= port < 2**16:
        raise OptionError(f"--port is {port}, expected a number from 0 to {2**16 - 1}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = (error.strerror or "I/O error").split(" (")[0]  # Python adds the address
        raise QwenVLError(f"{host}:{port} cannot be listened on: {reason}") from None


if __name__ == "__main__":
    sys.exit(main())
