"""The floor of many viewers: a bare asyncio server that writes the same bytes to each connection, `rate`
times a second, and nothing else. Each write is a call to the system, as it is for every server.

    python bench/fan_out.py VIEWERS COUNT RATE
"""

import asyncio
import sys

CHUNK = b'id: 12345\ndata: {"type":"text-delta","id":"1-text-1","delta":" token"}\n\n'


async def main(viewers: int, count: int, rate: int) -> None:
    loop = asyncio.get_running_loop()
    transports: list[asyncio.WriteTransport] = []
    full = asyncio.Event()

    class Viewer(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.append(transport)  # type: ignore[arg-type]
            if len(transports) == viewers:
                full.set()

    server = await loop.create_server(Viewer, "127.0.0.1", 0)
    print(f"port {server.sockets[0].getsockname()[1]}", flush=True)
    await full.wait()
    for _ in range(count):
        for transport in transports:
            transport.write(CHUNK)
        await asyncio.sleep(1 / rate)
    for transport in transports:
        transport.write(b"data: [DONE]\n\n")
    await server.serve_forever()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.install()
    except ImportError:
        pass
    asyncio.run(main(*map(int, sys.argv[1:])))
