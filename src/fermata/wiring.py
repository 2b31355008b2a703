"""Settings in, object graph out. Construction only: no rules, and the only place that names vendors."""

import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from fermata.accounts.first import ensure_first_account
from fermata.accounts.service import AccountService
from fermata.flows.base_snapshot import BaseSnapshot
from fermata.flows.boot import Boot
from fermata.flows.headless import HeadlessFlow
from fermata.flows.hibernate import Destroy, Hibernate, Timers
from fermata.flows.open_session import OpenSession
from fermata.flows.provision import Provision
from fermata.flows.prune import KEY as PRUNE_KEY
from fermata.flows.prune import KIND as PRUNE
from fermata.flows.prune import Prune
from fermata.flows.queue import QueueFlow
from fermata.flows.reconcile import reconcile
from fermata.flows.run_turn import TurnFlow, TurnHandler
from fermata.flows.sandbox import SandboxFlow
from fermata.flows.session import SessionFlow
from fermata.kit.clock import Clock, SystemClock
from fermata.kit.database import Database
from fermata.kit.errors import SettingsError
from fermata.kit.ids import new_id
from fermata.kit.settings import Settings
from fermata.kit.sqlite import SqliteDatabase
from fermata.runs.contract import Handler
from fermata.runs.service import RunService
from fermata.runs.worker import Worker
from fermata.sandboxes.contract import Limits, NetworkPolicy, ProviderReport, SandboxProvider
from fermata.sandboxes.egress import EgressProxy
from fermata.sandboxes.model import Timers as SandboxTimers
from fermata.sandboxes.providers.local.base import BaseStore
from fermata.sandboxes.registry import load_provider_class
from fermata.sandboxes.service import SandboxService
from fermata.schema.migrate import migrate
from fermata.sessions.service import SessionService
from fermata.stream.service import StreamService
from fermata.turns.llms.catalogue import Catalogue
from fermata.turns.tools.standard import standard_tools
from fermata.views.events import EventFeed
from fermata.views.sessions import SessionViews
from fermata.workspaces.providers.builtin import BuiltinHost
from fermata.workspaces.service import WorkspaceService

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Fermata:
    """Everything an edge may call."""

    settings: Settings
    clock: Clock
    database: Database
    accounts: AccountService
    sessions: SessionService
    views: SessionViews
    open_session: OpenSession
    session_flow: SessionFlow
    workspaces: WorkspaceService
    catalogue: Catalogue
    sandboxes: SandboxService
    sandbox_flow: SandboxFlow
    turns: TurnFlow
    queue: QueueFlow
    headless: HeadlessFlow
    runs: RunService
    worker: Worker
    stream: StreamService
    feed: EventFeed
    base: BaseStore
    report: ProviderReport


def database_url(settings: Settings) -> str:
    return settings.database_url or f"sqlite:///{settings.data_dir.resolve() / 'fermata.db'}"


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """The database with its newest schema."""
    prepare_data_dir(settings.data_dir)
    url = database_url(settings)
    await migrate(url)
    if url.startswith("sqlite"):
        embedded = SqliteDatabase(Path(url.removeprefix("sqlite:///")))
        try:
            yield embedded
        finally:
            await embedded.close()
        return
    from fermata.kit.postgres import PostgresDatabase  # half a second that SQLite's users need not wait

    remote = PostgresDatabase(url, pool_size=settings.database_connections)
    await remote.open()
    try:
        yield remote
    finally:
        await remote.close()


@asynccontextmanager
async def open_fermata(
    settings: Settings,
    *,
    provider: SandboxProvider | None = None,
    catalogue: Catalogue | None = None,
    around_database: Callable[[Database], Database] | None = None,
    around_provider: Callable[[SandboxProvider], SandboxProvider] | None = None,
) -> AsyncIterator[Fermata]:
    """A whole server without its doors, its worker running. Closing it drains the worker and the sandboxes.

    For tests: `provider` and `catalogue` take the place of the configured ones, `around_database` and
    `around_provider` put something between them and the server.
    """
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        alone = database_url(settings).startswith("sqlite")
        if alone:
            stack.enter_context(single_process(settings.data_dir))
        database = await stack.enter_async_context(open_database(settings))
        await ensure_first_account(
            database=database, clock=clock, data_dir=settings.data_dir, configured_key=settings.api_key
        )
        if around_database is not None:
            database = around_database(database)
        base = BaseStore(setting=settings.sandbox_base, builds=settings.sandbox_base_build)
        provider = provider or _local_provider(settings, base)
        if around_provider is not None:
            provider = around_provider(provider)
        report = await provider.open()
        stack.push_async_callback(provider.close)
        workspaces = _workspaces(settings, clock, stack)
        catalogue = catalogue or _catalogue(settings)
        context = _build(settings, clock, database, provider, catalogue, base, report, workspaces)
        stack.push_async_callback(context.catalogue.close)
        await reconcile(database=database, clock=clock, provider=provider)
        await context.runs.submit(PRUNE, PRUNE_KEY, {})
        await context.worker.open(alone=alone)
        stack.push_async_callback(context.worker.close)
        context.runs.attach(context.worker)
        stack.callback(context.runs.attach, None)
        yield context


