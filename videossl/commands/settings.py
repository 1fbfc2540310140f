"""The settings of a config as lines to read: `videossl train --settings`."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo


def setting_lines(model: type[BaseModel], prefix: str = "") -> list[str]:
    """A line for each key: how it is written on the command line, its default, its meaning and what it may be."""
    rows = list(_rows(model, prefix))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [
        f"{key:{widths[0]}}  {default:{widths[1]}}  {meaning}".rstrip()
        for key, default, meaning in rows
    ]


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from _rows(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _default(field), _meaning(field)


def _default(field: FieldInfo) -> str:
    """As YAML writes it."""
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    plain: Any = list(value) if isinstance(value, tuple) else value
    if isinstance(plain, BaseModel):
        plain = plain.model_dump(mode="json")
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000)
    return text.removesuffix("\n").removesuffix("\n...")


def _meaning(field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    shown = f"one of {', '.join(map(str, choices))}" if choices else ""
    return "; ".join(part for part in (field.description, shown) if part)


def _choices(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for part in get_args(annotation) for choice in _choices(part))
