"""TextWorld for a world model that looks things up: what is known stands behind each command.

A map and all that lies in its rooms is a long context, and a small model forgets most of it. In
chats that are worded here, a command is followed by what an episode, and its hidden start, has said
of what it names: where that lies or how it stands, the latest answers about it, and what counts for
the score::

    insert potato into oven @kitchen
    - raw potato: counter =
    * You take the potato from the counter
    - oven open =
    + You take the potato from the counter +1
    = +1: potato carried
    = +1: potato roasted
    = 1 of 5

An equals sign stands behind what is where the agent is, an at sign before other rooms, a question
mark before what nobody knows, a plus sign before what has scored already. A room that was described
before, or stands in the hidden context, is told by what is otherwise than it was last said to be::

    go north @pantry
    - @kitchen; frosted-glass door open
    * You take the potato from the counter @kitchen
    - counter: raw potato
    At @kitchen; counter less raw potato

The look-up goes by names (retrieval for language models: Lewis et al., arXiv 2005.11401) and knows
how the engine words what has happened, not when it happens: of a thing that was moved or locked
again and again only the last answer is told, and what has become of all that is the model's to say.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gym_llmworld.core import Scenario
from gym_llmworld.protocol import Placed
from gym_llmworld.worlds.textworld_text import (
    DONE,
    FIXTURES,
    GO,
    LOCK_STATES,
    TAIL,
    endings,
    held_by,
    here,
    points_in,
    printed_name,
)
from gym_llmworld.worlds.textworld_wording import Fact, Facts, TemplateWording

_CARRIED = "carried"
_FLOOR = "floor"
_REVEALED = re.compile(
    rf"You open the (?P<name>.+?)(?:, revealing (?P<held>[^\n]+))?\.(?P<tail>(?:{TAIL}.*)?)",
    re.DOTALL,
)
_CARRYING = re.compile(
    rf"You are carrying(?: nothing|: (?P<held>[^\n]+))\.(?P<tail>(?:{TAIL}.*)?)", re.DOTALL
)
_ITEM = re.compile(r"(?:, | and )(?=(?:an?|some|the) )")
_OTHER_ARTICLES = ("some ", "the ")
_CHANGE = re.compile(r" (less|plus|with) ")
_SHORT_ROOM = re.compile(r"At @(?P<place>[^;\n]+)(?P<told>[^\n]*)(?P<tail>(?:\n.*)?)", re.DOTALL)
_SHORT_SEEN = re.compile(r"About (?P<told>[^\n]+)(?P<tail>(?:\n.*)?)", re.DOTALL)
_SHORT_HELD = re.compile(
    r"You (?:open the (?P<name>[^\n]+?), revealing|are carrying) it all(?P<told>[^.\n]*)\."
    r"(?P<tail>(?:\n.*)?)", re.DOTALL,
)  # fmt: skip
_LOOKS = frozenset({"look", "l"})
_INVENTORIES = frozenset({"inventory", "i", "take inventory"})
_PREPARES = "prepare"
_JOINS = frozenset(
    ["the", "a", "an", "some", "from", "in", "into", "on", "onto", "with", "to", "at"]
)
_MOST_TURNS = 24
_MOST_OTHERS = 8
# What a stuttering model has said is not looked through again and again.
_LONGEST = 4000
_LONGEST_TURN = 160
_MOST_CHANGES = 64

_NOTHING_HIDDEN: Mapping[str, Any] = {
    "things": (), "doors": (), "rooms": (), "quests": (), "keys": {},
}  # fmt: skip

Items = tuple[str, ...]
"""What lies somewhere, in the engine's order: what came last is first; with another article than
``a`` or ``an``, or without."""


@dataclass(frozen=True)
class _Turn:
    """What an answer said has happened.

    Attributes:
        text: Its first line.
        names: The doors and things in it.
        place: Where.
        key: Turns with the same key and the same first name supersede each other; None for those
            that add up.
    """

    text: str
    names: Items
    place: str | None
    key: str | None


class RecallWording(TemplateWording):
    """The wording of one episode.

    Args:
        scenario: With hidden context; without, texts stay as they are.
    """

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        hidden = {**_NOTHING_HIDDEN, **scenario.hidden}
        things = hidden["things"]
        names = sorted(self._nouns, key=len, reverse=True)
        self._named = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\b" if names else "$.")
        self._printed = {thing["name"]: printed_name(thing) for thing in things}
        self._locks = {door["name"]: door["state"] for door in hidden["doors"]}
        self._lists: dict[str, Items] = {_CARRIED: ()}
        self._rooms_of: dict[str, str] = {}
        for thing in things:
            self._locks.update((thing["name"], s) for s in thing["states"] if s in LOCK_STATES)
            if thing["type"] in FIXTURES:
                held = held_by(thing, things)
                self._lists[thing["name"]] = tuple(map(printed_name, held))
                self._rooms_of[thing["name"]] = thing["where"][1].lower()
        self._lists[_CARRIED] = tuple(
            printed_name(thing) for thing in things if thing["where"] == ["in", "I"]
        )
        for room in hidden["rooms"]:
            lying = [thing for thing in here(room, things) if thing["type"] not in FIXTURES]
            floor = self._floor(room["name"].lower())
            self._lists[floor] = tuple(map(printed_name, lying))
            self._rooms_of[floor] = room["name"].lower()
        self._turns: list[_Turn] = []
        self._since: dict[str, int] = {}
        self._scored: list[_Turn] = []
        self._points = 0
        self._endings = [
            (line, self._names(line) + tuple(_places_in(line)))
            for line in endings(hidden["quests"])
        ]
        self._most = sum(quest["points"] for quest in hidden["quests"] if quest["win"])
        self._keys = [(f"{key} opens {lock}", (key, lock)) for key, lock in hidden["keys"].items()]
        recipe = hidden.get("recipe") or {}
        self._ingredients = [thing["name"] for thing in recipe.get("ingredients", ())]

    def cue(self, action: str) -> str:
        """Returns the place, and a line for all that is known about the command."""
        return "\n".join([super().cue(action), *dict.fromkeys(self._known(action))])

    def write(self, action: str, observation: str) -> str:
        """Returns the observation by what is otherwise than was said before; notes what it says."""
        room, seen = self._room(observation), self._seen(action, observation)
        forms = (self._short(action, observation), room, seen)
        # Any of them may be anything: what does not read back stays as it is.
        told = next((form for form in forms if form and self.read(form) == observation), None)
        Placed.write(self, action, observation)
        self._note(action, observation)
        return observation if told is None else told

    def read(self, text: str) -> str:
        """Returns the observation that a text stands for, other text as it is."""
        if match := _SHORT_ROOM.fullmatch(text):
            return self._read_room_told(match) or text
        if match := _SHORT_SEEN.fullmatch(text):
            return self._read_seen_told(match) or text
        if match := _SHORT_HELD.fullmatch(text):
            return self._read_held(match) or text
        return super().read(text)

    # What is otherwise -----------------------------------------------------------------------

    def _short(self, action: str, observation: str) -> str | None:
        if len(observation) > _LONGEST:
            return None
        if room := self._room_facts(observation):
            place, facts, tail = room
            floor = self._floor(place)
            told = f"At @{place}"
            for name, fact in facts.items():
                if change := self._otherwise(floor if name == _FLOOR else name, fact):
                    told += f"; {name}{change}"
            return told + tail
        if seen := self._seen_fact(action, observation):
            name, fact, tail = seen
            return f"About {name}{self._otherwise(name, fact)}{tail}"
        if (match := _CARRYING.fullmatch(observation)) is not None:
            change = self._change(_CARRIED, _items(match["held"]))
            return f"You are carrying it all{change}.{match['tail']}"
        match = _REVEALED.fullmatch(observation)
        if match is not None and match["name"] in self._lists:
            change = self._change(match["name"], _items(match["held"]))
            return f"You open the {match['name']}, revealing it all{change}.{match['tail']}"
        return None

    def _otherwise(self, name: str, fact: Fact) -> str:
        lock, before = fact.lock, self._locks.get(name)
        # Few descriptions tell what is locked from what is closed.
        same = lock in (None, before) or (lock == "closed" and before == "locked")
        change = "" if same else f" {lock}"
        if fact.held is not None and name in self._lists:
            change += self._change(name, _items(fact.held))
        return change

    def _change(self, holder: str, now: Items) -> str:
        """Returns what to say of a list: what is gone, what has come, what has another name."""
        before = self._lists[holder]
        nouns = [self._noun(item) for item in before]
        come = 0
        while not _is_subsequence([self._noun(item) for item in now[come:]], nouns):
            come += 1
        kept = {self._noun(item): item for item in now[come:]}
        gone = [item for item in before if self._noun(item) not in kept]
        pairs = zip(nouns, before, strict=True)
        other = [kept[noun] for noun, item in pairs if kept.get(noun, item) != item]
        return "".join(
            [
                *(f" with {item}" for item in other),
                *(f" less {item}" for item in gone),
                *(f" plus {item}" for item in reversed(now[:come])),
            ]
        )

    def _changed(self, holder: str, changes: Sequence[str]) -> Items | None:
        """Returns a list after changes, signs and items in turn; None if they do not fit it."""
        if len(changes) > 2 * _MOST_CHANGES:
            return None
        items = list(self._lists[holder])
        for sign, item in zip(changes[::2], changes[1::2], strict=True):
            if sign == "plus":
                items.insert(0, item)
                continue
            nouns = [self._noun(other) for other in items]
            if self._noun(item) not in nouns:
                return None
            at = nouns.index(self._noun(item))
            items[at : at + 1] = [] if sign == "less" else [item]
        return tuple(items)

    def _read_told(self, told: str, names: Collection[str], place: str) -> Facts | None:
        """Returns how things stand by what was said before and ``; gate open; desk less egg``."""
        changes = {}
        for part in told.split("; ")[1:]:
            known = [name for name in names if f"{part} ".startswith(f"{name} ")]
            if not known:
                return None
            name = max(known, key=len)
            changes[name] = part[len(name) :]
        facts = {}
        for name in names:
            fact = self._fact(self._floor(place) if name == _FLOOR else name, changes.get(name, ""))
            if fact is None:
                return None
            facts[name] = fact
        return facts

    def _fact(self, name: str, change: str) -> Fact | None:
        said, *changes = _CHANGE.split(change)
        lock = said.strip() or self._locks.get(name)
        if lock not in (None, *LOCK_STATES):
            return None
        if name not in self._lists:
            return None if changes else Fact(lock)
        items = self._changed(name, changes)
        if items is None:
            return None
        return Fact(lock, _listing(items) if lock in (None, "open") else None)

    def _read_room_told(self, match: re.Match[str]) -> str | None:
        room = self._rooms.get(match["place"])
        if room is None:
            return None
        names = [*self._template(room).nouns, _FLOOR]
        facts = self._read_told(match["told"], names, match["place"])
        return None if facts is None else self._room_text(room, facts, match["tail"])

    def _read_seen_told(self, match: re.Match[str]) -> str | None:
        known = [name for name in self._nouns if f"{match['told']} ".startswith(f"{name} ")]
        if not known:
            return None
        name = max(known, key=len)
        fact = self._fact(name, match["told"][len(name) :])
        return None if fact is None else self._seen_text(name, fact, match["tail"])

    def _read_held(self, match: re.Match[str]) -> str | None:
        holder = match["name"] or _CARRIED
        said, *changes = _CHANGE.split(match["told"])
        if said or holder not in self._lists or (match["name"] and holder == _CARRIED):
            return None
        items = self._changed(holder, changes)
        if items is None:
            return None
        if holder == _CARRIED:
            told = f": {_listing(items)}" if items else " nothing"
            return f"You are carrying{told}.{match['tail']}"
        told = f", revealing {_listing(items)}" if items else ""
        return f"You open the {holder}{told}.{match['tail']}"

    # What was said ---------------------------------------------------------------------------

    def _note(self, action: str, observation: str) -> None:
        scored = points_in(observation)
        self._points += scored
        if found := DONE.match(observation):
            text = found[0].rstrip(".!")[:_LONGEST_TURN]
            key = next((k for k in ("moved", "locked", "made") if found[k]), None)
            key = "moved" if key == "made" else key
            turn = _Turn(text, self._names(text), self._latest, key)
            self._turns.append(turn)
            if scored:
                self._scored.append(replace(turn, text=f"{text} +{scored}"))
        if len(observation) > _LONGEST:
            return
        facts: Facts = {}
        if room := self._room_facts(observation):
            if scored:
                came = _Turn(f"You come to @{room[0]} +{scored}", (f"@{room[0]}",), None, None)
                self._scored.append(came)
            facts = {self._floor(room[0]) if n == _FLOOR else n: f for n, f in room[1].items()}
            self._since[f"@{room[0]}"] = len(self._turns)
        elif seen := self._seen_fact(action, observation):
            facts = {seen[0]: seen[1]}
        elif match := _CARRYING.fullmatch(observation):
            facts = {_CARRIED: Fact(held=match["held"] or "nothing")}
        elif match := _REVEALED.fullmatch(observation):
            facts = {match["name"]: Fact("open", match["held"] or "nothing")}
        for name, fact in facts.items():
            if fact.lock and not (fact.lock == "closed" and self._locks.get(name) == "locked"):
                self._locks[name] = fact.lock
                self._since[f"lock {name}"] = len(self._turns)
            if fact.held is not None and name in self._lists:
                self._lists[name] = _items(fact.held)
                self._since[name] = len(self._turns)
                self._printed |= {self._noun(item): item for item in self._lists[name]}

    def _names(self, text: str) -> Items:
        return tuple(dict.fromkeys(self._named.findall(text)))

    def _noun(self, item: str) -> str:
        """Returns the thing that a list calls ``diced fried carrot``."""
        return next((n for n in reversed(self._named.findall(item)) if item.endswith(n)), item)

    @staticmethod
    def _floor(place: str) -> str:
        return f"{_FLOOR} @{place}"

    # What is told again ----------------------------------------------------------------------

    def _known(self, action: str) -> Iterator[str]:
        place = self._latest or ""
        way = GO.fullmatch(action)
        if way is not None and place in self._rooms:
            yield from self._way_known(place, way[1])
        elif action in _LOOKS and place in self._rooms:
            yield from self._room_known(place)
        elif action in _INVENTORIES:
            turns = self._latest_since(self._since.get(_CARRIED, 0))
            yield from self._list_known((_CARRIED,), [t for t in turns if t.key != "locked"])
        else:
            names = self._names(action)
            if action.startswith(_PREPARES):
                names = (*names, *(n for n in self._ingredients if n not in names))
            for name in names:
                yield from self._about(name, place)
            words = self._named.sub(" ", action).split()[1:]
            if unknown := [word for word in words if word not in _JOINS]:
                yield f"? {' '.join(unknown)}"
            yield from self._counting(names)

    def _way_known(self, place: str, way: str) -> Iterator[str]:
        room = self._rooms[place]
        other, door = room["exits"].get(way), room["doors"].get(way)
        if other is None:
            yield f"? {way}"
            return
        lock = f"; {door} {self._locks[door]}" if door in self._locks else ""
        yield f"- @{other.lower()}{lock}"
        if door:
            yield from self._turns_told(self._about_turns(door))
        yield from self._room_known(other.lower(), door)

    def _room_known(self, place: str, door: str | None = None) -> Iterator[str]:
        """Yields what has happened since a room was described, and what it was said to hold."""
        template = self._template(self._rooms[place])
        holders = [*template.nouns, self._floor(place)]
        things = {self._noun(item) for holder in holders for item in self._lists.get(holder, ())}
        # Its door stands before the room.
        matter = {*template.nouns, *things} - {door}
        turns = [
            turn
            for turn in self._latest_since(self._since.get(f"@{place}", 0))
            if turn.names
            and (not matter.isdisjoint(turn.names) or (turn.place == place and turn.key == "moved"))
            and not (turn.key == "locked" and turn.names[0] == door)
        ]
        yield from self._list_known(holders, turns)
        yield from self._counting((f"@{place}",))

    def _list_known(self, holders: Iterable[str], turns: Sequence[_Turn]) -> Iterator[str]:
        """Yields answers, and how what they touched was last said to stand."""
        yield from self._turns_told(turns)
        touched = {name for turn in turns for name in turn.names}
        listed: set[str] = set()
        for holder in holders:
            items = [i for i in self._lists.get(holder, ()) if self._noun(i) in touched]
            listed.update(map(self._noun, items))
            lock = self._locks.get(holder) if holder in touched else None
            if items or lock:
                name = _FLOOR if holder.startswith(f"{_FLOOR} @") else holder
                held = f": {', '.join(items)}" if items else ""
                yield f"- {name}{f' {lock}' if lock else ''}{held}"
        for name in sorted(touched - listed):
            if self._printed.get(name, name) != name:
                yield f"- {self._printed[name]}"

    def _about(self, name: str, place: str) -> Iterator[str]:
        """Yields where a thing was last said to be, how it stands, and the answers since."""
        turns = self._about_turns(name)
        where = next(
            (h for h, items in self._lists.items() if name in map(self._noun, items)), None
        )
        if name in self._locks or name in self._rooms_of:
            yield f"- {self._standing(name, place)}"
        elif where is not None:
            yield f"- {self._printed[name]}: {self._standing(where, place)}"
        else:
            yield f"? {self._printed.get(name, name)}"
        yield from self._turns_told(turns)
        holders = {name for turn in turns[-1:] for name in turn.names} | {where or _CARRIED}
        closable = holders & self._lists.keys() & self._locks.keys()
        for holder in sorted(closable - {name}):
            if holder != where:
                yield f"- {self._standing(holder, place)}"
            locks = [turn for turn in self._about_turns(holder) if turn.key == "locked"]
            yield from self._turns_told(locks)
        yield from (f"- {line}" for line, names in self._keys if name in names)

    def _standing(self, holder: str, place: str) -> str:
        if holder == _CARRIED:
            return holder
        room = self._rooms_of.get(holder)
        doors = self._rooms.get(place, {}).get("doors", {}).values()
        near = room == place or holder in doors
        name = _FLOOR if holder.startswith(f"{_FLOOR} @") else holder
        lock = f" {self._locks[holder]}" if holder in self._locks else ""
        return f"{name}{lock} {'=' if near else f'@{room}' if room else '@'}"

    def _about_turns(self, name: str) -> list[_Turn]:
        """Returns the answers about a thing: its last move and lock, and all else."""
        turns = self._turns[self._since.get(f"lock {name}", 0) :]
        locked = [turn for turn in turns if turn.key == "locked" and turn.names[:1] == (name,)]
        about = [turn for turn in self._turns if turn.names[:1] == (name,)]
        moved = [turn for turn in about if turn.key == "moved"]
        done = [turn for turn in about if turn.key is None]
        chosen = [*locked[-1:], *moved[-1:], *done[-_MOST_TURNS:]]
        return [turn for turn in self._turns if any(turn is other for other in chosen)]

    def _latest_since(self, start: int) -> list[_Turn]:
        """Returns answers from a number on, without those that later ones supersede."""
        last = {(t.key, t.names[:1]): i for i, t in enumerate(self._turns) if t.key is not None}
        turns = enumerate(self._turns)
        return [
            t for i, t in turns if i >= start and (t.key is None or last[t.key, t.names[:1]] == i)
        ][-_MOST_TURNS:]

    def _turns_told(self, turns: Iterable[_Turn]) -> Iterator[str]:
        for turn in turns:
            where = "" if turn.place in (self._latest, None) else f" @{turn.place}"
            yield f"* {turn.text}{where}"

    def _counting(self, names: Iterable[str]) -> Iterator[str]:
        """Yields what counts of things, what has counted already, and the points so far.

        Where several things have to be right, how the others stand is told, too.
        """
        wanted = set(names)
        counting = [(line, all_) for line, all_ in self._endings if not wanted.isdisjoint(all_)]
        if not counting:
            return
        others = dict.fromkeys(name for _, all_ in counting for name in all_)
        for name in list(others)[:_MOST_OTHERS]:
            if name in self._nouns and name not in wanted:
                yield from self._about(name, self._latest or "")
        yield from (f"+ {t.text}" for t in self._scored if not wanted.isdisjoint(t.names))
        yield from (f"= {line}" for line, _ in counting)
        yield f"= {self._points} of {self._most}"


def _places_in(line: str) -> Iterator[str]:
    yield from (f"@{place}" for place in re.findall(r"you in ([^\n]+?)(?: and |$)", line.lower()))


def _is_subsequence(some: Sequence[str], all_: Sequence[str]) -> bool:
    rest = iter(all_)
    return all(item in rest for item in some)


def _items(told: str | None) -> Items:
    """Returns the items of the engine's list."""
    items = () if told in (None, "nothing") else _ITEM.split(told)
    return tuple(item.removeprefix(_article(item.partition(" ")[2])) for item in items)


def _listing(items: Items) -> str:
    """Words items as the engine does."""
    told = [item if item.startswith(_OTHER_ARTICLES) else _article(item) + item for item in items]
    if not told:
        return "nothing"
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)


def _article(item: str) -> str:
    return "an " if item[:1].lower() in tuple("aeiou") else "a "
