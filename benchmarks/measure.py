"""What the benchmark programs share: command lines, clocks, facts of the machine, reports.

Nothing here loads torch: the number of threads has to be known before that.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from gym_llmworld.cli_output import console, messages, write_json
from gym_llmworld.worlds import get_world, world_keys

T = TypeVar("T")

# A table of figures is of no use when its columns are cut.
_wide = Console(highlight=False, width=max(console.width, 160))

IDLE_LOAD = 0.5
"""More than that, and other programs share the cores."""


def sizes(text: str) -> tuple[int, ...]:
    """Reads numbers such as ``"1,16,64"``; the type of a command line's option.

    Raises:
        argparse.ArgumentTypeError: Something else was written.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,16,64, got {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def embedded_worlds() -> tuple[str, ...]:
    """Returns the worlds that ship a model."""
    return tuple(key for key in world_keys() if get_world(key).embedded)


def worlds(text: str) -> tuple[str, ...]:
    """Reads worlds such as ``"alfworld,webshop"``, or ``"all"`` that ship a model.

    Raises:
        argparse.ArgumentTypeError: One of them ships none.
    """
    known = embedded_worlds()
    wanted = known if text == "all" else tuple(part.strip() for part in text.split(","))
    strange = [key for key in wanted if key not in known]
    if strange:
        raise argparse.ArgumentTypeError(
            f"{strange[0]!r} ships no model; expected 'all' or some of {','.join(known)}"
        )
    return wanted


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser with what every program takes.

    Args:
        doc: Of the program: what it measures, and how it is called.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds where models run."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1 (default: cpu)")


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Reads the command line, and has OpenMP and torch take the number of threads.

    Threads that wait must sleep: spinning ones slow down everything that shares their cores, by a
    factor of seven where it was measured.
    """
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads must be at least 1, got {options.threads}")
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    for name, value in (
        ("OMP_WAIT_POLICY", "passive"),
        ("GOMP_SPINCOUNT", "0"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)
    return options


def set_threads(count: int) -> None:
    """Sets the threads of torch, which may have been loaded before."""
    import torch

    torch.set_num_threads(count)


def check_device(device: str) -> None:
    """Ends the program where torch does not see the device.

    Raises:
        SystemExit: It does not.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(f"--device {device}, but torch sees no CUDA device; use --device cpu")


def backend_options(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the options of the Hugging Face backend that a command line names."""
    return {"device": options.device, "threads": options.threads}


# --- clocks ---------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """Returns the CPU seconds that a process has used. Linux only: it reads ``/proc``."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int | None = None) -> float:
    """Returns the resident memory of a process (None: this one) in MiB. Linux only."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@dataclass
class Clock:
    """Adds up wall and CPU seconds; a shared machine distorts the latter much less.

    Attributes:
        pids: Other processes whose CPU seconds count, too.
        wall: Seconds so far.
        cpu: CPU seconds so far, of all threads.
        calls: What was timed so far.
    """

    pids: Sequence[int] = ()
    wall: float = 0.0
    cpu: float = 0.0
    calls: int = 0

    def time(self, function: Callable[..., T], *arguments: Any, calls: int = 1) -> T:
        """Calls a function and adds what it took, as so many calls."""
        with self.running(calls):
            return function(*arguments)

    @contextlib.contextmanager
    def running(self, calls: int = 1) -> Iterator[None]:
        """Times a block."""
        wall, cpu = time.perf_counter(), self._cpu()
        yield
        self.cpu += self._cpu() - cpu
        self.wall += time.perf_counter() - wall
        self.calls += calls

    @property
    def cpu_per_call(self) -> float:
        """CPU seconds of a call."""
        return self.cpu / self.calls

    def _cpu(self) -> float:
        return time.process_time() + sum(map(cpu_seconds, self.pids))


# --- reports --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """What was to be reached.

    Attributes:
        name: What is measured.
        measured: The figure.
        wanted: What it should be.
        at_most: The figure should not be larger, rather than not smaller.
    """

    name: str
    measured: float
    wanted: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        if self.at_most:
            return self.measured <= self.wanted
        return self.measured >= self.wanted

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {
            "name": self.name,
            "measured": self.measured,
            "wanted": self.wanted,
            "at_most": self.at_most,
            "met": self.met,
        }


def machine(threads: int, device: str = "cpu") -> dict[str, Any]:
    """Returns what the figures depend on; call it before measuring. No name of a host is in it."""
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "cores_of_this_process": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "threads": threads,
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["torch"] = torch.__version__
        if device.startswith("cuda"):
            facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or "unknown"
    lines = (line.partition(":") for line in info.read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == "model name"), "?")


@dataclass
class Report:
    """The figures of one program, as a table and as JSON.

    Args:
        name: Of the program.
        options: Its command line.

    Attributes:
        figures: What goes into the JSON file, by name.
        aims: What was to be reached.
        notes: What a reader should know.
    """

    name: str
    options: argparse.Namespace
    figures: dict[str, Any] = field(default_factory=dict)
    aims: list[Aim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        device = getattr(self.options, "device", "cpu")
        if hasattr(self.options, "device"):
            set_threads(self.options.threads)
            check_device(device)
        self.machine = machine(self.options.threads, device)
        load = self.machine["load_at_start"][0]
        if load > IDLE_LOAD:
            self.notes.append(f"the machine was not idle: load {load:.1f} at the start")
            messages.print(f"[yellow]Not idle:[/] load {load:.1f}; figures will be too low.")

    def say(self, text: str) -> None:
        """Tells how far the program is, on stderr."""
        messages.print(f"{self.name}: {text}", style="dim", markup=False)

    def table(
        self, title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
    ) -> None:
        """Prints rows.

        Args:
            title: Above.
            rows: With the values.
            columns: Heading -> key of the value, with a format after a colon: ``"ratio:.1f"``.
        """
        table = Table(title=title)
        for i, heading in enumerate(columns):
            table.add_column(heading, justify="left" if i == 0 else "right")
        for row in rows:
            table.add_row(*(_cell(row, column) for column in columns.values()))
        _wide.print(table)

    def list(self, title: str) -> None:
        """Prints the figures that are plain values, one per line."""
        rows = [
            {"figure": name.replace("_", " "), "value": str(value)}
            for name, value in self.figures.items()
            if not isinstance(value, Mapping | list)
        ]
        self.table(title, rows, {"figure": "figure", "value": "value"})

    def close(self) -> None:
        """Prints aims and notes, and writes the JSON file where one is wanted."""
        for aim in self.aims:
            console.print(describe(aim), style="green" if aim.met else "yellow", markup=False)
        for note in self.notes:
            console.print(f"Note: {note}.", style="dim", markup=False)
        if self.options.json:
            write_json(self.options.json, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as plain values, without the paths of this machine."""
        settings = {
            key: value for key, value in vars(self.options).items() if not isinstance(value, Path)
        }
        settings.pop("json", None)
        return {
            "benchmark": self.name,
            "machine": self.machine,
            "settings": settings,
            **self.figures,
            "aims": [aim.to_json() for aim in self.aims],
            "notes": self.notes,
        }


def describe(aim: Aim) -> str:
    """Returns one line on an aim."""
    bound = "at most" if aim.at_most else "at least"
    verdict = "met" if aim.met else "MISSED"
    return f"{verdict:6} {aim.name}: {aim.measured:.3g} (aim: {bound} {aim.wanted:g})"


def _cell(row: Mapping[str, Any], column: str) -> str:
    key, _, form = column.partition(":")
    value = row.get(key)
    return "-" if value is None else format(value, form)
