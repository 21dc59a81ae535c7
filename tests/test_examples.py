"""Every example runs, with the fake in the model's place."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.scripted_world import MODEL

EXAMPLES = sorted(path.stem for path in (Path(__file__).parent.parent / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(f"examples.{name}").main(model=MODEL)
    assert capsys.readouterr().out
