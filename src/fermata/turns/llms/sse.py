"""Server-sent events out of the bytes of an answer."""

#: A vendor's event is a few hundred bytes; without a limit, one that never ends would fill the memory.
EVENT_LIMIT = 1 << 25


class EventTooLongError(Exception):
    """An event has not ended within `EVENT_LIMIT` bytes."""


class EventSplitter:
    """Cuts bytes, in pieces of any size, into the `data` of whole events. Names, ids and comments are left
    out: both protocols repeat in the data what they need."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        text = self._rest + piece if self._rest else piece
        if b"\r" in text:
            # The second half of a line's end may be in the next piece.
            held = b"\r" if text.endswith(b"\r") else b""
            text = text.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held
        *blocks, self._rest = text.split(b"\n\n")
        if len(self._rest) > EVENT_LIMIT:
            raise EventTooLongError
        return [data for block in blocks if (data := _data(block))]


def _data(block: bytes) -> bytes:
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)
