"""The floor of the HTTP measurements: as little as Starlette on uvicorn can do."""

import socket
import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

BODY = b'{"x":"' + b"x" * (int(sys.argv[1]) - 8) + b'"}'
CHUNK = b'id: 12345\ndata: {"type":"text-delta","id":"1-text-0","delta":"' + b"x" * 24 + b'"}\n\n'


async def answer(_: Request) -> Response:
    return Response(BODY, media_type="application/json")


async def stream(request: Request) -> Response:
    count = int(request.path_params["count"])

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(count // 5):
            yield CHUNK * 5

    return StreamingResponse(chunks(), media_type="text/event-stream")


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"port {listener.getsockname()[1]}", flush=True)
    app = Starlette(routes=[Route("/answer", answer), Route("/stream/{count}", stream)])
    config = uvicorn.Config(app, access_log=False, log_level="warning", lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])
