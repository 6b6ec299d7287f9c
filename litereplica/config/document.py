"""Parses YAML into sections whose values know their lines.

The document is composed into nodes, but no objects are constructed: the caller decides the type of a value, so that
`bucket: 123` is a text where a text is expected, and tags have no effect. Every error names the file, the line and the
key, and none repeats a value or a part of the text, which may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import yaml

from litereplica.errors import UsageError
from litereplica.times import ABOVE_ZERO_HINT, DURATION_HINT, parse_duration_ms

NEVER = "never"
"""The value of an infinite period."""

_NULL, _MERGE = "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"
_PLAIN_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("str", "null", "bool", "int", "float", "timestamp", "merge", "value", "map", "seq")
)
_YES = frozenset({"y", "yes", "true", "on"})
_NO = frozenset({"n", "no", "false", "off"})
_QUOTED = re.compile(r"'[^']{2,}'|\"[^\"]{2,}\"")


@dataclass(frozen=True, slots=True)
class Entry:
    """The line and the value of a key of a section."""

    line: int
    node: yaml.Node

    @property
    def is_empty(self) -> bool:
        """True for null, an empty text, list or mapping, and `false`, which count as not given."""
        if isinstance(self.node, yaml.ScalarNode):
            return self.node.tag == _NULL or self.node.value == "" or self.node.value.lower() in ("false", "off", "no")
        return not self.node.value


@dataclass(frozen=True, slots=True)
class Source:
    """The file of a document, and what is known of the nodes below `root` by their identity.

    `unset` has the unset variables in each scalar, and `anchored` the nodes that have an anchor.
    """

    file: str
    root: yaml.Node | None = None
    unset: dict[int, tuple[str, ...]] = field(default_factory=dict)
    anchored: set[int] = field(default_factory=set)


class Section:
    """A mapping of the document. `path` names it for users, such as `dbs[0].replica`; it is empty for the document."""

    def __init__(self, entries: Mapping[str, Entry], *, source: Source, path: str, line: int) -> None:
        self.file = source.file
        self.path = path
        self.line = line
        self._source = source
        self._entries = entries

    def __contains__(self, key: str) -> bool:
        """True if a value other than null is given."""
        return self._get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def entry(self, key: str) -> Entry:
        """Return a key that exists, with line and value."""
        return self._entries[key]

    def name(self, key: str) -> str:
        """The path of a key, for messages."""
        return f"{self.path}.{key}" if self.path else key

    def error(self, message: str, *, key: str | None = None, hint: str | None = None) -> UsageError:
        """Return an error about a key, or about the section, with file and line, and the unset variables there."""
        known = [self._entries[key]] if key is not None and key in self._entries else list(self._entries.values())
        line = self._entries[key].line if key is not None and key in self._entries else self.line
        unset = dict.fromkeys(name for entry in known for name in self._source.unset.get(id(entry.node), ()))
        if unset:
            message += f" ({' and '.join(unset)} {'is' if len(unset) == 1 else 'are'} not set)"
        return UsageError(f"{self.file}, line {line}: {message}", hint=hint)

    def holds_anchor(self, key: str) -> bool:
        """True if the value of a key, or something in it, has an anchor, for aliases elsewhere in the file."""
        left, seen = [self._entries[key].node], set[int]()
        while left:
            node = left.pop()
            if id(node) in self._source.anchored:
                return True
            if id(node) not in seen and not isinstance(node, yaml.ScalarNode):
                seen.add(id(node))
                is_map = isinstance(node, yaml.MappingNode)
                left += [value for _, value in node.value] if is_map else node.value
        return False

    def text(self, key: str, default: str = "") -> str:
        """Return a text. An empty one counts as absent, as in Litestream."""
        node = self._get(key)
        if node is None:
            return default
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(f"{self.name(key)} is a {_kind(node)}", key=key, hint="write one value")
        return node.value or default

    def flag(self, key: str) -> bool | None:
        """Return True or False; None if it is absent."""
        text = self.text(key).lower()
        if text in _YES:
            return True
        if text in _NO:
            return False
        if text:
            raise self.error(f"{self.name(key)} is neither true nor false", key=key, hint="write one of them")
        return None

    def duration_ms(self, key: str) -> int | None:
        """Return a duration greater than zero, in milliseconds; None if it is absent."""
        text = self.text(key)
        if not text:
            return None
        found = parse_duration_ms(text)
        if found is None:
            raise self.error(f"{self.name(key)} is not a duration", key=key, hint=DURATION_HINT)
        if found == 0:
            raise self.error(f"{self.name(key)} is zero", key=key, hint=ABOVE_ZERO_HINT)
        return found

    def period_ms(self, key: str, default: int | None, *, zero_is_endless: bool = False) -> int | None:
        """Return a duration in milliseconds, where `never` is None."""
        text = self.text(key)
        if text == NEVER or (zero_is_endless and text and parse_duration_ms(text) == 0):
            return None
        found = self.duration_ms(key)
        return default if found is None else found

    def of_texts(self, texts: Mapping[str, str]) -> Section:
        """Return a section of the same file with the given keys and texts."""
        entries = {key: Entry(self.line, yaml.ScalarNode("tag:yaml.org,2002:str", text)) for key, text in texts.items()}
        return Section(entries, source=self._source, path=self.path, line=self.line)

    def section(self, key: str) -> Section | None:
        """Return a mapping; None if it is absent."""
        node = self._get(key)
        return None if node is None else self._section(node, self.name(key), key)

    def sections(self, key: str) -> list[Section]:
        """Return a list of mappings; empty if it is absent."""
        node = self._get(key)
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode):
            hint = f"write {key}: and below it one '- …' for each"
            raise self.error(f"{self.name(key)} is not a list", key=key, hint=hint)
        return [self._section(each, f"{self.name(key)}[{number}]", key) for number, each in enumerate(node.value)]

    def _get(self, key: str) -> yaml.Node | None:
        entry = self._entries.get(key)
        if entry is None or (isinstance(entry.node, yaml.ScalarNode) and entry.node.tag == _NULL):
            return None
        return entry.node

    def _section(self, node: yaml.Node, path: str, key: str) -> Section:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(f"{path} is not a mapping", key=key, hint="write 'key: value' lines below it")
        return _section(node, self._source, path=path)


class _Loader(yaml.SafeLoader):
    """Notes which nodes have an anchor."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.anchored: set[int] = set()

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call] # PyYAML's
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.NodeEvent) and event.anchor and not isinstance(event, yaml.AliasEvent):
            self.anchored.add(id(node))
        return node


