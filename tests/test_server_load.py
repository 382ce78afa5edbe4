"""The load driver: what it takes for an answer, for a stall and for something given back."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.server_load import answers, kinds, soak, stall, throughput
from benchmarks.server_load.asking import longest_gap
from server.process import listener

WHOLE = {
    "choices": [
        {"index": 0, "message": {"content": "A cat."}, "finish_reason": "stop"},
        {"index": 1, "message": {"content": "A dog."}, "finish_reason": "length"},
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 6},
}


def piece(index: int, text: str | None, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": finish}
    return {"choices": [choice], "usage": None}


PIECES = [
    piece(0, ""),
    piece(1, "A d"),
    piece(0, "A cat."),
    piece(1, "og."),
    piece(1, None, "length"),
    piece(0, None, "stop"),
    {"choices": [], "usage": WHOLE["usage"]},
]


def test_pieces_are_the_same_answer_as_the_whole() -> None:
    whole = answers.whole(kinds.CHAT, WHOLE)
    assert answers.in_pieces(kinds.CHAT, PIECES) == whole
    other = [*PIECES[:2], piece(0, "A cut."), *PIECES[3:]]
    assert answers.in_pieces(kinds.CHAT, other) != whole


@pytest.mark.parametrize(
    "events", [PIECES[:-1], PIECES[:4], [*PIECES[:3], {"error": {"message": "no"}}], []]
)
def test_a_stream_without_an_end_is_no_answer(events: list[dict[str, Any]]) -> None:
    with pytest.raises(answers.Broken):
        answers.in_pieces(kinds.CHAT, events)


def test_streamed_tool_calls_are_put_together() -> None:
    def call(**fields: Any) -> dict[str, Any]:
        delta = {"tool_calls": [{"index": 0, "function": fields}]}
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}

    events = [call(name="look_up", arguments=""), call(arguments='{"a"'), call(arguments=": 1}")]
    events += [piece(0, None, "tool_calls"), PIECES[-1]]
    function = {"name": "look_up", "arguments": '{"a": 1}'}
    message = {"content": None, "tool_calls": [{"id": "x", "function": function}]}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    whole = {"choices": [choice], "usage": WHOLE["usage"]}
    assert answers.in_pieces(kinds.CHAT, events) == answers.whole(kinds.CHAT, whole)


def test_streamed_messages_are_the_same_as_the_whole() -> None:
    usage = {"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 2}
    whole = {
        "content": [{"type": "text", "text": "A cat."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }
    begin = {**whole, "content": [], "stop_reason": None, "usage": usage | {"output_tokens": 0}}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": begin},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": t}}
            for t in ("A ", "cat.")
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 2},
        },
        {"type": "message_stop"},
    ]
    path = "/v1/messages"
    assert answers.in_pieces(path, events) == answers.whole(path, whole)


def test_a_pool_holds_every_kind_and_is_drawn_from_its_seed() -> None:
    pool = kinds.pool(3, 2 * len(kinds.KINDS))
    assert Counter(request.kind for request in pool) == dict.fromkeys(kinds.KINDS, 2)
    assert pool == kinds.pool(3, len(pool)) != kinds.pool(4, len(pool))
    assert {request.status for request in pool} == {200, 400, 404}


def found(**fields: Any) -> soak.Soak:
    held: dict[str, int | None] = dict.fromkeys(soak.TOLERANCES, 10)
    values: dict[str, Any] = {
        **{"asked": Counter(text=3), "left": Counter(before=1), "alone": [], "wrong": []},
        **{"before": held, "after": held, "seconds": 1.0},
    }
    return soak.Soak(**(values | fields))


def test_a_soak_fails_on_one_wrong_answer_and_on_anything_kept() -> None:
    good = found()
    assert good.is_right and "1 left, 2 answered right, 0 wrong" in good.table()[0]
    assert not found(wrong=["text: no"]).is_right and not found(alone=["text: no"]).is_right
    for name, more in soak.TOLERANCES.items():
        assert found(after=good.after | {name: 10 + more}).is_right
        kept = found(after=good.after | {name: 11 + more})
        assert not kept.is_right and any("| NO |" in line for line in kept.table())
    assert found(after=good.after | {"threads": None}).is_right  # nothing tells it here


@pytest.mark.timeout(300)
def test_a_small_soak_is_right(tmp_path: Path) -> None:
    found = soak.run(tmp_path, 2 * len(kinds.KINDS), 8, 5)
    assert found.is_right, "\n".join(found.table())
    assert sum(found.asked.values()) > 2 * len(kinds.KINDS)


def test_a_stall_is_the_longest_silence_that_touches_the_span() -> None:
    moments = (1.0, 2.0, 5.0, 6.0, 10.0, 10.5)
    assert longest_gap(moments, 2.5, 5.5) == 3.0
    assert longest_gap(moments, 5.5, 7.0) == 4.0  # it began before the span and ended behind it
    assert longest_gap(moments, 11.0, 12.0) == 0.0


def test_percentiles_are_the_textbook_ones() -> None:
    assert throughput.percentile([3.0], 0.95) == 3.0
    assert throughput.percentile([float(n) for n in range(101)], 0.5) == 50.0
    assert throughput.percentile([float(n) for n in range(101)], 0.95) == 95.0


def test_tables_pair_ours_with_others_round_by_round() -> None:
    base = {"what": "throughput", "model": "demo", "askers": 4, "first_s": [0.1, 0.3]}
    rates = {("ours", 0): 20.0, ("mlx-vlm", 0): 10.0, ("ours", 1): 90.0, ("mlx-vlm", 1): 30.0}
    entries = [
        {**base, "row": row, "round": number, "tokens_per_s": rate}
        for (row, number), rate in rates.items()
    ]
    assert throughput.table(entries)[3].endswith("| 2 | 20 | 0.2 | 0.3 | 2.5 |")
    one = {"model": "demo", "row": "ours", "was_running": True, "stall_s": 0.25}
    one |= {"pieces_meanwhile": 7}
    line = stall.table([one | {"usual_gap_s": 0.002, "picture_first_s": 0.5}])[2]
    assert line == "| demo | ours | 1 | 0.25 | 0.25 | 2 | 7 | 0.5 | 1 of 1 |"


def test_the_system_does_not_hold_pieces_of_a_stream_back() -> None:
    with (
        listener("127.0.0.1", 0) as waiting,
        socket.create_connection(waiting.getsockname()),
        waiting.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
