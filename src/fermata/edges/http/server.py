"""`fermata serve`: one process with its HTTP door, its worker and its sandboxes."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import click
import structlog
import uvicorn

from fermata.accounts.first import KEY_FILE
from fermata.edges.http.app import App, create_app
from fermata.kit.errors import SettingsError
from fermata.kit.settings import Settings
from fermata.wiring import Fermata, open_fermata

log = structlog.get_logger()

#: After this, connections that are still open at the end are cut.
DRAIN_SECONDS = 3


def _is_no_cut_stream(record: logging.LogRecord) -> bool:
    """Streams that go on are cut on purpose (see `sse`); uvicorn takes that for an error."""
    return record.msg != "ASGI callable returned without completing response."


class Server(uvicorn.Server):
    """Uvicorn that lets viewers go when it is told to end, so that it need not wait for open streams."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._app.draining = True
        self._app.fermata.stream.close()
        self._app.fermata.feed.close()
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """On the event loop, where closing streams is safe; uvicorn's own way interrupts any bytecode."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def serve(settings: Settings, **doubles: Any) -> None:
    """Serve until SIGTERM or SIGINT. `doubles` go to `open_fermata`, for tests."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings, **doubles))


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:  # no wheel for this platform: asyncio's own loop does
        return None
    return uvloop.new_event_loop


async def _serve(settings: Settings, **doubles: Any) -> None:
    listener = _listen(settings)
    async with open_fermata(settings, **doubles) as fermata:
        app = create_app(fermata)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        logging.getLogger("uvicorn.error").addFilter(_is_no_cut_stream)
        server = Server(config, app)
        listener.listen(config.backlog)  # so that whoever reads the greeting can connect
        _greet(settings, fermata, listener.getsockname()[1])
        await server.serve(sockets=[listener])


def _listen(settings: Settings) -> socket.socket:
    """Take the port before anything else is started, so that a taken one is said at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Named TCP, because asyncio turns Nagle's delay off only for sockets that say so.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        raise SettingsError(
            f"Cannot listen on {settings.host} port {settings.port}: {error.strerror}. "
            "Choose another with --port or FERMATA_PORT."
        ) from error
    listener.set_inheritable(False)
    return listener


def _greet(settings: Settings, fermata: Fermata, port: int) -> None:
    """Where to go, what key to use, and what kind of sandboxes there are."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    url = f"http://{host}:{port}"
    key_file = settings.data_dir / KEY_FILE
    key = key_file.read_text(encoding="ascii").strip() if key_file.exists() else None
    lines = [
        "",
        f"  Fermata {url}    API {url}/docs",
        f"  Sandboxes  {fermata.report.summary}",
        *(f"             missing: {item}" for item in fermata.report.missing),
        f"  Models     {fermata.catalogue.summary}",
        f"  API key    {key or 'as created before'}",
        "",
        "  Try:",
        f"    curl -s -X POST {url}/api/sessions -H 'x-api-key: {key or '<key>'}'",
        "",
    ]
    click.echo("\n".join(lines), file=sys.stdout)
    sys.stdout.flush()
    log.info("serving", url=url, provider=fermata.sandboxes.default, usable=fermata.report.usable)
