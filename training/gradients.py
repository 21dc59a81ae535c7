r"""How much of a policy gradient is signal: what independent batches of episodes have in common.

    python -m training.gradients --model runs/agent --batches 4 --discounts 1 0.95 0.8
    python -m training.gradients --model runs/agent --env RealWorld-ALFWorld-v0 --json noise.json

Each batch is an update's worth of episodes, by one agent that does not change. For every way to
give credit that `training.policy` knows (episodes against their group; commands against those that
were given when as much was done, at some discounts; refused commands) the gradients of all batches
are compared, pair by pair. Where a gradient is signal and independent noise, the cosine of two of
them is the share of the signal in its square: its inverse is about how many batches make one
direction in which both are equal (the gradient noise scale of McCandlish et al., arXiv 1812.06162,
section 2.2, in batches). Nothing is learned.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from gym_llmworld.backends.hf import HFBackend
from gym_llmworld.checkpoints import agent_style
from gym_llmworld.errors import WorldModelError
from gym_llmworld.policy_prompt import PolicyPrompt
from training.card import write_atomically
from training.credit import COMMAND, EPISODE, command_advantages
from training.guard import OFF
from training.policy import arena_of, starts_of
from training.policy_config import PolicyConfig
from training.token_policy import Rollout, TokenPolicy

REFUSAL = "refusal"
_ALIKE = 4
"""Episodes per forward pass."""

Credit = Sequence[Sequence[float]]
"""One number per command of each episode."""


def credits_of(
    rollouts: Sequence[Rollout], config: PolicyConfig, discounts: Sequence[float]
) -> dict[str, Credit]:
    """Returns the credit of every command, by every way to give it.

    Args:
        rollouts: Of an update, group by group.
        config: The world and the size of groups.
        discounts: For commands; without effect in worlds that count no milestones.
    """
    rewards = torch.tensor([r.reward for r in rollouts]).view(-1, config.group_size)
    # As GRPO's (arXiv 2402.03300, section 4.1.2).
    scale = rewards.std(1, keepdim=True) + 1e-4
    episodes = ((rewards - rewards.mean(1, keepdim=True)) / scale).flatten().tolist()
    found: dict[str, Credit] = {
        EPISODE: [[a] * len(r.steps) for a, r in zip(episodes, rollouts, strict=True)]
    }
    milestones = config.world.milestones
    if milestones is not None:
        for discount in discounts:
            found[f"{COMMAND} {discount:g}"] = command_advantages(
                rollouts, config.group_size, milestones, discount
            )
    refused = [rollout.refused(config.world.rejection) for rollout in rollouts]
    share = sum(map(sum, refused)) / max(1, sum(map(len, refused)))
    found[REFUSAL] = [[share - vain for vain in own] for own in refused]
    return found


def gradients(
    model: Any, rollouts: Sequence[Rollout], credits: Mapping[str, Credit]
) -> dict[str, torch.Tensor]:
    """Returns the policy gradient (REINFORCE) by each way to give credit, as one long vector.

    Args:
        model: The policy that played.
        rollouts: What it played.
        credits: Of `credits_of`.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    found = {name: torch.zeros(sum(w.numel() for w in weights)) for name in credits}
    order = sorted(range(len(rollouts)), key=lambda i: len(rollouts[i].completion))
    for begin in range(0, len(order), _ALIKE):
        rows = [i for i in order[begin : begin + _ALIKE] if any(rollouts[i].mask)]
        if not rows:
            continue
        told = [rollouts[i].prompt + rollouts[i].completion for i in rows]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in told], batch_first=True)
        written = [
            (row, len(rollouts[i].prompt) + at)
            for row, i in enumerate(rows)
            for at, own in enumerate(rollouts[i].mask)
            if own
        ]
        row, at = torch.tensor(written).T
        # Padding stands behind: causal attention alone keeps it out.
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[row, at - 1])
        chosen = logits.log_softmax(-1)[torch.arange(len(at)), ids[row, at]]
        for name, credit in credits.items():
            values = torch.tensor(
                [
                    value
                    for i in rows
                    for value, own in zip(
                        rollouts[i].by_token(credit[i]), rollouts[i].mask, strict=True
                    )
                    if own
                ]
            )
            loss = -(chosen * values).sum() / len(rollouts)
            parts = torch.autograd.grad(loss, weights, retain_graph=True)
            found[name] += torch.cat([part.flatten() for part in parts])
    return found