def _build(
    settings: Settings,
    clock: Clock,
    database: Database,
    provider: SandboxProvider,
    catalogue: Catalogue,
    base: BaseStore,
    report: ProviderReport,
    workspaces: WorkspaceService,
) -> Fermata:
    accounts = AccountService(database=database, clock=clock)
    runs = RunService(database=database, clock=clock)
    sandboxes = _sandbox_service(settings, clock, provider)
    boot = Boot(sandboxes=sandboxes, workspaces=workspaces, accounts=accounts, runs=runs)
    sandbox_flow = SandboxFlow(
        database=database, clock=clock, sandboxes=sandboxes, runs=runs, workspaces=workspaces
    )
    turn_handler = TurnHandler(
        at_once=settings.runs_at_once,
        catalogue=catalogue,
        tools=standard_tools(),
        sandboxes=sandboxes,
        sandbox_flow=sandbox_flow,
    )
    prune = Prune(keep_for=settings.keep_runs)
    handlers = [*_sandbox_handlers(sandboxes, workspaces, runs, boot), turn_handler, prune]
    open_session = OpenSession(
        database=database,
        clock=clock,
        sandboxes=sandboxes,
        workspaces=workspaces,
        runs=runs,
        default_model=catalogue.default_model_id,
        orchestrator=settings.orchestrator,
    )
    turns = TurnFlow(database=database, clock=clock, runs=runs, sandboxes=sandboxes)
    return Fermata(
        settings=settings,
        clock=clock,
        database=database,
        accounts=accounts,
        sessions=SessionService(database=database, clock=clock),
        views=SessionViews(database=database),
        open_session=open_session,
        session_flow=SessionFlow(database=database, clock=clock, runs=runs),
        workspaces=workspaces,
        catalogue=catalogue,
        sandboxes=sandboxes,
        sandbox_flow=sandbox_flow,
        turns=turns,
        queue=QueueFlow(database=database, clock=clock),
        headless=HeadlessFlow(database=database, clock=clock, open_session=open_session, turns=turns),
        runs=runs,
        worker=Worker(database=database, clock=clock, lease=settings.lease, handlers=handlers),
        stream=StreamService(database=database),
        feed=EventFeed(database=database, clock=clock),
        base=base,
        report=report,
    )


def _sandbox_service(settings: Settings, clock: Clock, provider: SandboxProvider) -> SandboxService:
    return SandboxService(
        clock=clock,
        providers={provider.name: provider},
        default=provider.name,
        timers=SandboxTimers(settings.sandbox_lifetime, settings.sandbox_idle),
        network=NetworkPolicy(settings.sandbox_network),
        limits=_limits(settings),
        installation=installation_id(settings.data_dir),
    )


def _sandbox_handlers(
    sandboxes: SandboxService, workspaces: WorkspaceService, runs: RunService, boot: Boot
) -> list[Handler]:
    return [
        Provision(sandboxes=sandboxes, runs=runs, boot=boot),
        Hibernate(sandboxes=sandboxes, runs=runs),
        Timers(sandboxes=sandboxes, runs=runs),
        Destroy(sandboxes=sandboxes),
        BaseSnapshot(sandboxes=sandboxes, workspaces=workspaces, boot=boot),
    ]


def _limits(settings: Settings) -> Limits:
    return Limits(
        cpus=settings.sandbox_cpus,
        memory_bytes=settings.sandbox_memory,
        processes=settings.sandbox_processes,
        file_bytes=settings.sandbox_file_size,
    )


def _local_provider(settings: Settings, base: BaseStore) -> SandboxProvider:
    make: Callable[..., SandboxProvider] = load_provider_class(settings.sandbox_provider)
    return make(
        data_dir=settings.data_dir.resolve(),
        installation=installation_id(settings.data_dir),
        egress=EgressProxy(),
        defaults=_limits(settings),
        base=base,
    )


def _workspaces(settings: Settings, clock: Clock, stack: AsyncExitStack) -> WorkspaceService:
    root = settings.data_dir.resolve()
    if settings.github_token is None:
        builtin = BuiltinHost(root=root / "repositories", clock=clock)
        return WorkspaceService(owner=settings.workspace_owner, own=builtin, server=builtin)
    from fermata.workspaces.providers.github import GitHubHost  # with its HTTP client, only when configured

    github = GitHubHost(
        token=settings.github_token,
        cache=root / "github",
        api_url=settings.github_api_url,
        clone_base=settings.github_clone_url,
    )
    stack.push_async_callback(github.close)
    return WorkspaceService(owner=settings.workspace_owner, own=github, others=github)


def _catalogue(settings: Settings) -> Catalogue:
    return Catalogue(
        default_model=settings.default_model,
        openai_api_key=settings.openai_api_key,
        openai_base_url=settings.openai_base_url,
        anthropic_api_key=settings.anthropic_api_key,
        gateway_api_key=settings.ai_gateway_api_key,
        gateway_url=settings.ai_gateway_url,
        models=[model.strip() for model in (settings.models or "").split(",") if model.strip()],
    )


def prepare_data_dir(data_dir: Path) -> None:
    """Make the data directory, for its owner only."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise SettingsError(f"The data directory cannot be made: {error.strerror}.") from error
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise SettingsError("The data directory cannot be written to.")


def installation_id(data_dir: Path) -> str:
    """The name of this installation, made once, by which it knows its own machines at a provider."""
    path = data_dir / "installation"
    if not path.exists():
        draft = data_dir / f".installation-{os.getpid()}"
        draft.write_text(f"{new_id()}\n", encoding="ascii")
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            log.debug("another process was faster")
        draft.unlink()
    return path.read_text(encoding="ascii").strip()


@contextmanager
def single_process(data_dir: Path) -> Iterator[None]:
    """SQLite serves one server. A second one on the same data directory is told so."""
    prepare_data_dir(data_dir)
    with (data_dir / "server.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(
                "Another Fermata server is running on this data directory. Stop it, or use PostgreSQL."
            ) from None
        yield
