"""server/media.py: counts before anything is opened, budgets while it is."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlx_qwenvl.errors import MediaError, OptionError, PromptError
from mlx_qwenvl.inputs.media import open_image
from mlx_qwenvl.inputs.messages import Message, parse_messages
from server.media import MediaPolicy
from server.settings import Settings
from tests.golden.record_images import draw, encode

PNG = encode(Image.fromarray(draw(40, 30, 3)), "PNG")
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()


def conversation(count: int, **part: Any) -> list[Message]:
    picture = {"type": "image_url", "image_url": {"url": URL}} | part
    return parse_messages([{"role": "user", "content": [picture] * count}])


def test_pictures_are_counted_over_all_messages_before_one_is_opened() -> None:
    policy = MediaPolicy.of(Settings(max_images=4))
    two = conversation(2, image_url="http://not.opened.example/")
    assert policy.admit(two * 2) == tuple(two * 2)
    with pytest.raises(PromptError, match="6 pictures came, at most 4 pass"):
        policy.admit(two * 3)


def test_messages_are_counted() -> None:
    policy = MediaPolicy.of(Settings(max_messages=3))
    assert len(policy.admit(conversation(0) * 3)) == 3
    with pytest.raises(PromptError, match="4 messages came, at most 3 pass"):
        policy.admit(conversation(0) * 4)


@pytest.mark.parametrize("source", [5, ["a.png"], True, Path("/etc/passwd"), b"abc"], ids=str)
def test_a_picture_is_named_by_text(source: Any) -> None:
    with pytest.raises(PromptError, match="a picture is named by a"):
        MediaPolicy.of(Settings()).admit(conversation(1, image_url=source))


@pytest.mark.parametrize("field", ["min_pixels", "max_pixels"])
def test_no_request_has_a_small_picture_made_huge(field: str) -> None:
    policy = MediaPolicy.of(Settings())
    policy.admit(conversation(1, **{field: 16384 * 784}))
    with pytest.raises(PromptError, match="a picture of 1000000000 pixels, at most 12845056"):
        policy.admit(conversation(1, **{field: 10**9}))


def test_each_request_has_a_budget_of_its_own() -> None:
    policy = MediaPolicy.of(Settings(max_total_pixels=2400, max_total_bytes=10**6))
    for _ in range(2):
        limits = policy.limits()
        open_image(URL, limits=limits)
        open_image(URL, limits=limits)
        with pytest.raises(MediaError, match="more than 2400 pixels together"):
            open_image(URL, limits=limits)
    limits = MediaPolicy.of(Settings(max_total_bytes=len(PNG))).limits()
    open_image(URL, limits=limits)
    with pytest.raises(MediaError, match=f"more than {len(PNG)} bytes together"):
        open_image(URL, limits=limits)


def test_each_picture_has_limits_too() -> None:
    limits = MediaPolicy.of(Settings(max_image_pixels=1199)).limits()
    with pytest.raises(MediaError, match="at most 1199 pixels"):
        open_image(URL, limits=limits)
    limits = MediaPolicy.of(Settings(max_image_bytes=len(PNG) - 1)).limits()
    with pytest.raises(MediaError, match="bytes"):
        open_image(URL, limits=limits)


def test_no_file_is_opened_without_a_root_and_the_flag_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    limits = MediaPolicy.of(Settings()).limits()
    messages = set()
    for name in (tmp_path / "a.png", tmp_path / "b.png"):
        for text in (str(name), name.as_uri()):
            with pytest.raises(MediaError, match="--image-root") as caught:
                open_image(text, limits=limits)
            assert str(tmp_path) not in str(caught.value)
            messages.add(str(caught.value))
    assert len(messages) == 2  # the same for a file that is there and one that is not


def test_a_file_under_the_root_is_opened_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    limits = MediaPolicy.of(Settings(image_root=tmp_path)).limits()
    assert open_image("a.png", limits=limits).size == (40, 30)
    assert limits.budget is not None
    assert limits.budget.pixels_left == Settings().max_total_pixels - 1200


def test_base64_of_40_kb_that_begins_like_a_path_is_a_picture(tmp_path: Path) -> None:
    jpeg = encode(Image.fromarray(draw(200, 150, 3)), "JPEG", quality=100)
    text = base64.b64encode(jpeg).decode()
    assert text.startswith("/9j/") and len(text) > 40_000
    for root in (None, tmp_path):
        limits = MediaPolicy.of(Settings(image_root=root)).limits()
        assert open_image(text, limits=limits).size == (200, 150)


def test_a_root_that_is_no_folder_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--image-root is .* which is no folder"):
        MediaPolicy.of(Settings(image_root=tmp_path / "none"))
