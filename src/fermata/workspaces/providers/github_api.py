"""The few calls of GitHub's REST API that making a repository takes, with its refusals as sentences."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import aiohttp

from fermata.kit.errors import RepositoryError
from fermata.workspaces.model import RepositoryName

_TIME_LIMIT = aiohttp.ClientTimeout(total=30, sock_connect=10)


class GitHubApi:
    """Each method is one or a few requests. The token travels in a header to `base_url` and nowhere else."""

    def __init__(
        self, *, token: str | None, base_url: str, session_factory: Callable[[], aiohttp.ClientSession]
    ) -> None:
        self._token = token
        self._base_url = base_url.rstrip("/")
        self._session_factory = session_factory
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"GitHubApi(base_url={self._base_url!r})"

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def has_repository(self, name: RepositoryName) -> bool:
        status, body = await self._request("GET", f"/repos/{name}")
        if status == HTTPStatus.NOT_FOUND:
            return False
        if status in (HTTPStatus.OK, HTTPStatus.MOVED_PERMANENTLY):
            return True
        raise self._refusal(status, body, f"reading {name}")

    async def create_repository(self, name: RepositoryName) -> None:
        """Make a private repository with one commit. One that exists, also since just now, is fine."""
        request = {"name": name.name, "private": True, "auto_init": True}
        status, body = await self._request("POST", f"/orgs/{name.owner}/repos", request)
        if status == HTTPStatus.NOT_FOUND and await self._is_me(name.owner):
            status, body = await self._request("POST", "/user/repos", request)
        if status == HTTPStatus.CREATED or (
            status == HTTPStatus.UNPROCESSABLE_ENTITY and _says_already_exists(body)
        ):
            return
        raise self._refusal(status, body, f"making {name}")

    async def _is_me(self, owner: str) -> bool:
        status, body = await self._request("GET", "/user")
        if status != HTTPStatus.OK:
            raise self._refusal(status, body, "reading the token's user")
        return str(body.get("login", "")).lower() == owner.lower()

    async def _request(
        self, method: str, path: str, json: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        if self._session is None:
            self._session = self._session_factory()
        headers = {
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
            "User-Agent": "fermata",
        }
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            async with self._session.request(
                method,
                self._base_url + path,
                json=json,
                headers=headers,
                timeout=_TIME_LIMIT,
                # A redirect would carry the token on; that a repository has moved is all one needs to know.
                allow_redirects=False,
            ) as response:
                if _is_rate_limited(response):
                    raise RepositoryError("GitHub's rate limit is used up; try again later.")
                try:
                    body = await response.json(content_type=None)
                except ValueError:
                    body = None
                return response.status, body if isinstance(body, dict) else {}
        except TimeoutError as error:
            raise RepositoryError("GitHub did not answer in time; try again later.") from error
        except aiohttp.ClientError as error:
            raise RepositoryError("GitHub cannot be reached; try again later.") from error

    def _refusal(self, status: int, body: dict[str, Any], doing: str) -> RepositoryError:
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return RepositoryError(f"GitHub failed while {doing} (status {status}); try again later.")
        if status == HTTPStatus.UNAUTHORIZED:
            return RepositoryError("GitHub does not accept the token; set a valid one.")
        if status in (HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            return RepositoryError(f"GitHub refused {doing}: the token does not permit it.")
        message = str(body.get("message", ""))[:200]
        return RepositoryError(f"GitHub refused {doing} (status {status}): {message or 'no reason given'}")


def _is_rate_limited(response: aiohttp.ClientResponse) -> bool:
    """GitHub answers 403 or 429, with nothing remaining or a time to wait."""
    if response.status == HTTPStatus.TOO_MANY_REQUESTS:
        return True
    exhausted = response.headers.get("x-ratelimit-remaining") == "0" or "retry-after" in response.headers
    return response.status == HTTPStatus.FORBIDDEN and exhausted


def _says_already_exists(body: dict[str, Any]) -> bool:
    errors = body.get("errors")
    messages = [error.get("message", "") for error in errors if isinstance(error, dict)] if errors else []
    return any("already exists" in str(message) for message in messages)
