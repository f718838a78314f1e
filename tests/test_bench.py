"""The benchmark: its command runs to the end, and every contender starts."""

import subprocess
import sys

import pytest

from bench import measures
from bench.__main__ import FLOOR, MODULES, OURS, TABLE, USUAL, VKBOTTLE
from tests.processes import ROOT


@pytest.mark.long
def test_the_command_reports_every_measure() -> None:
    command = [sys.executable, "-m", "bench", "--quick", "--only", OURS, FLOOR]
    report = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, encoding="utf-8").stdout
    rows = {row.split(" | ")[0].strip("| "): row for row in report.splitlines() if row.startswith("|")}
    names = [measure.name for measure in TABLE]
    names += ["loopback", "CPU of Redis per event, µs", "consume", "fetcher.asyncio.subscribe"]
    assert [name for name in names if not any("1" <= digit <= "9" for digit in rows.get(name, ""))] == []


@pytest.mark.parametrize("contender", [USUAL, VKBOTTLE])
def test_a_contender_polls(contender: str) -> None:
    assert measures.start(MODULES[contender])["start"] > 0
