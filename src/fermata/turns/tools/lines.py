"""A window of numbered lines over a file that is read in pieces."""

#: Bytes of text returned by one call.
CONTENT_LIMIT = 100_000
#: Characters kept of one line.
LINE_LIMIT = 2_000
#: A NUL in the first bytes makes a file binary, as git decides it.
_BINARY_WITHIN = 8_000


class LineWindow:
    """Feed the file's bytes in order, then `end`; lines outside the window are only counted."""

    def __init__(self, offset: int, limit: int) -> None:
        self._offset, self._stop = offset, offset + limit
        self._seen = 0
        self._partial = bytearray()
        self._lines: list[str] = []
        self._size = 0
        self._full = False
        #: Lines of the file so far; a last line without a line feed counts.
        self.total = 0

    def feed(self, piece: bytes) -> bool:
        """False when the file is binary."""
        if self._seen < _BINARY_WITHIN and b"\0" in piece[: _BINARY_WITHIN - self._seen]:
            return False
        self._seen += len(piece)
        breaks = piece.count(b"\n")
        wanted = not self._full and self.total + breaks + 1 >= self._offset and self.total + 1 < self._stop
        if not wanted:
            self.total += breaks
            self._partial[:] = piece[piece.rfind(b"\n") + 1 :][:1] or (b"" if breaks else self._partial[:1])
            return True
        *whole, rest = piece.split(b"\n")
        for line in whole:
            self._add(bytes(self._partial) + line)
            self._partial.clear()
        # Of a line without an end only what can be shown is kept.
        self._partial += rest[: max(0, 4 * LINE_LIMIT + 4 - len(self._partial))]
        return True

    def end(self) -> None:
        if self._partial:
            self._add(bytes(self._partial))
            self._partial.clear()

    def _add(self, line: bytes) -> None:
        self.total += 1
        if self._full or not self._offset <= self.total < self._stop:
            return
        text = line.decode(errors="replace").removesuffix("\r")
        if len(text) > LINE_LIMIT:
            text = text[:LINE_LIMIT] + " … (line cut)"
        self._size += len(text.encode()) + 1
        self._full = self._size > CONTENT_LIMIT
        if not self._full:
            self._lines.append(text)

    @property
    def last(self) -> int:
        """Number of the last line in the window; one less than the first when there is none."""
        return self._offset + len(self._lines) - 1

    def content(self) -> str:
        lines = [f"{number}: {text}" for number, text in enumerate(self._lines, self._offset)]
        if self._full:
            lines.append(f"(cut at {CONTENT_LIMIT} bytes; go on with offset={self.last + 1})")
        return "\n".join(lines)
