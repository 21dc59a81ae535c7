"""Web pages as accessibility trees, in WebArena's text form, and what an action changes in one.

A page is a list of items, one a line, indented by tabs (WebArena, arXiv 2307.13854)::

    [1] RootWebArea 'Login User Task' focused: True
        [2] StaticText 'Username'
        [3] textbox '' required: False
        [4] button 'Login'

What an action changes is three sections (RLVR-World, arXiv 2505.13934, section 5.2), each ``None``
where it is empty; lines are not indented, and an item that only moved is none of them::

    New items:
    [5] StaticText 'bob'

    Deleted items:
    None

    Updated items:
    [1] RootWebArea 'Login User Task'
    [3] textbox '' focused: True required: False

From WebArena's own text three things differ, on purpose:

- The numbers are not the browser's, which differ from run to run, but count the page's items from
  1 in the order in which they were first listed; none is given again on the same page. So equal
  pages have equal numbers, short ones, and the next new item has the next number.
- A static text is left out where it repeats the name of the item it is in, and only there, whereas
  WebArena leaves out what stands in one of the three lines above: so what is typed into a field
  disappears when the instruction says it, too.
- Newer browsers' line breaks and links' addresses are left out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

NOTHING = "None"
"""What stands in an empty section."""

# As WebArena leaves them out.
_SKIPPED_PROPERTIES = {
    *("editable", "focusable", "invalid", "level", "multiline", "readonly", "settable"),
    # Of newer browsers: an address on this machine, and references to ids of the page's source.
    *("url", "labelledby", "describedby", "controls", "owns", "details", "errormessage"),
}
_SKIPPED_ROLES = {"InlineTextBox", "LineBreak", "none"}
# Without a name and a property, these say nothing.
_CONTAINERS = {
    *("generic", "img", "list", "listitem", "strong", "emphasis", "paragraph", "banner"),
    *("navigation", "Section", "LabelText", "Legend", "MenuListPopup"),
}
_EDITABLE = {"textbox", "searchbox", "spinbutton", "combobox"}
_ITEM = re.compile(
    r"(?P<indent>\t*)\[(?P<number>\d{1,9})\] (?P<role>\S+) "
    r"(?P<name>'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\")(?: (?P<state>\S.*))?"
)
_HEADING = re.compile(r"(New|Deleted|Updated) items:")
_SECTIONS = ("New", "Deleted", "Updated")


@dataclass(frozen=True, slots=True)
class Item:
    """One line of a tree.

    Attributes:
        number: Of the item, unique on its page.
        role: Such as ``"button"``, as the browser calls it.
        name: What it is labelled with, or the text of a static text.
        state: Its properties, as in ``"focused: True required: False"``.
        depth: How deep it is in the tree; 0 for the page itself.
    """

    number: int
    role: str
    name: str
    state: str = ""
    depth: int = 0

    @property
    def text(self) -> str:
        """The line, without indentation."""
        line = f"[{self.number}] {self.role} {self.name!r}"
        return f"{line} {self.state}" if self.state else line

    def says(self, name: str, value: str) -> bool:
        """Returns whether a property has this value."""
        return f" {name}: {value} " in f" {self.state} "


Tree = tuple[Item, ...]


def tree_of(nodes: Sequence[Mapping[str, Any]], numbers: MutableMapping[int, int]) -> Tree:
    """Returns the tree that a browser describes.

    Args:
        nodes: What ``Accessibility.getFullAXTree`` of the DevTools protocol returned under
            ``"nodes"``, the page itself first.
        numbers: Backend node id -> number, of what this page has listed so far; new items are
            added.
    """
    by_id = {node["nodeId"]: node for node in nodes}
    listed: list[Item] = []
    waiting: list[tuple[Mapping[str, Any], Item | None]] = [(nodes[0], None)] if nodes else []
    seen = set[str]()
    while waiting:
        node, parent = waiting.pop()
        if node["nodeId"] in seen:
            continue
        seen.add(node["nodeId"])
        item = _item(node, parent, numbers)
        if item is not None:
            listed.append(item)
        children = (by_id[child] for child in reversed(node.get("childIds", ())) if child in by_id)
        waiting.extend((child, item or parent) for child in children)
    return tuple(listed)


def _item(
    node: Mapping[str, Any], parent: Item | None, numbers: MutableMapping[int, int]
) -> Item | None:
    """Returns what is listed of a node; None where nothing is."""
    role, name = (str(_value(node.get(key, {})) or "").strip() for key in ("role", "name"))
    backend = node.get("backendDOMNodeId")
    if node.get("ignored") or not role or backend is None or role in _SKIPPED_ROLES:
        return None
    if role == "StaticText":
        typed = parent is not None and parent.role in _EDITABLE
        if not name or (parent is not None and not typed and name in parent.name):
            return None
    state = " ".join(_properties(node))
    if role in _CONTAINERS and not name and not state:
        return None
    number = numbers.setdefault(int(backend), len(numbers) + 1)
    return Item(number, "".join(role.split()), name, state, parent.depth + 1 if parent else 0)


def _properties(node: Mapping[str, Any]) -> Iterator[str]:
    for entry in node.get("properties", ()):
        value = _value(entry.get("value", {}))
        if entry["name"] not in _SKIPPED_PROPERTIES and value is not None:
            yield f"{entry['name']}: {' '.join(str(value).split())}".rstrip()


def _value(data: Mapping[str, Any]) -> Any:
    return data.get("value")


def tree_text(tree: Iterable[Item]) -> str:
    """Returns a tree as text, as in the module's example."""
    return "\n".join("\t" * item.depth + item.text for item in tree)


