"""Turns and their viewers: a vendor's tokens, durability, many viewers, many turns, each beside its floor.

    python -m bench.turns [--only tokens,durability,viewers,many,takeover] [--json]

"CPU" is processor time of the server's process, not time on the wall: it says the same on a busy machine.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import takeover, viewers
from bench.chats import HERE, choose_model, model_server, open_session, play, server_with_model, warm_up
from bench.durability import run as durability_of
from bench.running import Running

TOKENS = 20_000
TOKENS_A_SECOND = 2_000
#: Turns at once, the tokens of each, and how fast they come.
TURNS = 200
TURN_TOKENS = 100
TURN_RATE = 50


def token_floor(vendor: Running, rate: int) -> float:
    url = f"http://127.0.0.1:{vendor.port}/"
    command = [sys.executable, HERE / "vendor_floor.py", url, str(TOKENS), str(rate)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def tokens(directory: Path) -> dict[str, Any]:
    """Microseconds of CPU for each token from the vendor's socket to the log and one viewer."""
    found = {}
    with model_server(directory) as vendor, server_with_model(directory / "tokens", vendor) as server:
        opened = await open_session(server)
        await warm_up(server)
        for rate in (0, TOKENS_A_SECOND):
            await choose_model(server, opened, f"openai/{TOKENS}x{rate}")
            cpu = server.cpu_seconds()
            await play(server, opened, "hello")
            spent = (server.cpu_seconds() - cpu) / TOKENS * 1e6
            what = "at once" if rate == 0 else f"at {rate:,} a second"
            found[f"CPU a token, {TOKENS:,} {what}"] = {
                "cpu_us": spent,
                "floor_us": await asyncio.to_thread(token_floor, vendor, rate),
            }
    return found


async def durability(directory: Path) -> dict[str, Any]:
    """CPU of a scripted turn on SQLite, beside the same turn that nobody keeps."""
    durable_ms, floor_ms, entries, entry_us = await asyncio.to_thread(durability_of, directory)
    return {
        "CPU of a turn of 17 steps, durable": {"cpu_ms": durable_ms, "floor_ms": floor_ms},
        "CPU that durability adds to an entry of its journal": {
            "cpu_us": (durable_ms - floor_ms) / entries * 1000,
            "floor_us": entry_us,
        },
    }


async def many(directory: Path) -> dict[str, Any]:
    """Turns at once, each with a viewer; every one has to come to its end."""
    settings = {"FERMATA_RUNS_AT_ONCE": str(TURNS)}
    with (
        model_server(directory) as vendor,
        server_with_model(directory / "many", vendor, **settings) as server,
    ):
        await warm_up(server)
        opened = [await open_session(server) for _ in range(TURNS)]
        for one in opened:
            await choose_model(server, one, f"openai/{TURN_TOKENS}x{TURN_RATE}")
        cpu, began = server.cpu_seconds(), time.perf_counter()
        await asyncio.gather(*(play(server, one, "hello") for one in opened))
        took = time.perf_counter() - began
        spent = (server.cpu_seconds() - cpu) / TURNS * 1000
    what = f"{TURNS} turns at once, {TURN_TOKENS} tokens each"
    return {
        f"{what}: seconds until all have ended": {"seconds": took, "floor_seconds": TURN_TOKENS / TURN_RATE},
        f"{what}: CPU a turn": {"cpu_ms": spent},
    }


PARTS = {
    "tokens": tokens,
    "durability": durability,
    "viewers": viewers.measure,
    "many": many,
    "takeover": takeover.measure,
}


async def measure(directory: Path, only: list[str]) -> dict[str, Any]:
    return {name: await PARTS[name](directory) for name in only}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        found = asyncio.run(measure(Path(place), options.only.split(",")))
    if options.json:
        json.dump(found, sys.stdout)
        return
    for part in found.values():
        for what, values in part.items():
            print(f"{what:50}" + "  ".join(f"{name} {value:,.2f}" for name, value in values.items()))


if __name__ == "__main__":
    main()
