"""What OpenAI-compatible servers answer, and what it means; no I/O.

Nothing here trusts a server: whatever comes back is a value or a `BackendError` that says what was
expected, and no message quotes the caller's key.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NoReturn

from gym_llmworld.core import Completion
from gym_llmworld.errors import BackendError, ContextOverflow

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "OPENAI_API_KEY"

_EXCERPT = 200
_OVERFLOW_CODES = ("context_length_exceeded", "exceed_context_size_error")
# vLLM, OpenAI, SGLang and llama.cpp word it differently, and vLLM has changed its words.
_OVERFLOW = re.compile(
    r"context (length|size|window)|maximum (model|context|prompt) length|max_model_len"
    r"|prompt is too long|reduce the length of the (messages|prompt|input)",
    re.IGNORECASE,
)
# These apply the sampling defaults of the checkpoint's generation_config.json (for Qwen2.5 a
# repetition penalty and a top-k) to requests that do not say otherwise.
_CHECKPOINT_DEFAULTS = ("vllm", "sglang")


@dataclass(frozen=True, slots=True)
class Card:
    """What a server says about a model.

    Attributes:
        id: Its name there.
        max_context: In tokens.
        checkpoint_defaults: Whether requests inherit the checkpoint's sampling defaults.
    """

    id: str
    max_context: int | None = None
    checkpoint_defaults: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """A completion as a server wrote it.

    Attributes:
        completion: What it says.
        generated_tokens: How many tokens it took; 0 when unknown.
    """

    completion: Completion
    generated_tokens: int


@dataclass(frozen=True)
class Reader:
    """Reads one server's answers.

    Attributes:
        url: Of the server.
        key: That requests carry; servers like to quote it, messages must not.
    """

    url: str
    key: str

    def clean(self, text: str) -> str:
        """Removes the key."""
        return text.replace(self.key, "***") if self.key else text

    def excerpt(self, content: bytes) -> str:
        """Returns the start of a body, for messages."""
        text = self.clean(content.decode("utf-8", "replace"))
        return repr(text[:_EXCERPT]) if text else "without a body"

    def refusal(self, response: httpx.Response) -> BackendError:
        """Returns what a status that is not retried means."""
        status = response.status_code
        told = f"{self.url} answered with status {status}, {self.excerpt(response.content)}"
        if overflows(response.content):
            return ContextOverflow(
                f"{told}: the conversation does not fit the server's context. End the episode "
                "earlier, or serve the model with a longer one"
            )
        if status in (401, 403):
            state = "is set, but not accepted" if self.key else "is not set"
            return BackendError(f"{told}: the environment variable {KEY_VARIABLE} {state}")
        if status == 404:
            return BackendError(
                f"{told}: expected a URL that ends with the version (http://host:8000/v1), and a "
                f"served_model that {self.url}/models lists"
            )
        return BackendError(told)

    def completion(self, content: bytes) -> Reply:
        """Reads a chat completion.

        Raises:
            BackendError: It is something else.
        """
        body = _json(content)
        match body:
            case {"choices": [{"finish_reason": reason} as choice, *_]}:
                pass
            case _:
                self._reject("a chat completion with choices[0].finish_reason", content)
        if reason not in ("stop", "length"):
            came = self.clean(str(reason))[:50]
            self._reject(f"finish_reason 'stop' or 'length' instead of {came!r}", content)
        match choice:
            case {"message": {"content": str(text)}} if _is_unicode(text):
                pass
            case _:
                self._reject("a text in choices[0].message.content", content)
        logprobs = _logprobs(choice)
        prompt, cached, written = _usage(body)
        return Reply(Completion(text, reason, logprobs, prompt, cached), written or len(logprobs))

    def cards(self, content: bytes) -> list[Card]:
        """Reads the list of models.

        Raises:
            BackendError: It is something else.
        """
        match _json(content):
            case {"data": list(entries)}:
                return [
                    Card(
                        entry["id"],
                        _natural(entry.get("max_model_len")) or None,
                        entry.get("owned_by") in _CHECKPOINT_DEFAULTS,
                    )
                    for entry in entries
                    if isinstance(entry, dict) and isinstance(entry.get("id"), str)
                ]
        self._reject("a list of models {'data': [{'id': ...}]}", content)

    def _reject(self, expected: str, content: bytes) -> NoReturn:
        raise BackendError(f"{self.url}: expected {expected}, got {self.excerpt(content)}")


def overflows(content: bytes) -> bool:
    """Whether the body of a refusal says that the context is too short."""
    match _json(content):
        case {"error": {"message": message, **details}}:
            pass
        case {"message": message, **details} | {"detail": message, **details}:
            pass
        case {"error": message, **details}:
            pass
        case _:
            return False
    coded = details.get("code") in _OVERFLOW_CODES or details.get("type") in _OVERFLOW_CODES
    return coded or _OVERFLOW.search(str(message)) is not None


def retry_after(response: httpx.Response) -> float | None:
    """Returns the seconds that a server asks for: a number or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _json(content: bytes) -> Any:
    """Returns the parsed JSON, None where it is none."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _is_unicode(text: str) -> bool:
    """Whether a text can be written as UTF-8; JSON can spell half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _natural(value: object) -> int:
    return value if type(value) is int and value > 0 else 0


def _usage(body: dict[str, Any]) -> tuple[int, int, int]:
    """Returns the tokens of the prompt, those of them that were cached, and those written."""
    match body:
        case {"usage": {**usage}}:
            pass
        case _:
            return 0, 0, 0
    match usage:
        case {"prompt_tokens_details": {"cached_tokens": cached}}:
            pass
        case _:
            cached = 0
    return (
        _natural(usage.get("prompt_tokens")),
        _natural(cached),
        _natural(usage.get("completion_tokens")),
    )


def _logprobs(choice: dict[str, Any]) -> tuple[float, ...]:
    """Returns a log-probability per token, or none at all where any is missing."""
    match choice:
        case {"logprobs": {"content": list(entries)}}:
            pass
        case _:
            return ()
    values = [entry.get("logprob") if isinstance(entry, dict) else None for entry in entries]
    known = tuple(float(v) for v in values if isinstance(v, int | float) and math.isfinite(v))
    return known if len(known) == len(values) else ()
