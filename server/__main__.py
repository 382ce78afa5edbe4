"""`python -m mlx_qwenvl.server --model NAME`: serve a model on this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mlx_qwenvl.command import EXIT_OK, Parser, run
from mlx_qwenvl.errors import OptionError, QwenVLError
from mlx_qwenvl.vlm import load

PROGRAM = "mlx-qwenvl serve"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit code."""
    p = Parser(prog=PROGRAM, description="Answer over HTTP, as OpenAI's chat API does.")
    p.add_argument("--model", metavar="NAME|DIR", help="demo, 2b, owner/model, or a folder")
    p.add_argument("--host", default="127.0.0.1", help="loopback address to listen on")
    p.add_argument("--port", type=int, default=8000, metavar="N")
    p.add_argument("--quantize", metavar="RECIPE", help="quantize at load: 4bit, 8bit, ...")
    arguments = p.parse_args(argv)

    def body() -> int:
        if arguments.host not in LOOPBACK:
            raise OptionError(
                f"--host is {arguments.host!r}, expected one of {', '.join(LOOPBACK)}"
            )
        try:
            import uvicorn

            from .app import create_app
        except ImportError as error:
            raise QwenVLError(
                f"the server needs {error.name}; pip install 'mlx-qwenvl[server]'"
            ) from None
        with ThreadPoolExecutor(1, thread_name_prefix="engine") as engine:
            vlm = engine.submit(load, arguments.model, quantize=arguments.quantize).result()
            app = create_app(vlm, engine)
            uvicorn.run(app, host=arguments.host, port=arguments.port, log_level="warning")
        return EXIT_OK

    return run(body, PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
