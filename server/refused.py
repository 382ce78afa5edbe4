"""A request that is turned away at the door, before the application sees it."""

from __future__ import annotations

from mlx_qwenvl.errors import QwenVLError

from .errors import Fault, form_for

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    500: "server_error",
    503: "server_error",
}


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

    def body(self, path: str, request_id: str | None = None) -> dict[str, object]:
        """The error in the form that the clients of a path expect."""
        kind = TYPES.get(self.status, "invalid_request_error")
        fault = Fault(self.status, str(self), kind, code=self.code)
        return form_for(path, fault, request_id)
