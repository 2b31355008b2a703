"""What is left to others when a chat goes, or a message that they wait for."""

from datetime import datetime

from fermata.kit.database import Connection
from fermata.runs import store as runs
from fermata.sessions import queue
from fermata.sessions.model import Chat
from fermata.stream import store as stream

#: The whole stream of a message that no turn will answer: whoever waits for it is told that it is over.
_NOTHING = ['{"type":"finish","finishReason":"other"}']


def end_stream(connection: Connection, run_id: str) -> None:
    """End the stream of a run that was never begun, if it has one by now."""
    if stream.find_state(connection, run_id) is not None:
        stream.append(connection, run_id, _NOTHING)
        stream.close(connection, run_id)


def abandon(connection: Connection, chat: Chat, at: datetime) -> None:
    """Before a chat is deleted: ask its turn to end, and let go who waits for its queued messages."""
    if chat.active_run_id is not None:
        runs.request_stop(connection, chat.active_run_id, at)
    for received in queue.list_queued(connection, chat.id):
        end_stream(connection, received.run_id)
