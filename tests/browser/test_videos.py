"""Videos in the page: taken in, played, sent, kept, and refused in words."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import BrowserContext, FilePayload, Locator, Page, Route, expect

pytest.importorskip("av", reason="PyAV makes the videos; it comes with the extra 'video'")

from tests.browser.conftest import CHAT, PATIENCE_MS, Answers, ask, heard, stream
from tests.browser.test_talking import heard_error
from tests.command_lines import SHAPES
from tests.films import film
from tests.live import Live

CLIP = film(30, size=(160, 120), codec="libvpx-vp9", container="webm")
NAME = "clip.webm"
PLAYER = f"Video {NAME}"


def file_of(name: str = NAME, data: bytes = CLIP, kind: str = "video/webm") -> FilePayload:
    return FilePayload(name=name, mimeType=kind, buffer=data)


def attach(page: Page, *files: FilePayload) -> None:
    page.locator("#files").set_input_files(list(files))


def give(page: Page, event: str) -> None:
    """Give the page the clip as a paste or a drop does."""
    page.evaluate(
        """([data, event]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "clip.webm", { type: "video/webm" }));
            const name = event === "paste" ? "clipboardData" : "dataTransfer";
            const Kind = event === "paste" ? ClipboardEvent : DragEvent;
            const init = { [name]: transfer, bubbles: true, cancelable: true };
            document.getElementById("question").dispatchEvent(new Kind(event, init));
        }""",
        [base64.b64encode(CLIP).decode(), event],
    )


def can_be_played(page: Page) -> None:
    """See that the one video of the conversation has been read by the browser."""
    player = page.get_by_label(PLAYER)
    expect(player).to_be_visible()
    expect(page.locator(".film figcaption")).to_have_text(f"{NAME} · 0:03 min")
    assert player.evaluate("video => [video.videoWidth, video.videoHeight]") == [160, 120]


def until(player: Locator, is_so: str) -> None:
    """Wait for a video; the page's policy lets no test have a text evaluated again and again."""
    end = time.monotonic() + PATIENCE_MS / 1000
    while not player.evaluate(is_so):
        assert time.monotonic() < end, is_so
        time.sleep(0.02)


def content(body: dict[str, Any]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = body["messages"][0]["content"]
    return parts


@pytest.mark.parametrize("way", ["picked", "paste", "drop"])
def test_a_video_is_asked_about_beside_a_picture(page: Page, answers: Answers, way: str) -> None:
    asked = answers("It moves.")
    page.locator("#files").set_input_files(SHAPES)
    expect(page.locator("#attached li")).to_have_count(1)
    if way == "picked":
        attach(page, file_of())
    else:
        give(page, way)
    expect(page.locator("#attached li")).to_have_count(2)
    expect(page.locator("#attached .still")).to_have_text(f"Video {NAME}")
    ask(page, "What happens?")
    assert heard(page) == "It moves."
    picture, video, text = content(asked[0])
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert video == {
        "type": "video_url",
        "video_url": {"url": f"data:video/webm;base64,{base64.b64encode(CLIP).decode()}"},
    }
    assert text == {"type": "text", "text": "What happens?"}
    can_be_played(page)


def test_the_server_answers_and_the_video_outlives_the_page(page: Page) -> None:
    attach(page, file_of())
    page.get_by_role("button", name=f"Remove {NAME}").wait_for()
    page.get_by_role("button", name="Send").click()
    said = heard(page)
    assert said and page.locator(".message.user .said").inner_text() == "Describe this video."
    can_be_played(page)
    page.reload()
    assert heard(page) == said
    can_be_played(page)


def test_a_video_is_there_again_for_retry_edit_and_a_loaded_file(
    page: Page, answers: Answers, tmp_path: Path
) -> None:
    asked = answers("one", "two", "three", "four")
    attach(page, file_of())
    ask(page, "What happens?")
    heard(page)
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".message.assistant .body")).to_have_text("two")
    page.get_by_role("button", name="Edit question").click()
    expect(page.locator("#attached .still")).to_have_count(1)
    expect(page.locator(".film")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page.locator(".message.assistant .body")).to_have_text("three")
    can_be_played(page)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save this conversation as a file").click()
    file = tmp_path / "saved.json"
    download.value.save_as(file)
    page.get_by_role("button", name="Delete What happens?").click()
    expect(page.locator(".film")).to_have_count(0)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Load a conversation").click()
    chooser.value.set_files(file)
    can_be_played(page)
    ask(page, "And then?")
    expect(page.locator(".message.assistant .body").nth(1)).to_have_text("four")
    assert [content(body)[0] for body in asked] == [content(asked[0])[0]] * 4


