"""The tables of the room, and the shapes of their rows."""

import sqlalchemy as sa

from fermata.kit.database import metadata
from fermata.kit.rows import Shape
from fermata.sessions.model import Chat, ChatRun, Received, Session


def _ref(target: str, ondelete: str = "CASCADE") -> sa.ForeignKey:
    return sa.ForeignKey(target, ondelete=ondelete)


sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("account_id", sa.Text, _ref("accounts.id"), nullable=False),
    sa.Column("organization_id", sa.Text, _ref("accounts.id")),
    sa.Column("artist_id", sa.Text, _ref("accounts.id", "SET NULL")),
    sa.Column("title", sa.Text, nullable=False),
    # Case folded: searching and comparing titles works alike on every database.
    sa.Column("title_folded", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("repo_owner", sa.Text),
    sa.Column("repo_name", sa.Text),
    sa.Column("branch", sa.Text),
    sa.Column("clone_url", sa.Text),
    sa.Column("is_new_branch", sa.Boolean, nullable=False),
    sa.Column("global_skill_refs", sa.Text, nullable=False),
    sa.Column("lines_added", sa.BigInteger),
    sa.Column("lines_removed", sa.BigInteger),
    sa.Column("cached_diff", sa.Text),
    sa.Column("cached_diff_updated_at", sa.BigInteger),
    sa.Column("active_at", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Index("ix_sessions_account", "account_id", "active_at", "id"),
    sa.Index("ix_sessions_account_title", "account_id", "title_folded"),
    sa.Index("ix_sessions_organization", "organization_id", "active_at", "id"),
    sa.Index("ix_sessions_artist", "artist_id"),
)

chats = sa.Table(
    "chats",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("session_id", sa.Text, _ref("sessions.id"), nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("active_run_id", sa.Text),
    sa.Column("last_assistant_message_at", sa.BigInteger),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.BigInteger, nullable=False),
    sa.Index("ix_chats_session", "session_id", "created_at", "id"),
)

messages = sa.Table(
    "messages",
    metadata,
    # Keyed by chat: an id that a client made up can never reach a message of another chat.
    sa.Column("chat_id", sa.Text, _ref("chats.id"), primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("history", sa.Text),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("chat_id", "position", name="uq_messages_position"),
)

chat_reads = sa.Table(
    "chat_reads",
    metadata,
    sa.Column("account_id", sa.Text, _ref("accounts.id"), primary_key=True),
    sa.Column("chat_id", sa.Text, _ref("chats.id"), primary_key=True),
    sa.Column("last_read_at", sa.BigInteger, nullable=False),
    sa.Index("ix_chat_reads_chat", "chat_id"),
)

chat_runs = sa.Table(
    "chat_runs",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("chat_id", sa.Text, _ref("chats.id"), nullable=False),
    sa.Column("user_message_id", sa.Text, nullable=False),
    sa.Column("assistant_message_id", sa.Text, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Index("ix_chat_runs_chat", "chat_id", "created_at"),
)

received_messages = sa.Table(
    "received_messages",
    metadata,
    sa.Column("chat_id", sa.Text, _ref("chats.id"), primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("busy", sa.Text, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("step", sa.BigInteger),
    sa.Column("message", sa.Text),
    sa.Column("history", sa.Text),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("ended_at", sa.BigInteger),
    sa.Index("ix_received_messages_state", "chat_id", "state", "position"),
    sa.Index("ix_received_messages_run", "run_id"),
)

SESSION = Shape(Session, sessions)
CHAT = Shape(Chat, chats)
CHAT_RUN = Shape(ChatRun, chat_runs)
RECEIVED = Shape(Received, received_messages)
