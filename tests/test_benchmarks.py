"""The benchmark programs: their arithmetic by hand, and each of them at a tiny size.

What they measure is no matter of tests; that both sides answer alike is.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import (
    async_worlds,
    forks,
    imagined_rollouts,
    measure,
    overhead,
    real_worlds,
    roofline,
    shape,
    step_cost,
    stepping,
    summary,
    webshop_engine,
    worlds,
)
from benchmarks.forwards import Forward, ForwardLog, Roofline, Weights, linear_kinds, work_of

torch = pytest.importorskip("torch")

PROGRAMS = (
    "alfworld_engine",
    "async_worlds",
    "forks",
    "imagined_rollouts",
    "overhead",
    "real_worlds",
    "roofline",
    "scienceworld_engine",
    "servers",
    "shape",
    "step_cost",
    "webshop_engine",
    "worlds",
)
SMALL_MACHINE = ["--large-mib", "16", "--matmul", "64"]


# --- command lines and reports --------------------------------------------------------------------


def test_numbers_are_read_sorted_and_once() -> None:
    assert measure.sizes("64, 1,16,1") == (1, 16, 64)


@pytest.mark.parametrize("text", ["", "1,", "0", "-1", "two"])
def test_other_than_numbers_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="such as 1,16,64"):
        measure.sizes(text)


def test_worlds_are_those_that_ship_a_model() -> None:
    assert measure.worlds("all") == (
        "alfworld", "scienceworld", "textworld", "webshop", "frozenlake", "sokoban", "sudoku",
    )  # fmt: skip
    assert measure.worlds("webshop, alfworld") == ("webshop", "alfworld")
    with pytest.raises(argparse.ArgumentTypeError, match="'miniwob' ships no model"):
        measure.worlds("miniwob")


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_explains_itself(name: str) -> None:
    program = importlib.import_module(f"benchmarks.{name}")
    text = program.arguments().format_help()
    assert f"python -m benchmarks.{name}" in text
    assert "--json" in text
    assert "--threads" in text


def test_threads_are_at_least_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        measure.parse(measure.command_line("Nothing."), ["--threads", "0"])
    assert "--threads must be at least 1, got 0" in capsys.readouterr().err


def test_threads_wait_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    measure.parse(measure.command_line("Nothing."), [])
    import os

    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_an_aim_is_met_on_its_own_side() -> None:
    assert measure.Aim("ratio", 10.0, 10.0).met
    assert not measure.Aim("ratio", 9.9, 10.0).met
    assert measure.Aim("cost", 1.2, 1.2, at_most=True).met
    assert not measure.Aim("cost", 1.21, 1.2, at_most=True).met
    line = measure.describe(measure.Aim("cost", 1.5, 1.2, at_most=True))
    assert line == "MISSED cost: 1.5 (aim: at most 1.2)"


def test_the_machine_has_no_name_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import platform

    facts = json.dumps(measure.machine(1))
    assert platform.node() not in facts
    assert {"cpu", "cores", "threads", "load_at_start", "python"} <= json.loads(facts).keys()


def test_a_result_holds_no_path(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    options = measure.parse(measure.command_line("Nothing."), ["--json", str(file)])
    report = measure.Report("nothing", options, {"rows": [1]}, [measure.Aim("x", 2.0, 1.0)])
    report.close()
    text = file.read_text()
    assert str(tmp_path) not in text
    data = json.loads(text)
    assert data["benchmark"] == "nothing"
    assert data["rows"] == [1]
    assert data["aims"] == [
        {"name": "x", "measured": 2.0, "wanted": 1.0, "at_most": False, "met": True}
    ]


def test_a_busy_machine_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (3.0, 2.0, 1.0))
    report = measure.Report("nothing", measure.parse(measure.command_line("Nothing."), []))
    assert report.notes == ["the machine was not idle: load 3.0 at the start"]
    assert "Not idle" in capsys.readouterr().err


def test_summary_lists_aims_and_refuses_strangers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    machine = {"cpu": "Abacus", "threads": 1, "load_at_start": [0.1, 0, 0]}
    aim = {"name": "ratio", "measured": 12.0, "wanted": 10.0, "at_most": False, "met": True}
    good.write_text(json.dumps({"benchmark": "worlds", "machine": machine, "aims": [aim]}))
    bad.write_text("{}")
    assert summary.main([str(good)]) == 0
    out = capsys.readouterr().out
    assert "worlds: Abacus, 1 thread(s), load 0.1 before" in out
    assert "met    ratio: 12 (aim: at least 10)" in out
    assert summary.main([str(bad), str(good)]) == 1
    assert "no result of these programs" in capsys.readouterr().err


# --- scripts --------------------------------------------------------------------------------------


def test_scripts_never_take_the_last_move_of_a_solution() -> None:
    assert stepping.endless(("a", "b", "c"), 5) == ("a", "b", "a", "b", "a")
    assert stepping.endless(("a",), 2) == ("a", "a")


def test_scripts_start_differently_as_long_as_they_can() -> None:
    scripts = stepping.prepare("alfworld", 256, 3)
    assert len({script.start.id for script in scripts}) == 256
    assert {len(script.actions) for script in scripts} == {3}
    assert stepping.prepare("alfworld", 1, 3, skip=5)[0] == scripts[5]


# --- roofline arithmetic --------------------------------------------------------------------------

WEIGHTS = Weights(linear=1000, head=100, layers=2, attention=8, cache=16, item=4)


def test_work_of_a_decoding_pass() -> None:
    # Two rows that know 9 and 4 positions, and an idle one.
    assert work_of(torch.tensor([[9], [0], [4]])) == (2, 2, 10 + 5, 10 + 5)


def test_work_of_a_prefill() -> None:
    # Four tokens from the beginning, and two that continue three, padded on the left.
    positions = torch.tensor([[0, 1, 2, 3], [0, 0, 3, 4]])
    assert work_of(positions) == (2, 4 + 2, 4 + 5, (1 + 2 + 3 + 4) + (4 + 5))


def test_bytes_and_flops_by_hand() -> None:
    forward = Forward(0.0, 1.0, rows=2, tokens=2, context=15, pairs=15, width=1)
    assert WEIGHTS.bytes(forward) == 4 * (1000 + 100 + 16 * 15)
    assert WEIGHTS.flops(forward) == 2 * (1000 * 2 + 100 * 2) + 4 * 2 * 8 * 15


def test_the_least_time_is_the_larger_one() -> None:
    forward = Forward(0.0, 1.0, rows=2, tokens=2, context=15, pairs=15, width=1)
    slow_memory = Roofline(((1, 5360.0),), rate=1e9)
    assert slow_memory.seconds(WEIGHTS, forward) == 1.0
    slow_cores = Roofline(((1, 1e9),), rate=2680.0)
    assert slow_cores.seconds(WEIGHTS, forward) == 2.0


def test_bandwidth_between_measured_sizes() -> None:
    machine = Roofline(((10, 100.0), (1000, 20.0)), rate=1.0)
    assert machine.bytes_per_second(1) == 100.0
    assert machine.bytes_per_second(100) == pytest.approx(60.0)
    assert machine.bytes_per_second(10**6) == 20.0


def test_weights_of_a_model_are_its_parameters() -> None:
    from tests.tiny_models import tiny_model

    model: Any = tiny_model("llama", 384)
    weights = Weights.of(model)
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    embedding = model.get_input_embeddings().weight.numel()
    total = sum(p.numel() for p in model.parameters())
    assert weights.linear + weights.head + norms + embedding == total
    assert weights.cache == 2 * 2 * 2 * 8  # keys and values, layers, heads, their size
    assert weights.attention == 32


def test_periods_join_decoding_passes_of_one_call_only() -> None:
    def at(start: float, width: int = 1) -> Forward:
        return Forward(start, start + 0.5, 1, width, 8, 8, width)

    decode, prefill, followed = roofline.split([[at(0, 5), at(1), at(3)], [at(10), at(11)]])
    assert [f.start for f in decode] == [1, 3, 10, 11]
    assert [f.start for f in prefill] == [0]
    assert [(f.start, seconds) for f, seconds in followed] == [(1, 2), (10, 1)]


def test_summary_of_passes_by_hand() -> None:
    passes = [
        Forward(0.0, 2.0, 1, 4, 4, 10, 4),
        Forward(2.0, 3.0, 1, 1, 5, 5, 1),
        Forward(4.0, 5.0, 1, 1, 6, 6, 1),
    ]
    machine = Roofline(((1, 5000.0),), rate=1e9)
    row = roofline.summarise([passes], machine, WEIGHTS, lambda tokens: float(tokens))
    least = [4 * (1100 + 16 * n) / 5000 for n in (5, 6)]
    assert row["decode_passes"] == 2
    assert row["bound_by_memory"] == 1.0
    assert row["forward_ratio"] == pytest.approx(2.0 / sum(least))
    assert row["decode_ratio"] == pytest.approx(2.0 / least[0])
    assert row["tokens_per_second"] == 0.5
    assert row["bare_ms"] == 1000.0
    assert row["prefill_tokens_per_second"] == 2.0


def test_step_cost_arithmetic() -> None:
    costs = [9.0, 1.0, 1.0, 1.0, 1.0, 1.0, *[1.5] * 44]
    assert step_cost.around(costs, 5) == 1.0
    assert step_cost.growth(costs) == 1.5
    assert step_cost.growth(costs[:39]) is None
    assert step_cost.curve([0.0, 4.0, 8.0]) == " ▄█"


def test_agreement_counts_what_both_said() -> None:
    assert worlds.agreement([["a", "b"], ["c"]], [["a", "x"]]) == (2, 1)


def test_aims_of_worlds() -> None:
    rows = [
        {"world": "w", "worlds": 1, "steps_per_second": 2.0, "ratio_to_loop": 1.0},
        {"world": "w", "worlds": 64, "steps_per_second": 20.0, "ratio_to_loop": 9.0},
    ]
    assert [(a.measured, a.met) for a in worlds.aims(rows)] == [(9.0, False), (10.0, True)]


def test_functions_are_named_without_the_machine() -> None:
    assert overhead.place("/a/b/site-packages/torch/nn/x.py") == "torch/nn/x.py"
    assert overhead.place("/home/x/gym_llmworld/session.py") == "gym_llmworld/session.py"
    assert overhead.place("/usr/lib/python3.11/json/decoder.py") == "decoder.py"


def test_a_log_sees_passes_only_while_it_watches() -> None:
    from gym_llmworld.backends.hf import HFBackend
    from gym_llmworld.core import Sampling
    from tests.tiny_models import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    engine = HFBackend.from_model(tiny_model("llama", len(tokenizer)), tokenizer, name="tiny")
    log = ForwardLog(engine)

    def ask() -> None:
        engine.continue_tokens([[5, 6, 7]], [Sampling(max_tokens=2)])
        engine.forget()

    ask()
    with log.watching():
        ask()
    ask()
    prefill, decode = log.forwards()
    work = [(f.rows, f.tokens, f.context, f.pairs, f.width) for f in (prefill, decode)]
    assert work == [(1, 3, 3, 6, 3), (1, 1, 4, 4, 1)]
    assert log.seconds == prefill.seconds + decode.seconds > 0


def test_both_kinds_of_product_are_the_product() -> None:
    weight, states = torch.randn(6, 4), torch.randn(3, 4)
    for multiply in linear_kinds(weight, 3).values():
        assert torch.allclose(multiply(states), states @ weight.T, atol=1e-5)


# --- the programs ---------------------------------------------------------------------------------


def result(file: Path) -> dict[str, Any]:
    return summary.read(file)


def test_worlds_agree_with_generate(tmp_path: Path) -> None:
    file = tmp_path / "worlds.json"
    line = ["--num-envs", "1,3", "--steps", "3", "--least-steps", "6", "--loop-worlds", "2"]
    assert worlds.main([*line, "--json", str(file)]) == 0
    one, three = result(file)["rows"]
    assert one["equal_observations"] == one["compared_observations"] == 6
    assert three["equal_observations"] == three["compared_observations"] == 6 + 9
    assert three["ratio_to_batched"] > 0


def test_a_disagreement_fails_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "agreement", lambda ours, theirs: (4, 3))
    line = ["--num-envs", "1", "--steps", "1", "--least-steps", "1", "--loop-worlds", "1"]
    assert worlds.main(line) == 1


def test_a_missing_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="--device cuda, but torch sees no CUDA device"):
        worlds.main(["--device", "cuda"])


def test_roofline_runs(tmp_path: Path) -> None:
    file = tmp_path / "roofline.json"
    roofline.main(["--num-envs", "1,2", "--steps", "2", "--json", str(file), *SMALL_MACHINE])
    one, row = result(file)["rows"]
    assert one["rows_per_pass"] == 1
    assert row["decode_ratio"] > 0
    assert 1 <= row["rows_per_pass"] <= 2
    assert result(file)["machine_measured"]["alfworld"]["weight_bytes"] > 10**7


def test_overhead_runs(tmp_path: Path) -> None:
    file = tmp_path / "overhead.json"
    overhead.main(["--num-envs", "2", "--steps", "2", "--json", str(file)])
    [row] = result(file)["rows"]
    parts = row["forward_share"] + row["backend_share"] + row["rest_share"]
    assert parts == pytest.approx(1.0)
    assert 0 < row["outside_forward_share"] < 1
    assert len(row["functions"]) == len(row["operators"]) == 15
    assert any("scaled_dot_product" in entry["operator"] for entry in row["operators"])


def test_shape_runs(tmp_path: Path) -> None:
    file = tmp_path / "shape.json"
    line = ["--shape", "tiny", "--num-envs", "1,2", "--steps", "2", "--loop-worlds", "1"]
    shape.main([*line, "--tokens", "4", "--json", str(file), *SMALL_MACHINE])
    data = result(file)
    _, row = data["rows"]
    assert row["steps"] == 4
    # No stop by chance: every answer has its four tokens.
    assert data["roofline"][1]["decode_passes"] == 2 * 3
    assert row["tokens_per_second"] / row["steps_per_second"] == pytest.approx(4.0)


def test_step_cost_runs_and_draws(tmp_path: Path) -> None:
    file, figure = tmp_path / "cost.json", tmp_path / "cost.png"
    line = ["--world", "alfworld", "--steps", "4", "--episodes", "1", "--every", "2"]
    step_cost.main([*line, "--json", str(file), "--plot", str(figure)])
    [row] = result(file)["rows"]
    assert len(row["seconds"]) == 4
    assert list(row["loop_seconds"]) == ["1", "2", "4"]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_webshop_engine_runs(tmp_path: Path) -> None:
    file = tmp_path / "webshop.json"
    webshop_engine.main(["--games", "3", "--json", str(file)])
    assert result(file)["agents"]["plan"]["episodes"] == 3


def test_real_worlds_runs_without_a_stock_engine(tmp_path: Path) -> None:
    file = tmp_path / "real.json"
    line = ["--world", "webshop", "--num-envs", "1", "--steps", "1", "--games", "1"]
    real_worlds.main([*line, "--least-steps", "1", "--json", str(file)])
    [row] = result(file)["rows"]
    assert row["stock_steps_per_cpu_second"] is None
    assert row["real_steps_per_cpu_second"] > 0


@pytest.mark.slow
def test_forks_answer_as_replays(tmp_path: Path) -> None:
    file = tmp_path / "forks.json"
    forks.main(["--forks", "4", "--steps", "3", "--json", str(file)])
    [row] = result(file)["rows"]
    assert row["equal_observations"] == 4
    assert row["forked"]["fork_cache_mib"] == 0


@pytest.mark.slow
# Stock engines warn of themselves: of games without a score, of a server's open socket.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("world", ["alfworld", "scienceworld", "textworld"])
def test_real_worlds_runs(tmp_path: Path, world: str) -> None:
    file = tmp_path / "real.json"
    line = ["--world", world, "--num-envs", "1,2", "--steps", "2", "--games", "1"]
    real_worlds.main([*line, "--least-steps", "4", "--json", str(file)])
    [row] = result(file)["rows"]
    assert row["stock_steps_per_cpu_second"] > 0
    assert row["imagined"]["1"]["steps"] == row["imagined"]["2"]["steps"] == 4


@pytest.mark.slow
def test_async_worlds_and_rollouts_run(tmp_path: Path) -> None:
    file = tmp_path / "async.json"
    async_worlds.main(["--num-envs", "2", "--steps", "2", "--turns", "1", "--json", str(file)])
    assert result(file)["equal_observations"]
    imagined_rollouts.main(
        ["--worlds", "2", "--max-steps", "2", "--turns", "1", "--json", str(file)]
    )
    assert result(file)["equal_episodes"] == 1.0
