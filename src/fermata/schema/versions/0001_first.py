"""Accounts, sessions, sandboxes, runs and streams."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


#: Text compares by its bytes, as in SQLite, whatever the locale of the database.
_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _text(name: str, *constraints: sa.ForeignKey, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, _TEXT, *constraints, nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _ref(target: str, ondelete: str = "CASCADE") -> sa.ForeignKey:
    return sa.ForeignKey(target, ondelete=ondelete)


def upgrade() -> None:
    _accounts()
    _sessions()
    _sandboxes()
    _runs()


def _accounts() -> None:
    op.create_table(
        "accounts",
        _text("id"),
        _text("kind"),
        _text("name"),
        _number("created_at"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "organization_members",
        _text("organization_id", _ref("accounts.id")),
        _text("account_id", _ref("accounts.id")),
        _number("created_at"),
        sa.PrimaryKeyConstraint("organization_id", "account_id"),
    )
    op.create_index("ix_organization_members_account", "organization_members", ["account_id"])
    op.create_table(
        "artist_owners",
        _text("artist_id", _ref("accounts.id")),
        _text("owner_id", _ref("accounts.id")),
        _number("created_at"),
        sa.PrimaryKeyConstraint("artist_id", "owner_id"),
    )
    op.create_index("ix_artist_owners_owner", "artist_owners", ["owner_id"])
    op.create_table(
        "api_keys",
        _text("id"),
        _text("account_id", _ref("accounts.id")),
        _text("name"),
        _text("secret_hash"),
        _number("created_at"),
        _number("expires_at", nullable=True),
        _number("revoked_at", nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_api_keys_account", "api_keys", ["account_id"])
    op.create_table(
        "repository_links",
        _text("account_id", _ref("accounts.id")),
        _text("owner"),
        _text("name"),
        _number("created_at"),
        sa.PrimaryKeyConstraint("account_id", "owner", "name"),
    )
    op.create_table(
        "idempotency_keys",
        _text("account_id", _ref("accounts.id")),
        _text("key"),
        _text("request_hash"),
        _text("answer"),
        _number("created_at"),
        sa.PrimaryKeyConstraint("account_id", "key"),
    )
    op.create_index("ix_idempotency_keys_created", "idempotency_keys", ["created_at"])


def _sessions() -> None:
    op.create_table(
        "sessions",
        _text("id"),
        _text("account_id", _ref("accounts.id")),
        _text("organization_id", _ref("accounts.id"), nullable=True),
        _text("artist_id", _ref("accounts.id", "SET NULL"), nullable=True),
        _text("title"),
        _text("title_folded"),
        _text("status"),
        _text("repo_owner", nullable=True),
        _text("repo_name", nullable=True),
        _text("branch", nullable=True),
        _text("clone_url", nullable=True),
        sa.Column("is_new_branch", sa.Boolean, nullable=False),
        _text("global_skill_refs"),
        _number("lines_added", nullable=True),
        _number("lines_removed", nullable=True),
        _text("cached_diff", nullable=True),
        _number("cached_diff_updated_at", nullable=True),
        _number("active_at"),
        _number("created_at"),
        _number("updated_at"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_sessions_account", "sessions", ["account_id", "active_at", "id"])
    op.create_index("ix_sessions_account_title", "sessions", ["account_id", "title_folded"])
    op.create_index("ix_sessions_organization", "sessions", ["organization_id", "active_at", "id"])
    op.create_index("ix_sessions_artist", "sessions", ["artist_id"])
    op.create_table(
        "chats",
        _text("id"),
        _text("session_id", _ref("sessions.id")),
        _text("title"),
        _text("model_id"),
        _text("active_run_id", nullable=True),
        _number("last_assistant_message_at", nullable=True),
        _number("created_at"),
        _number("updated_at"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_chats_session", "chats", ["session_id", "created_at", "id"])
    op.create_table(
        "messages",
        _text("chat_id", _ref("chats.id")),
        _text("id"),
        _number("position"),
        _text("role"),
        _text("message"),
        _text("history", nullable=True),
        _number("created_at"),
        sa.PrimaryKeyConstraint("chat_id", "id"),
        sa.UniqueConstraint("chat_id", "position", name="uq_messages_position"),
    )
    op.create_table(
        "chat_reads",
        _text("account_id", _ref("accounts.id")),
        _text("chat_id", _ref("chats.id")),
        _number("last_read_at"),
        sa.PrimaryKeyConstraint("account_id", "chat_id"),
    )
    op.create_index("ix_chat_reads_chat", "chat_reads", ["chat_id"])
    op.create_table(
        "chat_runs",
        _text("run_id"),
        _text("chat_id", _ref("chats.id")),
        _text("user_message_id"),
        _text("assistant_message_id"),
        _number("created_at"),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_index("ix_chat_runs_chat", "chat_runs", ["chat_id", "created_at"])


def _sandboxes() -> None:
    op.create_table(
        "sandboxes",
        _text("id"),
        # No foreign key: the row outlives its session until the machine is gone.
        _text("session_id", nullable=True),
        _text("account_id"),
        _text("provider"),
        _text("state"),
        _number("version"),
        sa.Column("has_disk", sa.Boolean, nullable=False),
        _text("repository", nullable=True),
        _text("branch", nullable=True),
        sa.Column("is_new_branch", sa.Boolean, nullable=False),
        _text("run_id", nullable=True),
        _text("error", nullable=True),
        _number("last_activity_at", nullable=True),
        _number("expires_at", nullable=True),
        _number("hibernate_after", nullable=True),
        _number("snapshot_created_at", nullable=True),
        _number("snapshot_size_bytes", nullable=True),
        _number("created_at"),
        _number("updated_at"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("session_id", name="uq_sandboxes_session"),
    )
    op.create_index("ix_sandboxes_expires", "sandboxes", ["state", "expires_at"])
    op.create_table(
        "sandbox_moves",
        _text("sandbox_id", _ref("sandboxes.id")),
        _number("version"),
        _text("from_state", nullable=True),
        _text("to_state"),
        _text("reason"),
        _text("actor"),
        _number("at"),
        sa.PrimaryKeyConstraint("sandbox_id", "version"),
    )


def _runs() -> None:
    op.create_table(
        "runs",
        _text("id"),
        _text("kind"),
        _text("key"),
        _text("state"),
        _text("input"),
        _text("result", nullable=True),
        _text("error", nullable=True),
        _number("due_at"),
        _number("attempts"),
        _text("lease_owner", nullable=True),
        _number("lease_until", nullable=True),
        _number("fence"),
        _number("stop_requested_at", nullable=True),
        _number("created_at"),
        _number("ended_at", nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    live = sa.text("state IN ('queued', 'running')")
    op.create_index(
        "uq_runs_live", "runs", ["kind", "key"], unique=True, sqlite_where=live, postgresql_where=live
    )
    op.create_index("ix_runs_due", "runs", ["due_at"], sqlite_where=live, postgresql_where=live)
    op.create_index("ix_runs_owner", "runs", ["lease_owner"], sqlite_where=live, postgresql_where=live)
    op.create_table(
        "run_steps",
        _text("run_id", _ref("runs.id")),
        _number("number"),
        _text("record"),
        _number("created_at"),
        sa.PrimaryKeyConstraint("run_id", "number"),
    )
    op.create_table(
        "run_effects",
        _text("run_id", _ref("runs.id")),
        _text("id"),
        _number("step"),
        _text("name"),
        _text("input"),
        _text("result", nullable=True),
        _number("intended_at"),
        _number("ended_at", nullable=True),
        sa.PrimaryKeyConstraint("run_id", "id"),
    )
    op.create_table(
        "streams",
        _text("id"),
        _number("length"),
        sa.Column("closed", sa.Boolean, nullable=False),
        _number("created_at"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "stream_chunks",
        _text("stream_id", _ref("streams.id")),
        _number("first"),
        _number("count"),
        _text("lines"),
        sa.PrimaryKeyConstraint("stream_id", "first"),
    )
