"""Messages that were received, with the queue of those that wait, and the feed of events."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _text(name: str, *constraints: sa.ForeignKey, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, _TEXT, *constraints, nullable=nullable)


def _number(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "received_messages",
        _text("chat_id", sa.ForeignKey("chats.id", ondelete="CASCADE")),
        _text("id"),
        _text("state"),
        _text("busy"),
        _number("position"),
        _text("run_id"),
        _number("step", nullable=True),
        _text("message", nullable=True),
        _text("history", nullable=True),
        _number("created_at"),
        _number("ended_at", nullable=True),
        sa.PrimaryKeyConstraint("chat_id", "id"),
    )
    op.create_index("ix_received_messages_state", "received_messages", ["chat_id", "state", "position"])
    op.create_index("ix_received_messages_run", "received_messages", ["run_id"])
    op.execute(
        "INSERT INTO received_messages "
        "SELECT chat_id, user_message_id, 'answered', 'queue', 0, MIN(run_id), NULL, NULL, NULL, "
        "MIN(created_at), MIN(created_at) FROM chat_runs GROUP BY chat_id, user_message_id"
    )
    op.create_table(
        "account_events",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
        ),
        _number("transaction_id"),
        _text("account_id"),
        _text("organization_id", nullable=True),
        _text("session_id", nullable=True),
        _text("kind"),
        _text("data"),
        _number("at"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_account_events_order", "account_events", ["transaction_id", "id"])
