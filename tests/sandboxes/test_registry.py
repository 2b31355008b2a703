"""Providers by name."""

import subprocess
import sys

import pytest

from fermata.kit.errors import SettingsError
from fermata.sandboxes.providers.local import LocalProvider
from fermata.sandboxes.registry import list_providers, load_provider_class


def test_a_provider_is_found_by_its_name() -> None:
    assert load_provider_class("local") is LocalProvider
    assert "local" in list_providers()


@pytest.mark.parametrize("name", ["", "memory", "Local", "os:system"])
def test_nothing_else_can_be_chosen_least_of_all_what_isolates_nothing(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_provider_class(name)
    assert "local" in caught.value.message


def test_no_provider_is_imported_before_it_is_asked_for() -> None:
    script = (
        "import sys, fermata.sandboxes.registry;"
        "assert not [name for name in sys.modules if name.startswith('fermata.sandboxes.providers')]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
