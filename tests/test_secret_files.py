"""Secrets in mounted files: found where they are named, and never said."""

from pathlib import Path
from typing import Any

import pytest

from broker.errors import UsageError
from broker.masking import Secret, Url
from warren.settings import Settings, child_environment, load

MODEL = '[models.m]\nbase_urls = ["http://a/v1"]\n'


def settings(toml: str, environ: dict[str, str], **flags: Any) -> Settings:
    Path("warren.toml").write_text(toml, encoding="utf-8")
    return load(flags, environ).settings


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a directory with a secret, as it is mounted: readable by all, a newline at its end."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("sk-hunter2\n", encoding="utf-8")
    (tmp_path / "key").chmod(0o444)


@pytest.mark.parametrize(
    ("toml", "environ", "flags"),
    [
        (f'{MODEL}api_key_file = "key"\n', {"OPENAI_API_KEY": "sk-other"}, {}),
        (MODEL, {"OPENAI_API_KEY_FILE": "key"}, {}),
        (f'{MODEL}api_key_env = "MINE"\n', {"MINE_FILE": "key", "OPENAI_API_KEY": "no"}, {}),
        (MODEL, {"WARREN_API_KEY_FILE": "key"}, {"model": "m"}),
        (f'{MODEL}api_key_env = "MINE"\n', {"MINE": "no"}, {"model": "m", "api_key_file": "key"}),
    ],
)
def test_a_models_key_is_read_from_the_file_that_was_named(
    toml: str, environ: dict[str, str], flags: dict[str, str]
) -> None:
    found = settings(toml, environ, **flags)
    assert found.models["m"].key() == Secret("sk-hunter2")
    assert found.secrets() == {"sk-hunter2"}


@pytest.mark.parametrize(
    ("line", "environ"),
    [("ad_token_file = 'key'", {}), ("ad_token_env = 'AD'", {"AD_FILE": "key"})],
)
def test_an_azure_token_too(line: str, environ: dict[str, str]) -> None:
    toml = f"{MODEL}[models.m.azure]\napi_version = '1'\n{line}\n"
    azure = settings(toml, environ).models["m"].azure
    assert azure is not None
    assert azure.ad_token == Secret("sk-hunter2")


def test_broker_and_store_are_found_in_files_and_children_find_the_same() -> None:
    Path("broker").write_text("amqp://me:hunter%22@host/\n", encoding="utf-8")
    Path("redis").write_text("redis://:hunter3@host", encoding="utf-8")
    found = settings("", {"WARREN_BROKER_FILE": "broker", "WARREN_REDIS_FILE": "redis"})
    assert (found.broker, found.redis) == (
        Url("amqp://me:hunter%22@host/"),
        Url("redis://:hunter3@host"),
    )
    assert found.secrets() == {"hunter%22", 'hunter"', "hunter3"}
    assert settings("", child_environment(found)).broker == found.broker
    given = settings("", {"WARREN_BROKER_FILE": "nowhere"}, broker="amqp://flag")
    assert given.broker == Url("amqp://flag"), "a flag needs no file"


def test_a_child_gets_no_second_word_on_where_the_broker_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("broker").write_text("amqp://host", encoding="utf-8")
    monkeypatch.setenv("WARREN_BROKER_FILE", "broker")
    assert load({}, child_environment(load({}).settings)).settings.broker == Url("amqp://host")


@pytest.mark.parametrize(
    ("held", "says"),
    [
        (None, "cannot read secret: No such file or directory"),
        (b"", "secret is empty"),
        (b" \n", "secret is empty"),
        (b"hunter2\nhunter3\n", "secret must hold one line"),
        (b"hunter2\xff", "secret is not text"),
    ],
)
@pytest.mark.parametrize("where", ["WARREN_BROKER_FILE", "OPENAI_API_KEY_FILE", "api_key_file"])
def test_a_secret_that_is_not_there_is_an_error_that_names_its_file(
    where: str, held: bytes | None, says: str
) -> None:
    if held is not None:
        Path("secret").write_bytes(held)
    toml = f'{MODEL}api_key_file = "secret"\n' if where == "api_key_file" else MODEL
    with pytest.raises(UsageError) as caught:
        settings(toml, {} if where == "api_key_file" else {where: "secret"}).models["m"].key()
    assert says in str(caught.value)
    assert where in str(caught.value) or "API key of model 'm'" in str(caught.value)
    assert "hunter" not in str(caught.value)


def test_a_models_key_that_is_not_there_is_an_error_only_where_it_is_used() -> None:
    assert settings(f'{MODEL}api_key_file = "nowhere"\n', {}).models["m"].api_key is None


@pytest.mark.parametrize(
    ("toml", "environ", "says"),
    [
        ("", {"WARREN_REDIS_FILE": "key"}, "WARREN_REDIS_FILE: what the file holds must be a URL"),
        (
            "",
            {"WARREN_BROKER_FILE": "key", "WARREN_BROKER": "amqp://a"},
            "both WARREN_BROKER and WARREN_BROKER_FILE are set: leave one",
        ),
        (
            f'{MODEL}api_key_file = "key"\napi_key_env = "A"\n',
            {},
            '[models."m"]: api_key_env and api_key_file: leave one of them',
        ),
        (
            f'{MODEL}api_key = "sk-hunter2"\n',
            {},
            "api_key must not stand here: use api_key_env or api_key_file",
        ),
        (
            f'{MODEL}azure = {{ api_version = "1", ad_token = "sk-hunter2" }}\n',
            {},
            "azure.ad_token must not stand here: use azure.ad_token_env or azure.ad_token_file",
        ),
        (
            f'{MODEL}api_key_env = "sk-hunter2"\n',
            {},
            "api_key_env must be the name of an environment variable, not a key itself",
        ),
    ],
)
def test_a_secret_in_the_wrong_place_is_refused_and_not_repeated(
    toml: str, environ: dict[str, str], says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        settings(toml, environ)
    assert says in str(caught.value)
    assert "hunter" not in str(caught.value)


def test_a_key_where_a_variables_name_belongs_is_not_repeated_either() -> None:
    model = settings(f'{MODEL}api_key_env = "gsk_hunter2"\n', {}).models["m"]
    with pytest.raises(UsageError, match="model 'm': the variable named there is not set"):
        model.key()
