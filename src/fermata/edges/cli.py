"""The command `fermata`: serve, worker, demo, keys, version."""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import click

import fermata
from fermata.kit.errors import ErrorKind, FermataError
from fermata.kit.log import configure_logging
from fermata.kit.settings import Settings, load_settings

#: Exit statuses by kind of error; anything else is 1. The numbers are those of sysexits(3).
EXIT: dict[ErrorKind, int] = {
    ErrorKind.INVALID: 64,
    ErrorKind.NOT_FOUND: 66,
    ErrorKind.UPSTREAM: 69,
    ErrorKind.UNAVAILABLE: 69,
    ErrorKind.INTERNAL: 70,
    ErrorKind.TIMEOUT: 75,
    ErrorKind.UNAUTHENTICATED: 77,
    ErrorKind.FORBIDDEN: 77,
}

_COMMON = (
    click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file of settings."),
    click.option("--data-dir", help="Directory of everything kept."),
    click.option("--database-url", help="postgresql://... for many processes; SQLite when absent."),
    click.option("--log-level", help="debug, info, warning or error."),
)


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Flags that every command on the server's data takes; each has a variable `FERMATA_<NAME>`."""
    for option in reversed(_COMMON):
        command = option(command)
    return command


def read_settings(config: Path | None, **flags: str | None) -> Settings:
    """Settings from flags, environment and file, with logging set up as they say."""
    settings = load_settings(os.environ, flags, config)
    configure_logging(level=settings.log_level)
    return settings


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Sandboxed agent sessions on your own machine."""


@cli.command()
@settings_options
@click.option("--host", help="Address to listen on. Default: 127.0.0.1")
@click.option("--port", help="Port to listen on. Default: 8000")
def serve(config: Path | None, **flags: str | None) -> None:
    """Start the server."""
    from fermata.edges.http.server import serve as serve_http

    serve_http(read_settings(config, **flags))


@cli.command()
@settings_options
def worker(config: Path | None, **flags: str | None) -> None:
    """Work on turns and sandboxes beside other processes, without HTTP. Needs PostgreSQL."""
    from fermata.edges.worker import work

    run(work(read_settings(config, **flags)))


@cli.command()
@click.option("--keep", is_flag=True, help="Leave the data directory in place at the end.")
def demo(keep: bool) -> None:
    """Play the whole journey against a server started for it, with times."""
    from fermata.edges.demo import play

    sys.exit(play(keep=keep))


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"fermata {fermata.__version__}")


def main() -> None:
    try:
        cli(standalone_mode=False)
    except FermataError as error:
        click.echo(f"fermata: {error.message}", err=True)
        sys.exit(EXIT.get(error.kind, 1))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)


if __name__ == "__main__":
    main()
