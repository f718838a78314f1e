"""The settings: their defaults, their sources, which of them win, and what is reported as wrong."""

from dataclasses import fields
from pathlib import Path

import pytest

from fetcher import config

NAMES = {"TOKEN_FILE", *(one.metadata["name"] for one in fields(config.Config))}  # all that can be set
NEEDED = {"TOKEN": "vk1.a.secret", "GROUPID": "218730916"}


@pytest.fixture(autouse=True)
def no_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_defaults() -> None:
    """The defaults are the documented ones."""
    assert config.read(NEEDED) == config.Config(
        token="vk1.a.secret",
        group=218730916,
        redis_url="redis://localhost:6379/0",
        bus="events",
        prefixes="/!",
        stream_maxlen=100000,
        names_ttl=600,
        poll_wait=25,
        renew_after=3600,
        log_level="INFO",
        raw=False,
        metrics_port=0,
    )


def test_an_empty_variable_means_the_default() -> None:
    """An empty variable, as Compose passes it, means the default, for every setting."""
    names = "REDIS_URL BUS COMMAND_PREFIXES STREAM_MAXLEN NAMES_TTL POLL_WAIT RENEW_AFTER LOG_LEVEL RAW METRICS_PORT"
    assert config.read(NEEDED | dict.fromkeys([*names.split(), "TOKEN_FILE"], "")) == config.read(NEEDED)


def test_every_setting_can_be_set() -> None:
    """Every setting can be changed from its default."""
    given = {
        "TOKEN": "t",
        "GROUPID": "5",
        "REDIS_URL": "redis://redis/1",
        "BUS": "a.b_c-d:E9",
        "COMMAND_PREFIXES": "#.",
        "STREAM_MAXLEN": "1",
        "NAMES_TTL": "0",
        "POLL_WAIT": "90",
        "RENEW_AFTER": "1",
        "LOG_LEVEL": "warning",
        "RAW": "1",
        "METRICS_PORT": "9100",
    }
    assert config.read(given) == config.Config(
        token="t",
        group=5,
        redis_url="redis://redis/1",
        bus="a.b_c-d:E9",
        prefixes="#.",
        stream_maxlen=1,
        names_ttl=0,
        poll_wait=90,
        renew_after=1,
        log_level="WARNING",
        raw=True,
        metrics_port=9100,
    )


def test_zero_switches_a_feature_off() -> None:
    """0 switches a feature off; it does not count as missing."""
    settings = config.read(NEEDED | {"RAW": "0", "METRICS_PORT": "0", "NAMES_TTL": "0"})
    assert (settings.raw, settings.metrics_port, settings.names_ttl) == (False, 0, 0)


def test_config_takes_no_positional_arguments() -> None:
    """Config takes no positional arguments: twelve of them would get mixed up."""
    with pytest.raises(TypeError):
        config.Config("token", 5)  # type: ignore[call-arg]


def test_dotenv_stands_in_for_the_environment() -> None:
    """The environment wins over .env, but an empty variable does not, and nothing in .env is interpolated."""
    Path(".env").write_text('TOKEN=from$file${HOME}\nGROUPID=5\nBUS="from-file"\nLOG_LEVEL=debug\nRAW=\n')
    settings = config.read({"GROUPID": "7", "BUS": ""})
    assert (settings.token, settings.group) == ("from$file${HOME}", 7)
    assert (settings.bus, settings.log_level, settings.raw) == ("from-file", "DEBUG", False)


def test_an_unreadable_dotenv_is_named() -> None:
    """An unreadable .env gives one sentence, not a traceback, and hides other errors until it can be read."""
    Path(".env").write_bytes(b"TOKEN=\xff\xfe\n")
    with pytest.raises(config.SettingsError, match=r"^\.env cannot be read \(UnicodeDecodeError\): fix or remove it$"):
        config.read(NEEDED | {"BUS": "{"})


def test_token_file_wins() -> None:
    """A token in a file, without its last line break, wins over TOKEN."""
    Path("token").write_text("from-file\n")
    assert config.read(NEEDED | {"TOKEN_FILE": "token"}).token == "from-file"
    assert config.read({"GROUPID": "1", "TOKEN_FILE": "token"}).token == "from-file"
    Path("token").write_bytes(b"\xef\xbb\xbffrom-Windows\r\n")
    assert config.read(NEEDED | {"TOKEN_FILE": "token"}).token == "from-Windows"
    for wrong in ("two words\n", "\n", ""):
        Path("token").write_text(wrong)
        with pytest.raises(ValueError, match=r"^TOKEN_FILE must hold"):
            config.read(NEEDED | {"TOKEN_FILE": "token"})
    Path("token").write_bytes(b"\xff\xfe")
    for path in (".", "token", "missing"):
        with pytest.raises(ValueError, match=r"^TOKEN_FILE cannot be read \(\w+\): fix"):
            config.read(NEEDED | {"TOKEN_FILE": path})


