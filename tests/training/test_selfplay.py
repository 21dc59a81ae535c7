"""Self-play: games as SPA words them, true states, masks token by token, the policy's answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("trl")
pytest.importorskip("torchrl")

import torch
from transformers import PreTrainedTokenizerFast

from gym_llmworld.core import Message
from gym_llmworld.errors import CheckpointError, DataError, ScenarioError
from gym_llmworld.real.grids_levels import LevelSpec, make_level
from gym_llmworld.worlds.grids import SEPARATOR
from tests.tiny_models import SYSTEM_LAST, tiny_tokenizer
from training.scratch import small_llama
from training.selfplay_base import RandomPlayer, _coordinates, _wholes
from training.selfplay_data import (
    FORMATS,
    LEVELS,
    MASKED,
    Arena,
    Game,
    Setting,
    answer_of,
    masked,
    state_spans,
    training_levels,
    validation_levels,
    with_states,
)
from training.selfplay_metrics import evaluate, padded, perplexity, state_perplexity, written_logits
from training.selfplay_policy import Codec, Part, PolicyPlayer, Transcript
from training.selfplay_rows import (
    COLUMNS,
    Conversation,
    Row,
    asked_in,
    conversations,
    read_rows,
    rows_of,
    without_states,
    write_rows,
)
from training.selfplay_sft import labels_of
from training.state_tokenizer import state_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")

LAKE = Setting("frozenlake", "4x4-firm", style="worldmodel", max_tokens=60)
OPENING = (
    "Bring the player over the frozen lake to the goal, around the holes.\n"
    "The meaning of each symbol in the state is:\n"
    "P: player, _: empty, O: hole, G: goal, X: player in hole, √: player on goal\n"
    "Your available actions are:\nLeft, Down, Right, Up\n"
    'You can make up to 10 actions, separated by the action separator " || "\n'
    "\nTurn 1:\nState:\n{state}\nYou have 10 actions left. Always output: <think> <observation> "
    "[current state] </observation> [Your thoughts] <prediction> [next state]</prediction> "
    "</think> <answer> [your answer] </answer> with no extra text. Strictly follow this format. "
    "Max response length: 60 words (tokens).\n"
)


def imagined(turn: str, before: str = "here", after: str = "there") -> str:
    return (
        f"<think><observation>{before}</observation>go on<prediction>{after}</prediction></think>"
        f"<answer>{turn}</answer>"
    )


class Scripted:
    """Says what it is told to, in every game."""

    def __init__(self, *responses: str) -> None:
        self.responses = responses

    def reply(self, games: Sequence[Game]) -> list[str]:
        return [self.responses[len(game.turns) % len(self.responses)] for game in games]


def played(*responses: str, setting: Setting = LAKE, levels: int = 1) -> list[Game]:
    ids = training_levels(setting.board, levels)
    return Arena(setting).play(Scripted(*responses), ids, [0] * levels)


@pytest.fixture(scope="module")
def chats() -> list[Conversation]:
    """Random play with states, as a policy would learn from it."""
    games = Arena(LAKE).play(RandomPlayer(), training_levels(LAKE.board, 12), [0] * 12)
    rows = [Row(*_row(row)) for row in rows_of(games)]
    return conversations(rows)


def _row(row: dict[str, Any]) -> tuple[tuple[Message, ...], str, str]:
    prompt = tuple(Message(m["role"], m["content"]) for m in row["prompt"])
    return prompt, row["response"], "level"


def test_random_players_keep_to_how_many_actions_a_turn_has() -> None:
    games = Arena(LAKE).play(
        RandomPlayer(range(1, 3)), training_levels(LAKE.board, 12), range(12)
    )  # fmt: skip
    answers = [turn.response.partition("<answer>")[2] for game in games for turn in game.turns]
    assert {answer.count(SEPARATOR) + 1 for answer in answers} == {1, 2}


@pytest.fixture(scope="module")
def codec(chats: list[Conversation]) -> Codec:
    settings = [LAKE, Setting("frozenlake", "4x4-firm", max_tokens=60)]
    texts = [message.content for chat in chats for message in chat.chat]
    wholes = sorted({whole for setting in settings for whole in _wholes(setting)})
    return Codec(state_tokenizer([*texts, *_coordinates(["4x4"]), MASKED], wholes))


@pytest.fixture(scope="module")
def model(codec: Codec) -> Any:
    torch.set_num_threads(1)
    vocabulary = [codec.decode([i]) for i in range(len(codec.tokenizer))]
    return small_llama(
        vocabulary, layers=2, width=32, heads=4, hidden=32, context=600, pad_id=0,
        eos_id=codec.end, seed=0, recall=False,
    )  # fmt: skip


# --- games ---------------------------------------------------------------------------------------


def test_a_chat_is_worded_as_published() -> None:
    (game,) = played(imagined("Left"))
    system, opening, answer, second = game.chat[:4]
    assert system == Message("system", "You're a helpful assistant. ")
    assert opening.content == OPENING.format(state=game.turns[0].state)
    assert answer == Message("assistant", imagined("Left"))
    assert second.content.startswith(
        f"Reward:\n0\n\nTurn 2:\nState:\n{game.turns[1].state}\nYou have 9 actions left. Always "
    )
    assert len(game.turns) == 5
    plain = Setting("frozenlake", "4x4", "off", "plain", 400)
    (slippery,) = played("", setting=plain)
    assert "The ice is slippery." in slippery.chat[1].content
    assert FORMATS["plain"] in slippery.chat[1].content
    assert " at (" not in slippery.chat[1].content


@pytest.mark.parametrize("world", ["frozenlake", "sokoban", "sudoku"])
def test_true_states_are_those_of_the_real_environment(world: str) -> None:
    levels = LEVELS[world]
    setting = Setting(world, levels.usual, max_tokens=60)
    (game,) = played("<think></think><answer>nothing</answer>", setting=setting)
    scenario = make_level(levels, LevelSpec("train", levels.usual, 10000))
    assert game.scenario.real["level"] == scenario.real["level"]
    assert {turn.state for turn in game.turns} == {game.state}
    # The proven plan, replayed on a board of our own.
    env = Arena(setting)._env()
    env.reset(seed=0, options={"scenario": "train/" + levels.usual + "/10000"})
    plan = scenario.real["plan"]
    (solved,) = played(
        *(f"<think></think><answer>{turn}</answer>" for turn in plan), setting=setting
    )
    for turn, actions in zip(solved.turns, plan, strict=False):
        _, _, _, _, info = env.step(actions)
        assert turn.next_state == info["llmworld"]["state"]
        assert turn.reward == pytest.approx(info["llmworld"]["turn_reward"])
    if world != "frozenlake":  # the usual ice is slippery
        assert solved.won


@pytest.mark.parametrize(
    ("response", "fine", "actions"),
    [
        ("<think>so</think><answer>Left</answer>", 0.0, 1),
        ("<think>so</think> <answer>Left || Left</answer>\n", 0.0, 2),
        ("<answer>Left</answer>", -0.1, 0),
        ("<think>so</think><answer>Left", -0.1, 0),
        ("<think>so</think>and<answer>Left</answer>", -0.1, 0),
        ("<think>a</think><answer>Left</answer><answer>Left</answer>", -0.1, 0),
        ("<think>so</think><answer>Left || Jump</answer>", -0.1, 1),
        ("<think>so</think><answer>" + " || ".join(["Left"] * 6) + "</answer>", -0.1, 5),
        ("<think>so</think><answer></answer>", -0.1, 0),
        ("", -0.1, 0),
    ],
)
def test_malformed_answers_are_fined(response: str, fine: float, actions: int) -> None:
    setting = Setting("sudoku", "4x4", max_tokens=60)
    (game,) = played(response.replace("Left", "9,9,9"), setting=setting)
    turn = game.turns[0]
    assert turn.reward == pytest.approx(fine)
    assert turn.actions == actions
    # A move off the board changes nothing, nor does what is no action.
    assert turn.next_state == turn.state


def test_the_edge_of_the_board_holds() -> None:
    (game,) = played(*[imagined("Up || Up || Up || Up")] * 2, setting=LAKE)
    for turn in game.turns:
        assert len(turn.next_state.splitlines()) == 5


def test_unknown_levels_are_refused() -> None:
    with pytest.raises(ScenarioError):
        Arena(LAKE).play(Scripted(""), ["train/4x4-firm/3"], [0])
    with pytest.raises(ValueError, match="1 to 128 validation levels, got 129"):
        validation_levels("4x4", 129)
    assert not set(validation_levels("4x4", 128)) & set(training_levels("4x4", 200))


# --- true states in answers ----------------------------------------------------------------------


def test_imagined_states_are_replaced_by_true_ones() -> None:
    # What would be group references to `re.sub`.
    assert with_states(imagined("Up"), r"\1 \g<0>", "\\") == imagined("Up", r"\1 \g<0>", "\\")
    assert with_states(imagined("Up", "", "a\nb"), "s", "t") == imagined("Up", "s", "t")
    assert masked(imagined("Up")) == imagined("Up", MASKED, MASKED)
    assert masked("<think>") == "<think>"
    spans = state_spans(imagined("Up"))
    assert [imagined("Up")[a:b] for a, b in spans.values()] == ["here", "there"]
    assert answer_of(imagined("Up || Left")) == "Up || Left"


@pytest.mark.parametrize(
    "response",
    [
        "<think></think><answer>Up</answer>",
        imagined("Up").replace("<prediction>", "<observation>"),
        imagined("Up", "a</observation>b<observation>c"),
        imagined("Up") + "!",
        imagined("Up").replace("<answer>", "<answer><answer>"),
        imagined("Up").replace("</think>", ""),
        "",
    ],
)
def test_malformed_answers_are_not_learned(response: str) -> None:
    assert with_states(response, "a", "b") is None
    assert list(rows_of(played(response))) == []


def test_rows_hold_true_states_all_along(tmp_path: Path) -> None:
    (game,) = played(imagined("Left"), "rubbish", imagined("Up || Up"))
    rows = list(rows_of([game]))
    assert [json.loads(row["extra_info"])["turn"] for row in rows] == [1, 3, 4][: len(rows)]
    for row in rows:
        number = json.loads(row["extra_info"])["turn"] - 1
        turn = game.turns[number]
        assert row["response"] == imagined(
            answer_of(turn.response) or "", turn.state, turn.next_state
        )
        assert len(row["prompt"]) == 2 + 2 * number
        assert turn.state in row["prompt"][-1]["content"]
    # What was malformed stays in the history as it was; what was replaced stays replaced.
    assert rows[-1]["prompt"][2]["content"] == rows[0]["response"]
    assert rows[1]["prompt"][4]["content"] == "rubbish"
    assert list(rows_of([game], forbidden=["go on"])) == []
    assert tuple(rows[0]) == COLUMNS


def test_levels_are_on_one_side_of_the_split(tmp_path: Path) -> None:
    games = [game for _ in range(2) for game in played(imagined("Left || Up"), levels=40)]
    rows = list(rows_of(games))
    train, validation = map(read_rows, write_rows(rows, tmp_path))
    assert len(train) + len(validation) == len(rows)
    assert {r.level for r in train} | {r.level for r in validation} == set(
        training_levels(LAKE.board, 40)
    )
    assert not {r.level for r in train} & {r.level for r in validation}
    assert 0.05 < len(validation) / len(rows) < 0.4
    first = next(row for row in rows if json.loads(row["extra_info"])["level"] == train[0].level)
    assert train[0].response == first["response"]
    assert [m.content for m in train[0].prompt] == [m["content"] for m in first["prompt"]]


def test_published_rows_are_read_and_split_by_their_opening(tmp_path: Path) -> None:
    rows = [row | {"extra_info": "{}"} for row in rows_of(played(imagined("Up"), levels=30))]
    train, validation = map(read_rows, write_rows(rows, tmp_path))
    assert train
    assert not {r.prompt[1] for r in train} & {r.prompt[1] for r in validation}


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make it with"):
        read_rows(tmp_path / "none.parquet")
    with pytest.raises(DataError, match="no well-formed turn"):
        write_rows([], tmp_path)
    from datasets import Dataset

    Dataset.from_list([{"a": 1}]).to_parquet(str(tmp_path / "other.parquet"))
    with pytest.raises(DataError, match="expected the columns data_source"):
        read_rows(tmp_path / "other.parquet")


def test_each_answer_is_learned_once_after_the_same_words() -> None:
    games = played(imagined("Left"), "rubbish", imagined("Right"), imagined("Up"), levels=3)
    rows = [Row(*_row(row)) for row in rows_of(games)]
    Random(0).shuffle(rows)
    joined = conversations(rows)
    assert len(joined) == 3
    learned = [
        (conversation.chat[:at], conversation.chat[at].content)
        for conversation in joined
        for at in conversation.learned
    ]
    assert sorted(map(repr, learned)) == sorted(repr((r.prompt, r.response)) for r in rows)


# --- masks, token by token -----------------------------------------------------------------------


def spelled(codec: Codec, transcript: Transcript) -> list[str]:
    """The texts of what is learned, one for each run of tokens."""
    runs: list[list[int]] = []
    for i, (token, learned) in enumerate(zip(transcript.ids, transcript.written, strict=True)):
        if learned:
            if not runs or not transcript.written[i - 1]:
                runs.append([])
            runs[-1].append(token)
    return [codec.decode(run) for run in runs]


def whole_text(codec: Codec, chat: Sequence[Message]) -> str:
    """A chat without what the template says after its last turn has ended."""
    end = str(codec.tokenizer.eos_token)
    text = codec.render(tuple(chat))
    return text[: text.rindex(end) + len(end)]


def tokenizers(codec: Codec) -> list[Codec]:
    """Ours, and byte-level BPE with the chat format of Qwen."""
    return [codec, Codec(tiny_tokenizer())]


def test_masks_cover_think_and_answer_spans(codec: Codec, chats: list[Conversation]) -> None:
    for coded in tokenizers(codec):
        end = str(coded.tokenizer.eos_token)
        for conversation in chats:
            transcript = coded.labelled(conversation)
            answers = [m.content for m in conversation.chat if m.role == "assistant"]
            assert spelled(coded, transcript) == [
                answer.removeprefix("<think>") + end for answer in answers
            ]
            assert coded.decode(transcript.ids) == whole_text(coded, conversation.chat)


@pytest.mark.parametrize("part", ["observation", "prediction"])
def test_masks_of_states_cover_them_alone(
    codec: Codec, chats: list[Conversation], part: Part
) -> None:
    for conversation in chats:
        expected = [
            m.content[slice(*state_spans(m.content)[part])]
            for m in conversation.chat
            if m.role == "assistant"
        ]
        assert spelled(codec, codec.labelled(conversation, part)) == expected
        # BPE may join the last sign of a state with the tag behind it.
        bpe = tokenizers(codec)[1]
        for text, state in zip(
            spelled(bpe, bpe.labelled(conversation, part)), expected, strict=True
        ):
            assert state in text
            assert len(text) <= len(state) + 2


def test_masked_states_are_not_learned(codec: Codec, chats: list[Conversation]) -> None:
    for conversation in chats:
        transcript = codec.labelled(without_states(conversation), "thoughts")
        text = codec.decode(transcript.ids)
        for message in conversation.chat:
            for a, b in (
                state_spans(message.content).values() if message.role == "assistant" else ()
            ):
                # The environment says it, too, but no answer does.
                assert f"<observation>{message.content[a:b]}" not in text
        learned = "".join(spelled(codec, transcript))
        assert MASKED not in learned
        assert text.count(MASKED) == 2 * sum(m.role == "assistant" for m in conversation.chat)
        assert learned.startswith("<observation></observation>")


def test_turns_that_are_not_learned_are_masked(codec: Codec, chats: list[Conversation]) -> None:
    conversation = next(chat for chat in chats if len(chat.learned) > 2)
    only = Conversation(conversation.chat, {4})
    answer = conversation.chat[4].content.removeprefix("<think>")
    assert spelled(codec, codec.labelled(only)) == [answer + "<|end|>"]
    columns = labels_of(codec.labelled(only), context=10_000)
    kept = [token for token in columns["labels"] if token != -100]
    assert codec.decode(kept) == answer + "<|end|>"
    assert all(
        label in (-100, token)
        for token, label in zip(columns["input_ids"], columns["labels"], strict=True)
    )
    assert len(labels_of(codec.labelled(only), context=30)["labels"]) == 30


def test_malformed_answers_are_history_only(codec: Codec) -> None:
    (game,) = played(imagined("Left"), "Left", imagined("Up"))
    (conversation,) = conversations(Row(*_row(row)) for row in rows_of([game]))
    transcript = codec.labelled(conversation)
    learned = [conversation.chat[at].content for at in sorted(conversation.learned)]
    assert spelled(codec, transcript) == [
        answer.removeprefix("<think>") + "<|end|>" for answer in learned
    ]
    assert "<think>Left<|end|>" in codec.decode(transcript.ids)
    with pytest.raises(ValueError, match="begins with <think>, got 'Left'"):
        codec.labelled(Conversation(conversation.chat, {4}))


def test_questions_ask_for_either_format(chats: list[Conversation]) -> None:
    for conversation in chats:
        plain = asked_in(conversation, "plain")
        assert [m for m in plain.chat if m.role != "user"] == [
            m for m in conversation.chat if m.role != "user"
        ]
        for message in plain.chat[1::2]:
            assert FORMATS["plain"] in message.content
            assert FORMATS["worldmodel"] not in message.content
        assert asked_in(plain, "worldmodel") == conversation


def test_states_are_spelled_in_pieces() -> None:
    text = "P_OG\nPlayer at (2,1); holes at (0,2) and (1,0).<answer>Up || Left</answer>"
    codec = Codec(state_tokenizer([text, "| 1 . 2 3 | 1 2 . 3\n"], ["Bring it home.\n"]))

    def pieces(text: str) -> list[str]:
        return [codec.decode([i]) for i in codec.encode(text)]

    tokens = pieces(text)
    assert tokens == [
        "P_OG\n", "Player at ", "(2,", "1); ", "holes at ", "(0,", "2) and ", "(1,",
        "0).", "<answer>", "Up", " || ", "Left", "</answer>",
    ]  # fmt: skip
    assert pieces("Bring it home.\n| 1 . 2 3 | 1 2 . 3\n") == [
        "Bring it home.\n", "| 1 . 2 3 ", "| 1 2 . 3\n",
    ]  # fmt: skip
    # What was never seen is spelled.
    assert pieces("____\n") == [*"____", "\n"]
    assert codec.decode(codec.encode("strange Words?")) == "strange Words?"


def test_unusable_tokenizers_are_refused(codec: Codec) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=codec.tokenizer.backend_tokenizer)
    with pytest.raises(CheckpointError, match="chat template"):
        Codec(bare)
    (game,) = played(imagined("Left"))
    with pytest.raises(CheckpointError, match="rewrites earlier turns"):
        Codec(tiny_tokenizer(template=SYSTEM_LAST)).following(game.chat[:4])


# --- the policy ----------------------------------------------------------------------------------


def test_answers_in_batch_are_those_of_generate(model: Any, codec: Codec) -> None:
    player = PolicyPlayer(model, codec, max_tokens=12, temperature=0.0)
    games = Arena(LAKE).play(player, training_levels(LAKE.board, 4), [0] * 4)
    for game in games:
        transcript = player.transcripts[game]
        starts = [
            i
            for i, written in enumerate(transcript.written)
            if written and not transcript.written[i - 1]
        ]
        assert len(starts) == len(game.turns)
        for start in starts:
            prompt = torch.tensor([transcript.ids[:start]])
            expected = model.generate(
                prompt, max_new_tokens=12, do_sample=False, pad_token_id=0,
                attention_mask=torch.ones_like(prompt), eos_token_id=codec.end,
            )[0, start:]  # fmt: skip
            assert transcript.ids[start : start + len(expected)] == expected.tolist()


def test_transcripts_are_the_chat(model: Any, codec: Codec) -> None:
    player = PolicyPlayer(model, codec, max_tokens=20)
    games = Arena(LAKE).play(player, training_levels(LAKE.board, 6), [3] * 6)
    for game in games:
        transcript = player.transcripts[game]
        assert len(transcript.ids) == len(transcript.written)
        assert len(transcript.logprobs) == sum(transcript.written)
        said = "".join(spelled(codec, transcript))
        told = "".join(turn.response.removeprefix("<think>") for turn in game.turns)
        assert said.replace("<|end|>", "") == told.replace("<|end|>", "")
        ids, written = padded([transcript])
        logits, _ = written_logits(model, ids, written)
        chosen = ids[:, 1:][written[:, 1:]]
        again = logits.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
        assert torch.allclose(again, torch.tensor(transcript.logprobs), atol=1e-4)


def test_play_follows_from_the_seed(model: Any, codec: Codec) -> None:
    levels = training_levels(LAKE.board, 3)
    played_ids = []
    for order in (levels, levels[::-1]):
        player = PolicyPlayer(model, codec, max_tokens=10)
        games = Arena(LAKE).play(player, order, [5] * 3)
        played_ids.append({game.level: player.transcripts[game].ids for game in games})
    assert played_ids[0] == played_ids[1]


def test_a_full_context_ends_the_talking(model: Any, codec: Codec) -> None:
    player = PolicyPlayer(model, codec, max_tokens=60)
    player.context = 100
    (game,) = Arena(LAKE).play(player, training_levels(LAKE.board, 1), [0])
    assert len(player.transcripts[game].ids) <= 100
    assert game.turns[-1].response == "<think>"
    assert not game.turns[-1].well_formed


# --- measuring -----------------------------------------------------------------------------------


def test_perplexity_is_that_of_each_token(
    model: Any, codec: Codec, chats: list[Conversation]
) -> None:
    transcripts = [codec.labelled(chat, "prediction") for chat in chats]
    total, count = 0.0, 0
    for transcript in transcripts:
        logits = model(torch.tensor([transcript.ids])).logits[0].log_softmax(-1)
        for i, written in enumerate(transcript.written):
            if written:
                total -= float(logits[i - 1, transcript.ids[i]])
                count += 1
    measured = perplexity(model, transcripts)
    assert measured.tokens == count
    assert measured.value == pytest.approx(float(torch.tensor(total / count).exp()), rel=1e-4)
    parts = state_perplexity(model, codec, chats)
    assert parts["prediction"] == measured
    first = [chat.chat[1].content.split("State:\n")[1].split("\nYou have")[0] for chat in chats]
    assert parts["state"].tokens == sum(len(codec.encode(state)) for state in first)
    with pytest.raises(ValueError, match="no state to measure"):
        perplexity(model, [Transcript([1, 2], [False, False])])


def test_pass_at_k_counts_levels_and_games(model: Any, codec: Codec) -> None:
    class Lucky(PolicyPlayer):
        """Follows the plan in the second game of each level of two, and writes nothing."""

        def reply(self, games: Sequence[Game]) -> list[str]:
            answers = []
            for game in games:
                self.transcripts.setdefault(game, Transcript([0], [False]))
                plan = game.scenario.real["plan"]
                lucky = game.seed % 4 == 1 and int(game.level[-1]) % 2 == 0
                turn = plan[len(game.turns)] if lucky else "Jump"
                answers.append(f"<think></think><answer>{turn}</answer>")
            return answers

    setting = Setting("frozenlake", "4x4-firm", max_tokens=60)
    levels = validation_levels(setting.board, 8)
    found = evaluate(Lucky(model, codec, 60), Arena(setting), levels, samples=4)
    even = sum(int(level[-1]) % 2 == 0 for level in levels)
    assert found["pass@1"] == pytest.approx(even / 8 / 4)
    assert found["pass@4"] == pytest.approx(even / 8)
    assert sum(rate["n"] for rate in found["by_plan"].values()) == 32
    wins = sum(rate["value"] * rate["n"] for rate in found["by_plan"].values())
    assert wins == pytest.approx(even)
