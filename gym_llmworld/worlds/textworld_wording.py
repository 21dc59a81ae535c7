"""TextWorld as the embedded model writes it: what can be otherwise, and nothing else.

Most of what a room shows never changes: only what lies where, and which doors and boxes are open.
With hidden context the generator's templates are known, so the model writes where it is and how
things stand, in the words of the map, and `FactsWording.read` puts them into the room's sentences::

    go east @hall @pantry; gate open
    In @pantry; table: a candy bar; portal closed; gateway open; floor: nothing

Small models continue what they find by its last two tokens. So an answer to ``go`` begins with the
way as it stands on the map, where it leads and through which door, and only then says whether that
was possible; and what is opened or closed is told a second time as a room will tell it, ``You open
gateway.`` and ``; gateway open``. What is examined is worded alike, ``See table: a candy bar``.
All of it was said in the observation or stands in the context; nothing here knows what an action
does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from gym_llmworld.core import Scenario
from gym_llmworld.protocol import Placed
from gym_llmworld.worlds.textworld_text import (
    CONDITION,
    FIXTURES,
    LOCK_STATES,
    SLOT,
    TAIL,
    TOLD_STATES,
    VARIANTS,
    endings,
    first_looks,
    held_by,
    listing,
    place_of,
)

_NOTHING = "nothing"
_LONGEST_LISTS = 1000
_FLOOR = "floor"
_ROOM = re.compile(
    r"-= (?P<title>.+) =-\n(?P<body>.*?)(?:\n\nThere is (?P<floor>[^\n]+) on the floor\.)?"
    rf"(?P<tail>{TAIL}.*)?",
    re.DOTALL,
)
_SEEN = re.compile(rf"(?P<body>.*?)(?P<tail>{TAIL}.*)?", re.DOTALL)
_SHORT = re.compile(r"In @(?P<told>[^\n]+)(?P<tail>(?:\n.*)?)", re.DOTALL)
_SHORT_SEEN = re.compile(r"See (?P<fact>[^\n]+)(?P<tail>(?:\n.*)?)", re.DOTALL)
_GO = re.compile(r"go (north|east|south|west)")
_WAY = re.compile(rf"{_GO.pattern} @[^@;\n]+(?: @[^@;\n]+(?:; [^;\n]+)?)?\n")
_TURNED = re.compile(
    r"You (?P<verb>open|close) (?:the )?(?P<name>.+?)(?:, revealing (?P<held>[^\n]+))?\."
    r"(?P<tail>(?:\n.*)?)", re.DOTALL,
)  # fmt: skip
_AGAIN = re.compile(r"(?<=\.)\n; [^\n]+")
_HOLDS = r"\n\n(?:In|On) the %s (?:is|are) ([^\n]+)\."
_EXAMINED = re.compile(r"(?:examine|x|look at) (?P<name>.+)")


@dataclass(frozen=True)
class Fact:
    """How a door or a thing stands, as far as a text tells.

    Attributes:
        lock: Open, closed or locked.
        held: The engine's list of what it holds; `nothing` where that is empty.
    """

    lock: str | None = None
    held: str | None = None

    @property
    def words(self) -> frozenset[str]:
        """What the generator's conditions ask for."""
        filled = () if self.held is None else ("empty" if self.held == _NOTHING else "full",)
        return frozenset((*filled, *((self.lock,) if self.lock else ())))

    def told(self, noun: str) -> str:
        """Returns the fact in words."""
        lock = f" {self.lock}" if self.lock else ""
        held = f": {self.held}" if self.held is not None else ""
        return noun + lock + held


Facts = dict[str, Fact]


@dataclass(frozen=True)
class _Variant:
    """One way to say something.

    Attributes:
        noun: Whom its condition is about.
        wanted: What must be true of it; empty for what is said otherwise.
        text: With slots.
    """

    noun: str
    wanted: frozenset[str]
    text: str


