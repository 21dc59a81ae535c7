"""WebShop as a Gymnasium environment: the twin of the imagined one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gym_llmworld.core import Scenario
from gym_llmworld.errors import EngineError, ScenarioError
from gym_llmworld.real.base import RealTextEnv, Reply
from gym_llmworld.real.webshop_engine import INDEX_ADMISSIBLE, Shop, View, Visit
from gym_llmworld.real.webshop_files import read_checkout
from gym_llmworld.real.webshop_generator import generated_catalogue
from gym_llmworld.real.webshop_goals import WORLD_KEY, GoalSpec, check_split, real_facts, spec_of
from gym_llmworld.real.webshop_http import ServerVisit
from gym_llmworld.real.webshop_search import check_extra
from gym_llmworld.real.webshop_sources import CheckoutSource, ScenarioSource, ServerSource
from gym_llmworld.worlds.webshop import WORLD
from gym_llmworld.worlds.webshop_text import read_page, with_admissible, without_admissible


class WebShopEnv(RealTextEnv[Scenario | GoalSpec, Shop]):
    """A web shop (Yao et al., arXiv 2207.01206): search, open, choose options, buy.

    The bundled engine is this package's own, written from a description of WebShop's ``text`` mode:
    the same pages, actions and reward. **Its products and goals are generated** (`webshop_words`),
    because WebShop's own were taken from a shop's site and cannot be passed on.

    Args:
        split: ``"train"``, ``"valid"`` or ``"test"``. Of the generated shops, valid has other goals
            than train, test other products as well. Elsewhere it is WebShop's usual split.
        games: A folder made by ``llmworld games`` or a ``scenarios.jsonl``, for the bundled engine.
            None for the scenarios that ship with the package. A scenario that names a checkout or a
            server is played there.
        engine: ``"bundled"``; ``"checkout"``, the bundled engine on the products and goals of a
            user's own WebShop; or ``"http"``, an AgentGym WebShop server.
        checkout: Folder of a clone of WebShop or webshop-minimal, with its data files.
        url: Of the server, such as ``"http://127.0.0.1:36001"``.
        raw: Append the admissible actions to every observation, as AgentGym's client does and
            Word2World's published world models were trained.
        max_episode_steps: Truncate after as many steps; None leaves that to a wrapper.
        render_mode: None, ``"ansi"`` or ``"human"``.

    An episode is terminated by ``click[buy now]``, whatever was bought. ``info["score"]`` is
    WebShop's reward, between 0 and 1; the reward is 1.0 where that is 1, and 0.0 otherwise. An
    action that means nothing leaves the page as it is; one that may not enter a chat (several
    lines, control tokens, nothing at all) is answered "Invalid Action.". When a server fails, the
    episode is truncated where it was, and ``info["llmworld"]["error"]`` says why.

    Raises:
        ScenarioError: There is no such split, folder or server address.
        DataError: A file of the checkout is damaged; the message names file, line and field.
        MissingDependency: The webshop extra is not installed.
    """

    def __init__(
        self,
        split: str = "train",
        games: str | None = None,
        engine: str = "bundled",
        checkout: str | None = None,
        url: str | None = None,
        raw: bool = False,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        check_split(split)
        _check_engine(engine, {"games": games, "checkout": checkout, "url": url})
        source: ScenarioSource | CheckoutSource | ServerSource
        if url is not None:
            source = ServerSource(url)
        else:
            check_extra()
            source = ScenarioSource(games) if checkout is None else CheckoutSource(checkout)
            source.check(split)
        super().__init__(WORLD, source, split, max_episode_steps, render_mode)
        self._shops, self._raw = source, raw
        self._protocol = WORLD.protocol("word2world")
        self._error: str | None = None

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carries out an action.

        A server that fails for good truncates the episode: what was seen so far is kept.

        Raises:
            InvalidAction: The action is not a string.
            ResetNeeded: The episode has ended, or none was started.
        """
        try:
            return super().step(action)
        except EngineError as error:
            self._error = str(error)
            return self._reply.observation, 0.0, False, True, self._info()

    def _begin(self, start: Scenario | GoalSpec) -> tuple[Shop, Reply]:
        self._error = None
        spec = spec_of(start) if isinstance(start, Scenario) else start
        shop = self._visit(spec)
        return shop, self._worded(shop.view)

    def _visit(self, spec: GoalSpec) -> Shop:
        shops = self._shops
        if spec.shop == "http" and (url := _place(shops, ServerSource, spec)):
            return ServerVisit(url, spec.index)
        if spec.shop == "checkout" and (folder := _place(shops, CheckoutSource, spec)):
            catalogue = read_checkout(folder)
        elif spec.shop.isdecimal() and isinstance(shops, ScenarioSource):
            catalogue = generated_catalogue(int(spec.shop))
        else:
            raise ScenarioError(
                f"scenario {spec.id!r} is one of shop {spec.shop!r}, which is not the one of this "
                "environment; expected engine='bundled' for numbered shops, engine='checkout' with "
                "checkout=, engine='http' with url="
            )
        if spec.index >= len(catalogue.goals):
            raise ScenarioError(
                f"there is no goal {spec.index} in shop {catalogue.name}; expected 0 to "
                f"{len(catalogue.goals) - 1}"
            )
        return Visit(catalogue, catalogue.goals[spec.index])

    def _answer(self, play: Shop, action: str) -> Reply:
        command = self._protocol.admit(action)
        if command is None:
            # The imagined twin answers these by the same rule, without asking its model; a shop
            # reads the first line of several, and buys.
            return Reply(WORLD.rejection, score=play.view.score)
        return self._worded(play.act(command))

    def _worded(self, view: View) -> Reply:
        # AgentGym's server has begun the next session when it shows what was bought.
        admissible = INDEX_ADMISSIBLE if view.done else view.admissible
        text = with_admissible(view.text, admissible) if self._raw else view.text
        won = view.done and view.score == 1
        return Reply(text, won=won, lost=view.done and not won, score=view.score)

    def _admissible(self, play: Shop) -> Sequence[str]:
        return play.view.admissible

    def _end(self, play: Shop) -> None:
        play.close()

    def _comparable(self, observation: str) -> str:
        return without_admissible(observation)

    def _make(self, start: Scenario | GoalSpec) -> Scenario:
        assert isinstance(start, GoalSpec)
        text = without_admissible(self._first.observation)
        return Scenario(
            id=start.id,
            world=WORLD_KEY,
            split=start.split,
            instruction=read_page(text).instruction,
            observation=text,
            admissible=INDEX_ADMISSIBLE,
            real=real_facts(start),
        )

    def _info(self) -> dict[str, Any]:
        info = super()._info()
        if self._error is not None:
            info["llmworld"]["error"] = self._error
        return info


def _place(
    shops: ScenarioSource | CheckoutSource | ServerSource, kind: type, spec: GoalSpec
) -> str:
    """Returns where the shop of a scenario is; empty when this environment has another one.

    What the environment was given counts more than what the scenario remembers: shops move.
    """
    if isinstance(shops, ServerSource):
        return shops.url if kind is ServerSource else ""
    if isinstance(shops, CheckoutSource):
        return shops.folder if kind is CheckoutSource else ""
    return spec.place


def _check_engine(engine: str, given: Mapping[str, str | None]) -> None:
    takes = {"bundled": "games", "checkout": "checkout", "http": "url"}
    if engine not in takes:
        raise ScenarioError(f"unknown engine {engine!r}; expected one of {', '.join(takes)}")
    for name, value in given.items():
        if value is not None and name != takes[engine]:
            raise ScenarioError(f"engine={engine!r} does not take {name}, got {name}={value!r}")
        if value is None and name == takes[engine] and engine != "bundled":
            raise ScenarioError(f"engine={engine!r} needs {name}=..., got None")
