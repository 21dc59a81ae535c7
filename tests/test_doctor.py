"""The doctor's findings on a machine that is made to look sick."""

from __future__ import annotations

import importlib.util
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from gym_llmworld import doctor
from gym_llmworld.checkpoints import embedded_model
from gym_llmworld.errors import CheckpointError


def finding(name: str) -> doctor.Finding:
    [found] = [f for f in doctor.examine() if f.name == name]
    return found


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    real = importlib.util.find_spec

    def hide(*names: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in names else real(name)
        )

    return hide


def test_installed_packages_show_their_version() -> None:
    found = finding("gymnasium")
    assert found.status == "ok"
    assert found.detail[0].isdigit()
    assert found.fix == ""


@pytest.mark.parametrize(
    ("module", "name", "status", "fix"),
    [
        ("torch", "torch", "missing", "pip install 'gym-llmworld[hf]'"),
        ("alfworld", "alfworld", "optional", "pip install 'gym-llmworld[alfworld]'"),
        ("vllm", "vllm", "optional", "pip install 'gym-llmworld[vllm]'"),
        ("playwright", "playwright", "optional", "pip install 'gym-llmworld[web]'"),
        ("rich", "rich", "missing", "pip install 'gym-llmworld'"),
    ],
)
def test_missing_packages_name_the_command(
    without: Any, module: str, name: str, status: str, fix: str
) -> None:
    without(module)
    found = finding(name)
    assert (found.status, found.fix) == (status, fix)


def test_the_browser_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho Chromium 1.2.3\n")
    program.chmod(0o755)
    monkeypatch.delenv("LLMWORLD_BROWSER", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    found = finding("browser")
    assert (found.status, found.fix) == ("ok", "")
    assert found.detail.startswith(f"Chromium 1.2.3 at {program}")
    monkeypatch.setenv("LLMWORLD_BROWSER", str(tmp_path / "nothing"))
    found = finding("browser")
    assert found.status == "optional"
    assert "LLMWORLD_BROWSER must be the path of a Chromium" in found.detail
    assert "apt install chromium" in found.fix
    program.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("LLMWORLD_BROWSER", str(program))
    assert "does not say its version" in finding("browser").detail


def test_a_sick_machine_is_not_healthy(without: Any) -> None:
    without("torch")
    findings = doctor.examine()
    assert not doctor.healthy(findings)
    assert doctor.healthy([f for f in findings if f.status in ("ok", "optional")])


def test_a_missing_embedded_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(world: str) -> str:
        raise CheckpointError("no embedded world model")

    monkeypatch.setattr(f"{embedded_model.__module__}.embedded_model", absent)
    found = finding("ALFWorld world model")
    assert found.status == "broken"
    assert "--model" in found.fix


def test_a_full_disk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    assert finding("disk").status == "broken"


def test_an_old_python_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MINIMUM_PYTHON", (9, 9))
    found = finding("python")
    assert found.status == "broken"
    assert "9.9" in found.detail