class Template:
    """The generator's description of a room or a thing: sentences, some with variants.

    Args:
        text: As in a scenario's hidden context.
        noun: Whom conditions are about that name nobody.
    """

    def __init__(self, text: str, noun: str = "") -> None:
        self._parts: list[str | tuple[_Variant, ...]] = []
        self._longest = len(text) + _LONGEST_LISTS
        end = 0
        for match in VARIANTS.finditer(text):
            self._parts += [text[end : match.start()], _variants(match[1], noun)]
            end = match.end()
        self._parts.append(text[end:])
        self._slots: list[str] = []
        self._said: dict[str, _Variant] = {}
        self._locked: dict[str, frozenset[str]] = {}
        pattern = "".join(self._pattern(part) for part in self._parts)
        self._regex = re.compile(pattern, re.DOTALL)

    @property
    def nouns(self) -> list[str]:
        """Whom it tells something about, in order."""
        said = [v.noun for v in self._said.values()]
        return [*dict.fromkeys([*said, *self._slots])]

    def match(self, text: str) -> Facts | None:
        """Returns how things stand where the description reads as ``text``; None if it cannot."""
        # A stuttering model could keep the slots searching for long.
        found = self._regex.fullmatch(text) if len(text) < self._longest else None
        if found is None:
            return None
        facts = {noun: Fact() for noun in self.nouns}
        for group, variant in self._said.items():
            if found[group] is None:
                continue
            fact = facts[variant.noun]
            lock = [state for state in LOCK_STATES if state in variant.wanted]
            others = self._locked[variant.noun]
            if not variant.wanted and others:
                lock = [state for state in ("closed", "locked") if state not in others]
            if lock:
                fact = replace(fact, lock=lock[0])
            if "empty" in variant.wanted:
                fact = replace(fact, held=_NOTHING)
            facts[variant.noun] = fact
        for index, noun in enumerate(self._slots):
            if (held := found[f"s{index}"]) is not None:
                facts[noun] = replace(facts[noun], held=held)
        for noun, asked in self._locked.items():
            if asked and facts[noun].lock is None:
                facts[noun] = replace(facts[noun], lock="closed")
        return facts

    def render(self, facts: Mapping[str, Fact]) -> str:
        """Returns the description where things stand like this."""
        return "".join(self._rendered(part, facts) for part in self._parts)

    def _rendered(self, part: str | tuple[_Variant, ...], facts: Mapping[str, Fact]) -> str:
        if isinstance(part, tuple):
            true = (v.text for v in part if v.wanted <= facts.get(v.noun, Fact()).words)
            part = next(true, "")
        return SLOT.sub(lambda match: facts.get(match[1], Fact()).held or _NOTHING, part)

    def _pattern(self, part: str | tuple[_Variant, ...]) -> str:
        if isinstance(part, str):
            return self._escaped(part)
        alternatives = []
        for variant in part:
            group = f"v{len(self._said)}"
            self._said[group] = variant
            asked = self._locked.get(variant.noun, frozenset())
            self._locked[variant.noun] = asked | (variant.wanted & set(LOCK_STATES))
            alternatives.append(f"(?P<{group}>{self._escaped(variant.text)})")
        otherwise = () if not part[-1].wanted else ("",)
        return f"(?:{'|'.join([*alternatives, *otherwise])})"

    def _escaped(self, text: str) -> str:
        pattern, end = "", 0
        for match in SLOT.finditer(text):
            pattern += re.escape(text[end : match.start()]) + f"(?P<s{len(self._slots)}>[^\n]+?)"
            self._slots.append(match[1])
            end = match.end()
        return pattern + re.escape(text[end:])


def _variants(text: str, noun: str) -> tuple[_Variant, ...]:
    variants: list[_Variant] = []
    for variant in text.split("|"):
        match = CONDITION.fullmatch(variant)
        subject, wanted, said = match.groups() if match else (None, "", variant)
        # ``[gate open:an open|a closed]``: what is said otherwise is about the same noun.
        subject = subject or (variants[-1].noun if variants and not match else noun)
        variants.append(_Variant(subject, frozenset(wanted.replace(",", "").split()), said))
    return tuple(variants)