def read_item(line: str) -> Item | None:
    """Reads a line of a tree or of a section; None when it is none. Never raises."""
    match = _ITEM.fullmatch(line.rstrip())
    if match is None:
        return None
    try:
        name = ast.literal_eval(match["name"])
    except (ValueError, SyntaxError):
        return None
    return Item(
        int(match["number"]), match["role"], name, match["state"] or "", len(match["indent"])
    )


def read_tree(text: str) -> Tree:
    """Reads what `tree_text` wrote; lines that are no items are left out. Never raises."""
    items = {item.number: item for item in map(read_item, text.split("\n")) if item is not None}
    return tuple(items.values())


def changes_text(before: Tree, after: Tree) -> str:
    """Returns what is new, deleted and updated in ``after``, in the order of the trees."""
    old, new = ({item.number: item for item in tree} for tree in (before, after))
    sections = (
        [item for item in after if item.number not in old],
        [item for item in before if item.number not in new],
        [item for item in after if item.number in old and old[item.number].text != item.text],
    )
    return "\n\n".join(
        "\n".join([f"{name} items:", *([item.text for item in items] or [NOTHING])])
        for name, items in zip(_SECTIONS, sections, strict=True)
    )


def read_changes(text: str) -> dict[str, list[Item]] | None:
    """Reads what `changes_text` wrote.

    Returns:
        ``"New"``, ``"Deleted"`` and ``"Updated"`` with their items; lines that are no items are
        left out. None for a text that does not have these three headings once each, in this order.
    """
    sections: dict[str, list[Item]] = {}
    section: list[Item] | None = None
    for line in text.split("\n"):
        heading = _HEADING.fullmatch(line.strip())
        if heading is not None:
            if heading[1] in sections:
                return None
            section = sections[heading[1]] = []
        elif section is not None and (item := read_item(line.strip())) is not None:
            section.append(item)
    return sections if tuple(sections) == _SECTIONS else None


def apply_changes(tree: Tree, text: str) -> Tree | None:
    """Returns the tree after changes; None where the text is none, such as a rejected action.

    Updated items keep their place, new ones are put at the end: changes do not say where they are.
    Deleting what is not there, or updating it, changes nothing.
    """
    changes = read_changes(text)
    if changes is None:
        return None
    gone = {item.number for item in changes["Deleted"]}
    updated = {item.number: item for item in changes["Updated"]}
    kept = {
        item.number: _moved(updated.get(item.number, item), item.depth)
        for item in tree
        if item.number not in gone
    }
    kept |= {item.number: _moved(item, 1) for item in changes["New"]}
    return tuple(kept.values())


def _moved(item: Item, depth: int) -> Item:
    return Item(item.number, item.role, item.name, item.state, depth)


def sorted_changes(text: str) -> str:
    """Returns changes with the lines of each section in one order; other text as it is."""
    changes = read_changes(text)
    if changes is None:
        return text
    return "\n".join(
        line
        for name in _SECTIONS
        for line in (f"{name} items:", *sorted(item.text for item in changes[name]))
    )
