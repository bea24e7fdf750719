"""What `nft -j list ruleset` says, as far as it matters to packets that take another way (libnftables-json(5))."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ipsec_gw.unseen import FilterRule

_INTERFACE_KEYS = {"iif", "iifname", "oif", "oifname"}
_ENCAPSULATED = 4500
_HARMLESS = {"match", "counter", "accept", "return", "continue", "comment"}


def filter_rules(text: str) -> tuple[FilterRule, ...]:
    """The rules in the order of the tool. Raises ValueError if this is not its JSON."""
    whole = json.loads(text)
    entries = whole.get("nftables") if isinstance(whole, dict) else None
    if not isinstance(entries, list):
        raise ValueError("there is no list of objects in it")
    return tuple(_rule(entry["rule"]) for entry in entries if isinstance(entry, dict) and "rule" in entry)


def _rule(raw: Mapping[str, Any]) -> FilterRule:
    expressions = raw.get("expr") or []
    matches = [expression["match"] for expression in expressions if "match" in expression]
    return FilterRule(
        chain=f"{raw.get('family')} {raw.get('table')} {raw.get('chain')}",
        handle=int(raw.get("handle", 0)),
        interfaces=frozenset(name for match in matches if _is_interface(match) for name in _strings(match["right"])),
        ipsec=any(map(_asks_xfrm, matches)) or any(_xt_name(expression) == "policy" for expression in expressions),
        esp=any(map(_is_esp, matches)) or any(_xt_name(expression) == "esp" for expression in expressions),
        accepts=all(expression.keys() <= _HARMLESS for expression in expressions),
    )


def _left(match: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The left side of a match, if it is of this kind."""
    left = match.get("left")
    found = left.get(kind) if isinstance(left, dict) else None
    return found if isinstance(found, dict) else {}


def _is_interface(match: Mapping[str, Any]) -> bool:
    return _left(match, "meta").get("key") in _INTERFACE_KEYS


def _asks_xfrm(match: Mapping[str, Any]) -> bool:
    return (
        bool(_left(match, "ipsec"))
        or _left(match, "meta").get("key") in {"ipsec", "secpath"}
        or _left(match, "rt").get("key") == "ipsec"
    )


def _is_esp(match: Mapping[str, Any]) -> bool:
    payload = _left(match, "payload")
    if payload.get("protocol") == "esp":
        return True
    protocol = _left(match, "meta").get("key") == "l4proto" or payload.get("field") in {"protocol", "nexthdr"}
    port = payload.get("protocol") in {"udp", "th"} and payload.get("field") in {"sport", "dport"}
    return (protocol and "esp" in _strings(match.get("right"))) or (port and _ENCAPSULATED in _numbers(match["right"]))


def _xt_name(expression: Mapping[str, Any]) -> str:
    """The extension's name in a rule of iptables-nft; the tool tells no more of it."""
    found = expression.get("xt")
    return str(found.get("name", "")) if isinstance(found, dict) else ""


def _strings(value: Any) -> Iterator[str]:
    return (leaf for leaf in _leaves(value) if isinstance(leaf, str))


def _numbers(value: Any) -> Iterator[int]:
    return (leaf for leaf in _leaves(value) if isinstance(leaf, int))


def _leaves(value: Any) -> Iterator[Any]:
    """Values of a set, of concatenations and of nested ones."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value
