"""In a real Jupyter kernel: what is shown, the stop button, and the event loop that runs there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.command_lines import SHAPES
from tests.jupyter_kernel import Cell, Kernel, running_kernel

# An answer that has no end of its own, and tells when it is under way.
BEGIN = f"""
import threading, time
from mlx_qwenvl import load

vlm = load("demo", progress=True)
picture = {str(SHAPES)!r}
greedy = dict(temperature=0, max_tokens=30)
endless = dict(
    temperature=0,
    max_tokens=1800,
    speculation=False,
    logit_bias={{token: -100 for token in vlm.end_ids}},
    on_prefill=lambda done, total: print("reading", flush=True),
)
expected = vlm.generate("Describe it.", images=[picture], **greedy).text

def answering():
    time.sleep(0.2)
    return [thread.name for thread in threading.enumerate() if thread.name == "mlx-qwenvl"]
"""


def is_reading(cell: Cell) -> bool:
    return "reading" in cell.out


def is_told(cell: Cell) -> bool:
    return cell.out.count("|") >= 5


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with running_kernel(tmp_path_factory.mktemp("kernel")) as kernel:
        begun = kernel.run(BEGIN)
        assert (begun.error, begun.out, begun.err) == ("", "", "")
        yield kernel


def test_an_answer_and_a_model_are_shown_as_markdown(kernel: Kernel) -> None:
    (reply,) = kernel.run("vlm.generate('Describe it.', images=[picture], **greedy)").shown
    assert kernel.value("expected") in reply["text/markdown"]
    assert "data:image/" in reply["text/markdown"]
    assert "image/png" not in reply
    (model,) = kernel.run("vlm").shown
    assert "3.41 M" in model["text/markdown"]
    assert model["text/plain"].startswith("QwenVL('demo', 3.41 M parameters")


def test_an_answer_that_points_is_shown_as_a_picture_too(kernel: Kernel) -> None:
    cell = kernel.run(
        "from dataclasses import replace\n"
        "replace(vlm.generate('What?', images=[picture], **greedy), text="
        "'<|object_ref_start|>it<|object_ref_end|><|box_start|>(1,1),(9,9)<|box_end|>')"
    )
    assert cell.shown[0]["image/png"]


@pytest.mark.parametrize(
    ("code", "stop_when"),
    [
        ("chat.ask('Describe it.', images=[picture], **endless)", is_reading),
        (
            "for chunk in chat.stream('Describe it.', images=[picture], **endless):\n"
            "    print(chunk.text, end='|', flush=True)",
            is_told,
        ),
        ("await chat.aask('Describe it.', images=[picture], **endless)", is_reading),
        (
            "async for chunk in chat.astream('Describe it.', images=[picture], **endless):\n"
            "    print(chunk.text, end='|', flush=True)",
            is_told,
        ),
    ],
    ids=["ask", "stream", "aask", "astream"],
)
def test_the_stop_button_ends_an_answer_and_nothing_else(
    kernel: Kernel, code: str, stop_when: object
) -> None:
    kernel.run("chat = vlm.chat()")
    stopped = kernel.run(code, stop_when=stop_when)  # type: ignore[arg-type]
    assert stopped.error in ("KeyboardInterrupt", "CancelledError"), stopped
    assert kernel.value("answering()") == []
    turns = kernel.value("[message.role for message in chat.messages]")
    if stop_when is is_told:
        assert turns == ["user", "assistant"]
        assert kernel.value("len(chat.messages[1].parts[0].token_ids)") >= 5
    assert turns in ([], ["user", "assistant"])
    assert kernel.value("chat.ask('How many?', **greedy).text")
    assert kernel.value("vlm.generate('Describe it.', images=[picture], **greedy).text == expected")
    again = "(await vlm.agenerate('Describe it.', images=[picture], **greedy)).text == expected"
    assert kernel.value(again)


def test_what_waits_and_what_does_not_work_in_the_running_loop(kernel: Kernel) -> None:
    cell = kernel.run(
        "import asyncio\n"
        "ask = dict(images=[picture], **greedy)\n"
        "both = asyncio.gather(*(vlm.agenerate('Describe it.', **ask) for _ in range(2)))\n"
        "between = vlm.generate('Describe it.', **ask)\n"
        "print({reply.text == expected for reply in [*await both, between]})"
    )
    assert (cell.error, cell.out.strip(), cell.err) == ("", "{True}", "")
    # What one cell has begun, another one waits for.
    kernel.run("task = asyncio.ensure_future(vlm.agenerate('Describe it.', **ask))")
    assert kernel.value("(await task).text == expected")


def test_bars_are_text_where_there_are_no_widgets_and_nothing_warns(kernel: Kernel) -> None:
    cell = kernel.run(
        "from mlx_qwenvl import bars\n"
        "bars.DELAY_S = 0\n"
        "vlm.generate('What?', images=[picture], min_pixels=100_000, **greedy)"
    )
    assert cell.error == ""
    assert "reading" in cell.err or any("reading" in str(data) for data in cell.shown)
    assert "Warning" not in cell.err
