"""Which parts of a model get which recipe, read from a YAML file.

The file maps parts of the model to recipes (`docs/topology.md`); mistral.rs's topologies are such
files too. What is said more closely goes before what is said more widely: a regular expression,
then a range of layers, then a part, then `default`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mlx_qwenvl.errors import OptionError
from mlx_qwenvl.models.config import Config
from mlx_qwenvl.models.experts import can_be_quantized
from mlx_qwenvl.models.families import build
from mlx_qwenvl.weights.recipes import Recipe, read_recipe
from mlx_qwenvl.weights.rules import MAX_SHOWN, Rule, read_rule, shown, squeezed

MAX_BYTES = 256 * 1024  # of a file; a rule for every matrix of the 72B takes an eighth of it
MAX_DEPTH = 8  # of lists and mappings in one another; a topology has two

_FIELDS = ("quantize", "isq", "group_size", "device")
_DEVICE = re.compile(r"cpu|(cuda|metal)\[[0-9]+\]")
_DEVICE_NOTE = (
    "the topology's devices are ignored: the memory of Apple's chips is one, so a model is not "
    "spread over several"
)


@dataclass(frozen=True)
class Topology:
    """Rules about parts of a model.

    Attributes:
        file: Where they were read from.
        rules: The rules; of those that speak of one module, the last decides.
        notes: What to tell the person who wrote them.
    """

    file: Path
    rules: tuple[Rule, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def from_file(cls, file: Path, group_size: int | None = None) -> Topology:
        """Read a file.

        Args:
            file: The YAML file.
            group_size: Weights that share a scale in affine formats, where a rule says nothing.

        Raises:
            OptionError: The file cannot be read, or holds something else than rules.
        """
        reader = _Reader(file, group_size)
        rules = tuple(sorted(reader.rules(), key=lambda rule: rule.rank))
        return cls(file, rules, tuple(dict.fromkeys(reader.notes)))

    def check(self, config: Config) -> list[str]:
        """Hold the rules against the model they are for.

        Returns:
            What to tell: ranges that go beyond the last layer, as those of a larger model do.

        Raises:
            OptionError: A rule speaks only of what the model does not have.
        """
        depths = {"text": config.text.num_hidden_layers, "vision": config.vision.depth}
        paths: list[str] = []
        notes: list[str] = []
        for rule in sorted(self.rules, key=lambda rule: rule.line):
            if rule.layers is not None and rule.layers.stop > depths[rule.part]:
                depth = depths[rule.part]
                problem = f"the model has {depth} {rule.part} layers, 0 to {depth - 1}"
                if rule.layers.start < depth:
                    notes.append(f"{self.file} line {rule.line}: {shown(rule.key)}: {problem}")
                    continue
            elif rule.part == "head" and config.text.tie_word_embeddings:
                problem = "this model's head is its embedding; say embeddings instead"
            elif rule.pattern is not None:
                paths = paths or _matrices(config)
                if any(map(rule.speaks_of, paths)):
                    continue
                example = rule.spelled("model.layers.0.mlp.down_proj")
                problem = f"no matrix of the model has such a name; one is {example}"
            else:
                continue
            raise OptionError(f"{self.file} line {rule.line}: {shown(rule.key)} came; {problem}")
        return notes

    def recipe_of(self, path: str) -> Recipe | None:
        """The recipe of a module, or None where no rule speaks of it.

        Args:
            path: The module, by its name here, such as `model.layers.3.mlp.down_proj`.
        """
        for rule in reversed(self.rules):
            if rule.speaks_of(path):
                return rule.recipe
        return None


class _Reader:
    """Reads one file; its errors name the line."""

    def __init__(self, file: Path, group_size: int | None) -> None:
        self.file = file
        self.group_size = group_size
        self.notes: list[str] = []

    def rules(self) -> Iterator[Rule]:
        root = self._root()
        if root is None:
            raise OptionError(f"{self.file} is empty; expected rules such as `text: 4bit`")
        for written, key, value in self._entries(root, "parts and their recipes"):
            recipe = self._recipe(value)
            try:
                # What only places layers is read, so that its mistakes are told, and left out.
                rule = read_rule(_line(key), written, recipe or read_recipe("none"))
            except OptionError as error:
                self._refuse(key, str(error))
            if recipe is not None:
                yield rule

    def _root(self) -> Any:
        """The root of the file's tree of nodes, or None."""
        import yaml  # takes 30 ms, and few need it

        text = self._text()
        depth = documents = 0
        try:
            for event in yaml.parse(text, Loader=yaml.SafeLoader):
                if isinstance(event, yaml.AliasEvent):
                    self._refuse(event, f"the alias *{event.anchor} came; expected what it means")
                documents += isinstance(event, yaml.DocumentStartEvent)
                if documents > 1:
                    self._refuse(event, "a second document came; expected one")
                if isinstance(event, yaml.CollectionStartEvent):
                    depth += 1
                elif isinstance(event, yaml.CollectionEndEvent):
                    depth -= 1
                if depth > MAX_DEPTH:
                    self._refuse(event, "deeper nesting than any rule's; expected recipes")
            return yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark is not None else 1
            problem = error.problem or error.context
        except yaml.reader.ReaderError as error:
            line, problem = text.count("\n", 0, error.position) + 1, "an unprintable character"
        raise OptionError(f"{self.file} line {line}: {problem}; expected YAML")

    def _text(self) -> str:
        try:
            with self.file.open("rb") as opened:
                content = opened.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise OptionError(f"{self.file} is missing; expected a topology") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OptionError(f"{self.file} cannot be read: {reason}") from None
        if len(content) > MAX_BYTES:
            raise OptionError(f"{self.file} has more than the {MAX_BYTES} bytes of a topology")
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise OptionError(f"{self.file} line {line}: not UTF-8; expected YAML") from None

    def _entries(self, node: Any, expected: str) -> Iterator[tuple[str, Any, Any]]:
        """Keys as text, keys and values of a mapping in which no key comes twice."""
        if node.id != "mapping":
            self._refuse(node, f"{_came(node)} came; expected {expected}")
        lines: dict[str, int] = {}
        for key, value in node.value:
            if key.id != "scalar":
                self._refuse(key, f"{_came(key)} came as a key; expected {expected}")
            written = key.value.strip()
            meant = squeezed(written)
            if meant in lines:
                self._refuse(
                    key, f"{shown(written)} stands in line {lines[meant]} too; expected it once"
                )
            lines[meant] = _line(key)
            yield written, key, value

    def _recipe(self, value: Any) -> Recipe | None:
        """The recipe that a value means, or None where it only places layers."""
        if value.id == "scalar":
            return self._named_recipe(value, None)
        fields: dict[str, Any] = {}
        for written, key, field in self._entries(value, "a recipe such as 4bit"):
            name = squeezed(written)
            if name not in _FIELDS:
                self._refuse(key, f"unknown key {shown(written)}; expected {', '.join(_FIELDS)}")
            if field.id != "scalar":
                self._refuse(field, f"{_came(field)} came as {name}; expected one word")
            fields[name] = field
        if "device" in fields:
            self._take_device(fields.pop("device"))
            if not fields:
                return None
        names = [fields[name] for name in ("quantize", "isq") if name in fields]
        if len(names) != 1:
            came = "both quantize and isq" if names else "neither quantize nor isq"
            self._refuse(value, f"{came} came; expected one of them")
        return self._named_recipe(names[0], fields.get("group_size"))

    def _named_recipe(self, name: Any, group_size: Any) -> Recipe:
        if not name.value.strip() or len(name.value) > MAX_SHOWN:
            self._refuse(name, f"{shown(name.value)} came; expected a recipe such as 4bit, or none")
        recipe = self._read(name, name, None)
        if group_size is not None:
            if not re.fullmatch("[0-9]{1,9}", group_size.value):
                came = shown(group_size.value)
                self._refuse(group_size, f"group_size is {came}; expected a whole number")
            size = int(group_size.value)
            recipe = self._read(group_size, name, size)
            if recipe.low is not None and recipe.low.group_size != size:
                problem = f"group_size is {size}, but {recipe.name} came; expected one of the two"
                self._refuse(group_size, problem)
        elif recipe.low is not None and recipe.low.mode == "affine":
            recipe = self._read(name, name, self.group_size)
        self.notes += [recipe.note] if recipe.note else []
        return recipe

    def _read(self, blamed: Any, name: Any, group_size: int | None) -> Recipe:
        try:
            return read_recipe(name.value.strip(), group_size)
        except OptionError as error:
            self._refuse(blamed, str(error))

    def _take_device(self, node: Any) -> None:
        if not _DEVICE.fullmatch(squeezed(node.value)):
            self._refuse(node, f"device is {shown(node.value)}; expected cpu, cuda[N] or metal[N]")
        self.notes.append(_DEVICE_NOTE)

    def _refuse(self, node: Any, problem: str) -> NoReturn:
        raise OptionError(f"{self.file} line {_line(node)}: {problem}") from None


def _matrices(config: Config) -> list[str]:
    modules = build(config).named_modules()
    return [path for path, part in modules if can_be_quantized(part)]


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _came(node: Any) -> str:
    return {"mapping": "a mapping", "sequence": "a list"}.get(node.id) or shown(node.value)
