"""Keeping the first and the last of an output that is too long to keep."""

from collections import deque


class Clip:
    """Takes any number of pieces and keeps at most `limit` bytes: the first half and the last half.

    Memory is bounded by the limit and one piece, however much is written.
    """

    def __init__(self, limit: int) -> None:
        self._tail_at_most = limit // 2
        self._head_at_most = limit - self._tail_at_most
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._left_out = 0

    def write(self, piece: bytes) -> None:
        room = self._head_at_most - len(self._head)
        if room > 0:
            self._head += piece[:room]
            piece = piece[room:]
        if not piece:
            return
        self._tail.append(piece)
        self._tail_bytes += len(piece)
        while self._tail_bytes > self._tail_at_most:
            first = self._tail.popleft()
            surplus = self._tail_bytes - self._tail_at_most
            if len(first) > surplus:
                self._tail.appendleft(first[surplus:])
            dropped = min(len(first), surplus)
            self._tail_bytes -= dropped
            self._left_out += dropped

    @property
    def truncated(self) -> bool:
        return self._left_out > 0

    def getvalue(self) -> bytes:
        """What was kept; where something is missing, a line between says how many bytes."""
        tail = b"".join(self._tail)
        if not self._left_out:
            return bytes(self._head) + tail
        return b"%b\n[%d bytes left out]\n%b" % (bytes(self._head), self._left_out, tail)
