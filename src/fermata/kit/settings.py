"""The one settings place. Every setting has a name, a default, a check and a sentence; nothing else reads
the environment.

A value comes from the first of: a flag of the command, the environment (`FERMATA_<NAME>`), the TOML file
(`FERMATA_CONFIG` or `--config`, keys in lower case), the default.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from fermata.kit.errors import SettingsError

Parse = Callable[[str], Any]


def _text(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def _port(text: str) -> int:
    if not re.fullmatch(r"\d{1,5}", text) or int(text) > 65535:
        raise ValueError("must be a port number from 0 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or int(text) < 1:
        raise ValueError("must be a whole number of at least 1")
    return int(text)


def _number(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) <= 0:
        raise ValueError("must be a number greater than 0")
    return float(text)


def _switch(text: str) -> bool:
    known = {
        "true": True,
        "1": True,
        "yes": True,
        "on": True,
        "false": False,
        "0": False,
        "no": False,
        "off": False,
    }
    if text.lower() not in known:
        raise ValueError("must be true or false")
    return known[text.lower()]


_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if match is None or float(match[1]) == 0:
        raise ValueError("must be a duration such as 500ms, 30s, 5m or 24h")
    return timedelta(seconds=float(match[1]) * _UNITS[match[2]])


_SIZES = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)(B|K|M|G|T)", text)
    if match is None or int(match[1]) == 0:
        raise ValueError("must be a size such as 512M or 4G")
    return int(match[1]) * _SIZES[match[2]]


def _database_url(text: str) -> str:
    if not re.fullmatch(r"sqlite:///.+|postgres(ql)?://.+", text):
        raise ValueError("must start with postgresql:// or sqlite:///")
    return re.sub(r"^postgres://", "postgresql://", text)


def _api_key(text: str) -> str:
    if not re.fullmatch(r"fer_[A-Za-z0-9]{8,32}_[A-Za-z0-9_-]{32,128}", text):
        raise ValueError("must look like fer_<8 to 32 letters or digits>_<32 to 128 characters>")
    return text


def _http_url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", text):
        raise ValueError("must be an http or https URL")
    return text.rstrip("/")


def _owner(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}", text):
        raise ValueError("must be a GitHub owner name: up to 39 letters, digits and single hyphens")
    return text


def _one_of(*choices: str) -> Parse:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text

    return parse


def setting(default: Any, parse: Parse, says: str, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"parse": parse, "says": says, "secret": secret})


@dataclass(frozen=True, kw_only=True)
class Settings:
    host: str = setting("127.0.0.1", _text, "Address to listen on.")
    port: int = setting(8000, _port, "Port to listen on; 0 takes a free one.")
    data_dir: Path = setting(
        Path("fermata-data"), lambda text: Path(_text(text)), "Directory of everything kept."
    )
    database_url: str | None = setting(
        None,
        _database_url,
        "`postgresql://...` for many processes; SQLite in the data directory when absent.",
        secret=True,
    )
    database_connections: int = setting(10, _count, "Connections to PostgreSQL that one process may hold.")
    api_key: str | None = setting(
        None,
        _api_key,
        "Key of the first account when the data directory is new; made up when absent.",
        secret=True,
    )
    log_level: str = setting(
        "info", _one_of("debug", "info", "warning", "error"), "Least level that is logged."
    )

    workspace_owner: str = setting("recoupable", _owner, "Owner under which workspace repositories are made.")
    github_token: str | None = setting(
        None,
        _text,
        "With it, workspace repositories live on GitHub instead of the built-in host.",
        secret=True,
    )
    github_api_url: str = setting("https://api.github.com", _http_url, "GitHub's REST API.")
    github_clone_url: str = setting("https://github.com", _http_url, "Where GitHub serves clones.")

    orchestrator: bool = setting(True, _switch, "Start the sandbox of every new session without being asked.")
    sandbox_provider: str = setting("local", _one_of("local"), "Provider of new sandboxes.")
    sandbox_base: str | None = setting(
        None,
        _text,
        "Root file system of sandboxes: a directory, a tar or an OCI layout. Default: built once.",
    )
    sandbox_base_build: bool = setting(
        True,
        _switch,
        "Build the default base in the background; when off, the host's /usr serves, read-only.",
    )
    sandbox_network: str = setting(
        "open", _one_of("none", "open"), "Network inside: none, or open through the proxy."
    )
    sandbox_lifetime: timedelta = setting(timedelta(minutes=30), _duration, "How long a sandbox may run.")
    sandbox_idle: timedelta = setting(
        timedelta(minutes=5), _duration, "Idle time before a sandbox hibernates."
    )
    sandbox_cpus: float = setting(2.0, _number, "Processors that one sandbox may use.")
    sandbox_memory: int = setting(2 << 30, _size, "Memory of one sandbox.")
    sandbox_processes: int = setting(512, _count, "Processes and threads in one sandbox.")
    sandbox_file_size: int = setting(8 << 30, _size, "Largest file in a sandbox.")

    runs_at_once: int = setting(64, _count, "Durable runs that one process works on at the same time.")
    lease: timedelta = setting(
        timedelta(seconds=10),
        _duration,
        "After this time without a sign of life, another worker takes a run over.",
    )
    keep_runs: timedelta = setting(
        timedelta(days=7), _duration, "How long the streams of ended turns can be read again."
    )

    default_model: str | None = setting(
        None, _text, "Model of new chats; default: demo/shell, or the first vendor that has a key."
    )
    openai_api_key: str | None = setting(None, _text, "Key for `openai/...` models.", secret=True)
    openai_base_url: str | None = setting(None, _http_url, "Any server that speaks OpenAI's API.")
    anthropic_api_key: str | None = setting(None, _text, "Key for `anthropic/...` models.", secret=True)
    ai_gateway_api_key: str | None = setting(None, _text, "Key for the Vercel AI Gateway.", secret=True)
    ai_gateway_url: str = setting("https://ai-gateway.vercel.sh/v1", _http_url, "The AI Gateway's address.")

    models: str | None = setting(None, _text, "Further model ids to list, separated by commas.")


def load_settings(
    environment: Mapping[str, str], flags: Mapping[str, str | None] | None = None, config: Path | None = None
) -> Settings:
    """Check every source and return settings, or raise `SettingsError` with one sentence per mistake."""
    mistakes: list[str] = []
    known = {item.name: item for item in fields(Settings)}
    values: dict[str, Any] = {}
    config_name = environment.get("FERMATA_CONFIG")
    path = config or (Path(config_name) if config_name else None)

    def take(name: str, text: str, source: str) -> None:
        try:
            values[name] = known[name].metadata["parse"](text)
        except ValueError as mistake:
            mistakes.append(f"{source} {mistake}.")

    for name, value in _read_toml(path, mistakes).items():
        if name not in known:
            mistakes.append(f"The configuration file has an unknown setting: {name}.")
        else:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            take(name, text, f"{name} in the configuration file")
    for variable, text in environment.items():
        if variable.startswith("FERMATA_") and variable != "FERMATA_CONFIG":
            name = variable.removeprefix("FERMATA_").lower()
            if name not in known:
                mistakes.append(f"{variable} is not a setting of Fermata.")
            else:
                take(name, text, variable)
    for name, flag in (flags or {}).items():
        if flag is not None:
            take(name, flag, f"--{name.replace('_', '-')}")
    if mistakes:
        raise SettingsError(" ".join(mistakes))
    return Settings(**values)


def _read_toml(path: Path | None, mistakes: list[str]) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        mistakes.append(f"The configuration file {path} cannot be read: {error.strerror}.")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        mistakes.append(f"The configuration file {path} is not valid TOML: {error}.")
    return {}


def describe_settings() -> list[tuple[str, str, str]]:
    """(environment variable, default, sentence) of every setting, for the documentation and its test."""
    rows = []
    for item in fields(Settings):
        default = "" if item.default in (None, MISSING) else _show(item.default)
        rows.append((f"FERMATA_{item.name.upper()}", default, str(item.metadata["says"])))
    return rows


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        seconds = int(value.total_seconds())
        for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
            if seconds >= size and seconds % size == 0:
                return f"{seconds // size}{unit}"
        return f"{seconds}s"
    if isinstance(value, int) and value >= 1 << 30 and value % (1 << 30) == 0:
        return f"{value >> 30}G"
    return str(value)
