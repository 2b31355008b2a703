"""What a local sandbox costs, beside the cost of a bare bubblewrap in the same run.

    python bench/sandbox.py [--runs 60] [--data-dir DIR] [--json]

Times are wall times of one call after another. The floor is `bwrap` with all namespaces running `true`,
started by the same process: what nothing that isolates with bubblewrap can beat.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from fermata.sandboxes.contract import NetworkPolicy, SandboxSpec
from fermata.sandboxes.egress import EgressProxy
from fermata.sandboxes.providers.local import LocalProvider
from fermata.sandboxes.providers.local.base import BaseStore
from fermata.sandboxes.providers.local.ids import first_id

_FLOOR = [
    *("bwrap", "--unshare-all", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin"),
    *("--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev"),
    *("--tmpfs", "/tmp", "--new-session", "--die-with-parent", "/usr/bin/true"),
]
_PARALLEL = 64


class Measures:
    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    async def time(self, what: str, work: Awaitable[object]) -> None:
        began = time.perf_counter()
        await work
        self.times.setdefault(what, []).append((time.perf_counter() - began) * 1000)

    def table(self) -> dict[str, dict[str, float]]:
        return {
            what: {
                "median_ms": round(statistics.median(times), 3),
                "p95_ms": round(sorted(times)[max(0, int(len(times) * 0.95) - 1)], 3),
                "runs": len(times),
            }
            for what, times in self.times.items()
        }


async def floor() -> None:
    process = await asyncio.create_subprocess_exec(*_FLOOR)
    if await process.wait() != 0:
        raise SystemExit("the bare bubblewrap of the floor failed")


async def one_life(provider: LocalProvider, measures: Measures, number: int) -> None:
    name = f"bench-{number}"

    async def create_and_run() -> None:
        sandbox = await provider.create(SandboxSpec(name=name, network=NetworkPolicy.OPEN))
        await sandbox.exec(["true"])

    async def resume_and_run() -> None:
        sandbox = await provider.resume(name)
        await sandbox.exec(["true"])

    await measures.time("floor: bare bubblewrap", floor())
    await measures.time("create + first exec", create_and_run())
    sandbox = await provider.connect(name)
    data = b"x" * 4096
    for what, work in (
        ("exec true", lambda: sandbox.exec(["true"])),
        ("exec, 1 MB of output", lambda: sandbox.exec(["head", "-c", "1000000", "/dev/zero"])),
        ("write 4 KB", lambda: sandbox.write_file("file", data)),
        ("read 4 KB", lambda: sandbox.read_file("file")),
        ("list a directory", lambda: sandbox.list_directory(".")),
        ("connect", lambda: provider.connect(name)),
    ):
        await repeat(measures, what, work, 5)
    await measures.time("stop", provider.stop(name))
    await measures.time("snapshot", provider.snapshot(name, f"{name}-kept"))
    await measures.time("resume + first exec", resume_and_run())
    await measures.time("destroy", provider.destroy(name))
    await provider.delete_snapshot(f"{name}-kept")


async def repeat(measures: Measures, what: str, work: Callable[[], Awaitable[object]], times: int) -> None:
    for _ in range(times):
        await measures.time(what, work())


async def many_at_once(provider: LocalProvider) -> float:
    """Commands a second, started side by side in one sandbox."""
    sandbox = await provider.create(SandboxSpec(name="bench-many"))
    began = time.perf_counter()
    for _ in range(4):
        await asyncio.gather(*(sandbox.exec(["true"]) for _ in range(_PARALLEL)))
    took = time.perf_counter() - began
    await provider.destroy("bench-many")
    return 4 * _PARALLEL / took


async def run(data_dir: Path, runs: int) -> tuple[Measures, float, str]:
    provider = LocalProvider(
        data_dir=data_dir,
        installation="bench",
        egress=EgressProxy(),
        base=BaseStore(builds=False, first_id=first_id()),
    )
    report = await provider.open()
    if not report.usable:
        raise SystemExit("\n".join(report.missing))
    measures = Measures()
    try:
        for number in range(runs):
            await one_life(provider, measures, number)
        rate = await many_at_once(provider)
    finally:
        for info in await provider.list_sandboxes():
            await provider.destroy(info.name)
        await provider.close()
    return measures, rate, report.summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.data_dir) as place:
        measures, rate, summary = asyncio.run(run(Path(place), options.runs))
    table = measures.table()
    if options.json:
        json.dump({"summary": summary, "measures": table, "parallel_execs_per_second": rate}, sys.stdout)
        return
    print(summary)
    print(f"{'':28}{'median':>10}{'p95':>10}   (ms)")
    for what, row in table.items():
        print(f"{what:28}{row['median_ms']:>10.2f}{row['p95_ms']:>10.2f}   n={row['runs']}")
    print(f"{_PARALLEL} commands side by side: {rate:.0f} a second")


if __name__ == "__main__":
    main()
