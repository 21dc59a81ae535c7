"""SFT of agents: the same program, with the loss on actions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("trl")

from gym_llmworld.backends.hf import HFBackend
from gym_llmworld.checkpoints import agent_style
from gym_llmworld.core import Completion, Episode, Sampling, Scenario, Step
from gym_llmworld.errors import DataError
from gym_llmworld.policy_prompt import PolicyPrompt
from tests.training.test_sft import SIZES, make_episode, tiny_config
from training.config import Config
from training.data import Conversations, Filter, read_conversations
from training.heldout import Heldout
from training.sft import build_trainer, load, main
from training.tokenizer import END, train_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


def make_agent_episode(number: int) -> Episode:
    episode = make_episode(number)
    seen = (
        "You see a cabinet 3, a cabinet 2, and a cabinet 1.\nYour task is to: put a mug in cabinet."
    )
    return replace(episode, scenario=replace(episode.scenario, observation=seen))


def write(file: Path, episodes: list[Episode]) -> Path:
    file.write_text("".join(json.dumps(e.to_json()) + "\n" for e in episodes))
    return file


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("episodes")
    train = write(folder / "train.jsonl", [make_agent_episode(n) for n in range(24)])
    return train, write(folder / "heldout.jsonl", [make_agent_episode(n) for n in range(100, 104)])


def agent_config(files: tuple[Path, Path], output: Path, **changes: Any) -> Config:
    return tiny_config(files, output, role="agent", **changes)


def test_chats_are_what_the_agent_acts_on(files: tuple[Path, Path], tmp_path: Path) -> None:
    data = agent_config(files, tmp_path).read(files[:1])
    assert len(data.items) == 24
    for number, item in enumerate(data.items):
        assert list(item.chat) == PolicyPrompt().conversation(make_agent_episode(number))
        assert (item.group, item.scenario, item.given) == ("alfworld", f"train/{number}", 0)


@pytest.mark.parametrize("style", ["bare", "react"])
def test_only_actions_are_supervised(files: tuple[Path, Path], tmp_path: Path, style: str) -> None:
    config = agent_config(files, tmp_path, agent_style=style, recall_init=False)
    data = config.read(files[:1])
    model, tokenizer = load(config, data.chats)
    trainer = build_trainer(config, model, tokenizer, data, data, "test")
    learned = [label for label in trainer.train_dataset[0]["labels"] if label != -100]
    answers = [m.content for m in data.chats[0] if m.role == "assistant"]
    assert tokenizer.decode(learned) == "".join(answer + END for answer in answers)
    assert make_agent_episode(0).actions == tuple(
        PolicyPrompt(style).parse(answer, "stop").action
        for answer in answers[data.items[0].given :]
    )


# A player who reads looks on the desk first, then takes the pen to the drawer.
STRAYS = (0, 3, 4)
STRAYING = (
    Step("inventory", "You are not carrying anything."),
    Step("go to desk 1", "You arrive at desk 1. On the desk 1, you see a book 1, and a pen 1."),
    Step("take pen 1 from desk 1", "You pick up the pen 1 from the desk 1."),
    Step("move pen 1 to desk 1", "You move the pen 1 to the desk 1."),
    Step("take book 7 from desk 1", "Nothing happens."),
    Step("take pen 1 from desk 1", "You pick up the pen 1 from the desk 1."),
    Step("go to drawer 1", "You arrive at drawer 1. The drawer 1 is closed."),
)
ROOM = "Looking quickly around you, you see a desk 1, and a drawer 1."


@pytest.mark.parametrize("style", ["bare", "react"])
def test_what_the_teacher_would_not_do_is_context(
    files: tuple[Path, Path], tmp_path: Path, style: str
) -> None:
    task = "put a pen in drawer."
    scenario = Scenario("x", "alfworld", "train", task, f"{ROOM}\nYour task is to: {task}")
    file = write(tmp_path / "s.jsonl", [Episode(scenario, STRAYING, "real", "x")])
    config = agent_config(files, tmp_path, agent_style=style, teacher="search", recall_init=False,
                          context=512)  # fmt: skip
    data = config.read([file])
    given = data.items[0].given
    assert data.items[0].context == tuple(given + index for index in STRAYS)
    model, tokenizer = load(config, data.chats)
    trainer = build_trainer(config, model, tokenizer, data, Conversations(), "test")
    learned = [label for label in trainer.train_dataset[0]["labels"] if label != -100]
    answers = [m.content for m in data.chats[0] if m.role == "assistant"]
    kept = [a for i, a in enumerate(answers) if i not in data.items[0].context]
    assert len(kept) == given + 4
    assert tokenizer.decode(learned) == "".join(answer + END for answer in kept)
    [[chat]] = Heldout.of(tokenizer, data).by_world.values()
    assert [turn.truth for turn in chat.turns] == kept[given:]
    assert [tokenizer.decode(chat.ids[i:j]) for i, j in chat.spans] == [
        k + END for k in kept[given:]
    ]


def test_an_unknown_teacher_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"alfworld has no agent 'guru' .* it has expert, search"):
        agent_config(files, tmp_path, teacher="guru").read(files[:1])


def test_the_acknowledgement_of_react_is_not_counted(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    data = agent_config(files, tmp_path, agent_style="react").read(files[1:])
    heldout = Heldout.of(train_tokenizer(data.chats, merges=50, minimum=5), data)
    [chats] = heldout.by_world.values()
    assert [len(chat.spans) for chat in chats] == [4] * 4
    assert chats[0].turns[0].truth.startswith("Thought:\n\n\nAction:\ngo to cabinet")


def test_names_are_mined_from_what_the_agent_does(files: tuple[Path, Path], tmp_path: Path) -> None:
    data = agent_config(files, tmp_path).read(files[:1])
    tokenizer = train_tokenizer(data.chats, merges=50, minimum=5)
    pieces = [tokenizer.decode([i]) for i in tokenizer("open cabinet 2")["input_ids"]]
    assert pieces == ["open", " cabinet 2"]


def test_episodes_are_filtered(files: tuple[Path, Path], tmp_path: Path) -> None:
    solved = make_agent_episode(1)
    lost = replace(solved, steps=solved.steps[:-1], agent="tour")
    imagined = replace(solved, source="model", agent="llm:x")
    file = write(tmp_path / "mixed.jsonl", [solved, lost, imagined])

    def agents(**kept: Any) -> int:
        chats = read_conversations([file], "engine", agent_style="bare", kept=Filter(**kept))
        return len(chats.items)

    assert agents() == 3
    assert agents(only_success=True) == 2
    assert agents(only_agents=("tour", "llm:x")) == 2
    with pytest.raises(DataError, match=r"\(solved by tour only\)"):
        agents(only_success=True, only_agents=("tour",))
    config = agent_config(files, tmp_path, only_success=True, only_agents="test, tour")
    assert len(config.read([file]).items) == 1


def test_chats_of_world_models_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    chat = [{"role": r, "content": "x"} for r in ("system", "user", "assistant")]
    (tmp_path / "w2w.json").write_text(json.dumps([{"messages": chat}]))
    with pytest.raises(DataError, match="an agent learns from episodes"):
        agent_config(files, tmp_path).read([tmp_path / "w2w.json"])


@pytest.mark.parametrize(("name", "value"), [("role", "critic"), ("agent_style", "chat")])
def test_what_there_is_not(files: tuple[Path, Path], tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of .* got '{value}'"):
        tiny_config(files, tmp_path, **{name: value})


def test_from_world_model_to_agent_that_acts(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Early experience: the agent starts from the world model's weights and tokenizer."""
    world, agent = tmp_path / "world", tmp_path / "agent"
    common = ["--data", str(files[0]), "--eval-data", str(files[1]), "--max-steps", "2"]
    assert main([*common, *SIZES, "--output", str(world)]) == 0
    more = ["--role", "agent", "--only-success", "--model", str(world), "--context", "256"]
    assert main([*common, *more, "--output", str(agent)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-2])["turns"] == 16

    card = json.loads((agent / "llmworld.json").read_text())
    assert (card["role"], card["agent_style"], card["base"]) == ("agent", "bare", str(world))
    assert "prompt_style" not in card
    assert agent_style(str(agent)) == "bare"
    text = (agent / "README.md").read_text()
    assert "# Agent: alfworld" in text
    assert "solved ones only" in text
    assert "## Action exact match on held-out episodes" in text

    backend = HFBackend(str(agent))
    [result] = backend.generate(
        [PolicyPrompt().opening(make_agent_episode(0).scenario)], [Sampling(max_tokens=8)]
    )
    backend.close()
    assert isinstance(result, Completion)


def test_a_small_agent_learns_to_act(files: tuple[Path, Path], tmp_path: Path) -> None:
    """From scratch: after a few steps it opens what it went to, which the text decides."""
    arguments = ["--data", str(files[0]), "--eval-data", str(files[1]), "--role", "agent"]
    options = ["--max-steps", "60", "--batch-size", "8", "--learning-rate", "3e-3"]
    assert main([*arguments, *SIZES, *options, "--output", str(tmp_path)]) == 0
    episode = make_agent_episode(200)
    backend = HFBackend(str(tmp_path))
    steps = [i for i in range(len(episode.steps)) if i % 2]
    chats = [PolicyPrompt().encode(episode.scenario, episode.steps[:i]) for i in steps]
    results = backend.generate(chats, [Sampling(max_tokens=8)] * len(chats))
    backend.close()
    assert [r.text for r in results if isinstance(r, Completion)] == [
        episode.steps[i].action for i in steps
    ]