Fill: TypeAlias = Callable[[str], tuple[str, tuple[str, ...]]]
"""Replaces the variables in a scalar; returns it with the names of those that are not set."""


def unchanged(scalar: str) -> tuple[str, tuple[str, ...]]:
    """A `Fill` that replaces nothing."""
    return scalar, ()


def parse_document(text: str, *, file: str, fill: Fill = unchanged) -> Section:
    """Parse a document into a section; each scalar is replaced by what `fill` makes of it. Raises `UsageError`."""
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = _QUOTED.sub("…", exc.problem or "it cannot be read")
        raise UsageError(
            f"{file}{line}: this is not YAML: {problem}", hint="check the indentation and the quotes"
        ) from None  # the error has the line, in which a secret may be
    except yaml.YAMLError:
        raise UsageError(f"{file}: this is not YAML: it has a control character", hint="remove it") from None
    except RecursionError:
        raise UsageError(f"{file}: the document is nested too deeply", hint="see the example of a file") from None
    source = Source(file, root, anchored=loader.anchored)
    if root is None:
        return Section({}, source=source, path="", line=1)
    if not isinstance(root, yaml.MappingNode):
        raise UsageError(f"{file}, line 1: the document is a {_kind(root)}", hint="begin it with 'dbs:'")
    _fill(root, source, fill, loader.resolve)
    return _section(root, source, path="")


def _fill(root: yaml.Node, source: Source, fill: Fill, resolve: Callable[..., str]) -> None:
    """Put the values of variables into all scalars but keys, and refuse what cannot be a name of anything.

    A scalar without quotes has the type that its new text has in YAML; one in quotes stays a text.
    """
    left, seen, file = [root], {id(root)}, source.file
    while left:
        node = left.pop()
        if isinstance(node, yaml.ScalarNode):
            value, unset = fill(node.value)
            if unset:
                source.unset[id(node)] = unset
            if value != node.value and node.style is None:
                node.tag = resolve(yaml.ScalarNode, value, (True, False))
            node.value = _name_of(value, node, file)
            continue
        children = node.value
        if isinstance(node, yaml.MappingNode):
            children = [value for _, value in node.value]
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and fill(_name_of(key.value, key, file))[0] != key.value:
                    raise _error(file, key, "a key has a variable", "write the name of the key")
        new = [each for each in children if id(each) not in seen]
        seen.update(map(id, new))
        left += new


def _name_of(text: str, node: yaml.Node, file: str) -> str:
    """Return a text that has no NUL and no lone surrogate, which no path and no URL can have."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise _error(file, node, "a value has a character that no name can have", "remove it")
    return text


def _section(node: yaml.MappingNode, source: Source, *, path: str) -> Section:
    line = node.start_mark.line + 1
    return Section(_entries(node, source.file, {}), source=source, path=path, line=line)


def _entries(node: yaml.MappingNode, file: str, seen: dict[int, Mapping[str, Entry] | None]) -> Mapping[str, Entry]:
    """The keys of a mapping and of those merged into it (`<<`), which its own keys override. `seen` detects cycles."""
    if id(node) in seen:
        known = seen[id(node)]
        if known is None:
            raise _error(file, node, "a mapping is merged into itself", "remove the merge")
        return known
    seen[id(node)] = None
    own: dict[str, Entry] = {}
    merged: dict[str, Entry] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _error(file, key, f"a key is a {_kind(key)}", "write a name")
        if value.tag not in _PLAIN_TAGS or key.tag not in _PLAIN_TAGS:
            raise _error(file, value, "a value has a tag", "remove the '!…'")
        if key.tag == _MERGE:
            for each in reversed(value.value if isinstance(value, yaml.SequenceNode) else [value]):
                if not isinstance(each, yaml.MappingNode):
                    raise _error(file, value, "the merged value is not a mapping", "merge an alias of a mapping")
                merged.update(_entries(each, file, seen))
            continue
        if key.value in own:
            raise _error(file, key, f"{_shown(key.value)} is given twice", "leave one of them")
        own[key.value] = Entry(key.start_mark.line + 1, value)
    seen[id(node)] = {**merged, **own}
    return {**merged, **own}


def _error(file: str, node: yaml.Node, message: str, hint: str) -> UsageError:
    return UsageError(f"{file}, line {node.start_mark.line + 1}: {message}", hint=hint)


def _shown(key: str) -> str:
    """A key for a message. A long one is not shown, since it may be a secret."""
    return repr(key) if len(key) <= 40 else "a key"


def _kind(node: yaml.Node) -> str:
    match node:
        case yaml.MappingNode():
            return "mapping"
        case yaml.SequenceNode():
            return "list"
    return "single value"
