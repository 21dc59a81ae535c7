"""All aims of the kept results in one list.

    python -m benchmarks.summary benchmarks/results/*.json

Reads what the other programs have written with --json, and prints which aims were met, under which
conditions. Ends with status 1 where a file is none of theirs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Aim, describe
from gym_llmworld.cli_output import console, messages


def read(file: Path) -> dict[str, Any]:
    """Reads a result.

    Raises:
        ValueError: It is not one that these programs write.
    """
    data = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not {"benchmark", "machine", "aims"} <= data.keys():
        raise ValueError(
            f"{file} is no result of these programs (no benchmark, machine and aims); run its "
            "program again"
        )
    return data


def lines(data: dict[str, Any]) -> list[str]:
    """Returns a heading with the conditions, and a line per aim."""
    machine = data["machine"]
    where = machine.get("gpu", machine["cpu"])
    load = machine["load_at_start"][0]
    heading = f"{data['benchmark']}: {where}, {machine['threads']} thread(s), load {load} before"
    aims = [
        Aim(aim["name"], aim["measured"], aim["wanted"], aim["at_most"]) for aim in data["aims"]
    ]
    return [heading, *(f"  {describe(aim)}" for aim in aims)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="JSON files of the other programs")
    status = 0
    for file in parser.parse_args(arguments).files:
        try:
            for line in lines(read(file)):
                console.print(line, markup=False)
        except ValueError as error:
            messages.print(str(error), markup=False)
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
