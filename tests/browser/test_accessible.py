"""The page by the rules of accessibility, by keyboard alone, and as wide as a phone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, FilePayload, Page, expect

from tests.browser.conftest import AXE, CHAT, PATIENCE_MS, ask, heard, stream
from tests.live import Live

ANSWER = """# Heading

Text with `code`, **bold** words and a [link](https://example.org).

- one
- two

| a | b |
|---|---|
| 1 | 2 |

```python
print(1)
```

<|object_ref_start|>red circle<|object_ref_end|><|box_start|>(100,100),(400,400)<|box_end|>"""

SIZES = {"desk": (1100, 800), "phone": (360, 740)}


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(SIZES))
def fitted(
    request: pytest.FixtureRequest, browser: Browser, live: Live, scheme: Literal["light", "dark"]
) -> Iterator[Page]:
    """The page in one theme at one size; axe-core could not be put in under the page's policy."""
    width, height = SIZES[request.param]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, bypass_csp=True
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(live.url)
    page.locator("#state.ready").wait_for()
    page.route(
        CHAT,
        lambda route: route.fulfill(
            status=200, content_type="text/event-stream", body=stream(ANSWER)
        ),
    )
    yield page
    context.close()


def broken_rules(page: Page) -> list[Any]:
    """Rules of axe-core that the page breaks, with where it does."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed: npm ci --prefix tests/browser")
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run()")
    return [
        (rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found["violations"]
    ]


def test_no_rule_of_accessibility_is_broken(fitted: Page) -> None:
    assert broken_rules(fitted) == []
    fitted.get_by_role("button", name="Try it with drawn shapes").click()
    heard(fitted)
    assert broken_rules(fitted) == []
    for name in ("Settings", "Use it from your app"):
        fitted.get_by_role("button", name=name).click()
        assert broken_rules(fitted) == []
        fitted.keyboard.press("Escape")


def test_a_video_breaks_no_rule_and_is_no_wider_than_the_window(fitted: Page) -> None:
    films = pytest.importorskip("tests.films", reason="PyAV makes the video", exc_type=ImportError)
    name = f"{'a very long name of a video ' * 3}.webm"
    clip = films.film(4, size=(640, 360), codec="libvpx-vp9", container="webm")
    odd = FilePayload(name="odd.webm", mimeType="video/webm", buffer=b"no video")
    wide = "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
    files = [FilePayload(name=name, mimeType="video/webm", buffer=clip), odd]
    fitted.locator("#files").set_input_files(files)
    expect(fitted.locator("#attached li")).to_have_count(2)
    assert broken_rules(fitted) == [] and fitted.evaluate(wide) == 0
    ask(fitted, "What happens?")
    heard(fitted)
    expect(fitted.locator(".film figcaption")).to_contain_text("min")
    expect(fitted.locator(".film .unshown")).to_be_visible()
    assert broken_rules(fitted) == [] and fitted.evaluate(wide) == 0


def test_nothing_is_wider_than_the_window(fitted: Page) -> None:
    fitted.get_by_role("button", name="Try it with drawn shapes").click()
    heard(fitted)
    wide = "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
    assert fitted.evaluate(wide) == 0


def test_a_conversation_is_held_by_keyboard_alone(page: Page) -> None:
    expect(page.get_by_label("Question", exact=True)).to_be_focused()
    page.keyboard.type("Hello!")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("How are you?")
    page.keyboard.press("Enter")
    heard(page)
    assert page.locator(".message.user .said").inner_text() == "Hello!\nHow are you?"
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate(
                "() => { const e = document.activeElement;"
                " return e.getAttribute('aria-label') || e.textContent || e.id }"
            )
        )
    for name in ("Settings", "Light or dark", "New chat", "Copy answer", "Answer again", "Send"):
        assert name in seen


def test_a_phone_has_its_conversations_in_a_drawer(browser: Browser, live: Live) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page = context.new_page()
    page.goto(live.url)
    ask(page, "Hello!")
    heard(page)
    menu = page.get_by_role("button", name="Conversations")
    side = page.get_by_role("navigation", name="Conversations")
    expect(side).to_be_hidden()
    menu.click()
    expect(menu).to_have_attribute("aria-expanded", "true")
    page.get_by_role("button", name="New chat").click()
    expect(side).to_be_hidden()
    expect(page.locator(".message")).to_have_count(0)
    context.close()


def test_the_theme_is_turned_and_remembered(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.get_by_role("button", name="Light or dark").click()
    after = page.evaluate(ground)
    assert before != after
    page.reload()
    assert page.evaluate(ground) == after


def test_answers_are_told_to_screen_readers(page: Page) -> None:
    ask(page, "Hello!")
    said = heard(page)
    expect(page.get_by_role("status")).to_contain_text(said)
