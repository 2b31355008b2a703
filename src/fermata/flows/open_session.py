"""Open a session: the session, its first chat, its sandbox and the run that starts it, in one transaction.

What can fail slowly or elsewhere, making the repository and the machine, is left to that run.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from fermata.accounts import store as accounts
from fermata.accounts.idempotency import find_answer, keep_answer
from fermata.accounts.model import Caller
from fermata.flows.provision import KIND as PROVISION
from fermata.flows.titles import choose_title
from fermata.kit.clock import Clock
from fermata.kit.database import Connection, Database
from fermata.kit.errors import ForbiddenError, InvalidRequestError, NotFoundError
from fermata.kit.ids import new_id
from fermata.runs.service import Offer, RunService
from fermata.sandboxes import store as sandboxes
from fermata.sandboxes.model import SandboxRecord, session_sandbox_id
from fermata.sandboxes.service import SandboxService
from fermata.sessions import store as sessions
from fermata.sessions.feed import tell
from fermata.sessions.model import NEW_CHAT_TITLE, Chat, Session, SessionStatus
from fermata.workspaces.model import (
    RepositoryName,
    check_branch,
    clone_url,
    generate_branch,
    parse_repository_url,
)
from fermata.workspaces.service import WorkspaceService


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSession:
    """What a caller asks for. Everything may be left out."""

    title: str | None = None
    organization_id: str | None = None
    artist_id: str | None = None
    repo_owner: str | None = None
    repo_name: str | None = None
    clone_url: str | None = None
    branch: str | None = None
    is_new_branch: bool = False
    sandbox_type: str | None = None


@dataclass(frozen=True, slots=True)
class Once:
    """A request that is done once, however often it is sent."""

    key: str
    #: Of everything that makes the request what it is.
    request_hash: str


@dataclass(frozen=True, slots=True)
class Opened:
    session: Session
    chat: Chat
    sandbox: SandboxRecord


class OpenSession:
    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        sandboxes: SandboxService,
        workspaces: WorkspaceService,
        runs: RunService,
        orchestrator: bool,
        default_model: str,
    ) -> None:
        """With `orchestrator`, a new session's sandbox is started without being asked for."""
        self._database = database
        self._clock = clock
        self._sandboxes = sandboxes
        self._workspaces = workspaces
        self._runs = runs
        self._orchestrator = orchestrator
        self._default_model = default_model

    async def __call__(
        self, caller: Caller, wanted: NewSession, render: Callable[[Opened], str], once: Once | None = None
    ) -> str:
        """Open a session and return it as `render` writes it; with `once`, what was answered the first time.

        `InvalidRequestError` for names that cannot be, `ForbiddenError` for an organization, an artist or a
        repository that the caller may not use, `ConflictError` when `once` was used for something else.
        """
        provider = self._sandboxes.resolve_type(wanted.sandbox_type)
        asked_for = _repository_asked_for(wanted)
        if wanted.branch is not None and not wanted.is_new_branch:
            check_branch(wanted.branch, field=("branch",))
        session_id = new_id()

        with ExitStack() as stack:
            offer = (
                stack.enter_context(self._runs.offer(PROVISION, session_sandbox_id(session_id), {}))
                if self._orchestrator
                else None
            )

            def work(connection: Connection) -> tuple[str, bool]:
                return self._open(
                    connection, caller, wanted, session_id, provider, asked_for, render, once, offer
                )

            answer, is_new = await self._database.write(work)
            if offer is not None and is_new:
                offer.begin()
        return answer

    def _open(
        self,
        connection: Connection,
        caller: Caller,
        wanted: NewSession,
        session_id: str,
        provider: str,
        asked_for: RepositoryName | None,
        render: Callable[[Opened], str],
        once: Once | None,
        offer: Offer | None,
    ) -> tuple[str, bool]:
        now = self._clock.now()
        self._check_access(connection, caller, wanted)
        repository = self._choose_repository(connection, caller, wanted, asked_for)
        if wanted.clone_url is not None and parse_repository_url(wanted.clone_url) != repository:
            raise InvalidRequestError("cloneUrl does not match repoOwner and repoName", field=("cloneUrl",))
        if once is not None:
            answer = find_answer(connection, caller.account_id, once.key, once.request_hash, now)
            if answer is not None:
                return answer, False
        opened = self._make(connection, caller, wanted, session_id, provider, repository)
        answer = render(opened)
        if once is not None and not keep_answer(
            connection, caller.account_id, once.key, once.request_hash, answer, now
        ):
            first = find_answer(connection, caller.account_id, once.key, once.request_hash, now)
            assert first is not None, "an answer that was kept first is there"
            return first, False
        sessions.insert_session(connection, opened.session)
        sessions.insert_chat(connection, opened.chat)
        tell(connection, opened.session, "session.created", now, chatId=opened.chat.id)
        sandboxes.insert_new(connection, opened.sandbox, actor=f"account:{caller.account_id}")
        if offer is not None:
            offer.insert(connection)
        return answer, True

    def _make(
        self,
        connection: Connection,
        caller: Caller,
        wanted: NewSession,
        session_id: str,
        provider: str,
        repository: RepositoryName,
    ) -> Opened:
        now = self._clock.now()
        branch = wanted.branch
        title = (wanted.title or "").strip()
        if not title:
            if connection.dialect_name == "postgresql":  # two at once would choose the same free title
                accounts.lock_account(connection, caller.account_id)
            title = choose_title(connection, caller.account_id)
        if wanted.is_new_branch:
            account = accounts.find_account(connection, caller.account_id)
            branch = generate_branch(account.name if account else None)
        session = Session(
            id=session_id,
            account_id=caller.account_id,
            organization_id=wanted.organization_id,
            artist_id=wanted.artist_id,
            title=title,
            status=SessionStatus.RUNNING,
            repo_owner=repository.owner,
            repo_name=repository.name,
            branch=branch,
            clone_url=clone_url(repository),
            is_new_branch=wanted.is_new_branch,
            global_skill_refs=[],
            lines_added=0,
            lines_removed=0,
            cached_diff=None,
            cached_diff_updated_at=None,
            active_at=now,
            created_at=now,
            updated_at=now,
        )
        chat = Chat(
            id=new_id(),
            session_id=session_id,
            title=NEW_CHAT_TITLE,
            model_id=self._default_model,
            active_run_id=None,
            last_assistant_message_at=None,
            created_at=now,
            updated_at=now,
        )
        sandbox = self._sandboxes.new_record(
            account_id=caller.account_id,
            provider=provider,
            session_id=session_id,
            repository=str(repository),
            branch=branch,
            is_new_branch=wanted.is_new_branch,
        )
        return Opened(session, chat, sandbox)

    def _check_access(self, connection: Connection, caller: Caller, wanted: NewSession) -> None:
        organization, artist = wanted.organization_id, wanted.artist_id
        if organization is not None and not accounts.is_member(connection, organization, caller.account_id):
            raise ForbiddenError("Access denied to specified organization_id")
        if artist is not None and not accounts.may_use_artist(connection, artist, caller.account_id):
            raise ForbiddenError("Access denied to specified artistId")

    def _choose_repository(
        self,
        connection: Connection,
        caller: Caller,
        wanted: NewSession,
        asked_for: RepositoryName | None,
    ) -> RepositoryName:
        """The organization's workspace, or what was asked for if the caller may use it, or the caller's."""
        if wanted.organization_id is not None:
            workspace = self._workspaces.name_workspace(wanted.organization_id)
            if asked_for not in (None, workspace):
                raise InvalidRequestError(
                    "organizationId cannot be combined with another repository", field=("organizationId",)
                )
            return workspace
        own = self._workspaces.name_workspace(caller.account_id)
        if asked_for is None or asked_for == own:
            return own
        return check_repository(connection, self._workspaces, caller, asked_for)


