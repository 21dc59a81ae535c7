"""The short form of WebShop's pages: nothing is lost, and nothing breaks it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest

pytest.importorskip("bm25s", reason="needs the webshop extra")

from gym_llmworld.collection import play
from gym_llmworld.core import Completion, Episode, Scenario, Step
from gym_llmworld.protocol import SUCCESS_MARKER, ParseStatus
from gym_llmworld.real.webshop_env import WebShopEnv
from gym_llmworld.scenarios import ScenarioStore
from gym_llmworld.worlds.webshop import WORLD
from gym_llmworld.worlds.webshop_text import done_page, item_page, results_page, sub_page
from gym_llmworld.worlds.webshop_wording import ShopWording

WISH = "i need a mug with color: black, and price lower than 20.00 dollars"
BARE = Scenario("x", "webshop", "test", WISH, "a page")
ROWS = [("B1", "Blue, Mug [SEP] big", "$4.0"), ("B2", "Mug (2) 'x'", "$1.5 to $2.0")]


@lru_cache(maxsize=1)
def played() -> list[Episode]:
    env, scenarios = WebShopEnv(), ScenarioStore("webshop").of_split("valid")
    names = ("expert", "noisy", "noisy50", "hasty", "corrupted", "random")
    return [
        play(env, WORLD.agents[name](), scenarios[i], seed=i, max_steps=20)
        for name in names
        for i in range(8)
    ]


@pytest.mark.parametrize("style", ["engine", "nocatalog"])
def test_every_page_of_the_engine_comes_back(style: str) -> None:
    protocol = WORLD.protocol(style)
    for episode in played():
        steps = [step for step in episode.steps if protocol.admit(step.action)]
        labels = [m for m in protocol.conversation(episode) if m.role == "assistant"]
        for step, label in zip(steps, labels, strict=True):
            read = protocol.decode(episode.scenario, Completion(label.content, "stop"), ())
            assert read.observation == step.observation
            assert read.success == (step.terminated and step.reward > 0)
            assert len(label.content) < len(step.observation)


def test_a_chat_grows_by_appending() -> None:
    protocol = WORLD.protocol("engine")
    for episode in played()[::7]:
        whole = protocol.conversation(episode)
        steps = [step for step in episode.steps if protocol.admit(step.action)]
        for t, step in enumerate(steps):
            chat = protocol.encode(episode.scenario, steps[:t], step.action)
            assert chat == whole[: len(chat)]


def test_actions_say_where_they_are_taken_and_what_was_chosen() -> None:
    wording = ShopWording(BARE)
    assert wording.cue("search[mug]") == " home"
    wording.write("search[mug]", results_page(WISH, 1, 2, ROWS[1:]))
    assert wording.cue("click[b2]") == " page 1, row 1"
    assert wording.cue("click[next >]") == " page 1"
    item = item_page(WISH, ("color", "black", "red", "Mug", "Price: $1.5"))
    assert (
        wording.write("click[b2]", item)
        == "item row 1 color row 1 black row 1 red row 1 Mug row 1 $1.5"
    )
    assert wording.cue("click[buy now]") == " item, row 1, page 1"
    wording.write("click[red]", item)
    wording.write("click[black]", item)
    assert wording.cue("click[Buy Now]") == " item, row 1, page 1, color: black"
    assert wording.cue("click[reviews]") == " item, row 1, page 1"
    assert wording.write("click[reviews]", sub_page(WISH, ())) == "reviews row 1"
    assert wording.cue("click[< prev]") == " reviews, row 1, page 1"
    assert wording.write("click[buy now]", sub_page(WISH, ())) == "reviews row 1"  # no such button
    wording.write("click[< prev]", item)
    bought = wording.write("click[buy now]", done_page("B2", '{"color": "black"}', 0.5))
    assert bought == "bought row 1 B2, color: black row 1 one 0.5"


@pytest.mark.parametrize(
    "page",
    [
        results_page(WISH, 2, 7, ROWS),
        results_page(WISH, 1, 0, []),
        results_page(WISH, 1, 1, [("B1", "a row 3 b", "$1.0")]),
        item_page(WISH, ("size", "a row 1 b", "Mug, row 2 of it", "Price: $1.0")),
        sub_page(WISH, ("One. Two, three", "a row 1 / row 1 b", "x. row 2 y")),
        sub_page(WISH, ("",)),
        done_page("B1", '{"color": "a, b: c", "size": "\\u0027s"}', 1.0),
        done_page("B1", "{broken", 1.0),
        done_page("B1", "[1]", 1.0),
        done_page("B1", '{"color": 1}', 1.0),
        done_page("B1", "[" * 5000, 1.0),
        "Thank you for shopping with us!",
        "no page at all",
        "home",
        "",
    ],
)
def test_odd_pages_come_back_or_stay_as_they_are(page: str) -> None:
    wording = ShopWording(BARE)
    wording.write("search[mug]", results_page(WISH, 1, 2, ROWS))
    short = wording.write("click[b1]", page)
    assert page == "home" or ShopWording(BARE).read(short) == page


@pytest.mark.parametrize(
    "text",
    [
        "page 1 of 2 results row 1 B1 row 1 Mug",
        "item row 1 Mug",
        "item",
        "features",
        "bought row 1 B1",
        "bought row 1 B1, color row 1 one 1.0",
        "page x of 2 results",
        "row 1 row 1 row 1",
    ],
)
def test_what_is_no_short_form_is_taken_as_it_is(text: str) -> None:
    read = WORLD.protocol("nocatalog").decode(BARE, Completion(text, "stop"), ())
    assert (read.observation, read.status, read.over) == (text, ParseStatus.OK, False)


def test_a_short_form_ends_no_episode_with_success_by_itself() -> None:
    protocol = WORLD.protocol("nocatalog")
    bought = "bought row 1 B1 row 1 none 1.0"
    lost = protocol.decode(BARE, Completion(bought, "stop"), ())
    assert (lost.success, lost.over) == (False, True)
    assert lost.observation == done_page("B1", "{}", 1.0)
    won = protocol.decode(BARE, Completion(bought + SUCCESS_MARKER, "stop"), ())
    assert (won.success, won.over) == (True, True)
    assert not protocol.decode(BARE, Completion(bought + SUCCESS_MARKER, "length"), ()).success


def test_a_page_that_was_made_up_still_makes_a_chat() -> None:
    protocol = WORLD.protocol("engine")
    scenario = ScenarioStore("webshop").of_split("valid")[0]
    steps = [
        Step("click[b1]", "item row 9 nonsense"),
        Step("click[buy now]", "features"),
        replace(Step("click[< prev]", ""), truncated=True),
    ]
    chat = protocol.encode(scenario, steps, "click[features]")
    assert [m.content for m in chat[2::2]] == ["item row 9 nonsense", "features", ""]
