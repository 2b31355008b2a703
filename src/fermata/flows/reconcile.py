"""At start: what the rows say against what the provider has, after a crash or a reboot.

Sandboxes that died with the process that ran them are written down as hibernated: their disks are kept.
Nothing is ever deleted here; a machine that no row knows is reported.
"""

from datetime import datetime
from functools import partial

import structlog

from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database
from fermata.sandboxes import store
from fermata.sandboxes.contract import SandboxProvider, SandboxStatus
from fermata.sandboxes.model import LifecycleState, SandboxRecord

log = structlog.get_logger()


async def reconcile(*, database: Database, clock: Clock, provider: SandboxProvider) -> None:
    stopped = 0
    after = ""
    while page := await database.read(partial(store.list_active, provider=provider.name, after=after)):
        after = page[-1].id
        # Asked after the rows were read: what another process starts meanwhile has another version by then.
        there = {info.name: info.status for info in await provider.list_sandboxes()}
        for record in page:
            if there.get(record.id) is not SandboxStatus.RUNNING:
                stopped += await database.write(partial(_mark_stopped, seen=record, at=clock.now()))
    names = [info.name for info in await provider.list_sandboxes()]
    known = await database.read(lambda found: store.list_ids(found, provider.name))
    unknown = sorted(name for name in names if name not in known and not name.startswith("build-"))
    if stopped or unknown:
        log.info("reconciled", found_stopped=stopped, without_row=len(unknown), names=unknown[:20])


def _mark_stopped(connection: Connection, seen: SandboxRecord, at: datetime) -> bool:
    current = store.find(connection, seen.id)
    if current is None or current.version != seen.version:
        return False
    store.move(
        connection,
        seen,
        LifecycleState.HIBERNATED,
        reason="found stopped at start",
        actor="reconcile",
        at=at,
        run_id=None,
        expires_at=None,
        hibernate_after=None,
        snapshot_created_at=at,
    )
    return True
