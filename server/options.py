"""The server's command line as `Settings`, and what to load."""

from __future__ import annotations

import argparse
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mlx_qwenvl.command import Parser
from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.weights.choice import default_model

from .keys import bind_check, read_keys
from .settings import Settings

UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
# What has to be a number from here up; the rest is checked where it is used.
LEAST = {
    "max_body_bytes": 1,
    "max_messages": 1,
    "max_images": 0,
    "max_image_bytes": 1,
    "max_image_pixels": 1,
    "max_total_bytes": 1,
    "max_total_pixels": 1,
    "max_videos": 0,
    "max_video_bytes": 1,
    "max_video_seconds": 1,
    "max_video_frames": 1,
    "max_sampled_frames": 1,
    "max_video_pixels": 1,
    "max_schema_bytes": 1,
    "max_concurrency": 1,
    "max_queue": 0,
    "max_tokens": 1,
    "max_connections": 1,
}


@dataclass(frozen=True)
class Loading:
    """What is loaded, and how; the arguments of `load`."""

    model: str
    dtype: str | None
    quantize: str | None
    topology: str | None
    variant: str | None
    draft: str | None
    disk_cache: bool | None


def parser(program: str) -> Parser:
    """The command line.

    Args:
        program: Its name.
    """
    usual = Settings()
    p = Parser(prog=program, description="Answer over HTTP, as OpenAI's chat API does.")
    p.add_argument("--model", metavar="NAME|DIR", help="demo, 2b, owner/model, or a folder")
    p.add_argument("--quantize", metavar="RECIPE", help="quantize at load: 4bit, 8bit, ...")
    p.add_argument("--topology", metavar="FILE", help="YAML: which parts to quantize otherwise")
    p.add_argument("--variant", metavar="NAME", help="which of a model's stored quantizations")
    p.add_argument("--dtype", help="float32, float16 or bfloat16")
    p.add_argument("--draft", metavar="NAME|DIR", help="a smaller model that proposes tokens")
    p.add_argument("--disk-cache", action="store_true", default=None, help="keep work on disk")
    p.add_argument("--kv-bits", type=int, metavar="N", help="8 or 4: quantized keys and values")
    p.add_argument("--verbose", dest="log_requests", action="store_true", help="log requests")

    who = p.add_argument_group("who may call")
    who.add_argument("--host", default=usual.host, help=f"address to listen on ({usual.host})")
    who.add_argument("--port", type=int, default=usual.port, metavar="N", help=f"({usual.port})")
    who.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="one key a line; or $MLX_QWENVL_API_KEY. Needed beyond loopback",
    )
    for flag, what in (("host", "another name of this server"), ("origin", "a web page's origin")):
        who.add_argument(
            f"--allowed-{flag}",
            dest=f"allowed_{flag}s",
            action="append",
            default=[],
            metavar=flag.upper(),
            help=f"{what}; may be repeated",
        )
    who.add_argument(
        "--strict-model", action="store_true", help="other model names are an error, not an alias"
    )

    pictures = p.add_argument_group("pictures")
    pictures.add_argument(
        "--image-root", type=Path, metavar="DIR", help="requests may name pictures in it by path"
    )
    pictures.add_argument(
        "--no-remote-images", dest="remote_images", action="store_false", help="open no URLs"
    )
    for name, what in (
        ("max_images", "pictures of a request"),
        ("max_image_bytes", "of one encoded picture"),
        ("max_image_pixels", "of one picture as stored"),
        ("max_total_bytes", "of all encoded pictures of a request"),
        ("max_total_pixels", "of all pictures of a request"),
    ):
        _number(pictures, usual, name, what)

    videos = p.add_argument_group("videos")
    for name, what in (
        ("max_videos", "videos of a request"),
        ("max_video_bytes", "of one encoded video"),
        ("max_video_seconds", "of one video"),
        ("max_video_frames", "that one video has"),
        ("max_sampled_frames", "that are taken of one"),
        ("max_video_pixels", "of one frame as stored"),
    ):
        _number(videos, usual, name, what)
    videos.add_argument(
        "--video-work",
        dest="video_work_s",
        default=f"{usual.video_work_s:g}",
        metavar="TIME",
        help=f"that reading and decoding one may take ({usual.video_work_s:g}s)",
    )

    load = p.add_argument_group("load")
    for name, what in (
        ("max_concurrency", "answers computed side by side"),
        ("max_queue", "requests that may wait"),
        ("max_tokens", "most tokens of an answer"),
        ("max_body_bytes", "of a request"),
        ("max_messages", "of a conversation"),
        ("max_schema_bytes", "of a schema, or of all tools"),
        ("max_connections", "open at a time"),
    ):
        _number(load, usual, name, what)

    life = p.add_argument_group("life")
    life.add_argument(
        "--idle-unload",
        dest="idle_unload_s",
        metavar="TIME",
        help="let the model go after so long without a request: 90, 10m, 1h",
    )
    life.add_argument(
        "--drain",
        dest="drain_s",
        default=f"{usual.drain_s:g}",
        metavar="TIME",
        help=f"that answers may take when the server ends ({usual.drain_s:g}s)",
    )
    life.add_argument(
        "--hang",
        dest="hang_s",
        default=f"{usual.hang_s:g}",
        metavar="TIME",
        help=f"that one step may take before the engine counts as dead ({usual.hang_s:g}s)",
    )
    life.add_argument(
        "--on-crash",
        choices=("restart", "exit"),
        default=usual.on_crash,
        help=f"what a failure of the engine leads to ({usual.on_crash})",
    )
    return p


def read(arguments: argparse.Namespace) -> tuple[Settings, Loading]:
    """What the command line says.

    Raises:
        OptionError: A value that makes no sense, or a bind that lets strangers in.
    """
    given: dict[str, Any] = vars(arguments)
    chosen = {f.name: given[f.name] for f in fields(Settings) if f.name in given}
    for name in ("idle_unload_s", "drain_s", "hang_s", "video_work_s"):
        if chosen[name] is not None:
            chosen[name] = _seconds(_flag(name), chosen[name])
    for name, least in LEAST.items():
        value = chosen[name]
        if value is not None and value < least:
            raise OptionError(f"{_flag(name)} is {value}, expected a number from {least} up")
    if not 0 <= arguments.port < 2**16:
        raise OptionError(f"--port is {arguments.port}, expected a number from 0 to {2**16 - 1}")
    if arguments.kv_bits not in (None, 4, 8):
        raise OptionError(f"--kv-bits is {arguments.kv_bits}, expected 8 or 4")
    keys = read_keys(os.environ, arguments.api_key_file)
    lists = {name: tuple(chosen[name]) for name in ("allowed_hosts", "allowed_origins")}
    settings = Settings(**(chosen | lists | {"api_keys": keys}))
    bind_check(settings)
    loading = {f.name: given[f.name] for f in fields(Loading)}
    loading["model"] = default_model() if arguments.model is None else arguments.model
    return settings, Loading(**loading)


def _number(group: Any, usual: Settings, name: str, what: str) -> None:
    default = getattr(usual, name)
    shown = "" if default is None else f" ({default})"
    group.add_argument(_flag(name), type=int, default=default, metavar="N", help=f"{what}{shown}")


def _flag(name: str) -> str:
    return "--" + name.removesuffix("_s").replace("_", "-")


def _seconds(flag: str, text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smh]?)", text)
    if match is None:
        raise OptionError(f"{flag} is {text!r}, expected a time such as 90, 90s, 10m or 1h")
    return float(match[1]) * UNITS_S[match[2]]