@pytest.mark.parametrize(
    "wrong",
    [
        {"TOKEN": ""}, {"TOKEN": "  "}, {"TOKEN": "кириллица"}, {"TOKEN": "a b"}, {"GROUPID": ""}, {"GROUPID": "0"},
        {"GROUPID": "-1"}, {"GROUPID": "٣"}, {"GROUPID": "1.0"}, {"GROUPID": "club1"}, {"GROUPID": "1" * 20},
        {"GROUPID": str(2**63)}, {"GROUPID": "1\n"}, {"REDIS_URL": "http://localhost"},
        {"REDIS_URL": "redis://host:port"}, {"REDIS_URL": "localhost:6379"}, {"REDIS_URL": "redis://host/x"},
        {"BUS": "a b"}, {"BUS": "{a}"},
        {"BUS": "ы"}, {"BUS": "a\n"}, {"STREAM_MAXLEN": "0"}, {"STREAM_MAXLEN": "many"}, {"NAMES_TTL": "-1"},
        {"NAMES_TTL": str(10**10)}, {"POLL_WAIT": "0"}, {"POLL_WAIT": "91"}, {"RENEW_AFTER": "0"},
        {"LOG_LEVEL": "LOUD"}, {"LOG_LEVEL": "20"}, {"LOG_LEVEL": "İNFO"}, {"RAW": "yes"}, {"RAW": "2"},
        {"METRICS_PORT": "-1"}, {"METRICS_PORT": "65536"}, {"METRICS_PORT": "off"},
    ],
    ids=str,
)  # fmt: skip
def test_each_wrong_setting_is_named(wrong: dict[str, str]) -> None:
    """A wrong setting gives one sentence that begins with its name and quotes no value, which might be secret."""
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name} must [^;]+: fix this in the environment or in \.env$") as error:
        config.read(NEEDED | wrong)
    assert "secret" not in str(error.value)
    assert len(value) < 3 or value not in str(error.value)


def test_the_sentence_describes_a_valid_value() -> None:
    """The sentence says what a valid value is; for an id it says whose id, not the range of numbers."""
    with pytest.raises(ValueError, match="GROUPID must be the community's id, a positive number"):
        config.read({"TOKEN": "t"})
    with pytest.raises(ValueError, match="TOKEN must hold the community's access token"):
        config.read({"GROUPID": "1"})
    with pytest.raises(ValueError, match="POLL_WAIT must be a number from 1 to 90"):
        config.read(NEEDED | {"POLL_WAIT": "0"})
    with pytest.raises(ValueError, match="RAW must be 0 or 1"):
        config.read(NEEDED | {"RAW": "2"})


def test_all_wrong_settings_are_named_at_once() -> None:
    """One sentence names all wrong settings."""
    wrong = {"REDIS_URL": "x", "BUS": "{", "POLL_WAIT": "x", "RAW": "x", "LOG_LEVEL": "x", "METRICS_PORT": "x"}
    with pytest.raises(ValueError, match="must") as error:
        config.read(wrong)
    for name in [*wrong, "TOKEN", "GROUPID"]:
        assert str(error.value).count(f"{name} must") == 1
    assert str(error.value).count("fix this") == 1


@pytest.mark.parametrize(
    "url", ["rediss://user:p%40ss@host:6380/1", "unix:///run/redis.sock?db=2", "redis://:secret@[::1]:6379/0"]
)
def test_addresses_of_redis_py_are_valid(url: str) -> None:
    """TLS, a user and password, a socket: any address that redis-py accepts is valid."""
    assert config.read(NEEDED | {"REDIS_URL": url}).redis_url == url


def test_health_needs_no_token() -> None:
    """--health needs no token, which is only for VK, but a token file that cannot be read is still an error."""
    assert config.read({"GROUPID": "1"}, needed=("GROUPID",)).token == ""
    with pytest.raises(ValueError, match="TOKEN_FILE cannot be read"):
        config.read({"GROUPID": "1", "TOKEN_FILE": "missing"}, needed=("GROUPID",))


def test_watch_needs_neither_token_nor_community() -> None:
    """--watch needs neither token nor community, but settings that are given must be valid."""
    settings = config.read({}, needed=())
    assert (settings.token, settings.group) == ("", 0)
    assert config.read(NEEDED, needed=()) == config.read(NEEDED)
    with pytest.raises(ValueError, match=r"^GROUPID must"):
        config.read({"GROUPID": "0"}, needed=())


def test_names_are_all_that_can_be_set() -> None:
    """NAMES has every setting: other tests compare it with lists of settings, such as the documentation's."""
    needed = {"TOKEN_FILE", "TOKEN", "GROUPID"}
    assert needed <= NAMES
    for name in NAMES - needed - {"COMMAND_PREFIXES"}:
        with pytest.raises(ValueError, match=f"^{name} must"):
            config.read(NEEDED | {name: "{"})


def test_settings_without_an_environment() -> None:
    """parse() reads neither the environment nor .env: the demo passes its own settings, and the rest are defaults."""
    Path(".env").write_text("BUS=from-file\n")
    assert config.parse(NEEDED | {"POLL_WAIT": "1", "RAW": ""}).bus == "events"
