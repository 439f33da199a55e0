"""Settings: what is refused, what is kept of a key, and the options that they become."""

import dataclasses
import pickle
from typing import Any

import pytest

from nanovllm.errors import ConfigError
from nanovllm.server.settings import ServerSettings, key_digest


def test_the_server_listens_to_this_machine_alone_unless_told_otherwise() -> None:
    assert ServerSettings().host == "127.0.0.1"
    assert ServerSettings().allowed_origins == ()


def test_only_digests_of_keys_are_kept() -> None:
    settings = ServerSettings(api_keys=("a-secret", "another", "a-secret"))
    assert settings.api_keys == (key_digest("a-secret"), key_digest("another"))
    assert "secret" not in repr(settings)
    assert b"secret" not in pickle.dumps(settings)


def test_a_key_may_be_given_by_its_digest_and_a_copy_of_the_settings_keeps_it() -> None:
    settings = ServerSettings(api_keys=(key_digest("a-secret"),))
    assert settings.api_keys == ServerSettings(api_keys=("a-secret",)).api_keys
    assert dataclasses.replace(settings, port=1).api_keys == settings.api_keys


def test_no_time_limit_is_written_as_zero() -> None:
    assert ServerSettings(request_timeout_s=0).request_timeout_s is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 65536),
        ("port", True),
        ("host", ""),
        ("root_path", "llm"),
        ("root_path", "/llm/"),
        ("max_body_bytes", 0),
        ("max_n", 1.5),
        ("max_prompt_tokens", 0),
        ("requests_per_minute", -1),
        ("request_timeout_s", float("nan")),
        ("shutdown_timeout_s", -1.0),
        ("keep_alive_s", 0),
        ("metrics_prefix", "a-b"),
        ("log_format", "xml"),
        ("log_level", "loud"),
        ("served_model_names", "name"),
        ("served_model_names", ("",)),
        ("tool_parser", ""),
        ("enable_page", 1),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_the_setting(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        ServerSettings(**{name: value})


def test_the_error_over_a_broken_list_of_keys_shows_no_key() -> None:
    with pytest.raises(ConfigError) as caught:
        ServerSettings(api_keys=["a-secret"])  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)
