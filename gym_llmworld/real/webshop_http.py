"""A session in a WebShop behind AgentGym's environment server.

The protocol is AgentGym's (agentenv-webshop): ``POST /create``, ``POST /reset``, ``POST /step``,
``GET /available_actions``. Errors come with status 200 and ``{"error": ...}``.
"""

from __future__ import annotations

import time
from typing import Any

from gym_llmworld.errors import EngineError, MissingDependency
from gym_llmworld.real.webshop_engine import View
from gym_llmworld.worlds.webshop_text import read_action

TIMEOUT = 30.0
"""Seconds that an answer may take."""

TRIES = 3
_PAUSE = 0.2


class ServerVisit:
    """A customer's session on a server.

    A request that fails is not repeated: nobody knows whether it was carried out. The session is
    begun again instead and brought to the same point by its actions, at most `TRIES` times.

    Args:
        url: Of the server.
        goal: Its number.

    Raises:
        EngineError: The server does not answer, or not in the protocol.
        MissingDependency: httpx is not installed.
    """

    def __init__(self, url: str, goal: int) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingDependency("httpx", "webshop") from error
        self._url, self._goal = url.rstrip("/"), goal
        self._errors = httpx.HTTPError, httpx.InvalidURL
        self._client = httpx.Client(base_url=self._url, timeout=TIMEOUT)
        self._session: int | None = None
        self._actions: list[str] = []
        self.view = self._retried(self._actions)

    def __deepcopy__(self, memo: dict[int, Any]) -> ServerVisit:
        """Returns a session of its own, at the same point."""
        twin = ServerVisit(self._url, self._goal)
        for action in self._actions:
            twin.act(action)
        return twin

    def act(self, action: str) -> View:
        """Carries out an action; see `Shop`."""
        if self.view.done or read_action(action) is None:
            return self.view
        actions = [*self._actions, action]
        self.view = self._retried(actions)
        self._actions = actions
        return self.view

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def _retried(self, actions: list[str]) -> View:
        """Returns the view after ``actions``, of which all but the last were carried out."""
        for attempt in range(TRIES):
            try:
                if self._session is None:
                    return self._from_the_start(actions)
                return self._step(self._session, actions[-1])
            except (*self._errors, _Garbage) as error:
                # Whatever became of the request: only a new session is in a known state.
                self._session = None
                failure = error
                time.sleep(_PAUSE * 2**attempt)
        raise EngineError(
            f"the WebShop server at {self._url} failed {TRIES} times in a row "
            f"({type(failure).__name__.lstrip('_')}: {failure!s:.200}); expected AgentGym's "
            "protocol. Is the server running, and is this its address?"
        ) from failure

    def _from_the_start(self, actions: list[str]) -> View:
        session = self._ask("POST", "/create")
        if not isinstance(session, int):
            raise _Garbage(f"/create answered {session!r:.100}, expected a number")
        page = self._ask("POST", "/reset", {"env_idx": session, "session_id": self._goal})
        if not isinstance(page, list) or not page or not isinstance(page[0], str):
            raise _Garbage(f"/reset answered {page!r:.100}, expected [text, null]")
        view = self._view(session, page[0], done=False, score=0.0)
        for action in actions:
            view = self._step(session, action)
        self._session = session
        return view

    def _step(self, session: int, action: str) -> View:
        answer = self._ask("POST", "/step", {"env_idx": session, "action": action})
        try:
            text, score, done = str(answer["state"]), float(answer["reward"]), bool(answer["done"])
        except (KeyError, TypeError, ValueError) as error:
            raise _Garbage(
                f"/step answered {answer!r:.100}, expected state, reward and done"
            ) from error
        return self._view(session, text, done, score)

    def _view(self, session: int, text: str, done: bool, score: float) -> View:
        if done:
            # The server has begun another session, whose actions are not this one's.
            return View(text, False, (), done=True, score=score)
        listed = self._ask("GET", f"/available_actions?env_idx={session}")
        try:
            clickables = tuple(str(label) for label in listed["clickables"])
            return View(text, bool(listed["has_search_bar"]), clickables)
        except (KeyError, TypeError) as error:
            raise _Garbage(
                f"/available_actions answered {listed!r:.100}, expected has_search_bar, clickables"
            ) from error

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        response = self._client.request(method, path, json=body)
        response.raise_for_status()
        try:
            answer = response.json()
        except ValueError as error:
            raise _Garbage(f"{path} answered no JSON: {response.text!r:.100}") from error
        if isinstance(answer, dict) and "error" in answer:
            raise _Garbage(f"{path} answered an error: {answer['error']!s:.200}")
        return answer


class _Garbage(Exception):
    """An answer that does not follow the protocol."""