_template = lru_cache(maxsize=4096)(Template)


class FactsWording(Placed):
    """The wording of one episode.

    Args:
        scenario: With hidden context; without, texts stay as they are.
    """

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario, place=place_of)
        hidden = scenario.hidden
        self._rooms = {r["name"].lower(): r for r in hidden.get("rooms", ())}
        nouns = (*hidden.get("doors", ()), *hidden.get("things", ()))
        self._nouns = {noun["name"]: noun for noun in nouns}

    def write(self, action: str, observation: str) -> str:
        """Returns how things stand in the room that is shown, or with what is examined."""
        before = self._latest
        super().write(action, observation)
        room = self._room(observation)
        way = self._way(action, before, "open" if room else "closed")
        told = room or self._seen(action, observation) or self._turned(observation) or observation
        # Both may be anything: what does not read back stays as it is.
        forms = (form for form in (way + told, told) if self.read(form) == observation)
        return next(forms, observation)

    def read(self, text: str) -> str:
        """Returns the observation that facts stand for, other text as it is."""
        if way := _WAY.match(text):
            text = text[way.end() :]
        if match := _SHORT.fullmatch(text):
            return self._read_room(match) or text
        if match := _SHORT_SEEN.fullmatch(text):
            return self._read_seen(match) or text
        return _AGAIN.sub("", text, count=1) if text.startswith("You ") else text

    def _way(self, action: str, place: str | None, door_state: str) -> str:
        """Returns the line of the map that an action asks for, with its door; empty for others."""
        room = self._rooms.get(place or "")
        asked = _GO.fullmatch(action)
        if room is None or asked is None:
            return ""
        leads = _leads(room, asked[1])
        return f"{action} @{place}{leads}{f' {door_state}' if ';' in leads else ''}\n"

    def _turned(self, observation: str) -> str | None:
        match = _TURNED.fullmatch(observation)
        if match is None or match["name"] not in self._nouns:
            return None
        opened = match["verb"] == "open"
        holder = opened and self._nouns[match["name"]].get("type") in FIXTURES
        fact = Fact("open" if opened else "closed", (match["held"] or _NOTHING) if holder else None)
        told = observation[: len(observation) - len(match["tail"])]
        return f"{told}\n; {fact.told(match['name'])}{match['tail']}"

    def _room(self, observation: str) -> str | None:
        match = _ROOM.fullmatch(observation)
        room = self._rooms.get(match["title"].lower()) if match else None
        if match is None or room is None:
            return None
        template = _template(room["text"].strip())
        facts = template.match(match["body"])
        if facts is None:
            return None
        facts[_FLOOR] = Fact(held=match["floor"] or _NOTHING)
        told = "".join(f"; {fact.told(noun)}" for noun, fact in facts.items() if fact != Fact())
        return f"In @{room['name'].lower()}{told}{match['tail'] or ''}"

    def _read_room(self, match: re.Match[str]) -> str | None:
        place, _, told = match["told"].partition("; ")
        room = self._rooms.get(place)
        if room is None:
            return None
        template = _template(room["text"].strip())
        facts = _read_facts(told, [*template.nouns, _FLOOR])
        if facts is None:
            return None
        floor = facts.pop(_FLOOR, Fact()).held or _NOTHING
        lying = f"\n\nThere is {floor} on the floor." if floor != _NOTHING else ""
        return f"-= {room['name'].title()} =-\n{template.render(facts)}{lying}{match['tail']}"

    def _seen(self, action: str, observation: str) -> str | None:
        asked = _EXAMINED.fullmatch(action.strip())
        match = _SEEN.fullmatch(observation)
        if asked is None or match is None:
            return None
        # What was done to food stands before its name.
        known = [name for name in self._nouns if f" {asked['name']}".endswith(f" {name}")]
        if not known:
            return None
        noun = self._nouns[max(known, key=len)]
        found = re.fullmatch(
            rf"(.*?)(?:{_HOLDS % re.escape(noun['name'])})?", match["body"], re.DOTALL
        )
        facts = _description(noun).match(found[1]) if found else None
        if found is None or facts is None:
            return None
        fact = facts.get(noun["name"], Fact())
        if found[2] or (noun.get("type") in FIXTURES and fact.lock in (None, "open")):
            fact = replace(fact, held=found[2] or _NOTHING)
        return f"See {fact.told(noun['name'])}{match['tail'] or ''}"

    def _read_seen(self, match: re.Match[str]) -> str | None:
        facts = _read_facts(match["fact"], self._nouns)
        if facts is None or len(facts) != 1:
            return None
        [(name, fact)] = facts.items()
        noun = self._nouns[name]
        body = _description(noun).render({name: fact})
        if fact.held not in (None, _NOTHING):
            where = "In" if noun.get("type") == "c" else "On"
            body += f"\n\n{where} the {name} {'are' if ' and ' in fact.held else 'is'} {fact.held}."
        return body + match["tail"]