def cosines(vectors: Sequence[torch.Tensor]) -> list[float]:
    """Returns the cosine of every pair."""
    return [
        float(torch.cosine_similarity(a, b, dim=0)) for a, b in itertools.combinations(vectors, 2)
    ]


def measure(
    config: PolicyConfig, batches: int, discounts: Sequence[float], console: Console
) -> dict[str, Any]:
    """Plays batches and compares their gradients.

    Args:
        config: Agent, world and size of a batch.
        batches: At least two.
        discounts: See `credits_of`.
        console: Told about each batch.

    Returns:
        Success and refusals of the agent, and the cosines by credit.
    """
    loaded = HFBackend(config.model, dtype="float32")
    prompt = PolicyPrompt(agent_style(config.model), config.world.key)
    policy = TokenPolicy(
        loaded.model, loaded.tokenizer, prompt,
        max_tokens=config.max_tokens, temperature=config.temperature,
    )  # fmt: skip
    starts, vectors = starts_of(config), dict[str, list[torch.Tensor]]()
    solved, refused = list[bool](), list[bool]()
    with closing(arena_of(config)) as arena:
        for batch in range(1, batches + 1):
            drawn = [s for s in starts.draw(batch) for _ in range(config.group_size)]
            seeds = np.random.default_rng([config.seed, batch]).integers(2**31, size=len(drawn))
            played = dict(arena.play(policy, drawn, seeds.tolist(), config.max_steps))
            rollouts = [played[i] for i in range(len(drawn))]
            solved += [rollout.success for rollout in rollouts]
            for rollout in rollouts:
                refused += rollout.refused(config.world.rejection)
            credit = credits_of(rollouts, config, discounts)
            for name, vector in gradients(loaded.model, rollouts, credit).items():
                vectors.setdefault(name, []).append(vector)
            console.print(f"batch {batch} of {batches}: success so far {np.mean(solved):.2f}")
    rows = {}
    for name, own in vectors.items():
        found = cosines(own)
        error = float(np.std(found) / len(found) ** 0.5)
        rows[name] = {"mean": float(np.mean(found)), "error": error, "values": found}
    return {
        "episodes": len(solved),
        "success": float(np.mean(solved)),
        "refused": float(np.mean(refused)) if refused else None,
        "cosines": rows,
    }


def parser() -> argparse.ArgumentParser:
    """Builds the command line."""
    built = argparse.ArgumentParser(
        prog="python -m training.gradients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = built.add_argument
    add("--model", required=True, help="the agent: folder or hub id")
    add("--env", default="LLMWorld-ALFWorld-v0", help="where it plays (default: %(default)s)")
    add("--world-model", default="", help="to imagine with (default: the embedded one)")
    add("--games", default="", help="folder of 'llmworld games'; default: those that ship")
    add("--batches", type=int, default=4, help="independent batches (default: %(default)s)")
    add("--groups", type=int, default=8, help="starts per batch (default: %(default)s)")
    add("--group-size", type=int, default=8, help="episodes of each (default: %(default)s)")
    add("--max-steps", type=int, default=25, help="of an episode (default: %(default)s)")
    add(
        "--discounts", type=float, nargs="+", default=[1.0, 0.95, 0.8],
        help="for credit to commands (default: 1 0.95 0.8)",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of starts and answers (default: 0)")
    add("--threads", type=int, default=1, help="CPU threads (default: 1)")
    add("--json", type=Path, metavar="FILE", help="write the figures here")
    return built


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    console = Console()
    try:
        if options.batches < 2:
            raise ValueError(f"--batches must be >= 2 to compare any, got {options.batches}")
        if not all(0 < discount <= 1 for discount in options.discounts):
            raise ValueError(f"--discounts must be in (0, 1], got {options.discounts}")
        config = PolicyConfig(
            model=options.model, env=options.env, games=options.games, groups=options.groups,
            group_size=options.group_size, batch_size=options.groups * options.group_size,
            max_steps=options.max_steps, seed=options.seed, guard_action=OFF,
            world_model=options.world_model,
        )  # fmt: skip
        found = measure(config, options.batches, options.discounts, console)
    except (WorldModelError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    table = Table("credit", "cosine", "± standard error", "batches per direction")
    for name, row in found["cosines"].items():
        worth = f"{1 / row['mean']:.0f}" if row["mean"] > 0 else "-"
        table.add_row(name, f"{row['mean']:.3f}", f"{row['error']:.3f}", worth)
    console.print(table)
    if options.json:
        command = " ".join(["python -m training.gradients", *arguments])
        write_atomically(options.json, {"command": command, **found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
