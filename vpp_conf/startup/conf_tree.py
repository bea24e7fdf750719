"""The grammar of startup.conf, as far as one setting stands on one line. Pure.

VPP itself does not care for lines; a setting here ends at one, or at a brace.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ipsec_gw.errors import ConfigError

TOKEN = re.compile(r"[{}\n]|[^\s{}]+")
DEEPEST = 8
"""Braces inside of each other; VPP's own sections have three at most."""

COMMENT = re.compile(r"(^|\s)#.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Entry:
    """A setting, or a section with a body. ``origin`` is ``file:line`` of what an operator wrote, else empty."""

    words: tuple[str, ...]
    body: tuple[Entry, ...] | None = None
    origin: str = ""

    @property
    def name(self) -> str:
        """The words in front of a body."""
        return " ".join(self.words)


def parse_conf(text: str, source: str = "") -> tuple[Entry, ...]:
    """The sections of a file. With a source, entries carry their origin.

    Raises ConfigError naming the line: a brace too many or too few, a setting outside of a section, a ``#`` inside of a
    word (VPP's releases disagree on what it means).
    """
    tokens = list(_tokens(COMMENT.sub("", text)))
    entries, rest = _entries(tokens, 0, source, depth=0)
    if rest < len(tokens):
        raise ConfigError(f"{source}:{tokens[rest][1]}: a }} without its {{ - remove it")
    for entry in entries:
        if entry.body is None:
            raise ConfigError(f"{entry.origin}: {entry.name} is in no section - write: section {{ {entry.name} }}")
    return entries


def write_conf(entries: Sequence[Entry]) -> str:
    """The text of sections, one setting a line."""
    return "\n".join("".join(f"{line}\n" for line in _lines(entry, "")) for entry in entries)


def _lines(entry: Entry, indent: str) -> Iterator[str]:
    origin = f"  # {entry.origin}" if entry.origin and indent else ""
    if entry.body is None:
        yield f"{indent}{entry.name}{origin}"
        return
    short = indent and len(entry.body) <= 1 and all(one.body is None for one in entry.body)
    if short:
        yield f"{indent}{entry.name} {{ {' '.join(one.name for one in entry.body)} }}{origin}"
        return
    yield f"{indent}{entry.name} {{{origin}"
    for one in entry.body:
        yield from _lines(one, indent + "  ")
    yield f"{indent}}}"


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    line = 1
    for found in TOKEN.finditer(text):
        yield found[0], line
        line += found[0] == "\n"


def _entries(tokens: Sequence[tuple[str, int]], start: int, source: str, depth: int) -> tuple[tuple[Entry, ...], int]:
    """The entries up to a closing brace or the end, and where that is."""
    if depth > DEEPEST:
        raise ConfigError(f"{source}:{tokens[start - 1][1]}: more than {DEEPEST} braces in each other - close some")
    entries: list[Entry] = []
    words: list[str] = []
    position, line = start, 0
    while position < len(tokens) and tokens[position][0] != "}":
        word, here = tokens[position]
        position += 1
        if word == "{":
            if not words:
                raise ConfigError(f"{source}:{here}: a {{ without a name - write: section {{")
            body, position = _entries(tokens, position, source, depth + 1)
            if position >= len(tokens):
                raise ConfigError(f"{source}:{here}: {' '.join(words)} {{ is never closed - add a }}")
            position += 1
            entries.append(Entry(tuple(words), body, _origin(source, line)))
            words = []
        elif word != "\n":
            if "#" in word:
                raise ConfigError(f"{source}:{here}: VPP may take the # in {word} for a comment - use a word without")
            line = line if words else here
            words.append(word)
        elif words and not _opens_next(tokens, position):
            entries.append(Entry(tuple(words), None, _origin(source, line)))
            words = []
    if words:
        entries.append(Entry(tuple(words), None, _origin(source, line)))
    return tuple(entries), position


def _opens_next(tokens: Sequence[tuple[str, int]], position: int) -> bool:
    """The next token that is no line's end is an opening brace."""
    while position < len(tokens) and tokens[position][0] == "\n":
        position += 1
    return position < len(tokens) and tokens[position][0] == "{"


def _origin(source: str, line: int) -> str:
    return f"{source}:{line}" if source else ""
