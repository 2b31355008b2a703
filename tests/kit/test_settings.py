"""Settings: one source after the other, every mistake told in one sentence that names where it is."""

from datetime import timedelta
from pathlib import Path

import pytest

from fermata.kit.errors import SettingsError
from fermata.kit.settings import Settings, describe_settings, load_settings

#: What is wrong, and the sentence that says so.
MISTAKES = [
    ("FERMATA_PORT", "65536", "must be a port number from 0 to 65535"),
    ("FERMATA_PORT", "http", "must be a port number from 0 to 65535"),
    ("FERMATA_HOST", "", "must not be empty"),
    ("FERMATA_LEASE", "10", "must be a duration such as 500ms, 30s, 5m or 24h"),
    ("FERMATA_LEASE", "0s", "must be a duration such as 500ms, 30s, 5m or 24h"),
    ("FERMATA_SANDBOX_MEMORY", "2GB", "must be a size such as 512M or 4G"),
    ("FERMATA_SANDBOX_CPUS", "0", "must be a number greater than 0"),
    ("FERMATA_SANDBOX_CPUS", "-1", "must be a number greater than 0"),
    ("FERMATA_SANDBOX_CPUS", "nan", "must be a number greater than 0"),
    ("FERMATA_RUNS_AT_ONCE", "0", "must be a whole number of at least 1"),
    ("FERMATA_RUNS_AT_ONCE", "1.5", "must be a whole number of at least 1"),
    ("FERMATA_ORCHESTRATOR", "maybe", "must be true or false"),
    ("FERMATA_LOG_LEVEL", "loud", "must be one of debug, info, warning, error"),
    ("FERMATA_DATABASE_URL", "mysql://x/y", "must start with postgresql:// or sqlite:///"),
    ("FERMATA_API_KEY", "secret", "must look like fer_<8 to 32 letters or digits>_<32 to 128 characters>"),
    ("FERMATA_GITHUB_API_URL", "api.github.com", "must be an http or https URL"),
    ("FERMATA_SANDBOX_NETWORK", "closed", "must be one of none, open"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), MISTAKES)
def test_a_wrong_value_is_named_and_explained(name: str, value: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({name: value})
    assert caught.value.message == f"{name} {sentence}."


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(
            {"FERMATA_PORT": "x", "FERMATA_PROT": "1"}, {"log_level": "loud"}, Path("/no/such/file.toml")
        )
    assert caught.value.message.split(". ") == [
        "The configuration file /no/such/file.toml cannot be read: No such file or directory",
        "FERMATA_PORT must be a port number from 0 to 65535",
        "FERMATA_PROT is not a setting of Fermata",
        "--log-level must be one of debug, info, warning, error.",
    ]


def test_a_secret_that_is_wrong_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"FERMATA_API_KEY": "fer_hunter2", "FERMATA_DATABASE_URL": "mysql://me:hunter2@x/y"})
    assert "hunter2" not in caught.value.message


def test_a_flag_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "fermata.toml"
    file.write_text('port = 1\nhost = "file"\nlog_level = "debug"\norchestrator = false\n')
    environment = {"FERMATA_CONFIG": str(file), "FERMATA_PORT": "2", "FERMATA_HOST": "environment"}
    settings = load_settings(environment, {"port": "3", "host": None})
    assert (settings.port, settings.host, settings.log_level) == (3, "environment", "debug")
    assert settings.orchestrator is False


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prot = 1", "The configuration file has an unknown setting: prot."),
        ("port = 70000", "port in the configuration file must be a port number from 0 to 65535."),
        ("port = ", "is not valid TOML"),
        ("port = [1]", "port in the configuration file must be a port number from 0 to 65535."),
    ],
)
def test_a_mistake_in_the_file_is_told_as_one(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "fermata.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings({}, config=file)
    assert sentence in caught.value.message


def test_values_are_read_with_their_units() -> None:
    settings = load_settings(
        {
            "FERMATA_LEASE": "500ms",
            "FERMATA_SANDBOX_IDLE": "1.5h",
            "FERMATA_SANDBOX_MEMORY": "512M",
            "FERMATA_ORCHESTRATOR": "OFF",
            "FERMATA_DATABASE_URL": "postgres://u@h/d",
            "FERMATA_AI_GATEWAY_URL": "https://gateway.example/v1/",
        }
    )
    assert settings.lease == timedelta(milliseconds=500)
    assert settings.sandbox_idle == timedelta(minutes=90)
    assert settings.sandbox_memory == 512 * 1024 * 1024
    assert settings.orchestrator is False
    assert settings.database_url == "postgresql://u@h/d"
    assert settings.ai_gateway_url == "https://gateway.example/v1"


def test_what_is_not_ours_in_the_environment_does_not_matter() -> None:
    assert load_settings({"PATH": "/bin", "FERMAT": "x"}) == Settings()


def test_every_default_is_a_value_that_could_have_been_set() -> None:
    for variable, default, says in describe_settings():
        assert says.endswith("."), variable
        if default:
            name = variable.removeprefix("FERMATA_").lower()
            assert getattr(load_settings({variable: default}), name) == getattr(Settings(), name)