def test_a_video_plays_on_while_its_answer_comes(page: Page) -> None:
    gate: list[Route] = []
    page.route(CHAT, lambda route: gate.append(route))
    attach(page, file_of())
    ask(page, "What happens?")
    player = page.get_by_label(PLAYER)
    player.focus()
    page.keyboard.press("Space")
    until(player, "video => video.currentTime > 0.2")
    gate[0].fulfill(status=200, content_type="text/event-stream", body=stream("It moves."))
    heard(page)
    until(player, "video => !video.paused || video.ended")
    assert player.evaluate("video => video.currentTime") > 0.2


def test_a_video_that_the_browser_cannot_play_is_sent_all_the_same(page: Page) -> None:
    old = film(30, size=(160, 120), codec="mpeg4", container="avi")
    attach(page, file_of("old.avi", old, ""))
    expect(page.locator("#attached .still")).to_have_text("Video old.avi")
    ask(page, "What happens?")
    assert heard(page)
    unplayed = page.locator(".message.user .unshown")
    expect(unplayed).to_have_text("old.avi (a video that this browser cannot play)")


LACKING = "videos need one more package: pip install 'mlx-qwenvl[video]'"

TOO_LARGE = (
    f"{NAME} has {-(-len(CLIP) // 1000)} kB; this server takes videos of at most 1 kB from this "
    "page. A shorter one may pass."
)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max_videos": 0}, f"{NAME}: this server takes no videos."),
        ({"video_fault": LACKING}, f"{NAME}: this server cannot decode videos: {LACKING}"),
        ({"max_video_bytes": 1000}, TOO_LARGE),
        ({"max_body_bytes": 2**16 + 1340}, TOO_LARGE),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_the_server_does_not_take_is_refused_before_it_is_sent(
    context: BrowserContext, live: Live, limits: dict[str, Any], told: str
) -> None:
    facts = httpx2.get(f"{live.url}/", headers={"accept": "application/json"}).json()
    facts["limits"] |= limits
    page = context.new_page()

    def answer(route: Route) -> None:
        if route.request.headers["accept"] == "application/json":
            route.fulfill(status=200, content_type="application/json", body=json.dumps(facts))
        else:
            route.continue_()

    page.route(f"{live.url}/", answer)
    page.goto(live.url)
    page.locator("#state.ready").wait_for()
    attach(page, file_of())
    expect(page.locator("#notice")).to_have_text(told)
    expect(page.locator("#attached li")).to_have_count(0)


def test_a_conversation_beyond_one_request_is_told_before_it_is_sent(page: Page) -> None:
    told = page.evaluate(
        """async () => {
            const { tooMuch } = await import("/page/videos.js");
            const picture = { blob: new Blob([new Uint8Array(3e6)]) };
            const asked = [{ role: "user", pictures: [picture, picture] }, { role: "user" }];
            const limits = (bytes) => ({ max_body_bytes: bytes });
            return [tooMuch(asked, limits(9e6)), tooMuch(asked, limits(7e6)), tooMuch(asked)];
        }"""
    )
    assert told[0] is None and told[2] is None
    assert told[1] == (
        "The pictures and videos of this conversation have 6.0 MB; this server takes at most "
        "5.2 MB at once. Begin a new chat with fewer of them."
    )


def test_the_servers_line_about_a_video_is_shown_as_it_came(page: Page, live: Live) -> None:
    broken = CLIP[:200]
    attach(page, file_of(data=broken))
    ask(page, "What happens?")
    url = f"data:video/webm;base64,{base64.b64encode(broken).decode()}"
    parts = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": "What?"}]
    body = {"messages": [{"role": "user", "content": parts}]}
    reply = httpx2.post(f"{live.url}/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert heard_error(page) == reply.json()["error"]["message"]


def test_an_answer_about_a_video_points_into_no_picture(page: Page) -> None:
    kinds = page.evaluate(
        """async () => {
            const { pictureBefore } = await import("/page/talk.js");
            const of = (type) => ({ blob: new Blob([], { type }) });
            const [picture, video] = [of("image/png"), of("video/webm")];
            const last = (...asked) => {
                const messages = asked.map((pictures) => ({ role: "user", pictures }));
                return pictureBefore(messages, messages.length - 1)?.blob.type ?? null;
            };
            return [last([picture, video]), last([picture], [video]), last([video], [picture], [])];
        }"""
    )
    assert kinds == ["image/png", None, "image/png"]


def test_a_hostile_name_of_a_video_is_a_name(page: Page, answers: Answers) -> None:
    answers("seen")
    name = "<img src=x onerror=hacked=1>.webm"
    attach(page, file_of(name))
    expect(page.locator("#attached .still")).to_have_text(f"Video {name}")
    page.keyboard.press("Enter")
    heard(page)
    expect(page.locator(".film figcaption")).to_contain_text(name)
    assert page.evaluate("window.hacked") is None
    expect(page.locator("img[src='x']")).to_have_count(0)
