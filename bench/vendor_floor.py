"""The floor of a streamed token: aiohttp reads the vendor's stream and decodes the JSON of every event.
Prints microseconds of processor time per token.

    python bench/vendor_floor.py URL COUNT RATE
"""

import asyncio
import json
import sys
import time

import aiohttp
import orjson


async def read(url: str, count: int, rate: int) -> float:
    async with aiohttp.ClientSession() as session:
        cpu = time.process_time()
        async with session.post(url, data=json.dumps({"model": f"{count}x{rate}"})) as response:
            rest = b""
            while piece := await response.content.readany():
                *blocks, rest = (rest + piece).split(b"\n\n")
                for block in blocks:
                    if block != b"data: [DONE]":
                        orjson.loads(block[6:])
        return (time.process_time() - cpu) / count * 1e6


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.install()
    except ImportError:
        pass
    print(asyncio.run(read(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
