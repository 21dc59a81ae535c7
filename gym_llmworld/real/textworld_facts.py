"""What a TextWorld game holds, as plain data: rooms, doors, things, quests and how they are worded.

Everything comes from the ``.json`` beside a story, TextWorld's own description of the game; no
engine is started.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

PLAYER, INVENTORY = "P", "I"

_DOOR_STATES = ("open", "closed", "locked")
_HOLDING = ("in", "on", "at")

_TAG = re.compile(r"\[([^\]]*)\]")
_ID = r"(?:the )?([A-Za-z]\w*)"
# Inform's conditions and insertions, as TextWorld's grammars use them -> our short form.
_CONDITIONS = (
    (rf"there is something (?:on|in) {_ID}", "{0} full"),
    (rf"there is nothing (?:on|in) {_ID}", "{0} empty"),
    (rf"{_ID} is open and there is something in {_ID}", "{0} open, full"),
    (rf"{_ID} is open and {_ID} contains nothing", "{0} open, empty"),
    (rf"{_ID} contains nothing", "{0} empty"),
    (rf"{_ID} is (open|closed|locked)", "{0} {1}"),
)
# Inform prints a single quotation mark at the edge of a word as a double one.
_QUOTE = re.compile(r"(?<!\w)'|'(?!\w)")
_LISTS = rf"a list of things (?:on|in) {_ID}"


def describe_game(game: Any) -> dict[str, Any]:
    """Describes where a game starts, and what makes it end.

    Args:
        game: A ``textworld.Game``.

    Returns:
        A JSON-able dict:

        * ``rooms``: ``{"name", "text", "exits": {direction: room}, "doors": {direction: door}}``,
          the text being the description in `short_form`;
        * ``doors``: ``{"name", "state", "text"}``, the state ``open``, ``closed`` or ``locked``;
        * ``things``: in the order of the engine's lists, ``{"name", "type", "where", "states",
          "text"}``; ``where`` is ``["in" | "on" | "at", holder or room]``, ``["in", "I"]`` when
          carried and None when out of play; the states are TextWorld's predicates;
        * ``keys``: key -> door or container;
        * ``player``: the room;
        * ``quests``: ``{"points", "win": [conditions, ...], "lose": [conditions, ...],
          "optional"}``, conditions being facts ``[predicate, *names]`` that must hold together;
        * ``recipe``: of a cooking game, ``{"room", "ingredients": [{"name", "cooking",
          "cutting"}]}``, else None.
    """
    return _Describer(game).describe()


def short_form(text: str, names: Mapping[str, str]) -> str:
    """Rewrites an Inform 7 text with conditions.

    ``[if c_0 is open]an open[otherwise]a closed[end if] box`` becomes ``[box open:an open|a closed]
    box``, and ``[a list of things in the c_0]`` becomes ``<box>``. What is not understood stays as
    it is.

    Args:
        text: As in a game's ``.json``.
        names: Id -> name.
    """
    tidy = _QUOTE.sub('"', text.replace("[line break]", "\n").strip())
    return _TAG.sub(lambda match: _short_tag(match[1].strip(), names), tidy)


def _short_tag(tag: str, names: Mapping[str, str]) -> str:
    if tag == "noun":
        return "<noun>"
    if tag == "end if":
        return "]"
    if tag == "otherwise":
        return "|"
    opening, condition = ("|", tag[8:]) if tag.startswith("else if ") else ("[", tag[3:])
    if tag.startswith(("if ", "else if ")):
        return f"{opening}{_short_condition(condition.strip(), names)}:"
    match = re.fullmatch(_LISTS, tag)
    return f"<{names.get(match[1], match[1])}>" if match else f"[{tag}]"


def _short_condition(condition: str, names: Mapping[str, str]) -> str:
    for pattern, form in _CONDITIONS:
        match = re.fullmatch(pattern, condition)
        if match:
            return form.format(*(names.get(word, word) for word in match.groups()))
    return condition


class _Describer:
    def __init__(self, game: Any) -> None:
        self._game = game
        self._world = game.world
        self._names = {key: info.name or key for key, info in game.infos.items()}
        self._facts: dict[str, list[tuple[str, ...]]] = {}
        for fact in game.world.facts:
            arguments = tuple(variable.name for variable in fact.arguments)
            self._facts.setdefault(fact.name, []).append(arguments)

    def describe(self) -> dict[str, Any]:
        doors = [self._door(e) for e in self._world.objects if e.type == "d"]
        recipe = self._recipe()
        return {
            "player": self._name(self._world.player_room.id),
            "rooms": [self._room(room) for room in self._world.rooms],
            "doors": doors,
            "things": [self._thing(e) for e in self._world.objects if self._is_thing(e)],
            "keys": {self._name(k): self._name(x) for k, x in self._facts.get("match", ())},
            "quests": [self._quest(quest) for quest in self._game.quests],
            "recipe": recipe,
        }

    def _name(self, key: str) -> str:
        return str(self._names.get(key, key))

    def _text(self, key: str) -> str:
        return short_form(self._game.infos[key].desc or "", self._names)

    def _room(self, room: Any) -> dict[str, Any]:
        return {
            "name": self._name(room.id),
            # A paragraph starts with the blank that joined its sentences; a room without furniture
            # has an empty one. Inform prints neither.
            "text": re.sub(r"\s*\n\s*\n\s*", "\n\n", self._text(room.id)),
            "exits": {way: self._name(other.id) for way, other in sorted(room.exits.items())},
            "doors": {way: self._name(door.id) for way, door in sorted(room.doors.items())},
        }

    def _door(self, door: Any) -> dict[str, Any]:
        states = [state for state in _DOOR_STATES if state in door.properties]
        return {
            "name": self._name(door.id),
            "state": states[0] if states else "open",
            "text": self._text(door.id),
        }

    def _is_thing(self, entity: Any) -> bool:
        # Recipes, ingredients and slots of the cooking games have no name: they are bookkeeping.
        return entity.type not in ("d", PLAYER, INVENTORY) and bool(
            self._game.infos[entity.id].name
        )

    def _thing(self, thing: Any) -> dict[str, Any]:
        place = next(
            (
                [relation, self._name(holder)]
                for relation in _HOLDING
                for item, holder in self._facts.get(relation, ())
                if item == thing.id
            ),
            None,
        )
        return {
            "name": self._name(thing.id),
            "type": thing.type,
            "where": place,
            "states": sorted(thing.properties),
            "text": self._text(thing.id),
        }

    def _quest(self, quest: Any) -> dict[str, Any]:
        return {
            "points": int(quest.reward),
            "win": [self._conditions(event) for event in quest.win_events],
            # The generator of cooking games draws these from a set.
            "lose": sorted(self._conditions(event) for event in quest.fail_events),
            "optional": bool(quest.optional),
        }

    def _conditions(self, event: Any) -> list[list[str]]:
        return [
            [fact.name, *(self._name(variable.name) for variable in fact.arguments)]
            for fact in sorted(event.condition.preconditions)
        ]

    def _recipe(self) -> dict[str, Any] | None:
        places = self._facts.get("cooking_location")
        if not places:
            return None
        of = {ingredient: food for food, ingredient in self._facts.get("base", ())}
        return {
            "room": self._name(places[0][0]),
            "ingredients": [
                {
                    "name": self._name(food),
                    "cooking": self._treatment(key, ("raw", "fried", "roasted", "grilled")),
                    "cutting": self._treatment(key, ("uncut", "chopped", "sliced", "diced")),
                }
                for key, food in sorted(of.items())
            ],
        }

    def _treatment(self, key: str, states: Iterable[str]) -> str:
        return next(state for state in states if (key,) in self._facts.get(state, ()))
