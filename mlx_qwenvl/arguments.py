"""Options that several commands have, in the same words."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING, cast

from mlx_qwenvl.command import RANK_VARIABLE, announce_demo, at_end
from mlx_qwenvl.engine.options import CallOptions
from mlx_qwenvl.extracting.form import Form, read_form
from mlx_qwenvl.vlm import QwenVL, load
from mlx_qwenvl.weights.choice import default_model
from mlx_qwenvl.weights.resolve import DEMO

if TYPE_CHECKING:
    from mlx_qwenvl.distributed.ranks import Ranks

DEFAULT_QUESTION = "Describe this image."
DEFAULT_VIDEO_QUESTION = "Describe this video."
EXTRACT_QUESTION = "Read this image and fill in the form."


def add_model(p: argparse.ArgumentParser) -> None:
    """Which model, and how it is loaded."""
    p.add_argument("--model", metavar="NAME|DIR", help="demo, 2b, owner/model, or a folder")
    p.add_argument("--quantize", metavar="RECIPE", help="quantize at load: 4bit, 8bit, mxfp4, ...")
    p.add_argument("--topology", metavar="FILE", help="YAML: which parts to quantize otherwise")
    p.add_argument("--variant", metavar="NAME", help="which of a model's stored quantizations")
    p.add_argument("--dtype", help="float32, float16 or bfloat16")


def add_answer(p: argparse.ArgumentParser) -> None:
    """What an answer depends on beside the question."""
    p.add_argument("--system", metavar="TEXT", help="system message; by default the model's own")
    p.add_argument("--max-tokens", type=int, metavar="N", help="longest answer (1024)")
    p.add_argument("--stop", nargs="+", action="extend", metavar="TEXT", help="end before these")
    p.add_argument(
        "--min-pixels", type=int, metavar="N", help="least pixels of a picture or a frame"
    )
    p.add_argument("--max-pixels", type=int, metavar="N", help="most pixels (1003520)")
    p.add_argument("--kv-bits", type=int, metavar="N", help="8 or 4: quantized keys and values")
    p.add_argument("--kv-group-size", type=int, metavar="N", help="how many share a scale (64)")
    p.add_argument("--kv-start", type=int, metavar="N", help="tokens before --kv-bits begins (0)")
    p.add_argument("--max-kv-size", type=int, metavar="N", help="most tokens, answer included")
    sampling = p.add_argument_group("sampling (by default the checkpoint's own, as a whole)")
    add = sampling.add_argument
    add("--temperature", type=float, metavar="T", help="0 is repeatable")
    add("--top-p", type=float, metavar="P", help="draw from the likeliest that sum to P")
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")
    add("--min-p", type=float, metavar="P", help="none below P of the likeliest")
    add("--repetition-penalty", type=float, metavar="R", help="above 1: repeat less")
    add("--presence-penalty", type=float, metavar="P", help="lower what the answer said already")
    add("--frequency-penalty", type=float, metavar="F", help="lower it by each time that it did")
    add("--seed", type=int, metavar="N", help="makes drawing repeatable")


def add_video(p: argparse.ArgumentParser) -> None:
    """How videos are sampled."""
    p.add_argument("--fps", type=float, metavar="N", help="frames taken of a second of video (2)")
    p.add_argument(
        "--n-frames", type=int, metavar="N", help="frames of a video, whatever its length"
    )
    p.add_argument("--max-frames", type=int, metavar="N", help="most frames of a video (768)")


def add_form(p: argparse.ArgumentParser) -> None:
    """What an answer has to look like."""
    form = p.add_mutually_exclusive_group()
    form.add_argument(
        "--schema",
        metavar="FILE|FIELDS",
        help="answer with JSON that fits a schema, or fields such as 'name, price float'",
    )
    form.add_argument(
        "--extract",
        metavar="FILE|FIELDS",
        help="read these fields off the picture: 'date date, items {name, price float}[]'",
    )


def options_of(arguments: argparse.Namespace) -> CallOptions:
    """What `add_answer` and `add_video` were told, as `generate` and its kin take it."""
    told = {name: value for name, value in vars(arguments).items() if name in _OPTIONS}
    return cast(CallOptions, told)


def form_of(arguments: argparse.Namespace) -> Form | None:
    """What `add_form` was told."""
    text = arguments.extract if arguments.schema is None else arguments.schema
    return None if text is None else read_form(text)


def load_model(
    arguments: argparse.Namespace,
    *,
    disk_cache: bool | None = None,
    draft: str | None = None,
    feature_bytes: int | None = None,
    ranks: Ranks | None = None,
) -> QwenVL:
    """Load what `add_model` was told, or the model that answers when none is named.

    The other arguments are those of `load`.
    """
    name = default_model() if arguments.model is None else arguments.model
    vlm = load(
        name,
        dtype=arguments.dtype,
        quantize=arguments.quantize,
        topology=arguments.topology,
        variant=arguments.variant,
        feature_bytes=feature_bytes,
        disk_cache=disk_cache,
        draft=draft,
        progress=sys.stderr.isatty(),
        ranks=ranks,
    )
    if arguments.model is None and name == DEMO and (ranks is None or ranks.leads):
        announce_demo()
    return vlm


def launched() -> Ranks | None:
    """The processes among which `mlx.launch` started this one, all of them there by now.

    They end when this command does. All but rank 0 leave what there is to say to rank 0.
    """
    if RANK_VARIABLE not in os.environ:
        return None
    from mlx_qwenvl.distributed.join import join

    ranks = join()
    if ranks is not None:
        at_end(ranks.end)
        if not ranks.leads:
            logging.getLogger("mlx_qwenvl").setLevel(logging.ERROR)
    return ranks


_OPTIONS = frozenset(CallOptions.__annotations__)
