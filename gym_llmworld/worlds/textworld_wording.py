"""TextWorld's descriptions as facts: what can be otherwise in them, and nothing else.

Most of what a room shows never changes: only what lies where, and which doors and boxes are open.
With hidden context the generator's templates are known, so it is enough to say where one is and how
things stand, in the words of the map, and `TemplateWording.read` puts that into the room's
sentences::

    In @pantry; table: a candy bar; portal closed; gateway open; floor: nothing

What is examined is worded alike, ``See table: a candy bar``. All of it was said in the observation
or stands in the context; nothing here knows what an action does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
    VARIANTS,
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


class TemplateWording(Placed):
    """Rooms and things of one episode as facts, in the templates of its generator.

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
        super().write(action, observation)
        told = self._room(observation) or self._seen(action, observation)
        # It may be anything: what does not read back stays as it is.
        return told if told is not None and self.read(told) == observation else observation

    def read(self, text: str) -> str:
        """Returns the observation that facts stand for, other text as it is."""
        if match := _SHORT.fullmatch(text):
            return self._read_room(match) or text
        if match := _SHORT_SEEN.fullmatch(text):
            return self._read_seen(match) or text
        return text

    def _room(self, observation: str) -> str | None:
        shown = self._room_facts(observation)
        if shown is None:
            return None
        place, facts, tail = shown
        told = "".join(f"; {fact.told(noun)}" for noun, fact in facts.items() if fact != Fact())
        return f"In @{place}{told}{tail}"

    def _room_facts(self, observation: str) -> tuple[str, Facts, str] | None:
        """Returns the room that a description is about, how things stand, and what follows it."""
        match = _ROOM.fullmatch(observation)
        room = self._rooms.get(match["title"].lower()) if match else None
        facts = self._template(room).match(match["body"]) if match and room else None
        if match is None or room is None or facts is None:
            return None
        facts[_FLOOR] = Fact(held=match["floor"] or _NOTHING)
        return room["name"].lower(), facts, match["tail"] or ""

    def _read_room(self, match: re.Match[str]) -> str | None:
        place, _, told = match["told"].partition("; ")
        room = self._rooms.get(place)
        if room is None:
            return None
        facts = _read_facts(told, [*self._template(room).nouns, _FLOOR])
        return None if facts is None else self._room_text(room, facts, match["tail"])

    def _room_text(self, room: Mapping[str, Any], facts: Facts, tail: str) -> str:
        """Returns a room's description where things stand like this."""
        floor = facts.get(_FLOOR, Fact()).held or _NOTHING
        lying = f"\n\nThere is {floor} on the floor." if floor != _NOTHING else ""
        return f"-= {room['name'].title()} =-\n{self._template(room).render(facts)}{lying}{tail}"

    @staticmethod
    def _template(room: Mapping[str, Any]) -> Template:
        return _template(room["text"].strip())

    def _seen(self, action: str, observation: str) -> str | None:
        seen = self._seen_fact(action, observation)
        return f"See {seen[1].told(seen[0])}{seen[2]}" if seen else None

    def _seen_fact(self, action: str, observation: str) -> tuple[str, Fact, str] | None:
        """Returns what is examined, how it stands, and what follows its description."""
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
        return noun["name"], fact, match["tail"] or ""

    def _read_seen(self, match: re.Match[str]) -> str | None:
        facts = _read_facts(match["fact"], self._nouns)
        if facts is None or len(facts) != 1:
            return None
        [(name, fact)] = facts.items()
        return self._seen_text(name, fact, match["tail"])

    def _seen_text(self, name: str, fact: Fact, tail: str) -> str:
        """Returns a thing's description where it stands like this."""
        noun = self._nouns[name]
        body = _description(noun).render({name: fact})
        if fact.held not in (None, _NOTHING):
            where = "In" if noun.get("type") == "c" else "On"
            body += f"\n\n{where} the {name} {'are' if ' and ' in fact.held else 'is'} {fact.held}."
        return body + tail


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
