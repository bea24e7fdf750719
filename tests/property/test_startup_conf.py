"""The grammar of startup.conf: what is written is read again, and nothing but a ConfigError comes out of any text."""

from __future__ import annotations

from hypothesis import event, given
from hypothesis import strategies as st

from ipsec_gw.errors import ConfigError
from vpp_conf.startup.conf_tree import Entry, parse_conf, write_conf
from vpp_conf.startup.drop_in import DropIn, merge_drop_in

words = st.lists(st.text("abz09-_./:", min_size=1, max_size=8), min_size=1, max_size=3).map(tuple)
bodies = st.recursive(
    st.builds(Entry, words),
    lambda inner: st.builds(Entry, words, st.lists(inner, max_size=3).map(tuple)),
    max_leaves=12,
)
files = st.lists(st.builds(Entry, words, st.lists(bodies, max_size=4).map(tuple)), max_size=4).map(tuple)
names = st.sampled_from(("buffers", "logging", "session", "node", "ip")).map(lambda name: (name,))
several = st.lists(st.builds(Entry, names, st.lists(bodies, max_size=4).map(tuple)), max_size=4)
once = st.lists(bodies, max_size=4, unique_by=lambda one: one.words[0]).map(tuple)
unique = st.lists(st.builds(Entry, names, once))
texts = st.lists(st.sampled_from(["{", "}", "\n", " ", "#", "unix", "log", "x", "plugin a.so", "\t"])).map("".join)


def depth(entry: Entry) -> int:
    return 1 + max(map(depth, entry.body or ()), default=0)


@given(files)
def test_what_is_written_is_read_again(entries: tuple[Entry, ...]) -> None:
    if max(map(depth, entries), default=0) > 8:
        event("too deep")
        return
    assert parse_conf(write_conf(entries)) == entries


@given(texts)
def test_any_text_is_read_or_refused_with_its_line(text: str) -> None:
    try:
        parsed = parse_conf(text, "file")
    except ConfigError as error:
        message = str(error)
    else:
        event("read")
        plain = parse_conf(text)
        assert parse_conf(write_conf(plain)) == plain
        assert all(entry.origin.startswith("file:") for entry in parsed)
        return
    event("refused")
    assert message.startswith("file:")
    assert message.split(":")[1].isdecimal()
    assert 1 <= int(message.split(":")[1]) <= text.count("\n") + 1


@given(unique, several)
def test_a_merge_keeps_all_that_is_theirs(mine: list[Entry], theirs: list[Entry]) -> None:
    """Each setting of theirs that no later one replaces is there; each of mine is there, or it is named as replaced."""
    base = write_conf(tuple(dict((entry.words, entry) for entry in mine).values()))
    merged = merge_drop_in(base, DropIn("file", write_conf(theirs)), (26, 6))
    result = {section.words: section.body or () for section in parse_conf(merged.text)}
    for section in theirs:
        assert section.words in result
        for entry in section.body or ():
            kept = entry in result[section.words]
            assert kept or any(section.name in one.text for one in merged.findings)
    for section in parse_conf(base):
        for entry in section.body or ():
            kept = entry in result[section.words]
            assert kept or any(section.name in one.text for one in merged.findings)