def check_repository(
    connection: Connection, workspaces: WorkspaceService, caller: Caller, name: RepositoryName
) -> RepositoryName:
    """A repository that the caller may use, as we spell it: its workspace, one of its organizations', or one
    that is linked to any of them. `ForbiddenError` for every other, whether it exists or not."""
    holders = [caller.account_id]
    holders += [item.id for item in accounts.list_organizations(connection, caller.account_id)]
    for holder in holders:
        workspace = workspaces.name_workspace(holder)
        if name == workspace:
            return workspace
        if not workspaces.is_own(name) and accounts.is_repository_linked(
            connection, holder, name.owner, name.name
        ):
            return name
    raise ForbiddenError("Access denied to specified repository")


def _repository_asked_for(wanted: NewSession) -> RepositoryName | None:
    owner, name = wanted.repo_owner, wanted.repo_name
    if (owner is None) != (name is None):
        missing = "repoOwner" if owner is None else "repoName"
        raise InvalidRequestError("repoOwner and repoName must be given together", field=(missing,))
    named = RepositoryName(owner, name) if owner is not None and name is not None else None
    if wanted.clone_url is None:
        return named
    cloned = parse_repository_url(wanted.clone_url)
    if cloned is None:
        raise InvalidRequestError("cloneUrl must be a valid GitHub repository URL", field=("cloneUrl",))
    return named or cloned


def find_repository(
    connection: Connection, workspaces: WorkspaceService, caller: Caller, owner: str, name: str
) -> RepositoryName:
    """As `check_repository`, for a name from a URL: what the caller may not use is `NotFoundError`."""
    try:
        return check_repository(connection, workspaces, caller, RepositoryName(owner, name))
    except (ForbiddenError, InvalidRequestError):
        raise NotFoundError("Repository not found") from None
