"""An operator's own settings for startup.conf, merged into what the gateway wrote."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ipsec_gw.errors import ConfigError
from vpp_conf.startup.conf_tree import Entry, parse_conf, write_conf
from vpp_conf.startup.syntax import Release, section_problem
from vpp_conf.startup.values import Finding, Severity

DEFAULT_DROP_IN = Path("/etc/ipsec-gw/vpp.conf")

TWO_WORDS = frozenset({("default", "data-size")})
"""Names of two words; all others without a body are one word and its value."""

LISTS = frozenset({"dev", "blacklist", "add-path"})
"""These may be there many times: their value belongs to the name."""

OWNED = frozenset(
    {
        ("unix", "nodaemon"),
        ("unix", "interactive"),
        ("unix", "log"),
        ("unix", "cli-listen"),
        ("unix", "runtime-dir"),
        ("unix", "exec"),
        ("unix", "startup-config"),
        ("unix", "pidfile"),
        ("unix", "gid"),
        ("api-segment", "prefix"),
        ("socksvr", "socket-name"),
        ("statseg", "socket-name"),
        ("plugins", "plugin default"),
        ("plugins", "plugin af_xdp_plugin.so"),
    }
)
"""Without these as they are the gateway does not find its VPP, or cannot use it."""

FORBIDDEN = {
    ("api-trace", word): "VPP would write the keys of all SAs into a file when it dies" for word in ("on", "enable")
}
"""What no gateway may have, and why."""

DPDK = "dpdk_plugin.so"


@dataclass(frozen=True, slots=True)
class DropIn:
    """The text of a file; ``source`` is how errors and comments name it."""

    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Merged:
    """The text with the operator's settings, the conflicts, and the names of all settings that are the operator's."""

    text: str
    findings: tuple[Finding, ...]
    theirs: frozenset[str]


def read_drop_in(path: Path | None) -> DropIn | None:
    """The file that is named; without a name the default one, if it is there. Raises ConfigError naming the file."""
    if path is None and not DEFAULT_DROP_IN.exists():
        return None
    file = path or DEFAULT_DROP_IN
    try:
        return DropIn(str(file), file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}) - correct the path or the file") from None


def merge_drop_in(text: str, drop_in: DropIn, release: Release) -> Merged:
    """The operator's settings win, and each that replaces a planned one is named.

    Raises ConfigError with file and line for all at once that cannot be: what the gateway owns, what this release does
    not know, or no startup.conf at all.
    """
    theirs = parse_conf(drop_in.text, drop_in.source)
    header, sections = _split(text)
    plugins = _enabled([*sections, *theirs])
    problems = [problem for section in theirs for problem in _problems(section, release, plugins)]
    if problems:
        raise ConfigError("\n".join(problems))
    findings: list[Finding] = []
    replaced: set[str] = set()
    for section in theirs:
        mine = next((one for one in sections if one.words == section.words), None)
        merged, names = _merge_section(mine or Entry(section.words, ()), section, findings)
        replaced |= names
        sections = [merged if one is mine else one for one in sections] if mine else [*sections, merged]
    return Merged(f"{header}\n{write_conf(_spare_nics(sections))}", tuple(findings), frozenset(replaced))


def _problems(section: Entry, release: Release, plugins: frozenset[str]) -> list[str]:
    unknown = section_problem(release, section.name, plugins)
    problems = [f"{section.origin}: {unknown}"] if unknown else []
    for entry in section.body or ():
        if (section.name, _key(entry)) in OWNED:
            problems.append(f"{entry.origin}: {section.name} {_key(entry)} belongs to ipsec-gw - remove it")
        if why := FORBIDDEN.get((section.name, entry.words[0])):
            problems.append(f"{entry.origin}: {section.name} {entry.words[0]}: {why} - remove it")
    return problems


def _split(text: str) -> tuple[str, list[Entry]]:
    """The comment at the top, and the sections."""
    lines = text.splitlines(keepends=True)
    header = "".join(line for line in lines if line.startswith("#"))
    return header, list(parse_conf(text))


def _merge_section(mine: Entry, theirs: Entry, findings: list[Finding]) -> tuple[Entry, set[str]]:
    body = {_key(entry): entry for entry in mine.body or ()}
    replaced: set[str] = set()
    for entry in theirs.body or ():
        key = _key(entry)
        before = body.get(key)
        if before is not None and _value(before) != _value(entry):
            findings.append(_conflict(theirs.name, key, before, entry))
        replaced |= {f"{theirs.name} {key}"}
        body[key] = entry
    return replace(mine, body=tuple(body.values())), replaced


def _conflict(section: str, key: str, before: Entry, entry: Entry) -> Finding:
    text = f"{section} {key} is {_value(entry)} by {entry.origin} instead of {_value(before)}{_whose(before)}"
    return Finding(Severity.WARNING, "drop-in", text, "remove the line if that was not meant")


def _whose(before: Entry) -> str:
    return f" of {before.origin}" if before.origin else " as planned"


def _key(entry: Entry) -> str:
    if entry.body is not None or entry.words[0] in LISTS:
        return entry.name
    return " ".join(entry.words[: 2 if entry.words[:2] in TWO_WORDS else 1])


def _value(entry: Entry) -> str:
    if entry.body is not None:
        return f"{{ {' '.join(one.name if one.body is None else f'{one.name} {_value(one)}' for one in entry.body)} }}"
    return entry.name.removeprefix(_key(entry)).strip() or "set"


def _enabled(sections: list[Entry]) -> frozenset[str]:
    """Plugins whose last word is enable."""
    states = {
        entry.words[-1]: [one.name for one in entry.body]
        for section in sections
        for entry in section.body or ()
        if section.name == "plugins" and entry.words[0] == "plugin" and entry.body is not None
    }
    return frozenset(plugin for plugin, words in states.items() if words == ["enable"] and plugin != "default")


def _spare_nics(sections: list[Entry]) -> list[Entry]:
    """DPDK without a list of devices would look for NICs that are not in use, and take them from the kernel."""
    enabled = DPDK in _enabled(sections)
    dpdk = next((section for section in sections if section.name == "dpdk"), Entry(("dpdk",), ()))
    names = [entry.words[0] for entry in dpdk.body or () if entry.words[:2] != ("dev", "default")]
    if not enabled or "dev" in names or "no-pci" in names:
        return sections
    spared = replace(dpdk, body=(*(dpdk.body or ()), Entry(("no-pci",))))
    return [one for one in sections if one.name != "dpdk"] + [spared]
