"""``llmworld play``: a person or an agent in an imagined (or the real) world."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from gym_llmworld.agents import Agent, has_stopped
from gym_llmworld.cli_output import console, say
from gym_llmworld.core import Scenario
from gym_llmworld.env import WorldModelEnv
from gym_llmworld.imagination import Snapshot

HELP = """\
Type an action, for example: look
  /whatif ACTION | ACTION   what would happen; the episode does not move
  /undo [N]                 take the last N steps back
  /fork                     remember this point
  /back                     return to the last remembered point
  /restart                  start the episode again
  /quit                     leave"""


def read_line(prompt: str) -> str:
    """Asks for a line, and shows one that nobody typed, so that a transcript reads as an episode.

    Raises:
        EOFError: There are no more.
    """
    if sys.stdin.isatty():
        return console.input(prompt)
    line = input()
    say(f"\n{prompt}{line}", "bold cyan")
    return line


def watch(
    env: gym.Env[str, str], agent: Agent, scenario: Scenario, *, seed: int, max_steps: int
) -> bool:
    """Shows an agent's episode as it happens.

    Args:
        env: Imagined or real.
        agent: Plays.
        scenario: Where to start.
        seed: Of the agent and of the environment.
        max_steps: Ends the episode after so many steps.

    Returns:
        Whether the world says that the task is solved.
    """
    observation, info = env.reset(seed=seed, options={"scenario": scenario.to_json()})
    agent.reset(scenario, seed)
    say(observation)
    for step in range(1, max_steps + 1):
        action = agent.act(observation, {"admissible_commands": None})
        say(f"\n> {action}", "bold cyan")
        observation, reward, terminated, truncated, info = env.step(action)
        say(observation)
        if not terminated and has_stopped(agent):
            say("the agent stopped: its own context is full", "yellow")
            truncated = True
        if terminated or truncated:
            return _ending(step, info, solved=terminated and float(reward) > 0)
    return _ending(max_steps, info, solved=False)


def _ending(step: int, info: dict[str, Any], *, solved: bool) -> bool:
    status = info["llmworld"].get("status", "ok")
    reason = "" if status == "ok" else f" ({status})"
    verdict = "solved" if solved else "ended unsolved"
    say(f"\n{verdict} after {step} steps{reason}", "bold green" if solved else "bold yellow")
    return solved


class Console:
    """A person's episode: actions, and commands that start with a slash.

    Args:
        env: Imagined or real; only an imagined one can be rewound, forked and asked what-if.
        scenario: Where to start.
        seed: Of the environment.
        read: Returns the next line; raises EOFError at the end of input.
    """

    def __init__(
        self,
        env: WorldModelEnv | gym.Env[str, str],
        scenario: Scenario,
        *,
        seed: int,
        read: Callable[[str], str],
    ) -> None:
        self._env, self._scenario, self._seed, self._read = env, scenario, seed, read
        self._forks: list[Snapshot] = []
        self._done = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/undo": self._undo,
            "/fork": self._fork,
            "/back": self._back,
            "/whatif": self._what_if,
            "/restart": lambda _: self._restart(),
            "/help": lambda _: say(HELP, "dim"),
        }

    def run(self) -> None:
        """Reads and carries out lines until ``/quit`` or the end of input."""
        say(HELP + "\n", "dim")
        self._restart()
        while True:
            try:
                line = self._read("> ").strip()
            except EOFError:
                return
            if line == "/quit":
                return
            command, _, rest = line.partition(" ")
            if command in self._commands:
                self._commands[command](rest.strip())
            elif line.startswith("/"):
                say(f"unknown command {command}; /help lists them", "yellow")
            elif line:
                self._act(line)

    def _restart(self) -> None:
        options = {"scenario": self._scenario.to_json()}
        observation, _ = self._env.reset(seed=self._seed, options=options)
        self._done = False
        say(observation)

    def _act(self, action: str) -> None:
        if self._done:
            say("The episode has ended: /undo, /back, /restart or /quit", "yellow")
            return
        observation, reward, terminated, truncated, info = self._env.step(action)
        say(observation)
        confidence = info["llmworld"].get("confidence")
        if confidence is not None:
            say(f"({info['llmworld']['source']}, confidence {confidence:.2f})", "dim")
        self._done = terminated or truncated
        if self._done:
            say(
                "solved" if terminated and float(reward) > 0 else "ended unsolved",
                "bold green" if terminated else "bold yellow",
            )

    def _imagined(self) -> WorldModelEnv | None:
        if isinstance(self._env, WorldModelEnv):
            return self._env
        say("The real world cannot do that.", "yellow")
        return None

    def _undo(self, count: str) -> None:
        env = self._imagined()
        if env is None:
            return
        if count and not count.isdecimal():
            say("expected /undo or /undo N", "yellow")
            return
        taken = len(env.session.steps)
        say(env.undo(min(int(count or 1), taken)))
        self._done = env.session.done

    def _fork(self, _: str) -> None:
        env = self._imagined()
        if env is not None:
            self._forks.append(env.snapshot())
            say(f"remembered; {len(self._forks)} to go /back to", "dim")

    def _back(self, _: str) -> None:
        env = self._imagined()
        if env is None:
            return
        if not self._forks:
            say("nothing remembered; use /fork first", "yellow")
            return
        say(env.restore(self._forks.pop()))
        self._done = env.session.done

    def _what_if(self, actions: str) -> None:
        env = self._imagined()
        candidates = [action.strip() for action in actions.split("|") if action.strip()]
        if env is None:
            return
        if not candidates or self._done:
            say("expected /whatif ACTION | ACTION, while the episode goes on", "yellow")
            return
        for step in env.what_if(candidates):
            say(f"> {step.action}", "cyan")
            say(step.observation + (" [solved]" if step.reward > 0 else ""))
