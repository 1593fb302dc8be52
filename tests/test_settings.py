"""Settings: one precedence, one sentence per mistake, no secret shown."""

from pathlib import Path
from typing import Any

import pytest

from broker.errors import UsageError
from broker.masking import Secret, Url, mask_url
from warren.keys import KEYS
from warren.models import served
from warren.settings import Settings, load
from workers.model_gateway.config import Azure, Price


def settings(
    flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None
) -> Settings:
    return load(flags or {}, environ or {}).settings


@pytest.fixture
def write_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        file = tmp_path / "warren.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(write_toml: Any) -> None:
    assert settings().renew_after_s == 600.0
    write_toml("[worker]\nrenew_after_s = 10\n")
    assert settings().renew_after_s == 10.0
    environ = {"WARREN_RENEW_AFTER": "20"}
    assert settings({}, environ).renew_after_s == 20.0
    assert settings({"renew_after": "30"}, environ).renew_after_s == 30.0


def test_an_empty_environment_variable_counts_as_unset() -> None:
    assert settings({}, {"WARREN_BROKER": ""}).broker is None


def test_a_named_file_is_read_instead_of_warren_toml(write_toml: Any, tmp_path: Path) -> None:
    write_toml('broker = "amqp://from-warren-toml"\n')
    other = tmp_path / "other.toml"
    other.write_text('broker = "amqp://from-other"\n', encoding="utf-8")
    assert settings({"config": str(other)}).broker == Url("amqp://from-other")
    assert settings({}, {"WARREN_CONFIG": str(other)}).broker == Url("amqp://from-other")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[limits]\nmax_step = 3\n", "unknown key 'limits.max_step'; did you mean"),
        ("brokr = 'amqp://a'\n", "unknown key 'brokr'; did you mean 'broker'"),
        ("[limits]\nmax_steps = 0\n", "limits.max_steps: 0 must be a whole number, at least 1"),
        ("[limits]\nmax_steps = true\n", "limits.max_steps: True must be a whole number"),
        ("environments = 'calculator'\n", "environments: 'calculator' must be a list"),
        ("broker = \n", "is not valid TOML"),
        ("models = 3\n", "models must be tables"),
        ("[models.m]\nbase_url = 'http://a'\n", "unknown key 'base_url'; did you mean 'base_urls'"),
        ("[models.m]\nbase_urls = ['a']\n", "base_urls: ['a'] must be a URL like http://host"),
        ("[models.m]\nbase_urls = ['http://h:99999/v1']\n", "with a port up to 65535"),
        ("[models.m]\nbase_urls = ['http://h:pass/v1']\n", "with a port up to 65535"),
        ("[models.m]\napi = 'soap'\n", "api: 'soap' must be auto or chat or responses or vllm"),
        ("[prefetch]\nagent = 0\n", "prefetch.agent: 0 must be a whole number, from 1 to 65535"),
    ],
)
def test_a_mistake_in_the_file_names_file_key_and_what_is_allowed(
    write_toml: Any, text: str, message: str
) -> None:
    write_toml(text)
    with pytest.raises(UsageError) as caught:
        load({}, {})
    assert message in str(caught.value)
    assert "warren.toml" in str(caught.value)


