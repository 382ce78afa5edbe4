"""The prompt of a terminal that can do more: history, several lines, completion."""

from __future__ import annotations

from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.filters import Condition
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

from mlx_qwenvl.chatting.completing import LineCompleter
from mlx_qwenvl.chatting.history import open_history
from mlx_qwenvl.chatting.typed import SIGN

LEAVING = "Ctrl-C again leaves, as Ctrl-D does"


class RichPrompt:
    """Lines with all that prompt_toolkit gives.

    Args:
        history: Where lines are kept; None for nowhere.
        keys: Where keys come from; None for the terminal.
        output: Where the prompt is drawn; None for the terminal.
    """

    is_interactive = True
    can_edit = True

    def __init__(
        self, history: Path | None, keys: Input | None = None, output: Output | None = None
    ) -> None:
        self._is_leaving = False
        self._is_editing = False
        self._session: PromptSession[str | None] = PromptSession(
            SIGN,
            multiline=True,
            prompt_continuation=lambda width, line, wrapped: " " * width,
            history=open_history(history),
            completer=LineCompleter(),
            complete_while_typing=Condition(self._is_naming_command),
            key_bindings=self._bindings(),
            input=keys,
            output=output,
        )
        self._session.default_buffer.on_text_changed += lambda _: self._leave_next(False)

    def read(self, draft: str | None) -> str | None:
        """The next line, or None at the end.

        Args:
            draft: What stands there already; None for nothing.
        """
        self._leave_next(False)
        self._is_editing = draft is not None
        try:
            return self._session.prompt(default=draft or "")
        except EOFError:
            return None

    def _leave_next(self, is_leaving: bool) -> None:
        """Whether the next Ctrl-C leaves, and say so."""
        self._is_leaving = is_leaving
        self._session.bottom_toolbar = LEAVING if is_leaving else None

    def _is_naming_command(self) -> bool:
        text = self._session.default_buffer.text
        return text[:1] in ("\\", "/") and not any(letter.isspace() for letter in text)

    def _bindings(self) -> KeyBindings:
        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c")
        def _(event: KeyPressEvent) -> None:
            """Clear the line; leave where it was pressed right before."""
            if self._is_editing:
                event.app.exit(result="")
            elif self._is_leaving:
                event.app.exit(exception=EOFError)
            else:
                event.current_buffer.reset()
                self._leave_next(True)

        return keys
