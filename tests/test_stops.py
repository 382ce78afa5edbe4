"""Stop texts: found wherever they lie, never shown in part."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlx_qwenvl import QwenVL
from mlx_qwenvl.engine.stops import StopText

letters = st.text(alphabet="abc", max_size=30)
pieces = st.lists(st.text(alphabet="abc", max_size=4), max_size=12)
stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=3)


def first_stop(text: str, stops: list[str]) -> int | None:
    places = [text.find(stop) for stop in stops if stop in text]
    return min(places) if places else None


@given(pieces, stops)
def test_whatever_the_seams_the_text_ends_before_the_first_stop(
    pieces: list[str], stops: list[str]
) -> None:
    watch = StopText(stops)
    shown = ""
    seen = ""
    for piece in pieces:
        shown += watch.feed(piece)
        seen += piece
        if watch.found:
            break
    shown += watch.finish()
    place = first_stop(seen, stops)
    assert watch.found == (place is not None)
    if place is not None:
        assert watch.hit in stops and seen[place:].startswith(watch.hit)
    assert shown == (seen if place is None else seen[:place])


@given(pieces, stops)
def test_no_beginning_of_a_stop_is_shown_before_it_is_decided(
    pieces: list[str], stops: list[str]
) -> None:
    watch = StopText(stops)
    shown = ""
    for index, piece in enumerate(pieces):
        shown += watch.feed(piece)
        whole = "".join(pieces)
        place = first_stop(whole, stops)
        if place is not None:
            assert len(shown) <= place
        if watch.found:
            assert first_stop("".join(pieces[: index + 1]), stops) is not None
            break


@given(pieces)
def test_without_stops_everything_is_shown_at_once(pieces: list[str]) -> None:
    watch = StopText([])
    assert [watch.feed(piece) for piece in pieces] == pieces


def test_an_answer_ends_before_a_stop_that_straddles_tokens(tiny: QwenVL) -> None:
    whole = tiny.generate("Hello", max_tokens=24, temperature=0)
    texts = [c.text for c in tiny.stream("Hello", max_tokens=24, temperature=0) if c.text]
    assert len(texts) > 4
    # The end of one token's text and the beginning of the next one's.
    seam = len("".join(texts[:3]))
    stop = whole.text[seam - 1 : seam + 1]
    cut = whole.text.find(stop)
    stopped = tiny.generate("Hello", max_tokens=24, temperature=0, stop=stop)
    assert stopped.text == whole.text[:cut]
    assert stopped.finish_reason == "stop"
    streamed = "".join(
        c.text for c in tiny.stream("Hello", max_tokens=24, temperature=0, stop=[stop])
    )
    assert streamed == stopped.text


def test_a_stop_that_never_comes_changes_nothing(tiny: QwenVL) -> None:
    whole = tiny.generate("Hello", max_tokens=12, temperature=0)
    with_stop = tiny.generate("Hello", max_tokens=12, temperature=0, stop=["\x00never"])
    assert with_stop.text == whole.text and with_stop.finish_reason == "length"
