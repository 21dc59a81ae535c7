"""Trees and their changes: DevTools answers written by hand, against text worked out by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from gym_llmworld.accessibility import (
    Item,
    Tree,
    apply_changes,
    changes_text,
    read_changes,
    read_item,
    read_tree,
    sorted_changes,
    tree_of,
    tree_text,
)
from gym_llmworld.metrics import lines_f1


def node(
    key: int,
    role: str,
    name: str | None = "",
    *children: int,
    ignored: bool = False,
    **properties: Any,
) -> dict[str, Any]:
    """One node, as ``Accessibility.getFullAXTree`` returns it; backend ids are ``100 + key``."""
    return {
        "nodeId": str(key),
        "ignored": ignored,
        "role": {"type": "role", "value": role},
        **({} if name is None else {"name": {"type": "computedString", "value": name}}),
        "properties": [
            {"name": key, "value": {"type": "booleanOrUndefined", "value": value}}
            for key, value in properties.items()
        ],
        "childIds": [str(child) for child in children],
        "backendDOMNodeId": 100 + key,
    }


LOGIN = [
    node(1, "RootWebArea", "Login", 2, focusable=True, focused=True, url="file:///somewhere"),
    node(2, "none", None, 3, ignored=True),
    node(3, "generic", "", 4, 6, 8, 9, 12),
    node(4, "LabelText", "", 5),
    node(5, "StaticText", "Username"),
    node(6, "textbox", "", 7, invalid="false", editable="plaintext", required=False),
    node(7, "generic", "", editable="plaintext"),
    node(8, "LineBreak", "\n"),
    node(9, "button", "Say 'hi'", 10, focusable=True),
    node(10, "StaticText", "Say 'hi'", 11),
    node(11, "InlineTextBox", "Say 'hi'"),
    node(12, "table", "", 13),
    node(13, "row", "", 14),
    node(14, "cell", "Ada", 15),
    node(15, "StaticText", " Ada "),
]
LOGIN_TEXT = (
    "[1] RootWebArea 'Login' focused: True\n"
    "\t[2] StaticText 'Username'\n"
    "\t[3] textbox '' required: False\n"
    "\t[4] button \"Say 'hi'\"\n"
    "\t[5] table ''\n"
    "\t\t[6] row ''\n"
    "\t\t\t[7] cell 'Ada'"
)


def test_a_page_is_written_as_webarena_writes_it() -> None:
    assert tree_text(tree_of(LOGIN, {})) == LOGIN_TEXT


def test_what_is_typed_is_listed_even_where_the_page_says_it_elsewhere() -> None:
    nodes = [
        node(1, "RootWebArea", "", 2, 3),
        node(2, "StaticText", "Enter Ada"),
        node(3, "textbox", "Ada", 4, editable="plaintext"),
        node(4, "generic", "", 5, editable="plaintext"),
        node(5, "StaticText", "Ada", editable="plaintext"),
    ]
    assert tree_text(tree_of(nodes, {})).split("\n")[1:] == [
        "\t[2] StaticText 'Enter Ada'",
        "\t[3] textbox 'Ada'",
        "\t\t[4] StaticText 'Ada'",
    ]


def test_numbers_stay_with_their_items_and_are_not_given_again() -> None:
    numbers: dict[int, int] = {}
    first = tree_of([node(1, "RootWebArea", "p", 2, 3), node(2, "link", "a"), LOGIN[8]], numbers)
    assert [item.number for item in first] == [1, 2]  # node 3 is not in the answer
    gone = tree_of([node(1, "RootWebArea", "p", 4), node(4, "link", "b")], numbers)
    assert [item.text for item in gone] == ["[1] RootWebArea 'p'", "[3] link 'b'"]
    back = tree_of([node(1, "RootWebArea", "p", 2), node(2, "link", "a")], numbers)
    assert [item.number for item in back] == [1, 2]
    assert numbers == {101: 1, 102: 2, 104: 3}


@pytest.mark.parametrize(
    "nodes",
    [
        [],
        [{"nodeId": "1", "ignored": False}],
        [{"nodeId": "1", "ignored": True, "childIds": ["1", "9"]}],
        [node(1, "generic", "", 1)],
    ],
)
def test_an_empty_or_odd_answer_is_an_empty_tree(nodes: list[dict[str, Any]]) -> None:
    assert tree_of(nodes, {}) == ()


def test_changes_by_hand() -> None:
    before = read_tree(LOGIN_TEXT)
    after = read_tree(
        "[1] RootWebArea 'Login' focused: True\n"
        "\t[3] textbox '' focused: True required: False\n"
        "\t\t[8] StaticText 'bob'\n"
        "[4] button \"Say 'hi'\"\n"  # moved, and nothing else
        "\t[5] table ''\n"
        "\t\t[6] row ''"
    )
    told = (
        "New items:\n[8] StaticText 'bob'\n\n"
        "Deleted items:\n[2] StaticText 'Username'\n[7] cell 'Ada'\n\n"
        "Updated items:\n[3] textbox '' focused: True required: False"
    )
    assert changes_text(before, after) == told
    assert changes_text(before, before) == (
        "New items:\nNone\n\nDeleted items:\nNone\n\nUpdated items:\nNone"
    )
    assert apply_changes(before, told) == (
        Item(1, "RootWebArea", "Login", "focused: True"),
        Item(3, "textbox", "", "focused: True required: False", 1),
        Item(4, "button", "Say 'hi'", "", 1),
        Item(5, "table", "", "", 1),
        Item(6, "row", "", "", 2),
        Item(8, "StaticText", "bob", "", 1),
    )


HOSTILE_NAMES = (
    "plain",
    "",
    "it's",
    "both ' and \"",
    "back\\slash",
    "New items:\nNone",
    "[3] button 'x' focused: True",
    "\u2028\x85\x0c",
    "\ud800",
    "•••",
    "None",
)


def drawn_tree(rng: random.Random) -> Tree:
    numbers = rng.sample(range(1, 30), 8)
    roles, states = ("button", "StaticText", "link"), ("", "focused: True", "checked: true a: b")
    return tuple(
        Item(n, rng.choice(roles), rng.choice(HOSTILE_NAMES), rng.choice(states), rng.randrange(4))
        for n in numbers
    )


@pytest.mark.parametrize("seed", range(50))
def test_changes_lead_from_any_tree_to_any_other(seed: int) -> None:
    rng = random.Random(seed)
    before, after = drawn_tree(rng), drawn_tree(rng)
    assert read_tree(tree_text(before)) == before
    reached = apply_changes(before, changes_text(before, after))
    assert reached is not None
    assert {item.text for item in reached} == {item.text for item in after}
    assert lines_f1(changes_text(before, after), changes_text(before, after)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "That action is not possible on this page.",
        "New items:\nNone\n\nDeleted items:\nNone",
        "New items:\nNone\n\nUpdated items:\nNone\n\nDeleted items:\nNone",
        "New items:\nNew items:\nDeleted items:\nUpdated items:",
    ],
)
def test_text_that_is_no_change_is_none(text: str) -> None:
    assert read_changes(text) is None
    assert apply_changes(read_tree(LOGIN_TEXT), text) is None
    assert sorted_changes(text) == text


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[x] button 'a'",
        "[1] button",
        "[1] button a",
        "[1] button 'a",
        "[1] button 'a'b'",
        "[1] button '\\x1'",
        f"[{'9' * 5000}] button 'a'",
        "[1] button __import__('os')",
    ],
)
def test_lines_that_are_no_items_are_left_out(line: str) -> None:
    assert read_item(line) is None
    changes = read_changes(f"New items:\n{line}\nDeleted items:\nUpdated items:\n[2] link 'b'")
    assert changes is not None
    assert (changes["New"], [i.text for i in changes["Updated"]]) == ([], ["[2] link 'b'"])


def test_changes_of_what_is_not_there_change_nothing() -> None:
    tree = read_tree("[1] link 'a'")
    text = "New items:\nNone\nDeleted items:\n[7] link 'x'\nUpdated items:\n[8] link 'y'"
    assert apply_changes(tree, text) == tree


def test_sorted_changes_ignore_the_order_of_lines_only() -> None:
    one = "New items:\n[2] link 'b'\n[1] link 'a'\n\nDeleted items:\nNone\n\nUpdated items:\nNone"
    two = "New items:\n[1] link 'a'\n[2] link 'b'\n\nDeleted items:\nNone\n\nUpdated items:\nNone"
    other = "New items:\nNone\n\nDeleted items:\n[1] link 'a'\n[2] link 'b'\n\nUpdated items:\nNone"
    assert sorted_changes(one) == sorted_changes(two) != sorted_changes(other)


# --- the published score -------------------------------------------------------------------------

NOTHING_ELSE = "New items:\nNone\n\nDeleted items:\nNone\n\n"
TRUTH = f"{NOTHING_ELSE}Updated items:\n[102] checkbox 'XPMut' checked: true"


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (TRUTH, 1.0),
        # The published scorer keeps the end of the turn on the last line, and gets 2/3 for these.
        (TRUTH + "<\uff5cend\u2581of\u2581sentence\uff5c>", 1.0),
        (TRUTH + "<|im_end|>", 1.0),
        (TRUTH.replace("true", "false"), 2 / 3),
        # Headings in the reasoning open no section.
        ("Under New items:\nnothing. Updated items:\n[9] link ''\n\n" + TRUTH, 1.0),
        ("New items:\n[9] link 'x'\n\n" + TRUTH, 1.0),
        # Precision 3/4, recall 3/3.
        (TRUTH + "\n[103] button 'ok' focused: True", 6 / 7),
        # The right line in the wrong section: 1 of 3 and of 3.
        (
            "New items:\n[102] checkbox 'XPMut' checked: true\n\nDeleted items:\nNone\n\n"
            "Updated items:\nNone",
            1 / 3,
        ),
        ("", 0.0),
        ("The checkbox will be ticked.", 0.0),
    ],
)
def test_lines_f1_on_web_changes(prediction: str, expected: float) -> None:
    assert lines_f1(prediction, TRUTH) == pytest.approx(expected)
