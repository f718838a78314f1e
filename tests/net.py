"""Scripted answers of VK, without a network and on a fake clock, to test what a client makes of each."""

import json
import re
from collections.abc import Iterable
from typing import Any, Self
from urllib.parse import parse_qsl

import pytest
import requests
import responses
import urllib3

from fetcher.vk.builders import BUILDERS
from tests.vk import GROUP, TOKEN

KEY = "eyJhbGciOiJFZERTQSJ9.secret-Key.of-the-tests"
SERVER = f"https://lp.vk.ru/whp/{GROUP}"
EVENTS = dict.fromkeys(BUILDERS, 1)
SETTINGS: dict[str, Any] = {"response": {"is_enabled": True, "api_version": "5.199", "events": EVENTS}}
START: dict[str, Any] = {"response": {"key": KEY, "server": SERVER, "ts": "1000"}}
QUIET_POLL: dict[str, Any] = {"ts": "1000", "updates": []}

# Errors of VK's API: transient ones, those that only the operator can fix, always or at the start, and some others.
TRANSIENT_CODES = [1, 6, 9, 10, 13, 14, 29, 36, 43, 995]
FATAL_CODES = [5, 27, 28, 42, 1117]
FATAL_AT_START_CODES = [15, 100, 125]
OTHER_CODES = [3, 7, 17, 18, 30, 203, 917, 4242]

# Ways in which a request fails, and JSON that is not an answer of the API.
BROKEN: list[Any] = [
    requests.ConnectionError(f"/method/execute?access_token={TOKEN}"),
    requests.ConnectTimeout(TOKEN),
    requests.ReadTimeout(TOKEN),
    requests.exceptions.ChunkedEncodingError(TOKEN),
    requests.exceptions.SSLError(TOKEN),
    requests.TooManyRedirects(TOKEN),
    urllib3.exceptions.ProtocolError(TOKEN),
    urllib3.exceptions.LocationParseError(TOKEN),
    OSError(TOKEN),
    UnicodeError(TOKEN),
    (500, "{}"),
    (502, f"<html>{TOKEN}</html>"),
    (401, "{}"),
    (200, f"<html>{TOKEN}</html>"),
    (200, ""),
    (200, '{"response": [' + "1," * 10),
    (200, "[" * 100_000),
    (200, b"\xff\xfe\x00"),
]
NO_ANSWERS: list[Any] = [None, 5, "text", [], {}, {"error": None}, {"error": 5}, {"error": []}, {"error": {}}]
NO_ANSWERS += [{"error": {"error_msg": "no code"}}, {"error": {"error_code": [5]}}]


class Metric:
    """A counter, gauge or histogram that keeps all values."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.of_label: dict[Any, Metric] = {}

    def labels(self, **labels: Any) -> "Metric":
        (label,) = labels.values()
        return self.of_label.setdefault(label, Metric())

    def inc(self, amount: float = 1) -> None:
        self.values.append(amount)

    set = observe = inc

    @property
    def counts(self) -> dict[Any, float]:
        """The sum of each label's values."""
        return {label: sum(metric.values) for label, metric in self.of_label.items()}


class Metrics:
    """All metrics by name."""

    def __getattr__(self, name: str) -> Metric:
        self.__dict__[name] = Metric()
        return self.__dict__[name]  # type: ignore[no-any-return]


class Clock:
    """Time that passes only in sleeps, or when a test says so."""

    def __init__(self) -> None:
        self.now = 1e6

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


class Net:
    """What VK answers: a list for each method of the API, and for polls, whose last answer is repeated.

    An answer is JSON, a status and a body (and pairs: its headers), or an exception. The modules of `vk/` use the clock
    of this object.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.delay = 0.0  # seconds that an answer takes
        self.answers: dict[str, list[Any]] = {}
        self.answers |= {"groups.getLongPollServer": [START], "groups.getLongPollSettings": [SETTINGS]}
        self.requests: list[tuple[float, str, dict[str, str], Any]] = []  # when, what, parameters, timeout
        self.mock = responses.RequestsMock(assert_all_requests_are_fired=False)
        self.patch = pytest.MonkeyPatch()

    def __enter__(self) -> Self:
        for module in ("vk.api", "vk.longpoll", "vk.lookups"):
            self.patch.setattr(f"fetcher.{module}.time", self.clock)
        self.mock.start()
        self.mock.add_callback(responses.POST, re.compile("https://api.vk.ru/method/"), self.answer)
        self.mock.add_callback(responses.GET, re.compile("https://lp.vk.ru/"), self.answer)
        return self

    def __exit__(self, *_: object) -> None:
        self.mock.stop()
        self.mock.reset()
        self.patch.undo()

    def answer(self, request: Any) -> tuple[int, dict[str, str], Any]:
        api = request.url.startswith("https://api.vk.ru/method/")
        name = request.url.rpartition("/")[2] if api else "poll"
        params = dict(parse_qsl(request.body, keep_blank_values=True)) if api else request.params
        self.requests.append((self.clock.now, name, params, request.req_kwargs["timeout"]))
        self.clock.now += self.delay
        answers = self.answers[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, tuple):
            return answer[0], dict(answer[2:]), answer[1]
        return 200, {}, json.dumps(answer)

    def params_of(self, name: str) -> list[dict[str, str]]:
        """Return the parameters of each request with this name."""
        return [params for _, requested, params, _ in self.requests if requested == name]

    def timeouts(self) -> list[tuple[str, Any]]:
        """Return the name and the timeout of each request."""
        return [(name, timeout) for _, name, _, timeout in self.requests]


class OwnLookups:
    """Stands in for the module `fetcher.vk.lookups` where the client is a fake that answers lookups itself."""

    @staticmethod
    def names(api: Any, ids: Iterable[int]) -> Any:
        return api.names(ids)

    @staticmethod
    def full_messages(api: Any, places: Iterable[tuple[int, int]]) -> Any:
        return api.full_messages(places)


def inside(*results: Any, errors: Any = None) -> dict[str, Any]:
    """Make an answer to an execute."""
    return {"response": list(results)} | ({} if errors is None else {"execute_errors": errors})


def refusal(code: int, method: str = "users.get") -> dict[str, Any]:
    """Make one of the errors inside an execute."""
    return {"method": method, "error_code": code, "error_msg": "Access denied"}


def person(id: int) -> dict[str, Any]:
    return {"id": id, "first_name": "Анна", "last_name": f"{id}-я", "domain": f"anna{id}"}


def mixed(*values: Any) -> list[Any]:
    """List values of different types; mypy would require an annotation for a literal of them."""
    return list(values)


def named(values: list[Any]) -> list[Any]:
    """Make test parameters of these values, each with a readable name."""
    return [pytest.param(value, id=f"{number} {str(value)[:20]!r}") for number, value in enumerate(values)]
