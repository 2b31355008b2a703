"""Reading a program's output record by record, for as long as somebody wants more."""

from collections.abc import AsyncGenerator, Sequence
from datetime import timedelta

from fermata.sandboxes.contract import OutputStream, Sandbox

#: Bytes of an error text that are kept.
_ERROR_LIMIT = 4_000


class Program:
    """A program in the sandbox, by argv. Leaving `pieces` early ends it."""

    def __init__(self, sandbox: Sandbox, argv: Sequence[str], *, cwd: str, time_limit_for: timedelta) -> None:
        self._sandbox, self._argv, self._cwd, self._limit = sandbox, argv, cwd, time_limit_for
        self._error = b""
        #: After the last piece: the exit status, None at the time limit.
        self.exit_code: int | None = 0

    @property
    def error(self) -> str:
        """The first line that it wrote to stderr."""
        return self._error.decode(errors="replace").strip().partition("\n")[0]

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Pieces of stdout as they come."""
        environment = {"LC_ALL": "C.UTF-8"}
        async with self._sandbox.start(
            self._argv, cwd=self._cwd, environment=environment, time_limit_for=self._limit
        ) as process:
            async for output in process.output():
                if output.stream is OutputStream.STDOUT:
                    yield output.data
                elif len(self._error) < _ERROR_LIMIT:
                    self._error += output.data
            self.exit_code = await process.wait()
