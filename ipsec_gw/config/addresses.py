"""The address book: names of prefixes, and sets of them."""

from __future__ import annotations

from collections.abc import Mapping

from ipsec_gw.config.literals import collapsed, is_literal, prefixes_of
from ipsec_gw.config.names import check_address_name
from ipsec_gw.config.positions import Path
from ipsec_gw.config.problems import Refused, Report
from ipsec_gw.config.section import wrong_type
from ipsec_gw.config.sets import resolution_order
from ipsec_gw.model.ids import IpNetwork

ADDRESSES = "addresses"
_ANY_WAY_OUT = "let any stand alone, or write 0.0.0.0/0 and ::/0"


class AddressBook:
    """``[addresses]`` with all sets resolved. What is wrong with it goes to the report when it is made."""

    def __init__(self, raw: Mapping[str, object], report: Report) -> None:
        self._report = report
        entries = {name: self._entry(name, value) for name, value in raw.items()}
        members = {name: entry for name, entry in entries.items() if entry is not None}
        self._broken = entries.keys() - members.keys()
        self._known: dict[str, tuple[IpNetwork, ...]] = {}
        order, cycles = resolution_order(members)
        for cycle in cycles:
            self._broken |= set(cycle)
            report.add((ADDRESSES, cycle[0]), f"the set contains itself: {' -> '.join(cycle)}", "break the circle")
        for name in order:
            found = self._resolve((ADDRESSES, name), members[name])
            if found is None:
                self._broken.add(name)
            else:
                self._known[name] = found

    def lookup(self, path: Path, words: list[str] | None) -> tuple[IpNetwork, ...] | None:
        """The prefixes of the names and literals at ``path``; nothing for "any". None if the report has an error."""
        return () if words in (None, ["any"]) else self._resolve(path, words or [])

    def single(self, path: Path, word: str) -> IpNetwork | None:
        """The one prefix of a name or literal. None if the report has an error."""
        if word == "any":
            self._report.add(path, "any is no prefix", "write an address or a prefix")
            return None
        found = self._resolve(path, [word])
        if found is not None and len(found) != 1:
            self._report.add(path, f"{word} is {len(found)} prefixes", "write one address or one prefix")
            return None
        return found[0] if found else None

    def _entry(self, name: str, value: object) -> list[str] | None:
        """The words of one entry, if it has the shape of one."""
        path: Path = (ADDRESSES, name)
        try:
            check_address_name(name)
        except Refused as refused:
            self._report.refuse(path, refused)
            return None
        words = value if isinstance(value, list) else [value]
        if not words:
            self._report.add(path, "the set is empty", "name at least one address, or remove it")
            return None
        good = [word for word in words if isinstance(word, str)]
        for index, word in enumerate(words):
            if not isinstance(word, str):
                self._report.refuse((*path, index), wrong_type("a string"))
        return good if len(good) == len(words) else None

    def _resolve(self, path: Path, words: list[str]) -> tuple[IpNetwork, ...] | None:
        prefixes: list[IpNetwork] = []
        whole = True
        for index, word in enumerate(words):
            try:
                found = self._word(word)
            except Refused as refused:
                self._report.refuse((*path, index), refused)
                found = None
            whole = whole and found is not None
            prefixes += found or ()
        return collapsed(prefixes) if whole else None

    def _word(self, word: str) -> tuple[IpNetwork, ...] | None:
        """Prefixes of one word; None if it is the name of a broken entry. Raises Refused."""
        if word in self._broken:
            return None
        if word in self._known:
            return self._known[word]
        if word == "any":
            raise Refused("any stands beside other addresses or in a set", _ANY_WAY_OUT)
        if is_literal(word):
            return prefixes_of(word)
        raise Refused(f"unknown address {word!r}", "define it under [addresses] or write a prefix")
