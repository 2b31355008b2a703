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
from fermata.sandboxes.model import LifecycleState

log = structlog.get_logger()


async def reconcile(*, database: Database, clock: Clock, provider: SandboxProvider) -> None:
    there = {info.name: info.status for info in await provider.list_sandboxes()}
    stopped = 0
    after = ""
    while page := await database.read(partial(store.list_active, provider=provider.name, after=after)):
        after = page[-1].id
        for record in page:
            if there.get(record.id) is not SandboxStatus.RUNNING:
                await database.write(partial(_mark_stopped, sandbox_id=record.id, at=clock.now()))
                stopped += 1
    known = await database.read(lambda found: store.list_ids(found, provider.name))
    unknown = sorted(name for name in there if name not in known and not name.startswith("build-"))
    if stopped or unknown:
        log.info("reconciled", found_stopped=stopped, without_row=len(unknown), names=unknown[:20])


def _mark_stopped(connection: Connection, sandbox_id: str, at: datetime) -> None:
    record = store.find(connection, sandbox_id)
    if record is None or record.state is not LifecycleState.ACTIVE:
        return
    store.move(
        connection,
        record,
        LifecycleState.HIBERNATED,
        reason="found stopped at start",
        actor="reconcile",
        at=at,
        run_id=None,
        expires_at=None,
        hibernate_after=None,
        snapshot_created_at=at,
    )
