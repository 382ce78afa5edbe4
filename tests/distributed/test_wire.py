"""What is sent between processes comes back as it was, or not at all."""

from __future__ import annotations

import json
import struct
from dataclasses import fields

import numpy as np
import pytest

from mlx_qwenvl import QwenVL
from mlx_qwenvl.distributed.commands import Add, End, Step
from mlx_qwenvl.distributed.wire import WireError, pack, unpack
from mlx_qwenvl.engine.grammar import Grammar
from mlx_qwenvl.engine.options import Options, Sampling
from mlx_qwenvl.inputs.messages import question_messages
from mlx_qwenvl.inputs.video import VideoPatches
from tests.golden.pictures import picture


def test_a_question_with_a_picture_comes_back_as_it_was(tiny: QwenVL) -> None:
    options = Options(
        Sampling(0.7, top_p=0.9),
        seed=-(2**63),
        stop=("a\nb",),
        logit_bias={3: -1.5},
        grammar=Grammar("regex", "é+", instead=Grammar("json_object")),
    )
    turns = question_messages("What is it?", [picture(0, 84, 56)], None, None)
    sent = Add(1, 2, tiny.prompt(turns, options), options, 3)
    came = unpack(pack(sent))
    assert (came.scheduler, came.job, came.n) == (1, 2, 3)
    assert came.options == options
    np.testing.assert_array_equal(came.prompt.token_ids, sent.prompt.token_ids)
    assert came.prompt.token_ids.dtype == sent.prompt.token_ids.dtype
    (ours,), (theirs,) = sent.prompt.slots, came.prompt.slots
    assert (theirs.start, theirs.image.digest) == (ours.start, ours.image.digest)
    for name in (f.name for f in fields(ours.image) if f.name != "patches"):
        assert getattr(theirs.image, name) == getattr(ours.image, name)


def test_a_question_with_a_video_comes_back_as_it_was(tiny: QwenVL) -> None:
    frames = [picture(seed, 56, 84) for seed in range(4)]
    options = Options()
    turns = question_messages("What moves?", [], None, None, [frames])
    sent = tiny.prompt(turns, options)
    came = unpack(pack(sent))
    assert [slot.start for slot in came.slots] == [slot.start for slot in sent.slots]
    (ours,), (theirs,) = sent.slots, came.slots
    assert theirs.image.digest == ours.image.digest
    assert [v.digest for _, v in theirs.views] == [v.digest for _, v in ours.views]
    assert isinstance(ours.image, VideoPatches) and isinstance(theirs.image, VideoPatches)
    assert theirs.image.timestamps == ours.image.timestamps


@pytest.mark.parametrize(
    "value",
    [None, True, 2**70, 0.1, float("inf"), "é\x00", b"\x00\xff", [], (), {}, [1, (2, {"a": b"b"})]],
)
def test_plain_values_come_back(value: object) -> None:
    assert unpack(pack(value)) == value


def test_what_is_no_value_is_not_sent() -> None:
    with pytest.raises(TypeError, match="a function cannot be sent"):
        pack(Options(on_prefill=lambda done, total: None))


def crafted(head: object) -> bytes:
    """Bytes that say something."""
    raw = json.dumps(head).encode()
    return struct.pack("<II", len(raw), 2) + raw + b"[]"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff" * 40,
        pack(Step(0, ()))[:-4],
        crafted(["made", "os", "system", {"command": "true"}]),
        crafted(["made", "mlx_qwenvl.distributed.line", "leave", {"code": 3}]),
        crafted(["made", "mlx_qwenvl.distributed.commands", "End", {"code": 3}]),
        crafted(["made", "mlx_qwenvl.nowhere", "Thing", {}]),
        crafted(["array", "<f4", [2], 0]),
        crafted(["what"]),
        crafted([]),
        struct.pack("<II", 9000, 2) + b"[" * 9000 + b"[]",
    ],
)
def test_bytes_of_strangers_make_nothing(raw: bytes) -> None:
    with pytest.raises(WireError):
        unpack(raw)


def test_an_end_comes_back() -> None:
    assert unpack(pack(End(130, "why"))) == End(130, "why")