def test_a_file_that_is_missing_is_named() -> None:
    with pytest.raises(UsageError, match=r"cannot read nowhere\.toml"):
        settings({"config": "nowhere.toml"})


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WARREN_BROKER": "localhost:5672"}, "WARREN_BROKER: 'localhost:5672' must be a URL"),
        ({"WARREN_METRICS_PORT": "70000"}, "WARREN_METRICS_PORT: '70000' must be a whole number"),
        ({"WARREN_LOG_JSON": "maybe"}, "WARREN_LOG_JSON: 'maybe' must be true or false"),
        ({"WARREN_RENEW_AFTER": "nan"}, "WARREN_RENEW_AFTER: 'nan' must be a number above 0"),
        ({"WARREN_TOPOLOGY": "none"}, "WARREN_TOPOLOGY: 'none' must be declare or external"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    environ: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        settings({}, environ)
    assert message in str(caught.value)


def test_a_password_in_a_wrong_url_is_masked() -> None:
    with pytest.raises(UsageError) as caught:
        settings({"broker": "http://guest:hunter2@host"})
    assert "hunter2" not in str(caught.value)


def test_limits_prices_and_azure_of_a_model_reach_its_gateway(write_toml: Any) -> None:
    write_toml(
        '[models.gpt]\nbase_urls = ["https://r.openai.azure.com"]\nserved_name = "gpt-5-mini"\n'
        "try_timeout_s = 90\nrequests_per_minute = 500\ntokens_per_minute = 200_000\n"
        'azure = { api_version = "2024-10-21", deployment = "d", ad_token_env = "AD" }\n'
        "price = { prompt = 1.25, generated = 10, cached = 0.125 }\n"
    )
    found = settings({}, {"AD": "ad-token-1"})
    assert "ad-token-1" in found.secrets()
    model = served(["gpt"], found)["gpt"]
    assert model.served_name == "gpt-5-mini"
    assert (model.try_timeout_s, model.requests_per_minute, model.tokens_per_minute) == (
        *(90.0, 500.0),
        200_000.0,
    )
    assert model.azure == Azure(
        api_version="2024-10-21", deployment="d", ad_token=Secret("ad-token-1")
    )
    assert model.price == Price(prompt=1.25, generated=10.0, cached=0.125)


def test_an_azure_token_that_is_not_set_is_named(write_toml: Any) -> None:
    write_toml('[models.gpt.azure]\napi_version = "1"\nad_token_env = "AD"\n')
    with pytest.raises(UsageError, match=r'\[models."gpt"\] azure.ad_token_env: .* AD is not set'):
        settings({}, {})


def test_models_come_from_the_file_and_the_flags_complete_them(write_toml: Any) -> None:
    write_toml(
        '[models."Qwen/Qwen2.5-7B"]\nbase_urls = ["http://a/v1", "http://b/v1"]\n'
        'max_concurrency = 8\napi_key_env = "QWEN_KEY"\n'
        '[models.judge]\napi = "responses"\n'
    )
    environ = {"QWEN_KEY": "sk-qwen", "OPENAI_API_KEY": "sk-openai"}
    models = settings({}, environ).models
    qwen = models["Qwen/Qwen2.5-7B"]
    assert qwen.base_urls == (Url("http://a/v1"), Url("http://b/v1"))
    assert (qwen.max_concurrency, qwen.key()) == (8, Secret("sk-qwen"))
    assert (models["judge"].api, models["judge"].key()) == ("responses", Secret("sk-openai"))

    flags = {"model": "Qwen/Qwen2.5-7B", "base_url": ["http://c/v1"], "api": "responses"}
    changed = settings(flags, environ).models["Qwen/Qwen2.5-7B"]
    assert (changed.base_urls, changed.api) == ((Url("http://c/v1"),), "responses")
    assert changed.max_concurrency == 8


def test_an_api_key_that_was_named_and_is_not_set_is_an_error_only_where_it_is_used() -> None:
    model = settings({"model": "m", "api_key_env": "NO_SUCH_KEY"}).models["m"]
    with pytest.raises(UsageError, match="API key of model 'm': the variable NO_SUCH_KEY is not"):
        model.key()
    assert settings({"model": "m"}).models["m"].key() is None


def test_several_base_urls_in_the_environment_are_separated_by_commas() -> None:
    environ = {"WARREN_MODEL": "m", "WARREN_BASE_URL": "http://a/v1,http://b/v1"}
    assert len(settings({}, environ).models["m"].base_urls) == 2


def test_no_secret_is_in_the_repr_of_settings() -> None:
    shown = settings(
        {"broker": "amqp://guest:hunter2@host", "redis": "redis://:hunter3@host", "model": "m"},
        {"OPENAI_API_KEY": "sk-hunter4"},
    )
    assert "hunter" not in repr(shown)
    assert shown.secrets() == {"hunter2", "hunter3", "sk-hunter4"}
    assert shown.broker is not None
    assert shown.broker.reveal() == "amqp://guest:hunter2@host"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("amqp://u:p@host:1/v", "amqp://u:***@host:1/v"),
        ("redis://:p@host", "redis://:***@host"),
        (
            "amqp://u:p%2F@h and http://h/?api_key=x&y=1",
            "amqp://u:***@h and http://h/?api_key=***&y=1",
        ),
        ("amqp://host/", "amqp://host/"),
        ("http://a/b:c@d", "http://a/b:c@d"),
    ],
)
def test_mask_url_hides_passwords_and_named_query_values(text: str, masked: str) -> None:
    assert mask_url(text) == masked


def test_every_key_has_a_twin_and_the_toml_names_are_unique() -> None:
    places = [key.toml for key in KEYS.values() if key.toml]
    assert len(places) == len(set(places))
    assert all(key.twin.startswith("WARREN_") for key in KEYS.values())
