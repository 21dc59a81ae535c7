"""How well a policy plays, and how well it knows what the world does."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from gym_llmworld.metrics import Rate, pass_at_k
from gym_llmworld.worlds.grids import SEPARATOR
from training.selfplay_data import Arena, Game
from training.selfplay_policy import Codec, Part, PolicyPlayer, Transcript
from training.selfplay_rows import Conversation

_TOGETHER = 16


def evaluate(
    player: PolicyPlayer, arena: Arena, levels: Sequence[str], samples: int, seed: int = 0
) -> dict[str, Any]:
    """Plays each level several times.

    Args:
        player: Answers.
        arena: Where.
        levels: Ids.
        samples: Games per level, at the player's temperature.
        seed: Of ice and of sampling.

    Returns:
        ``pass@1`` (mean success over all games) and ``pass@k`` for k = ``samples`` (any of them),
        as SPA computes them; ``by_plan``, success by the length of the shortest solution; and how
        it played: means of ``turns``, ``actions``, ``tokens`` a turn, and the share of turns that
        are ``well_formed``.
    """
    player.forget()
    games = arena.play(
        player,
        [level for level in levels for _ in range(samples)],
        [seed * samples + i for _ in levels for i in range(samples)],
    )
    wins = [sum(g.won for g in games[i : i + samples]) for i in range(0, len(games), samples)]
    turns = [turn for game in games for turn in game.turns]
    written = sum(sum(player.transcripts[game].written) for game in games)
    player.forget()
    return {
        "board": arena.setting.board,
        "levels": len(levels),
        "samples": samples,
        "pass@1": _mean([w / samples for w in wins]),
        f"pass@{samples}": _mean([pass_at_k(samples, w, samples) or 0.0 for w in wins]),
        "by_plan": _by_plan(games),
        "turns": len(turns) / len(games),
        "actions": sum(turn.actions for turn in turns) / len(games),
        "tokens": written / len(turns),
        "well_formed": _mean([float(turn.well_formed) for turn in turns]),
    }


def _by_plan(games: Iterable[Game]) -> dict[str, dict[str, Any]]:
    outcomes: dict[int, list[bool]] = defaultdict(list)
    for game in games:
        plan = SEPARATOR.join(game.scenario.real["plan"])
        outcomes[len(plan.split(SEPARATOR))].append(game.won)
    rates = {length: Rate.of(won) for length, won in sorted(outcomes.items())}
    return {str(k): {"value": rate.value, "n": rate.n} for k, rate in rates.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Perplexity:
    """Of a text, given what stands before it.

    Attributes:
        value: ``exp`` of the mean negative log-likelihood of a token.
        tokens: How many.
    """

    value: float
    tokens: int


def perplexity(model: Any, transcripts: Sequence[Transcript]) -> Perplexity:
    """Returns the perplexity of the tokens that are marked as written.

    Raises:
        ValueError: There are none.
    """
    total, count = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for begin in range(0, len(transcripts), _TOGETHER):
            ids, written = padded(transcripts[begin : begin + _TOGETHER], model.device)
            logits, _ = written_logits(model, ids, written)
            total += float(F.cross_entropy(logits, ids[:, 1:][written[:, 1:]], reduction="sum"))
            count += len(logits)
    if not count:
        raise ValueError("no state to measure: expected answers in the format with states")
    return Perplexity(math.exp(total / count), count)


def state_perplexity(
    model: Any, codec: Codec, conversations: Sequence[Conversation]
) -> dict[str, Perplexity]:
    """Returns how surprising true states are to a policy.

    Returns:
        ``state``: as the environment shows it in the first turn (what SPA's table 1 reports);
        ``observation``: where the policy is to repeat it; ``prediction``: the state after the turn.
    """
    parts: tuple[Part, ...] = ("observation", "prediction")
    measured = {
        part: perplexity(model, [codec.labelled(c, part) for c in conversations]) for part in parts
    }
    shown = perplexity(model, [_first_state(codec, c) for c in conversations])
    return {"state": shown} | measured


def _first_state(codec: Codec, conversation: Conversation) -> Transcript:
    opening = conversation.chat[1].content
    head, _, tail = opening.partition("\nState:\n")
    state = tail.partition("\nYou have ")[0]
    text = codec.render(tuple(conversation.chat[:2]))
    begin = text.index(opening) + len(head) + len("\nState:\n")
    coded = codec.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    transcript = Transcript()
    for token, (a, b) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
        inside = a < begin + len(state) and b > begin
        (transcript.wrote if inside else transcript.told)([token])
    return transcript


def padded(
    transcripts: Sequence[Transcript], device: Any = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns tokens and whether the policy wrote them, ``[episodes, tokens]``, padded right."""
    size = max(len(t.ids) for t in transcripts)
    ids = torch.zeros(len(transcripts), size, dtype=torch.long)
    written = torch.zeros(len(transcripts), size, dtype=torch.bool)
    for row, transcript in enumerate(transcripts):
        ids[row, : len(transcript.ids)] = torch.tensor(transcript.ids)
        written[row, : len(transcript.ids)] = torch.tensor(transcript.written)
    return ids.to(device), written.to(device)


def written_logits(
    model: Any, ids: torch.Tensor, written: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes what the policy thought when it wrote.

    Args:
        model: A causal language model.
        ids: ``[episodes, tokens]``, padded right: causal attention alone keeps padding out.
        written: Which of them to look at; never the first of an episode.

    Returns:
        Logits ``[written tokens, vocabulary]`` and hidden states ``[written tokens, width]``, both
        from the position before each token, in the order of the tokens.
    """
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    chosen = hidden[:, :-1][written[:, 1:]]
    return model.get_output_embeddings()(chosen).float(), chosen
