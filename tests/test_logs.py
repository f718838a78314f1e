"""The log: our own lines, to standard error, and no secret in any of them."""

import logging
import sys
from collections.abc import Iterator

import pytest

from fetcher import logs

SECRETS = ["vk1.a.token", "p@ss", "p%40ss"]


@pytest.fixture
def ours() -> Iterator[logging.Logger]:
    """Our logger, as it was before afterwards."""
    log, root = logging.getLogger("fetcher"), logging.getLogger()
    before = log.handlers[:], log.level, log.propagate, root.handlers[:]
    yield log
    log.handlers, log.level, log.propagate, root.handlers = before
    log.setLevel(before[1])


def test_a_traceback_is_redacted() -> None:
    """What a library's exception holds does not reach the log."""
    line = logging.LogRecord("fetcher", logging.CRITICAL, "", 1, "A bug", (), None)
    try:
        raise OSError(
            "vk1.a.token redis://user:p%40ss@host:6379 p@ss "
            "https://lp.vk.ru/wh?act=a_check&key=abc.def-g&ts=1 access_token=xyz"
        )
    except OSError:
        line.exc_info = sys.exc_info()
    text = logs.RedactingFormatter(logs.PLAIN, SECRETS).format(line)
    assert (
        "OSError: *** redis://***@host:6379 *** https://lp.vk.ru/wh?act=a_check&key=***&ts=1 access_token=***" in text
    )
    assert not [secret for secret in (*SECRETS, "abc.def", "xyz") if secret in text]


def test_without_secrets_only_addresses_are_redacted() -> None:
    """No secret is no pattern that fits everywhere."""
    line = logging.LogRecord("fetcher", logging.CRITICAL, "", 1, "A bug", (), None)
    try:
        raise OSError("nothing to hide")
    except OSError:
        line.exc_info = sys.exc_info()
    assert "OSError: nothing to hide" in logs.RedactingFormatter(logs.PLAIN, []).format(line)


def test_only_our_own_lines(ours: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """Time, level and sentence of ours; those of libraries hold addresses with keys, and are discarded."""
    logs.to_stderr(logs.WITH_TIME, "INFO", SECRETS)
    ours.info("A %s", "sentence")
    ours.debug("too much")
    logging.getLogger("urllib3.connectionpool").warning("https://lp.vk.ru/wh?key=abc")
    printed = capsys.readouterr().err
    assert printed.endswith(" INFO A sentence\n")
    assert len(printed.splitlines()) == 1


def test_a_later_call_replaces_an_earlier_one(ours: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """A command prints sentences; once the settings are read, at their level."""
    logs.to_stderr(logs.WITH_TIME, "DEBUG")
    logs.to_stderr()
    ours.info("A sentence")
    ours.debug("too much")
    assert capsys.readouterr().err == "event-fetcher: A sentence\n"