def _description(noun: Mapping[str, Any]) -> Template:
    return _template(noun["text"].replace("<noun>", noun["name"]), noun["name"])


def _read_facts(text: str, nouns: Sequence[str] | Mapping[str, Any]) -> Facts | None:
    """Returns the facts that a text tells; None if it does not consist of them."""
    facts: Facts = {}
    for told in text.split("; "):
        known = [noun for noun in nouns if re.match(rf"{re.escape(noun)}(?![^ :])", told)]
        if not known:
            return None
        noun = max(known, key=len)
        rest = re.fullmatch(rf"(?: ({'|'.join(LOCK_STATES)}))?(?:: (.+))?", told[len(noun) :])
        if rest is None or noun in facts:
            return None
        facts[noun] = Fact(rest[1], rest[2])
    return facts


def facts_context(scenario: Scenario) -> str:
    """Words a scenario for `FactsWording`: map, how things stand, what counts, the quest."""
    hidden = scenario.hidden
    wording = FactsWording(scenario)
    blocks = [
        "\n".join(way for room in hidden["rooms"] for way in _ways(room)),
        "\n".join(wording.write("look", look) for look in first_looks(scenario)),
        "\n".join(_inventory(hidden)),
        "\n".join(endings(hidden["quests"])),
        f"You are in the {hidden['player']}. {scenario.instruction}".strip(),
    ]
    return "\n\n".join(block for block in blocks if block)


def _ways(room: Mapping[str, Any]) -> Iterator[str]:
    """Words the map in the words of the chat: the action with its place, then where it leads."""
    for way in room["exits"]:
        yield f"go {way} @{room['name'].lower()}{_leads(room, way)}"


def _leads(room: Mapping[str, Any], way: str) -> str:
    other, door = room["exits"].get(way), room["doors"].get(way)
    return f" @{other.lower()}{f'; {door}' if door else ''}" if other else ""


def _inventory(hidden: Mapping[str, Any]) -> Iterator[str]:
    """Yields what no look at a room shows."""
    things = hidden["things"]
    carried = [thing for thing in things if thing["where"] == ["in", "I"]]
    yield f"carried: {listing(carried)}"
    yield from (f"{door['name']} {door['state']}" for door in hidden["doors"])
    for thing in things:
        for state in thing["states"]:
            if state in TOLD_STATES:
                yield f"{thing['name']} {state}"
            elif thing["type"] in FIXTURES and state in ("closed", "locked"):
                yield f"{thing['name']} {state}: {listing(held_by(thing, things))}"
        if "\n" in thing["text"]:  # a recipe
            yield thing["text"]
    yield from (f"{key} opens {locked}" for key, locked in hidden["keys"].items())
