"""The page in a browser, with the demo model behind it: pictures, answers, conversations."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect

from server.settings import Settings
from tests.browser.conftest import CHAT, Answers, ask, heard
from tests.command_lines import SHAPES
from tests.live import Live, serve

WHAT = "What is shown in this image?"
SHOWN = "The image shows a red circle and a blue square."
BOX = "<|object_ref_start|>red circle<|object_ref_end|><|box_start|>(100,200),(400,600)<|box_end|>"


def paste(page: Page, event: str) -> None:
    """Give the page the shapes as a paste or a drop does."""
    data = base64.b64encode(SHAPES.read_bytes()).decode()
    page.evaluate(
        """([data, event]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "shapes.png", { type: "image/png" }));
            const name = event === "paste" ? "clipboardData" : "dataTransfer";
            const Kind = event === "paste" ? ClipboardEvent : DragEvent;
            const init = { [name]: transfer, bubbles: true, cancelable: true };
            document.getElementById("question").dispatchEvent(new Kind(event, init));
        }""",
        [data, event],
    )


@pytest.mark.parametrize("way", ["picked", "paste", "drop"])
def test_a_picture_is_asked_about_however_it_comes(page: Page, way: str) -> None:
    if way == "picked":
        page.locator("#files").set_input_files(SHAPES)
    else:
        paste(page, way)
    page.get_by_alt_text("shapes.png").wait_for()
    ask(page, WHAT)
    assert heard(page) == SHOWN


def test_the_second_question_knows_the_picture_and_says_what_was_cached(page: Page) -> None:
    page.get_by_role("button", name="Try it with drawn shapes").click()
    assert heard(page) == SHOWN
    ask(page, "What color is the circle?")
    assert heard(page, 2) == "The circle is red."
    figures = page.locator(".message.assistant .figures").nth(1).inner_text()
    assert "cached" in figures and "tokens/s" in figures and "first token after" in figures


def test_conversations_outlive_the_page_with_their_pictures(page: Page) -> None:
    page.get_by_role("button", name="Try it with drawn shapes").click()
    heard(page)
    page.get_by_role("button", name="New chat").click()
    ask(page, "Hello!")
    hello = heard(page)
    page.reload()
    assert heard(page) == hello
    side = page.get_by_role("navigation", name="Conversations")
    side.get_by_role("button", name=WHAT, exact=True).click()
    assert heard(page) == SHOWN
    assert page.get_by_alt_text("shapes.png").evaluate("image => image.naturalWidth") == 448
    page.get_by_role("button", name=f"Rename {WHAT}").click()
    page.get_by_label("Title").fill("Shapes")
    page.keyboard.press("Enter")
    side.get_by_role("button", name="Shapes", exact=True).wait_for()
    page.get_by_role("button", name="Delete Shapes").click()
    expect(side.get_by_role("button", name="Shapes", exact=True)).to_have_count(0)
    page.reload()
    assert heard(page) == hello


def test_a_saved_conversation_is_loaded_again(page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="Try it with drawn shapes").click()
    heard(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save this conversation as a file").click()
    file = tmp_path / "saved.json"
    download.value.save_as(file)
    page.get_by_role("button", name=f"Delete {WHAT}").click()
    expect(page.locator(".message")).to_have_count(0)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load a conversation").click()
    chooser.value.set_files(file)
    page.get_by_alt_text("shapes.png").wait_for()
    assert page.locator(".message.assistant .body").inner_text() == SHOWN
    file.write_text(json.dumps({"messages": []}))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load a conversation").click()
    chooser.value.set_files(file)
    expect(page.locator("#notice")).to_contain_text("no conversation that was saved here")


def test_stop_keeps_what_came(page: Page) -> None:
    gate: list[Route] = []
    page.route(CHAT, lambda route: gate.append(route))
    ask(page, "Count!")
    page.get_by_role("button", name="Stop").wait_for()
    page.keyboard.press("Escape")
    expect(page.locator(".figures")).to_contain_text("stopped")
    page.get_by_role("button", name="Send").wait_for()
    for route in gate:
        route.abort()


def test_an_answer_that_is_left_stays_in_its_own_conversation(page: Page) -> None:
    gate: list[Route] = []
    page.route(CHAT, lambda route: gate.append(route))
    ask(page, "Count!")
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("button", name="New chat").click()
    page.get_by_role("button", name="Send").wait_for()
    expect(page.locator(".message")).to_have_count(0)
    page.reload()
    side = page.get_by_role("navigation", name="Conversations")
    expect(side.get_by_role("listitem")).to_have_count(1)
    expect(page.locator(".figures")).to_contain_text("stopped")
    for route in gate:
        route.abort()


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(page: Page) -> None:
    gate: list[Route] = []
    page.route(CHAT, lambda route: gate.append(route))
    ask(page, "Count!")
    page.get_by_role("button", name="Stop").wait_for()
    page.get_by_role("button", name="Delete Count!").click()
    page.get_by_role("button", name="Send").wait_for()
    page.reload()
    page.locator("#state.ready").wait_for()
    expect(page.locator("#conversations li")).to_have_count(0)
    for route in gate:
        route.abort()


def test_retry_asks_again_and_edit_gives_the_question_back(page: Page, answers: Answers) -> None:
    asked = answers("one", "two", "three")
    ask(page, "Say a number")
    assert heard(page) == "one"
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".message.assistant .body")).to_have_text("two")
    page.get_by_role("button", name="Edit question").click()
    box = page.get_by_label("Question", exact=True)
    expect(box).to_have_value("Say a number")
    box.fill("Say another")
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant .body")).to_have_text("three")
    assert [len(body["messages"]) for body in asked] == [1, 1, 1]
    assert asked[2]["messages"][0]["content"] == "Say another"


def test_settings_are_sent_where_they_are_set_and_remembered(page: Page, answers: Answers) -> None:
    asked = answers("a", "b", "c")
    ask(page, "One")
    heard(page)
    assert set(asked[0]) == {"messages", "stream", "stream_options"}
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Longest answer").fill("12")
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("Top p").fill("7")  # out of its range: not taken
    page.keyboard.press("Escape")
    page.reload()
    page.locator("#state.ready").wait_for()
    ask(page, "Two")
    heard(page, 2)
    assert (asked[1]["temperature"], asked[1]["max_tokens"]) == (0, 12)
    assert "top_p" not in asked[1]
    assert asked[1]["messages"][0] == {"role": "system", "content": "Be brief."}
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Empty all").click()
    page.get_by_role("button", name="Done").click()
    ask(page, "Three")
    heard(page, 3)
    assert "temperature" not in asked[2]


def test_boxes_lie_over_the_picture_where_the_answer_says(page: Page, answers: Answers) -> None:
    answers(f"There it is: {BOX} and <|box_start|>(9,9),(1,1)<|box_end|>", size=5)
    page.get_by_role("button", name="Try it with drawn shapes").click()
    text = heard(page)
    assert "red circle" in text and "object_ref" not in text and "(100,200)" not in text
    assert "<|box_start|>(9,9),(1,1)<|box_end|>" in text  # malformed: it stays text
    image = page.locator(".pointed img").bounding_box()
    drawn = page.locator(".pointed rect[fill=none]").nth(1).bounding_box()
    assert image is not None and drawn is not None
    left, top = image["x"] + 0.1 * image["width"], image["y"] + 0.2 * image["height"]
    wanted = (left, top, 0.3 * image["width"], 0.4 * image["height"])
    found = (drawn["x"], drawn["y"], drawn["width"], drawn["height"])
    assert found == pytest.approx(wanted, abs=6)  # pixels; half of them the line
    chip = page.get_by_role("button", name="red circle: 25 % from the left, 40 % from the top")
    chip.hover()


def test_marks_are_never_seen_while_an_answer_grows(page: Page) -> None:
    shown = page.evaluate(
        """async (text) => {
            const { readBoxes } = await import("/page/boxes.js");
            return Array.from(text, (_, i) => readBoxes(text.slice(0, i), false).text);
        }""",
        f"It is {BOX} and {BOX.replace('box_', 'quad_')} <b>.",
    )
    assert not any("<|" in text or "ref" in text or "(1" in text for text in shown[:-60])
    assert shown[-1].endswith("<b>")


def heard_error(page: Page) -> str:
    error = page.locator(".message.assistant .error")
    error.wait_for()
    return error.inner_text()


def test_an_error_of_the_server_is_told_in_its_words(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill("99999999999")
    page.keyboard.press("Escape")
    ask(page, "Hello!")
    assert "max_tokens" in heard_error(page)


def test_a_file_that_is_no_picture_is_refused_by_its_name(page: Page, tmp_path: Path) -> None:
    text = tmp_path / "letter.txt"
    text.write_text("Hello")
    page.locator("#files").set_input_files(text)
    expect(page.locator("#notice")).to_have_text("letter.txt is neither a picture nor a video.")


def test_a_large_photo_is_sent_smaller(page: Page, answers: Answers) -> None:
    asked = answers("big")
    page.evaluate(
        """async () => {
            const canvas = document.createElement("canvas");
            canvas.width = 5000; canvas.height = 4000;
            const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
            const transfer = new DataTransfer();
            transfer.items.add(new File([blob], "huge.png", { type: "image/png" }));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer }));
        }"""
    )
    page.get_by_alt_text("huge.png").wait_for()
    ask(page, "What?")
    heard(page)
    url = asked[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/jpeg;base64,")


def test_a_server_with_a_key_asks_for_it_once(context: BrowserContext) -> None:
    with serve(Settings(api_keys=frozenset({"sesame"}))) as guarded:
        page = context.new_page()
        page.goto(guarded.url)
        field = page.get_by_label("API key")
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="This server asks for a key")).to_be_visible()
        field.fill("sesame")
        page.keyboard.press("Enter")
        page.locator("#state.ready").wait_for()
        ask(page, "Hello!")
        assert heard(page)
        assert page.evaluate(
            "localStorage.length === 0 || !JSON.stringify(localStorage).includes('sesame')"
        )


def test_a_server_that_dies_is_told_and_awaited(context: BrowserContext, live: Live) -> None:
    page = context.new_page()
    page.goto(live.url)
    page.locator("#state.ready").wait_for()
    context.set_offline(True)
    ask(page, "Hello!")
    assert heard_error(page) == "The server cannot be reached. Is it still running?"
    page.locator("#state.away").wait_for()
    context.set_offline(False)
    page.locator("#state.ready").wait_for()
    page.get_by_role("button", name="Answer again").click()
    page.locator(".message.assistant .figures").filter(has_text="tokens").wait_for()
