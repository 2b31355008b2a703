"""The contract's verbs for sandboxes on this machine.

Who changes a sandbox holds the lock on its gate; who is alive is told by the lock that the machine itself
holds. So several servers may share one data directory, and none has to believe what another wrote down.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import structlog

from fermata.kit.errors import (
    SandboxExistsError,
    SandboxFailedError,
    SandboxGoneError,
    SandboxStoppedError,
    SandboxUnsupportedError,
)
from fermata.sandboxes.contract import (
    Abilities,
    Limits,
    NetworkPolicy,
    ProviderReport,
    SandboxInfo,
    SandboxSpec,
    SandboxStatus,
    SnapshotInfo,
)
from fermata.sandboxes.egress import EgressProxy
from fermata.sandboxes.names import check_labels, check_name, is_name
from fermata.sandboxes.providers.local import walls
from fermata.sandboxes.providers.local.base import Base, BaseStore
from fermata.sandboxes.providers.local.engine import Engine, explain, prepare
from fermata.sandboxes.providers.local.ids import Mode
from fermata.sandboxes.providers.local.locks import holding, is_held, try_lock
from fermata.sandboxes.providers.local.machine import (
    Booted,
    BootError,
    Machine,
    boot,
    end_foreign,
    has_living_owner,
    sync_disk,
)
from fermata.sandboxes.providers.local.records import (
    Home,
    Layout,
    Record,
    make_disk,
    new_record,
)
from fermata.sandboxes.providers.local.sandbox import LocalSandbox
from fermata.sandboxes.providers.local.snapshots import SnapshotStore

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

DEFAULT_LIMITS = Limits(cpus=2.0, memory_bytes=4 * 1024**3, processes=1024, file_bytes=16 * 1024**3)
#: What must not be possible inside, tried by the probe: it would be a way to the host.
_PROBE = (
    "test ! -w /proc/sys/kernel/core_pattern && test ! -e /proc/1/root/. && "
    "grep -q '^Seccomp:.2' /proc/self/status && grep -q '^NoNewPrivs:.1' /proc/self/status"
)


class LocalProvider:
    """See `contract.SandboxProvider`.

    `data_dir` must lie on a file system that can be the upper side of an overlay. Several servers may share
    it when they have the same `installation`, a word that names their control groups. `base` must be for the
    ids of this process, as it is by default; it is opened and closed here. `defaults` hold where a sandbox
    asks for no limit itself.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        installation: str,
        egress: EgressProxy,
        base: BaseStore,
        defaults: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._installation = installation
        self._egress = egress
        self._base = base
        self._defaults = defaults
        self._layout = Layout(self._data_dir)
        self._snapshots = SnapshotStore(self._layout)
        self._bases: dict[str, Base] = {}
        #: By the id of their record, as long as they run or are being cleaned up after.
        self._machines: dict[str, Machine] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._engine: Engine | None = None
        self._words = "the local provider has not been opened"

    @property
    def name(self) -> str:
        return "local"

    @property
    def abilities(self) -> Abilities:
        hard = self._engine is not None and len(self._engine.groups.enforced) == 3
        return Abilities(keeps_detached_output=True, snapshots=True, network=True, hard_limits=hard)

    # ---- opening and closing ----

    async def open(self) -> ProviderReport:
        try:
            await asyncio.to_thread(self._make_layout)
            engine = await prepare(self._layout, self._installation, self._defaults)
            await self._base.open(self._data_dir)
            self._engine = engine
            await self._clean()
            await self._prove()
        except SandboxUnsupportedError as error:
            return self._unusable(error.message)
        except BootError as error:
            _log.warning("sandbox_probe_failed", said=str(error))
            return self._unusable(explain(str(error)))
        except OSError as error:
            _log.warning("local_provider_not_opened", error=str(error))
            return self._unusable(f"the data directory cannot be used: {error.strerror}")
        summary = f"local: {engine.describe()}; base: {self._base.status()}"
        return ProviderReport(usable=True, summary=summary, missing=engine.missing())

    def _make_layout(self) -> None:
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._layout.make()

    def _unusable(self, words: str) -> ProviderReport:
        if self._engine is not None:
            self._engine.launcher.close()
            self._engine = None
        self._words = words
        return ProviderReport(usable=False, summary="local: unusable", missing=tuple(words.splitlines()))

    async def _clean(self) -> None:
        """Finish what a dead process left half done. What a living one is at is locked, and left alone."""
        engine = self._ready()
        alive = set()
        for path in list(self._layout.staging.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                lock = try_lock(path / "gate")
                if lock is None:
                    alive.add(path.name)
                    continue
                self._layout.discard(path)
                os.close(lock)
        for name in self._layout.names():
            home = self._layout.home(name)
            with contextlib.suppress(SandboxGoneError):
                record = home.read()
                if is_held(home.gate) or (is_held(home.lock) and has_living_owner(home)):
                    alive.add(record.id)
                else:
                    await end_foreign(home, kill=True)
        for path in list(self._layout.trash.iterdir()):
            await end_foreign(Home(path), kill=True)
            await engine.launcher.remove(path)
        for sandbox_id in engine.groups.ids() - alive:
            await engine.groups.remove(sandbox_id)
        await self._snapshots.collect(engine.launcher.remove)

    async def _prove(self) -> None:
        engine = self._ready()
        try:
            await self._probe()
        except BootError as error:
            if engine.mapping.mode is not Mode.SUBID:
                raise
            engine.use_one_user(explain(str(error)))
            await self._probe()

    async def _probe(self) -> None:
        async with self._staging() as home:
            spec = SandboxSpec(name="probe", network=NetworkPolicy.NONE)
            record = new_record(home, spec, self._base.current().id, ())
            make_disk(home, record, self._ready().mapping.first_id, walls.own_files("probe", record.id))
            await self._boot(home, record)
            try:
                result = await self._handle(home, record).exec(["/bin/sh", "-c", _PROBE])
            finally:
                await self._end(home, record)
            if result.exit_code != 0:
                raise SandboxUnsupportedError(
                    "a sandbox started here without its walls: run the server outside of a container that "
                    "was started with --privileged"
                )

    async def close(self) -> None:
        ours = set(self._machines)
        for name in self._layout.names() if ours else ():
            with contextlib.suppress(SandboxGoneError):
                if self._layout.home(name).read().id in ours:
                    await self.stop(name)
        await asyncio.gather(*self._watchers.values(), return_exceptions=True)
        if self._engine is not None:
            self._engine.launcher.close()
            self._engine.groups.close()
            self._engine = None
            self._words = "the local provider has been closed"
        await self._base.close()

    def _ready(self) -> Engine:
        if self._engine is None:
            raise SandboxUnsupportedError(self._words)
        return self._engine

    # ---- the life of a sandbox ----

    async def create(self, spec: SandboxSpec) -> LocalSandbox:
        self._ready()
        check_name(spec.name)
        check_labels(spec.labels)
        if self._layout.home(spec.name).path.exists():
            raise SandboxExistsError(f"there is a sandbox {spec.name!r} already")
        return await _whole(self._create(spec), undo=lambda: self.destroy(spec.name))

    async def _create(self, spec: SandboxSpec) -> LocalSandbox:
        async with self._staging() as home:
            record, writing = await self._new_record(home, spec)
            try:
                make_disk(home, record, self._ready().mapping.first_id, walls.own_files(spec.name, record.id))
                booted = await self._boot(home, record)
            finally:
                await writing
            target = self._layout.home(spec.name)
            try:
                home.path.rename(target.path)
            except OSError:
                if booted.proxy is not None:
                    booted.proxy.close()
                await self._end(home, record)
                raise SandboxExistsError(f"there is a sandbox {spec.name!r} already") from None
            await self._serve(record, booted)
            return self._handle(target, record)

    async def _new_record(self, home: Home, spec: SandboxSpec) -> tuple[Record, Awaitable[None]]:
        """The record, and its being written down, which may take longer than the machine's start."""
        if spec.base is None:
            record = new_record(home, spec, self._base.current().id, ())
            return record, asyncio.ensure_future(asyncio.to_thread(home.write, record))
        async with self._snapshots.starting_from(spec.base) as snapshot:
            record = new_record(home, spec, snapshot.base, snapshot.layers)
            await asyncio.to_thread(home.write, record)
        return record, asyncio.sleep(0)

    async def connect(self, name: str) -> LocalSandbox:
        home = self._home(name)
        record = home.read()
        if not self._is_running(home, record):
            raise SandboxStoppedError(f"the sandbox {name!r} is stopped")
        return self._handle(home, record)

    async def resume(self, name: str) -> LocalSandbox:
        self._ready()
        return await _whole(self._resume(self._home(name)))

    async def _resume(self, home: Home) -> LocalSandbox:
        async with holding(home.gate):
            record = home.read()
            if not self._is_running(home, record):
                await self._end(home, record, kill=False)
                record = await asyncio.to_thread(
                    self._snapshots.settle, home, record, self._ready().mapping.first_id
                )
                await self._serve(record, await self._boot(home, record))
            return self._handle(home, record)

    async def stop(self, name: str) -> None:
        await _whole(self._stop(self._home(name)))

    async def _stop(self, home: Home) -> None:
        async with holding(home.gate):
            record = home.read()
            await self._end(home, record)
            await asyncio.to_thread(sync_disk, home.disk)

    async def destroy(self, name: str) -> None:
        if is_name(name) and self._layout.home(name).path.exists():
            await _whole(self._destroy(self._home(name)))

    async def _destroy(self, home: Home) -> None:
        try:
            async with holding(home.gate):
                record = home.read()
                # Gone first, ended then: whoever is cut off in the middle of a call finds out why.
                discarded = self._layout.discard(home.path)
                if discarded is not None:
                    await self._end(Home(discarded), record)
        except SandboxGoneError:
            return
        remove = self._ready().launcher.remove
        if discarded is not None:
            await remove(discarded)
        if record.layers:
            await self._snapshots.collect(remove)

    # ---- looking ----

    async def describe(self, name: str) -> SandboxInfo:
        home = self._home(name)
        return self._info(home, home.read())

    async def list_sandboxes(self) -> list[SandboxInfo]:
        return await asyncio.to_thread(self._list)

    def _list(self) -> list[SandboxInfo]:
        found = []
        for name in self._layout.names() if self._layout.sandboxes.exists() else ():
            home = self._layout.home(name)
            with contextlib.suppress(SandboxGoneError):
                found.append(self._info(home, home.read()))
        return found

    def _info(self, home: Home, record: Record) -> SandboxInfo:
        status = SandboxStatus.RUNNING if self._is_running(home, record) else SandboxStatus.STOPPED
        return SandboxInfo(record.name, status, record.created_at, record.labels)

    # ---- snapshots ----

    async def snapshot(self, name: str, snapshot: str) -> SnapshotInfo:
        self._ready()
        return await _whole(self._snapshot(self._home(name), snapshot))

    async def _snapshot(self, home: Home, snapshot: str) -> SnapshotInfo:
        first_id = self._ready().mapping.first_id
        async with holding(home.gate):
            record = home.read()
            if self._is_running(home, record):
                raise SandboxFailedError(f"the sandbox {record.name!r} is running: stop it first")
            await self._end(home, record, kill=False)
            record = await asyncio.to_thread(self._snapshots.settle, home, record, first_id)
            return await self._snapshots.freeze(home, record, snapshot, first_id)

    async def list_snapshots(self) -> list[SnapshotInfo]:
        return await asyncio.to_thread(self._snapshots.all)

    async def delete_snapshot(self, snapshot: str) -> None:
        await _whole(self._snapshots.delete(snapshot, self._ready().launcher.remove))

    # ---- machines ----

    def _home(self, name: str) -> Home:
        if not is_name(name):
            raise SandboxGoneError(f"there is no sandbox {name[:128]!r}")
        return self._layout.home(name)

    def _handle(self, home: Home, record: Record) -> LocalSandbox:
        environment = walls.command_environment(record.network, record.environment)
        return LocalSandbox(record.name, home, environment, self._ready().groups.find(record.id))

    def _is_running(self, home: Home, record: Record) -> bool:
        machine = self._machines.get(record.id)
        return is_held(home.lock) if machine is None else machine.is_alive and is_held(home.lock)

    @contextlib.asynccontextmanager
    async def _staging(self) -> AsyncIterator[Home]:
        """A locked place to make a sandbox in. What is still there in the end is thrown away."""
        while True:
            home = self._layout.new_staging()
            with contextlib.suppress(FileNotFoundError):
                lock = try_lock(home.gate)
                if lock is not None and home.path.exists():
                    break
                if lock is not None:
                    os.close(lock)
        try:
            yield home
        finally:
            discarded = self._layout.discard(home.path)
            os.close(lock)
            if discarded is not None:
                await self._ready().launcher.remove(discarded)

    async def _boot(self, home: Home, record: Record) -> Booted:
        """Start the machine and watch over it. The caller holds the gate."""
        engine = self._ready()
        if record.base not in self._bases:
            self._bases[record.base] = await self._base.get(record.base)
        group = engine.new_group(record)
        try:
            plan = engine.plan(home, record, self._bases[record.base])
            booted = await boot(engine.launcher, home, plan, group, record.network)
        except BaseException:
            await engine.groups.remove(record.id)
            raise
        self._machines[record.id] = booted.machine
        self._watchers[record.id] = asyncio.create_task(self._watch(record, booted.machine))
        return booted

    async def _serve(self, record: Record, booted: Booted) -> None:
        if booted.proxy is not None:
            await self._egress.serve(booted.proxy, record.name)

    async def _watch(self, record: Record, machine: Machine) -> None:
        try:
            await machine.watch()
            await self._egress.release(record.name)
            await self._ready().groups.remove(record.id)
        finally:
            del self._machines[record.id]
            del self._watchers[record.id]

    async def _end(self, home: Home, record: Record, *, kill: bool = True) -> None:
        """Return when nothing of the machine is left, whoever started it. The caller holds the gate."""
        watcher = self._watchers.get(record.id)
        if watcher is not None:
            if kill:
                self._machines[record.id].kill()
            await asyncio.shield(watcher)
        else:
            await end_foreign(home, kill=kill)
            await self._ready().groups.remove(record.id)


async def _whole(work: Coroutine[Any, Any, _T], *, undo: Callable[[], Awaitable[None]] | None = None) -> _T:
    """Do all of it, also when the caller is cancelled meanwhile; then undo it, where that is asked for. What
    the machine refuses becomes an error of the contract here."""
    task = asyncio.ensure_future(_mapped(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cancelled = not task.cancelled()
        await asyncio.wait([task])
        if cancelled and undo is not None and task.exception() is None:
            await undo()
        raise


async def _mapped(work: Coroutine[Any, Any, _T]) -> _T:
    try:
        return await work
    except BootError as error:
        _log.warning("sandbox_not_started", said=str(error))
        raise SandboxFailedError("the sandbox did not start; the server's log says why") from error
    except OSError as error:
        _log.warning("sandbox_failed", error=str(error))
        raise SandboxFailedError(f"the machine refused: {error.strerror or 'unknown error'}") from error
