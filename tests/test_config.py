"""The settings: defaults, what wins over what, and what is wrong."""

from pathlib import Path

import pytest

from fetcher import config

NEEDED = {"TOKEN": "vk1.a.secret", "GROUPID": "218730916"}


@pytest.fixture(autouse=True)
def no_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_defaults() -> None:
    """These are the documented ones."""
    assert config.read(NEEDED) == config.Config(
        "vk1.a.secret", 218730916, "redis://localhost:6379/0", "events", "/!", 100000, 600, 25, 3600, "INFO"
    )


def test_empty_is_not_set() -> None:
    """An empty variable, as compose passes it, leaves the default."""
    assert config.read(NEEDED | {"BUS": "", "POLL_WAIT": "", "REDIS_URL": ""}) == config.read(NEEDED)


def test_dotenv_stands_in_for_the_environment() -> None:
    """The environment wins, an empty variable does not, and nothing is interpolated."""
    Path(".env").write_text('TOKEN=from$file\nGROUPID=5\nBUS="from-file"\nLOG_LEVEL=debug\n')
    settings = config.read({"GROUPID": "7", "BUS": ""})
    assert settings[:2] == ("from$file", 7)
    assert (settings.bus, settings.log_level) == ("from-file", "DEBUG")


def test_an_unreadable_dotenv_is_named() -> None:
    """What cannot be read is no traceback."""
    Path(".env").write_bytes(b"TOKEN=\xff\xfe\n")
    with pytest.raises(ValueError, match=r"^\.env cannot be read"):
        config.read(NEEDED)


def test_token_file_wins() -> None:
    """A secret in a file, its last line break aside, stands before TOKEN."""
    Path("token").write_text("from-file\n")
    assert config.read(NEEDED | {"TOKEN_FILE": "token"}).token == "from-file"
    Path("token").write_text("two words\n")
    with pytest.raises(ValueError, match="TOKEN_FILE must hold"):
        config.read(NEEDED | {"TOKEN_FILE": "token"})
    with pytest.raises(ValueError, match="TOKEN_FILE cannot be read"):
        config.read(NEEDED | {"TOKEN_FILE": "."})


@pytest.mark.parametrize(
    "wrong",
    [
        {"TOKEN": ""}, {"TOKEN": "кириллица"}, {"TOKEN": "a b"}, {"GROUPID": ""}, {"GROUPID": "0"}, {"GROUPID": "-1"},
        {"GROUPID": "٣"}, {"GROUPID": "1.0"}, {"REDIS_URL": "http://localhost"}, {"REDIS_URL": "redis://host:port"},
        {"BUS": "a b"}, {"BUS": "{a}"}, {"STREAM_MAXLEN": "0"}, {"STREAM_MAXLEN": "many"}, {"NAMES_TTL": "-1"},
        {"NAMES_TTL": str(10**10)}, {"POLL_WAIT": "0"}, {"POLL_WAIT": "91"}, {"RENEW_AFTER": "0"},
        {"LOG_LEVEL": "LOUD"},
    ],
    ids=str,
)  # fmt: skip
def test_each_wrong_setting_is_named(wrong: dict[str, str]) -> None:
    """The sentence begins with its name, and holds no value that might be secret."""
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must") as error:
        config.read(NEEDED | wrong)
    assert "secret" not in str(error.value)


def test_all_wrong_settings_are_named_at_once() -> None:
    """One sentence for all of them."""
    with pytest.raises(ValueError, match=r"TOKEN .*; REDIS_URL .*; GROUPID .*; BUS .*; POLL_WAIT"):
        config.read({"REDIS_URL": "x", "BUS": "{", "POLL_WAIT": "x"})


@pytest.mark.parametrize(
    "url", ["rediss://user:p%40ss@host:6380/1", "unix:///run/redis.sock?db=2", "redis://:secret@[::1]:6379/0"]
)
def test_addresses_of_redis_py_are_taken(url: str) -> None:
    """TLS, user and password, a socket: whatever redis-py takes."""
    assert config.read(NEEDED | {"REDIS_URL": url}).redis_url == url


def test_secrets() -> None:
    """The password is a secret in both spellings."""
    settings = config.read(NEEDED | {"REDIS_URL": "redis://user:p%40ss%2F@host/0"})
    assert settings.secrets() == ["vk1.a.secret", "p@ss/", "p%40ss%2F"]
    assert config.read(NEEDED | {"REDIS_URL": "unix:///a?password=hidden"}).secrets() == ["vk1.a.secret", "hidden"]


def test_health_needs_no_token() -> None:
    """The token is for VK only."""
    assert config.read({"GROUPID": "1"}, token_needed=False).token == ""
