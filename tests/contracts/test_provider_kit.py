"""The kit finds faults: a check that passes over a faulty provider would prove nothing about a good one."""

import asyncio
import re
import runpy
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FAULTS = runpy.run_path(str(HERE / "faulty_providers.py"))["FAULTS"]


@pytest.fixture(scope="module")
def objections() -> dict[str, str]:
    """The outcome of one check for each faulty provider, by the provider's name."""

    async def run() -> str:
        module = str(HERE / "faulty_providers.py")
        checks = [f"{module}::Test{fault.__name__}::{check}" for fault, check in FAULTS.items()]
        process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "--tb=no",
                "-rA",
                "--noconftest",
                "-p",
                "no:cacheprovider",
            ),
            *("--rootdir", str(ROOT), *checks),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=ROOT,
        )
        said, _ = await process.communicate()
        return said.decode()

    said = asyncio.run(run())
    found = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED) \S*?::Test(\w+)::", said, re.MULTILINE)
    assert len(found) >= len(FAULTS), said
    return {name: outcome for outcome, name in found}


@pytest.mark.parametrize("fault", [fault.__name__ for fault in FAULTS])
def test_a_provider_with_a_fault_does_not_pass(objections: dict[str, str], fault: str) -> None:
    assert objections[fault] == "FAILED"
