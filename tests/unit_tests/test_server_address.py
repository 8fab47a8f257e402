"""The URL of a Chroma server: read in one way, and never told with its password."""

import base64

import pytest

from centroidkv import EngineConfig
from centroidkv.errors import ConfigError
from centroidkv.remote_settings import RemoteSettings
from centroidkv.secret_keys import masked
from centroidkv.server_address import address_of


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://chroma", "http://chroma:80"),
        ("https://chroma", "https://chroma:443"),
        ("http://chroma:8000/", "http://chroma:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("https://u:p@chroma.example/team/kv/", "https://chroma.example:443/team/kv"),
    ],
)
def test_a_port_is_the_schemes_own_and_a_prefix_is_kept(given: str, url: str) -> None:
    assert address_of(given).url == url


def test_credentials_become_a_header_and_nothing_else() -> None:
    address = address_of("http://someone:p%40ss%3Aword@host:8000")
    kind, _, value = address.headers["Authorization"].partition(" ")
    assert (kind, base64.b64decode(value)) == ("Basic", b"someone:p@ss:word")
    assert "p%40ss" not in repr(address)
    assert value not in repr(address)


@pytest.mark.parametrize(
    "given",
    [
        "ftp://someone:hunter2@host",
        "someone:hunter2@host:8000",
        "http://someone:hun/ter2@host",
        "http://someone:1234/hunter2@host",
        "http://someone:hunter2@host:port",
        "http://someone:hunter2@host/?token=1",
        "http://someone:hunter2@host/a b",
        "http://hunter2@host",
        "http://:hunter2@host",
        "http://someone:hunter2@",
    ],
)
def test_what_cannot_be_served_is_refused_without_its_password(given: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig(chroma=given)
    assert "hunter2" not in str(caught.value)
    assert "ter2" not in str(caught.value)


def test_settings_are_not_shown_with_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "hunter2" not in repr(EngineConfig(chroma="http://someone:hunter2@host"))
    monkeypatch.setenv("CHROMA_AT", "http://someone:hunter2@host/kv")
    config = EngineConfig(chroma="env:CHROMA_AT")
    assert config.chroma == "env:CHROMA_AT"
    assert address_of(config.chroma).url == "http://host:80/kv"
    with pytest.raises(ConfigError, match="NO_SUCH_NAME, named by chroma"):
        EngineConfig(chroma="env:NO_SUCH_NAME")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:pw@host:6379/0?prefix=a@b", "redis://:***@host:6379/0?prefix=a@b"),
        ("redis://user:12/34@host/0", "redis://user:12/34@host/0"),
        ("redis://user:p/w@host/0", "redis://user:***@host/0"),
        ("s3://bucket:8000/a@b", "s3://bucket:8000/a@b"),
        ("http://[::1]:8000/a@b", "http://[::1]:8000/a@b"),
        ("az://container@account.example/x", "az://container@account.example/x"),
        ("no answer of http://u:p@h/x, nor http://u:q@h", None),
    ],
)
def test_only_passwords_are_masked(text: str, shown: str | None) -> None:
    expected = shown or "no answer of http://u:***@h/x, nor http://u:***@h"
    assert masked(text) == expected
    if shown is not None:
        assert RemoteSettings(text).shown_url == shown
