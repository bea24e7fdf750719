"""The base of all tables of the file, and what their validation errors mean to an operator."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import Refused, Report, one_of


class Section(BaseModel):
    """A table: unknown options are errors, types are exact, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


SectionT = TypeVar("SectionT", bound=BaseModel)

_TYPES = {
    "string_type": "a string",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "float_type": "a number",
    "float_parsing": "a number",
    "list_type": "a list",
    "tuple_type": "a list",
    "model_type": "a table",
}
_FORMS = {
    "a string": "put it in quotes",
    "a whole number": "write digits without quotes",
    "true or false": "write it without quotes",
    "a number": "write digits without quotes",
    "a list": "put it in brackets",
    "a table": "give it options: [name] or name = { ... }",
}
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def read(kind: type[SectionT], raw: object, path: Path, report: Report) -> SectionT | None:
    """The table at ``path`` as its shape; None when the report has got its errors instead."""
    try:
        return kind.model_validate(raw)
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            refused = _refused(kind, error)
            report.add((*path, *error["loc"]), refused.message, refused.way_out)
        return None


def unknown(name: str, known: list[str], what: str = "option") -> Refused:
    """An option or table that does not exist here."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.65)
    hint = f"write {close[0]}" if close else f"remove it; known here: {one_of(known)}"
    return Refused(f"unknown {what}", hint)


def wrong_type(kind: str) -> Refused:
    """Not what belongs here."""
    return Refused(f"must be {kind}", _FORMS[kind])


def _refused(kind: type[BaseModel], error: ErrorDetails) -> Refused:
    """What and the way out."""
    context: Mapping[str, Any] = error.get("ctx", {})
    name, sort = str(error["loc"][-1]) if error["loc"] else "", error["type"]
    refused = Refused(error["msg"].replace("Input should be", "must be"), "correct the value")
    if isinstance(context.get("error"), Refused):
        refused = context["error"]
    elif sort == "extra_forbidden":
        refused = unknown(name, _options(kind, error["loc"][:-1]))
    elif sort == "missing":
        refused = Refused(f"{name} is missing", f"add {name} = ...")
    elif sort in {"enum", "literal_error"}:
        refused = Refused(f"{error['input']!r} is not known here", f"write {context['expected']}")
    elif sort == "too_short":
        refused = Refused("the list is empty", "name at least one, or leave the option out")
    elif bound := context.keys() & _BOUNDS.keys():
        limit = bound.pop()
        refused = Refused(f"{error['input']} is out of range", f"write {_BOUNDS[limit]} {context[limit]}")
    elif sort in _TYPES:
        refused = wrong_type(_TYPES[sort])
    return refused


def _options(kind: type[BaseModel], place: Path) -> list[str]:
    """Names of the options of the table at ``place`` within ``kind``."""
    for part in place:
        field = kind.model_fields.get(str(part))
        kind = _section_in(field.annotation) or kind if field else kind
    return [field.alias or name for name, field in kind.model_fields.items()]


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The shape inside ``list[Shape] | None`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(inner) for inner in get_args(annotation))
    return next((shape for shape in found if shape), None)
