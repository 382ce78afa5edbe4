"""A request that is turned away at the door, before the application sees it."""

from __future__ import annotations

from mlx_qwenvl.errors import QwenVLError


class Refused(QwenVLError):
    """What is answered instead of letting a request in.

    Attributes:
        status: Of the answer.
        code: For programs, as in OpenAI's error object; None for none.
        headers: Beside those of every answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers

    def body(self, path: str) -> dict[str, object]:
        """The error in OpenAI's shape, with Anthropic's mark for the routes of that API."""
        kinds = {401: "authentication_error", 500: "server_error", 503: "server_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        error = {"message": str(self), "type": kind, "param": None, "code": self.code}
        return {"error": error} | ({"type": "error"} if path.startswith("/v1/messages") else {})
