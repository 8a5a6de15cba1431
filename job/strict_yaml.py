"""YAML as this program reads it: nothing in it is dropped, and nothing in it means two things.

A setting in a file is the text that a flag would hold. Only inside `args` do values have YAML's types. Raises `yaml.YAMLError`.
A text ends where its line ends: YAML would join the lines of a longer one with blanks.
"""

import re
import sys
from collections.abc import Iterator
from typing import Any

import yaml

MAX_CHARACTERS = 1_000_000
"""Of a file of settings."""
_MAX_VALUES = 10_000
"""Aliases counted as often as they are used: nine lines of them can stand for a thousand million values."""
_TOO_MANY = f"it holds more than {_MAX_VALUES:,} values, aliases counted as often as they are used"
_MAX_DEPTH, _MAX_NUMBER_CHARACTERS = 32, 100
_TOO_DEEP = f"lists and mappings must be at most {_MAX_DEPTH} deep in one another"
_TAG = "tag:yaml.org,2002:"
_KINDS = frozenset(
    f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp", "map", "seq", "merge")
)
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_NUMBER = re.compile(r"[-+]?([0-9][0-9_]*\.?|\.)[0-9_]*[eE][-+]?[0-9]+")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice: the first one would be dropped without a word. Stops at too many values."""

    _num_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """As in `SafeLoader`."""
        self._num_nodes += 1
        if self._num_nodes > _MAX_VALUES:
            raise yaml.composer.ComposerError(None, None, _TOO_MANY, self.get_mark())
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As in `SafeLoader`."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise _refusal(node, f"the key {twice!r} is there twice")
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that looks like a number to anybody, such as `1e3`."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Text on one line, its line breaks escaped."""
    return dumper.represent_scalar(f"{_TAG}str", text, style='"' if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_implicit_resolver(f"{_TAG}float", _NUMBER, list("-+.0123456789"))


def dump(value: object, *, is_flow: bool = False) -> str:
    """Plain values as YAML that `parse_settings` and `parse_values` read back."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=is_flow, width=sys.maxsize)
    return text


def parse_settings(text: str) -> object:
    """Sections with their fields; the value of a field is text, None, a list, or a mapping as from `parse_values`."""
    loader = _Loader(text)
    try:
        root = _checked(loader)
        if not isinstance(root, yaml.MappingNode):
            return None if root is None else loader.construct_document(root)
        return {str(name.value): _to_section(loader, section) for name, section in _items(loader, root)}
    finally:
        loader.dispose()


def parse_values(text: str) -> object:
    """Numbers, texts, true, false, null, lists and mappings, with the types of YAML."""
    loader = _Loader(text)
    try:
        root = _checked(loader)
        return None if root is None else _to_value(loader, root)
    finally:
        loader.dispose()


def _to_section(loader: _Loader, node: yaml.Node) -> object:
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node, deep=True)
    return {str(name.value): _to_setting(loader, field) for name, field in _items(loader, node)}


def _to_setting(loader: _Loader, node: yaml.Node) -> object:
    if isinstance(node, yaml.SequenceNode):
        return [_to_setting(loader, item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return _to_value(loader, node)
    if node.tag == f"{_TAG}null":
        if node.value == "~":
            raise _refusal(node, "~ is null in YAML, and the home folder in a path; write null or '~'")
        return None
    if node.tag == f"{_TAG}int" and _OCTAL.fullmatch(node.value):
        raise _refusal(
            node,
            f"{node.value} is an octal number in YAML, and a decimal one elsewhere; "
            "drop the zero in front, or quote the text",
        )
    return str(node.value)


def _to_value(loader: _Loader, node: yaml.Node) -> object:
    for scalar in _scalars(node):
        if _is_ambiguous(scalar):
            raise _refusal(
                scalar,
                f"{scalar.value} is read in more than one way; write a plain number or true or false, or quote the text",
            )
    return loader.construct_object(node, deep=True)


def _is_ambiguous(scalar: yaml.ScalarNode) -> bool:
    """Whether YAML 1.1 reads a value in another way than YAML 1.2, JSON and Python: `017`, `1:30`, `yes`, `1e3`."""
    kind, text = scalar.tag.removeprefix(_TAG), scalar.value
    if scalar.style is not None:
        return False
    if kind in ("int", "float"):
        return ":" in text or _OCTAL.fullmatch(text) is not None
    if kind == "bool":
        return text.lower() not in ("true", "false")
    return kind == "str" and _NUMBER.fullmatch(text) is not None


def _items(loader: _Loader, node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
    """Keys and values, with those of merge keys (`<<`) in front: a key of the mapping itself wins."""
    loader.flatten_mapping(node)
    items: list[tuple[yaml.Node, yaml.Node]] = node.value
    odd = next((key for key, _ in items if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_TAG}str"), None)
    if odd is not None:
        raise _refusal(odd, f"a key must be the name of a section or of a setting, received {str(odd.value)[:80]!r}")
    return items


def _checked(loader: _Loader) -> yaml.Node | None:
    """The one document, of values that this program knows, not too many of them, and none too deep in others."""
    try:
        root: yaml.Node | None = loader.get_single_node()
    except RecursionError as error:
        raise yaml.YAMLError(_TOO_DEEP) from error
    if root is not None and _count(root, {}) > _MAX_VALUES:
        raise _refusal(root, _TOO_MANY)
    return root


def _count(node: yaml.Node, counted: dict[int, int], *, depth: int = 0) -> int:
    """Values at and below a node; `counted` holds 0 for those that are being counted: they contain themselves."""
    if node.tag not in _KINDS:
        raise _refusal(node, f"could not determine a constructor for the tag {node.tag!r}")
    if depth > _MAX_DEPTH:
        raise _refusal(node, _TOO_DEEP)
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node)
    if counted.get(id(node)) == 0:
        raise _refusal(node, "a value contains itself")
    if id(node) not in counted:
        counted[id(node)] = 0
        counted[id(node)] = 1 + sum(_count(child, counted, depth=depth + 1) for child in _children(node))
    return counted[id(node)]


def _check_scalar(node: yaml.ScalarNode) -> None:
    if node.style not in ("|", ">") and node.start_mark.line != node.end_mark.line:
        raise _refusal(
            node, "a text goes on in the next line, which YAML joins with a blank; write it on one line, quoted"
        )
    if node.tag in (f"{_TAG}int", f"{_TAG}float") and len(node.value) > _MAX_NUMBER_CHARACTERS:
        raise _refusal(
            node, f"a number must have at most {_MAX_NUMBER_CHARACTERS} characters; quote it, where it is a text"
        )


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    for child in _children(node):
        yield from _scalars(child)


def _refusal(node: yaml.Node, text: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)
