"""WebShop: shopping for a wish in words, on the pages of a web shop (Yao et al., arXiv 2207.01206).

Three prompt styles:

* ``engine``, for the embedded models, with hidden context: the first page of results of the goal's
  own search, the products on it as their pages show them, and what buying each earns. What pages
  repeat stands in the context as they word it, so that most of a page is copying.
* ``nocatalog``, for the embedded models, without: the wish. What a search finds has to be invented.

  Both write pages in the short form of `gym_llmworld.worlds.webshop_wording`.
* ``word2world``, byte for byte the context of the published checkpoints (Word2World, appendix A.4):
  the first page and the admissible actions, which are part of every observation there.
"""

from __future__ import annotations

from gym_llmworld.core import Scenario
from gym_llmworld.worlds.base import World
from gym_llmworld.worlds.webshop_agents import WEBSHOP_AGENTS
from gym_llmworld.worlds.webshop_text import THANKS, with_admissible, without_admissible
from gym_llmworld.worlds.webshop_wording import ShopWording, context_lines


def engine_context(scenario: Scenario) -> str:
    """Words a scenario for the embedded models: search, products, what they earn, the wish.

    Without hidden facts it is `nocatalog_context`.
    """
    hidden = scenario.hidden
    if "products" not in hidden:
        return nocatalog_context(scenario)
    return "\n".join((*context_lines(hidden), scenario.instruction))


def nocatalog_context(scenario: Scenario) -> str:
    """Words a scenario without hidden context: the wish alone, as the first page shows it."""
    return scenario.instruction


def word2world_context(scenario: Scenario) -> str:
    """Words a scenario as Word2World's WebShop checkpoints were trained to read it.

    Source: the released context files, which are AgentGym's first observation.
    """
    page = without_admissible(scenario.observation)
    return with_admissible(page, scenario.admissible or ())


def is_receipt(observation: str) -> bool:
    """Returns whether an observation is the last page: a purchase ends the episode, good or bad."""
    return observation.startswith(THANKS)


WORLD = World(
    key="webshop",
    title="WebShop",
    rejection="Invalid Action.",
    contexts={
        "engine": engine_context,
        "nocatalog": nocatalog_context,
        "word2world": word2world_context,
    },
    wordings=dict.fromkeys(("engine", "nocatalog"), ShopWording),
    ends=is_receipt,
    agents=WEBSHOP_AGENTS,
    real_entry_point="gym_llmworld.real.webshop_env:WebShopEnv",
    games_module="gym_llmworld.real.webshop_scenarios",
    embedded=True,
    extra="webshop",
    splits=("train", "valid", "test"),
    max_episode_steps=20,
    max_tokens=1024,
)
