"""Data as it is written: YAML that remembers the line of every key, and a mistake in it as one line for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from abridged.errors import InputError, nearest

Place = tuple[str | int, ...]  # keys and indices from the outermost to the innermost
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Written:
    """Plain data, and where it is from: a file's name, and the line (from 1) of every key and item where there are lines."""

    data: Any
    where: str
    lines: Mapping[Place, int] = field(default_factory=dict)

    def error(self, place: Place, message: str) -> InputError:
        """`WHERE, line N: message`, with the line of the place, or of the innermost one around it that has a line."""
        while place and place not in self.lines:
            place = place[:-1]
        line = f", line {self.lines[place]}" if place in self.lines else ""
        return InputError(f"{self.where}{line}: {message}")

    def built(self, model: type[Model], data: Mapping[str, Any], place: Place) -> Model:
        """The pydantic model of data that stand at a place. Raises `InputError`: the first complaint as one line, with
        the nearest right key or value."""
        try:
            return model.model_validate(data)
        except ValidationError as error:
            raise self.refusal(model, error, place) from None

    def refusal(self, model: type[BaseModel], error: ValidationError, place: Place = ()) -> InputError:
        """The first complaint of pydantic as one line."""
        first = error.errors()[0]
        return self.error((*place, *first["loc"]), _complaint(model, first))


def from_yaml(text: str, where: str) -> Written:
    """Parse. Raises `InputError`, with the line, for what is no YAML, and for a key that is given twice."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines = _lines(node, where)
        return Written(yaml.safe_load(text), where, lines)
    except RecursionError:
        raise InputError(f"{where}: nested too deeply, or an alias of itself") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{where}{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not YAML: {str(error).splitlines()[0]}") from None


def _lines(node: yaml.Node | None, where: str, place: Place = ()) -> dict[Place, int]:
    """Of every key and item, by its place in the data."""
    if node is None:
        return {}
    lines = {place: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here, line = (*place, key.value), key.start_mark.line + 1
            if here in lines:
                raise InputError(f"{where}, line {line}: '{key.value}' is given twice, first in line {lines[here]}")
            lines |= _lines(value, where, here) | {here: line}
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines |= _lines(item, where, (*place, index))
    return lines


def _complaint(model: type[BaseModel], first: Any) -> str:
    """What pydantic has to say, in our words."""
    loc = tuple(first["loc"])
    name = str(loc[-1]) if loc else getattr(model, "kind", "")
    if first["type"] == "extra_forbidden":
        return f"unknown key '{name}'{nearest(name, _fields(model, loc[:-1]))}"
    message = first["msg"].removeprefix("Value error, ")
    ours = isinstance(first.get("ctx", {}).get("error"), InputError)  # says already what was given
    given = f", not {first['input']!r}" if loc and not ours and not isinstance(first["input"], dict) else ""
    hint = ""
    if first["type"] == "literal_error":
        choices = first["ctx"]["expected"].replace(" or ", ", ")
        message = f"must be one of {choices}"
        hint = nearest(str(first["input"]), [choice.strip("' ") for choice in choices.split(",")])
        hint = hint if "did you mean" in hint else ""
    named = "" if not name or (ours and message.startswith(name)) else f"{name}: "
    return f"{named}{message[0].lower() + message[1:]}{given}{hint}"


def _fields(model: type[BaseModel], loc: Place) -> list[str]:
    for part in loc:
        inner = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return list(model.model_fields)
