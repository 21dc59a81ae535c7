"""Tells whether web pages can be opened here."""

from __future__ import annotations

import pytest

from gym_llmworld.errors import EngineError, MissingDependency
from gym_llmworld.real.miniwob_browser import check_packages, find_browser


def _lacking() -> str | None:
    try:
        check_packages()
        find_browser()
    except (EngineError, MissingDependency) as error:
        return str(error)
    return None


LACKING = _lacking()
needs_browser = pytest.mark.skipif(LACKING is not None, reason=str(LACKING))
