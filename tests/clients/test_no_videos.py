"""Which public forms have videos: what `docs/video.md` says of them, held to their SDKs."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from typing_extensions import get_type_hints

anthropic = pytest.importorskip("anthropic.types", reason="comes with the extra 'clients'")
openai = pytest.importorskip("openai.types.responses", reason="comes with the extra 'clients'")


def kinds(union: Any) -> set[str]:
    """The values of `type` of all members of a union."""
    return {name for form in get_args(union) for name in get_args(get_type_hints(form)["type"])}


@pytest.mark.parametrize(
    ("union", "picture"),
    [
        (anthropic.ContentBlockParam, "image"),
        (openai.ResponseInputContentParam, "input_image"),
    ],
    ids=["Messages", "Responses"],
)
def test_the_form_has_pictures_and_no_videos(union: Any, picture: str) -> None:
    found = kinds(union)
    assert picture in found
    assert not [name for name in found if "video" in name]
