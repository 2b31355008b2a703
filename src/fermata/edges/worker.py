"""A worker without HTTP, for many processes on one PostgreSQL: claim, run, heartbeat, drain."""

import asyncio
import signal

import structlog

from fermata.kit.errors import SettingsError
from fermata.kit.settings import Settings
from fermata.wiring import open_fermata

log = structlog.get_logger()


async def work(settings: Settings) -> None:
    """Work on runs until SIGTERM or SIGINT, then hand over what is unfinished."""
    if settings.database_url is None or settings.database_url.startswith("sqlite"):
        raise SettingsError("fermata worker needs PostgreSQL: set FERMATA_DATABASE_URL.")
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with open_fermata(settings) as fermata:
        log.info("worker ready", owner=fermata.worker.owner)
        await ended.wait()
        log.info("worker draining")
