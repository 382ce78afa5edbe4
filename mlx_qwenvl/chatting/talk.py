"""What is done with a typed line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from mlx_qwenvl.chatting import tables
from mlx_qwenvl.chatting.commands import ALIASES, help_text, unknown
from mlx_qwenvl.chatting.grab import from_clipboard, from_screen
from mlx_qwenvl.chatting.line import Command, NoPicture, Question, read_line, read_question
from mlx_qwenvl.chatting.moving import moved
from mlx_qwenvl.chatting.paths import unescaped, word_at
from mlx_qwenvl.chatting.picture import Picture, read_picture
from mlx_qwenvl.chatting.saved import read_saved, save
from mlx_qwenvl.chatting.screen import Screen
from mlx_qwenvl.chatting.session import Session, parts_of
from mlx_qwenvl.chatting.settings import SETTERS, changed, described
from mlx_qwenvl.engine.job import fault_of
from mlx_qwenvl.engine.options import CallOptions
from mlx_qwenvl.engine.reply import Chunk
from mlx_qwenvl.errors import MemoryExceeded, OptionError, PromptError, QwenVLError
from mlx_qwenvl.grounding.picture_file import PictureFile
from mlx_qwenvl.inputs.media import open_image
from mlx_qwenvl.inputs.video_file import check_video
from mlx_qwenvl.vlm import QwenVL


class Talk:
    """A conversation as people type it.

    Args:
        session: The conversation.
        screen: Where it is shown.
        load: Loads a model by name.
        can_edit: Whether a person sits at a prompt where a question can be changed.
        previews: Whether pictures are shown.

    Attributes:
        waiting: Pictures for the next question.
        films: What names videos for the next question.
        draft: What stands at the next prompt already; None for nothing.
        failures: How many lines went wrong.
        is_stopped: Whether Ctrl-C ended the last answer.
    """

    def __init__(
        self,
        session: Session,
        screen: Screen,
        load: Callable[[str], QwenVL],
        *,
        can_edit: bool,
        previews: bool = False,
    ) -> None:
        self.session, self.screen = session, screen
        self.waiting: list[Picture] = []
        self.films: list[str] = []
        self.draft: str | None = None
        self.failures = 0
        self.is_stopped = False
        self._load, self._can_edit, self._previews = load, can_edit, previews
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self.screen.say(help_text()),
            "video": self._video,
            "paste": lambda text: self._ask_about(from_clipboard, text),
            "screenshot": lambda text: self._ask_about(from_screen, text),
            "images": self._images,
            "boxes": self._boxes,
            "system": self._system,
            "clear": self._clear,
            "retry": self._retry,
            "edit": self._edit,
            "save": self._save,
            "load": self._load_file,
            "model": self._model,
            "stats": self._stats,
            **{name: self._setter(name) for name in SETTERS},
        }

    def take(self, line: str) -> bool:
        """Do what a line says; whatever goes wrong is told. Gives whether to go on."""
        is_edited, self.draft, self.is_stopped = self.draft is not None, None, False
        try:
            meant = read_line(line)
            if isinstance(meant, Command):
                return self._command(meant)
            if meant is not None:
                self._question(meant, is_edited=is_edited)
            elif is_edited:
                self.screen.note("the question stays as it was")
        except (QwenVLError, NoPicture) as error:
            self._fail(str(error))
        except KeyboardInterrupt:
            self.is_stopped = True
            self.screen.note("stopped; the conversation is as it was")
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            place = f": {error.filename}" if error.filename else ""
            self._fail(f"{error.strerror or type(error).__name__}{place}")
        except (MemoryError, RuntimeError) as error:
            fault = fault_of(error)
            if fault is error:
                raise
            self._fail(str(fault))
        return True

    def _fail(self, message: str) -> None:
        self.failures += 1
        self.screen.error(message)

    def _command(self, command: Command) -> bool:
        name = ALIASES.get(command.name, command.name)
        if name == "exit":
            return False
        if name == "image":  # an alias, with what stands behind it
            self._question(read_question(f"\\image {command.argument}"), is_edited=False)
        elif name in self._commands:
            self._commands[name](command.argument)
        else:
            self._fail(unknown(command.name))
        return True

    # --- Questions ------------------------------------------------------------------------------

    def _question(self, question: Question, *, is_edited: bool) -> None:
        with self.screen.reading([*self.films, *question.pictures]):
            pictures = [*self.waiting, *self._read(question.pictures)]
            self._preview(pictures[len(self.waiting) :])
            if is_edited:
                self._hear(self.session.replace(question.text, pictures, self._options()))
                self.waiting.clear()
            else:
                self._ask(question.text, pictures)

    def _ask(self, text: str, pictures: Sequence[Picture]) -> None:
        """Ask with all that waits for a question."""
        self._hear(self.session.ask(text, pictures, self._options(), self.films))
        self.waiting.clear()
        self.films.clear()

    def _ask_about(self, grab: Callable[[], Picture], text: str) -> None:
        picture = grab()
        question = read_question(f" {text}")
        with self.screen.reading([picture.name]):
            pictures = [*self.waiting, picture, *self._read(question.pictures)]
            self._preview(pictures[len(self.waiting) :])
            self._ask(question.text, pictures)

    def _video(self, argument: str) -> None:
        word = word_at(argument, 0)
        if word is None:
            raise NoPicture("\\video needs a video: \\video PATH-or-URL QUESTION")
        check_video(word.source)
        question = read_question(f" {argument[word.end :]}")
        with self.screen.reading([*self.films, word.source]):
            pictures = [*self.waiting, *self._read(question.pictures)]
            videos = [*self.films, word.source]
            self._hear(self.session.ask(question.text, pictures, self._options(), videos))
        self.waiting.clear()
        self.films.clear()

    def _read(self, sources: Sequence[str]) -> list[Picture]:
        return [read_picture(source) for source in sources]

    def _preview(self, pictures: Sequence[Picture]) -> None:
        for picture in pictures if self._previews else ():
            self.screen.picture(open_image(picture))

    def _options(self) -> CallOptions:
        return {"on_prefill": self.screen.advance()}

    def _hear(self, chunks: Iterator[Chunk]) -> None:
        self.is_stopped = self.screen.answer(chunks)
        last = self.session.last
        if self.is_stopped:
            self.screen.note("stopped; what was said stays in the conversation")
        elif last is not None and last.finish_reason == "length":
            self.screen.note("cut at the longest answer; \\maxtokens N allows more")
        count = len(self.session.boxes()) if self._can_edit else 0
        if count:
            self.screen.note(f"it points at {tables.counted(count, 'place')}; \\boxes draws them")

    def _retry(self, argument: str) -> None:
        chunks, is_forced = self.session.retry(self._options())
        if is_forced:
            self.screen.note("the likeliest answer was given already; this one is drawn")
        with self.screen.reading(()):
            self._hear(chunks)

    def _edit(self, argument: str) -> None:
        text, pictures = parts_of(self.session.last_question())
        if argument:
            self._question(read_question(f" {argument}"), is_edited=True)
        elif not self._can_edit:
            raise PromptError("say the new question: \\edit QUESTION")
        else:
            self.draft = text
            if pictures:
                self.screen.note(f"with {tables.counted(len(pictures), 'picture')}, as before")

    # --- The conversation -----------------------------------------------------------------------

    def _system(self, argument: str) -> None:
        if argument:
            self.session.instruct(argument)
            self.screen.note("said to the model from here on")
        else:
            systems = self.session.systems()
            self.screen.say("\n".join(systems) if systems else "the model's own system message")

    def _clear(self, argument: str) -> None:
        self.session.clear()
        self.waiting.clear()
        self.films.clear()
        self.screen.note("a new conversation")

    def _save(self, argument: str) -> None:
        path = _path(argument, "\\save FILE")
        size = save(self.session, path)
        self.screen.note(f"kept in {path} ({size / 1e6:.1f} MB); \\load goes on with it")

    def _load_file(self, argument: str) -> None:
        self.load_saved(_path(argument, "\\load FILE"))

    def load_saved(self, path: Path, settings: CallOptions | None = None) -> None:
        """Go on with a conversation that was kept.

        Args:
            path: The file.
            settings: What goes before its own settings; None for nothing.

        Raises:
            QwenVLError: It cannot be read.
        """
        saved = read_saved(path, self.session.vlm)
        given = {name: value for name, value in (settings or {}).items() if value is not None}
        self.session.options = cast(CallOptions, {**saved.options, **given})
        self.session.resume(saved.messages, saved.originals)
        self.waiting.clear()
        asked = sum(message.role == "user" for message in saved.messages)
        pictures = len(self.session.pictures())
        self.screen.note(
            f"{tables.counted(asked, 'question')} and {tables.counted(pictures, 'picture')}"
        )
        if saved.model != self.session.vlm.name:
            self.screen.note(
                f"it was held with {saved.model}; {self.session.vlm.name} goes on with it "
                "(\\model NAME changes that)"
            )

    def _model(self, argument: str) -> None:
        if not argument:
            self.screen.say(repr(self.session.vlm))
            return
        try:
            vlm = self._load(argument)
        except MemoryExceeded as error:
            raise MemoryExceeded(
                f"{error} (beside {self.session.vlm.name}; \\save FILE, then "
                f"`mlx-qwenvl chat --model {argument} --load FILE`, needs room for one)"
            ) from None
        messages, originals = moved(self.session, vlm)
        self.session.move_to(vlm, messages, originals)
        self.screen.note(f"{vlm.name} answers from now on")

    # --- What is in force, and what was ---------------------------------------------------------

    def _setter(self, name: str) -> Callable[[str], None]:
        def set_to(argument: str) -> None:
            session = self.session
            if argument:
                session.options = changed(session.options, name, argument, session.vlm.sampling)
            self.screen.note(described(session.options, session.vlm.sampling))

        return set_to

    def _images(self, argument: str) -> None:
        session = self.session
        self.screen.say(tables.pictures_table(session.pictures(), self.waiting, session.videos()))

    def _stats(self, argument: str) -> None:
        self.screen.say(tables.stats_table(self.session))

    def _boxes(self, argument: str) -> None:
        boxes = self.session.boxes()
        if not boxes:
            raise PromptError("the last answer points at nothing")
        self.screen.say(tables.boxes_table(boxes))
        if argument:
            path = _path(argument, "")
            PictureFile.at(str(path), "\\boxes").save(self.session.drawn())
            self.screen.note(f"drawn into {path}")
        elif self._previews:
            self.screen.picture(self.session.drawn())


def _path(typed: str, form: str) -> Path:
    if not typed:
        raise OptionError(f"expected {form}")
    plain = typed if Path(typed).expanduser().exists() else unescaped(typed)
    return Path(plain).expanduser()
