"""A model vendor that streams `count` tokens at `rate` a second (0: as fast as it can), for `bench.turns`."""

import asyncio
import json
import re
import time

PREFIX = '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":'


def event(choices: str, tail: str = "}") -> bytes:
    data = f"data: {PREFIX}{choices}{tail}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


TOKEN = event('[{"index":0,"delta":{"content":" token"},"logprobs":null,"finish_reason":null}]')
END = (
    event('[{"index":0,"delta":{},"finish_reason":"stop"}]')
    + event("[]", ',"usage":{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}}')
    + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Requests name their model `COUNTxRATE`."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            found = re.search(r"content-length: (\d+)", head)
            body = json.loads(await reader.readexactly(int(found[1]) if found else 0))
            count, rate = map(int, body["model"].split("x"))
            writer.write(HEAD)
            began = time.perf_counter()
            for number in range(count):
                if rate and (late := began + number / rate - time.perf_counter()) > 0:
                    await asyncio.sleep(late)
                writer.write(TOKEN)
                if number % 256 == 255:
                    await writer.drain()
            writer.write(END)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(f"port {server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
