"""Everything that is measured, as one table: `what | measured | floor | ratio`.

    python -m bench

The floor is the least that anything of the kind could take, measured in the same run on the same machine. A
ratio says how far we are from it; for rates it is how much less we do.
"""

import argparse
import asyncio
import platform
import tempfile
from pathlib import Path
from typing import Any

from bench import sandbox, server, turns

Row = tuple[str, str, str, str]

#: Of each thing that is timed; all of it then takes less than four minutes on a busy machine.
RUNS = 5


def row(what: str, measured: float, unit: str, floor: float | None = None, *, rate: bool = False) -> Row:
    if floor is None:
        return what, number(measured, unit), "", ""
    ratio = floor / measured if rate else measured / floor
    return what, number(measured, unit), number(floor, unit), f"{ratio:.1f}"


def number(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def sandbox_rows(directory: Path, runs: int) -> list[Row]:
    measures, rate, _ = asyncio.run(sandbox.run(directory, runs))
    table = measures.table()
    floor = table.pop("floor: bare bubblewrap")["median_ms"]
    rows = [row(f"sandbox: {what}", values["median_ms"], "ms", floor) for what, values in table.items()]
    return [*rows, row("sandbox: commands at once", rate, "/s", 1000 / floor, rate=True)]


def server_rows(directory: Path, runs: int) -> list[Row]:
    found = asyncio.run(server.measure(directory, runs))
    rates, streams, times = found["rates"], found["streams"], found["times"]
    plain = rates["floor: Starlette, same size"]
    replay, plain_stream = streams["replay of 10,000 chunks"], streams["floor: Starlette stream"]
    get, post = rates["GET /api/sessions/{id}"], rates["POST /api/sessions"]
    two_rows = rates["floor: two-row transaction"]["per_second"]
    bare = times.pop("floor: bare bubblewrap")["median_ms"]
    return [
        row("GET /api/sessions/{id}", get["per_second"], "/s", plain["per_second"], rate=True),
        row("GET /api/sessions/{id}, CPU", get["cpu_us"], "us", plain["cpu_us"]),
        row("POST /api/sessions", post["per_second"], "/s", two_rows, rate=True),
        row("POST /api/sessions, CPU", post["cpu_us"], "us", plain["cpu_us"]),
        row("replay, CPU a chunk", replay["cpu_us"], "us", plain_stream["cpu_us"]),
        row(
            "replay of 10,000 chunks, first chunk",
            replay["first_chunk_ms"],
            "ms",
            plain_stream["first_chunk_ms"],
        ),
        *(row(what, values["median_ms"], "ms", bare) for what, values in times.items()),
    ]


def turn_rows(directory: Path) -> list[Row]:
    rows = []
    for part in asyncio.run(turns.measure(directory, list(turns.PARTS))).values():
        for what, values in part.items():
            unit = next(name for name in values if not name.startswith("floor_")).rsplit("_", 1)[-1]
            measured = next(value for name, value in values.items() if not name.startswith("floor_"))
            floor: Any = next((value for name, value in values.items() if name.startswith("floor_")), None)
            rows.append(row(what, measured, {"seconds": "s", "kib": "KiB"}.get(unit, unit), floor))
    return rows


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        rows: list[Row] = [("what", "measured", "floor", "ratio"), ("---",) * 4]
        for name, measured in (
            ("sandbox", lambda directory: sandbox_rows(directory, RUNS)),
            ("server", lambda directory: server_rows(directory, RUNS)),
            ("turns", turn_rows),
        ):
            directory = Path(place) / name
            directory.mkdir()
            rows += measured(directory)
    print(f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}\n")
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
