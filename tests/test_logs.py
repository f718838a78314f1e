"""The log: only our own lines, on standard error, and no secret in any of them."""

import logging
from collections.abc import Iterator

import pytest

from fetcher import logs

SECRET = "vk1.a.token"


@pytest.fixture
def ours() -> Iterator[logging.Logger]:
    """Our logger, which is restored after the test."""
    log, root = logging.getLogger("fetcher"), logging.getLogger()
    before = log.handlers[:], log.level, log.propagate, root.handlers[:]
    yield log
    log.handlers, log.level, log.propagate, root.handlers = before
    log.setLevel(before[1])


def test_a_traceback_quotes_no_exception(ours: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """A traceback has the place and the class of an exception, but not its text, which may hold a secret."""
    logs.to_stderr()
    try:
        try:
            raise KeyError("redis://user:p%40ss@host:6379")
        except KeyError as cause:
            raise OSError(f"{SECRET} https://lp.vk.ru/wh?act=a_check&key=abc.def-g&ts=1") from cause
    except OSError:
        ours.critical("A bug", exc_info=True)
    first, second, *_, last = capsys.readouterr().err.splitlines()
    assert (first, second, last) == ("event-fetcher: A bug", "Traceback (most recent call last):", "OSError")


def test_only_our_own_lines(ours: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """Our lines have time, level and sentence; those of libraries hold addresses with keys, and are discarded."""
    logs.to_stderr(logs.WITH_TIME, "INFO")
    ours.info("A %s", "sentence")
    ours.debug("too much")
    logging.getLogger("urllib3.connectionpool").warning("https://lp.vk.ru/wh?key=abc")
    printed = capsys.readouterr().err
    assert printed.endswith(" INFO A sentence\n")
    assert len(printed.splitlines()) == 1


def test_a_later_call_replaces_an_earlier_one(ours: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    """A later call replaces the form and the level that an earlier one has set."""
    logs.to_stderr(logs.WITH_TIME, "DEBUG")
    logs.to_stderr()
    ours.info("A sentence")
    ours.debug("too much")
    assert capsys.readouterr().err == "event-fetcher: A sentence\n"
