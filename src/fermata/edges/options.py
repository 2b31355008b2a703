"""Flags that every command on the server's data takes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fermata.kit.log import configure_logging
from fermata.kit.settings import Settings, load_settings

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
