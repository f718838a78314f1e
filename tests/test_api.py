"""VK's API client: what it sends, how often, and what it makes of every error."""

import contextlib
import gc
import gzip
import io
import itertools
import json
import re
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from urllib3 import HTTPResponse
from vk_api import VkApi

from fetcher.errors import CallFailed, FatalError, RequestRejected, TransientError
from fetcher.fastjson import CheckedFloat
from fetcher.vk.api import FATAL as HINTS
from fetcher.vk.api import FATAL_AT_START as HINTS_AT_START
from fetcher.vk.api import MIN_PAUSE, TOO_LARGE, Api, Session, translate_errors
from tests import HOST, Loopback, free_port
from tests.net import (
    BROKEN,
    FATAL_AT_START_CODES,
    FATAL_CODES,
    NO_ANSWERS,
    OTHER_CODES,
    START,
    TRANSIENT_CODES,
    Metrics,
    Net,
    named,
)
from tests.servers import wait_until
from tests.vk import GROUP, TOKEN, VK, error

SERVER, OK = "groups.getLongPollServer", {"response": [1]}


@pytest.fixture
def net() -> Iterator[Net]:
    with Net() as net:
        net.answers["users.get"] = [{"response": [{"id": 1}]}]
        yield net


@pytest.fixture
def api(net: Net) -> Api:
    return Api(TOKEN, Metrics())


def call(api: Api, method: str = "users.get") -> Any:
    return api.method(method, {"user_ids": "1"})


# What is sent


def test_creating_the_client_sends_no_request(api: Api, net: Net) -> None:
    """Creating the client sends no request."""
    assert not net.requests


def test_parameters_of_a_request(api: Api, net: Net) -> None:
    """Requests are sent by POST with API version 5.199, in Russian unless the caller sets another language."""
    assert call(api) == [{"id": 1}]
    api.method("users.get", {"lang": "en"})
    usual = {"v": "5.199", "access_token": TOKEN}
    assert net.params_of("users.get") == [{"user_ids": "1", "lang": "ru"} | usual, {"lang": "en"} | usual]
    assert api.method("users.get")


def test_every_request_has_a_timeout(api: Api, net: Net) -> None:
    """Every request times out after 5 seconds, unless the caller sets another timeout."""
    call(api)
    api.http.post("https://api.vk.ru/method/users.get", {"v": "5"}, timeout=77)
    assert [timeout for _, timeout in net.timeouts()] == [5.0, 77]


HEAD = b"HTTP/1.1 200 OK\r\n"


def served(*pieces: bytes, forever: bytes = b"") -> tuple[Any, str]:
    """Serve every request with these pieces, and the last one again and again; return the server and its URL."""

    def answer(connection: socket.socket, *_: object) -> None:
        while connection.recv(10_000):
            for piece in itertools.chain(pieces, itertools.repeat(forever) if forever else ()):
                connection.sendall(piece)
                time.sleep(0.01)

    return contextlib.closing(Loopback(port := free_port(), answer)), f"http://{HOST}:{port}/"


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


BYTE_BY_BYTE = [(HEAD + b"\r\n", b"x"), (CHUNKED, b"1\r\nx\r\n"), (HEAD + b"\r\n" + b"x" * 200_000, b"x")]


@pytest.mark.parametrize(("head", "forever"), BYTE_BY_BYTE)
def test_a_body_that_comes_byte_by_byte(monkeypatch: pytest.MonkeyPatch, head: bytes, forever: bytes) -> None:
    """A body that never ends is abandoned after the timeout, with its connection, so that polling can continue.

    So is one of which much has arrived fast.
    """
    monkeypatch.setattr("fetcher.vk.api.API_TIMEOUT", 0.5)
    monkeypatch.setattr("fetcher.vk.api.MIN_RATE", 1e4)
    server, url = served(head, forever=forever)
    with server as listening:
        session = Session()
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(requests.Timeout):
                session.get(url)
            assert 0.4 < time.monotonic() - begun < 5
            wait_until(lambda: not listening.connections, what="the end of the connection")


def test_a_body_that_comes_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body may take longer than the timeout if at least 1 kB/s arrives: such a link is slow, not broken."""
    monkeypatch.setattr("fetcher.vk.api.API_TIMEOUT", 0.5)
    server, url = served(HEAD + b"Content-Length: 5002\r\n\r\n", b'"', *[b"x" * 50] * 100, b'"')
    with server:
        begun = time.monotonic()
        assert Session().get(url).json() == "x" * 5000
        assert time.monotonic() - begun > 1


def test_a_body_that_comes_long_after_its_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The headers of a poll may arrive long before its body, for example through a proxy."""
    monkeypatch.setattr("fetcher.vk.api.API_TIMEOUT", 0.5)
    server, url = served(HEAD + b"Content-Length: 2\r\n\r\n", *[b""] * 100, b"{}")
    with server:
        assert Session().get(url, timeout=5).json() == {}


def chunked(body: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:10], body[10:], b""))


BODY = json.dumps("я" * 100_000).encode()


@pytest.mark.parametrize(
    ("headers", "sent"),
    [
        (f"Content-Length: {len(BODY)}", BODY),
        ("Transfer-Encoding: chunked", chunked(BODY)),
        (
            f"Content-Encoding: gzip\r\nContent-Length: {len(gzip.compress(BODY, mtime=0))}",
            gzip.compress(BODY, mtime=0),
        ),
        ("Content-Encoding: gzip\r\nTransfer-Encoding: chunked", chunked(gzip.compress(BODY))),
    ],
    ids=["length", "chunked", "gzip", "gzip-chunked"],
)
def test_a_connection_is_used_again(headers: str, sent: bytes) -> None:
    """Each form of a body is read whole, and the next request uses the same connection."""
    server, url = served(HEAD + f"{headers}\r\n\r\n".encode() + sent)
    with server as listening:
        session = Session()
        used = set()
        for _ in range(3):
            assert session.get(url).json() == "я" * 100_000
            used |= listening.connections
    assert len(used) == 1


def test_a_response_is_in_no_reference_cycle(vk: VK) -> None:
    """A response is in no reference cycle: a large one must not stay in memory until the garbage collector runs."""
    session = Session()
    gc.disable()
    try:
        response = session.get(f"{vk.url}/stats")
        assert response.json()
        forgotten = weakref.ref(response.json)
        del response
        assert forgotten() is None
    finally:
        gc.enable()


def test_a_compressed_answer(api: Api, net: Net) -> None:
    body = gzip.compress(json.dumps({"response": "я" * 100_000}).encode())
    net.answers["users.get"] = [(200, body, ("Content-Encoding", "gzip"))]
    assert call(api) == "я" * 100_000


class Sent(requests.adapters.BaseAdapter):
    """Answers every request, and keeps the options with which each was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.options: list[Any] = []

    def send(self, request: Any, *_: Any, **options: Any) -> requests.Response:
        self.options.append(options)
        response = requests.Response()
        response.status_code, response.raw = 200, HTTPResponse(io.BytesIO(b"{}"), preload_content=False)
        return response


@pytest.mark.parametrize("exceptions", ["redis", ".vk.ru", "api.vk.ru"])
def test_the_proxy_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, exceptions: str) -> None:
    """HTTPS_PROXY is used for all requests to VK, unless NO_PROXY excludes VK's API."""
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    monkeypatch.setenv("NO_PROXY", exceptions)
    session, sent = Session(), Sent()
    session.mount("https://", sent)
    session.post("https://api.vk.ru/method/users.get")
    session.get("https://lp.vk.ru/whp/1")
    proxy = "http://proxy:1" if exceptions == "redis" else None
    assert [options["proxies"].get("https") for options in sent.options] == [proxy, proxy]


def test_certificates_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUESTS_CA_BUNDLE names the certificates to trust; without it, those of requests are trusted."""
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    for certificates in (True, "/etc/ca.pem"):
        session, sent = Session(), Sent()
        session.mount("https://", sent)
        session.get("https://lp.vk.ru/whp/1")
        assert sent.options[0]["verify"] == certificates
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/ca.pem")


def test_twenty_requests_a_second(api: Api, net: Net) -> None:
    """Requests start at least a twentieth of a second apart; the time that a request takes counts towards that."""
    for net.delay in (0.0, 0.02, 0.2):
        for _ in range(45):
            call(api)
    times = [time for time, *_ in net.requests]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(later - earlier > 1 for earlier, later in zip(times, times[20:], strict=False))
    assert max(gaps[:44]) < 0.06
    assert max(gaps[-44:]) < 0.201


def test_a_password_in_netrc_is_not_sent(api: Api, net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password in .netrc, which may have one for every server, is not sent to VK."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret")
    monkeypatch.setenv("NETRC", str(netrc))
    assert requests.utils.get_netrc_auth("https://api.vk.ru") == ("me", "secret")
    call(api)
    (sent,) = net.mock.calls
    assert "Authorization" not in sent.request.headers


def test_a_redirect_of_a_poll_is_followed(api: Api, net: Net) -> None:
    net.answers["poll"] = [(302, "", ("Location", "https://lp.vk.ru/elsewhere")), {"ts": "1", "updates": []}]
    assert api.http.get("https://lp.vk.ru/whp/1").json() == {"ts": "1", "updates": []}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(api: Api, net: Net, status: int) -> None:
    """An API redirect is not followed.

    The request would lose its parameters, so that VK would refuse the token, or it would take the token elsewhere.
    """
    moved = (status, "", ("Location", "https://api.vk.ru/method/elsewhere"))
    net.answers |= {"users.get": [moved], "elsewhere": [error(5)]}
    with pytest.raises(TransientError, match="VK's API returns an unreadable answer"):
        call(api)
    assert not net.params_of("elsewhere")


# What VK's errors mean


@pytest.mark.parametrize("method", [SERVER, "users.get", "execute"])
@pytest.mark.parametrize("code", TRANSIENT_CODES + FATAL_CODES + FATAL_AT_START_CODES + OTHER_CODES)
def test_each_error(api: Api, net: Net, code: int, method: str) -> None:
    """Each error is a sentence with VK's code and text; a fatal one first says what to do, and is fatal at once."""
    net.answers[method] = [error(code, "Why")]
    sentence = f"VK error {code} in {method}: Why"
    with pytest.raises((TransientError, FatalError)) as raised:
        call(api, method)
    if code in FATAL_CODES or (code in FATAL_AT_START_CODES and method == SERVER):
        assert type(raised.value) is FatalError
        assert str(raised.value) == f"{HINTS_AT_START[code]} ({sentence})"
    else:
        transient = CallFailed if code == TOO_LARGE else TransientError
        assert type(raised.value) is (transient if code in TRANSIENT_CODES else RequestRejected)
        assert str(raised.value) == sentence
    assert raised.value.__suppress_context__


def test_every_fatal_error_has_a_hint() -> None:
    """Each error that only the operator can fix has a sentence that says how; nothing else is fatal."""
    assert [*HINTS] == FATAL_CODES
    assert sorted(HINTS_AT_START) == sorted(FATAL_CODES + FATAL_AT_START_CODES)
    assert len(set(HINTS_AT_START.values())) == len(HINTS_AT_START)
    assert all(HINTS_AT_START.values())


@pytest.mark.parametrize("code", TRANSIENT_CODES + FATAL_CODES + FATAL_AT_START_CODES + OTHER_CODES)
def test_each_error_of_a_call_inside(api: Api, code: int) -> None:
    """An error of one call inside an execute is never fatal, not even if it is about the token."""
    failure = api.failure("users.get", error(code)["error"], ids=[5])
    assert type(failure) is (CallFailed if code in TRANSIENT_CODES else RequestRejected)


@pytest.mark.parametrize("malformed", [None, 5, "text", [], {}, {"error_msg": "no code"}, {"error_code": [917]}])
def test_a_malformed_error_of_a_call_inside(api: Api, malformed: Any) -> None:
    """A malformed error counts as VK's "unknown error" (code 1), which is transient and does not pause requests."""
    failure = api.failure("users.get", malformed, ids=[5])
    assert type(failure) is CallFailed
    assert "VK error 1 in users.get" in str(failure)
    assert call(api)


def test_an_error_of_several_lines(api: Api) -> None:
    """VK's text is put on one line, so that it cannot imitate other lines of the log."""
    failure = api.failure("users.get", error(917, "one\n2026-11-29 CRITICAL\t two ")["error"])
    assert str(failure) == "VK error 917 in users.get: one 2026-11-29 CRITICAL two"


def test_requests_and_errors_are_counted(api: Api, net: Net) -> None:
    """Every request is counted by method, even if it fails, and every error by code, even inside an execute."""
    net.answers["users.get"] = [OK, error(10), requests.ConnectionError()]
    call(api)
    for _ in range(2):
        with pytest.raises(TransientError):
            call(api)
    api.failure("users.get", error(917)["error"], ids=[5])
    assert api.metrics.vk_requests.counts == {"users.get": 3}
    assert api.metrics.vk_errors.counts == {10: 1, 917: 1}


@pytest.mark.parametrize("code", OTHER_CODES)
def test_all_other_errors_reject_the_request(api: Api, net: Net, code: int) -> None:
    """The loop treats a rejected request as transient, but repeating the same request is of no use."""
    net.answers["users.get"] = [error(code), OK]
    with pytest.raises(RequestRejected, match=f"VK error {code} in users.get"):
        call(api)
    assert call(api) == [1]


@pytest.mark.parametrize("code", TRANSIENT_CODES + OTHER_CODES)
def test_errors_at_the_start_are_transient(api: Api, net: Net, code: int) -> None:
    """These errors are transient: the loop sends the request again."""
    net.answers[SERVER] = [error(code, "Why"), START]
    with pytest.raises(TransientError, match=f"{code} in {SERVER}: Why"):
        api.method(SERVER, {"group_id": GROUP})
    net.clock.now += 120
    assert api.method(SERVER, {"group_id": GROUP}) == START["response"]


def test_long_poll_is_off(api: Api, net: Net) -> None:
    """Long Poll switched off is fatal, whatever code VK uses; the same words from another method are not."""
    net.answers |= {name: [error(4242, "longpoll for this group is not enabled")] for name in (SERVER, "users.get")}
    with pytest.raises(FatalError, match="switch Long Poll on"):
        call(api, SERVER)
    with pytest.raises(RequestRejected):
        call(api)


def test_an_error_that_quotes_the_token(api: Api, net: Net, caplog: pytest.LogCaptureFixture) -> None:
    """VK's text is raised, and logged at level DEBUG, with the token masked."""
    caplog.set_level("DEBUG", "fetcher")
    net.answers["users.get"] = [error(5, f"User authorization failed: {TOKEN} is no token")]
    with pytest.raises(FatalError, match=r"User authorization failed: \*\*\* is no token\)"):
        call(api)
    (logged,) = [record.getMessage() for record in caplog.records]
    assert logged == "VK error 5 in users.get: User authorization failed: *** is no token"


@pytest.mark.parametrize("code", [9, 14, 29])
def test_rate_limit_errors_pause_requests(api: Api, net: Net, code: int) -> None:
    """Errors 9, 14 and 29 pause requests, from about a second up to a minute if they repeat; a success resets that."""
    captcha = {"captcha_sid": "1", "captcha_img": "https://api.vk.ru/captcha.php?sid=1"}
    net.answers["users.get"] = [{"error": error(code)["error"] | captcha}]
    pauses: list[float] = []
    for _ in range(10):
        begun = net.clock.now
        while len(net.requests) == len(pauses):
            with pytest.raises(TransientError):
                call(api)
            net.clock.now += 0.25
        pauses.append(net.clock.now - begun)
    assert MIN_PAUSE <= pauses[1] < 3
    assert all(25 < pause < 62 for pause in pauses[-3:])
    net.clock.now += 62
    net.answers["users.get"] = [OK, error(code), OK]
    call(api)
    with pytest.raises(TransientError):
        call(api)
    net.clock.now += 0.95 * MIN_PAUSE
    with pytest.raises(TransientError, match="pause"):
        call(api)
    net.clock.now += 1.05 * MIN_PAUSE
    assert call(api) == [1], "the next one begins with a short pause again"


def test_a_pause_also_grows_inside_an_execute(api: Api, net: Net) -> None:
    """An execute in which VK rate-limits a call does not reset the pauses, although VK answers it."""
    net.answers["execute"] = [{"response": [False], "execute_errors": [error(29)["error"]]}]
    for _ in range(8):
        api.failure("users.get", error(29)["error"], ids=[5])
        begun, sent = net.clock.now, len(net.requests)
        while len(net.requests) == sent:
            with contextlib.suppress(TransientError):
                api.method("execute", raw=True)
            net.clock.now += 0.25
    assert net.clock.now - begun > 25


def test_vk_apis_error_handlers_are_off(api: Api, net: Net) -> None:
    """vk_api's own error handlers are off: none prompts for a captcha, and that of error 6 does not recurse forever."""
    for code in (6, 14, 17):
        net.answers["users.get"] = [error(code)]
        with pytest.raises(TransientError):
            call(api)
        net.clock.now += 60
    assert len(net.requests) == 3


# Missing and unreadable answers


@pytest.mark.parametrize("answer", named(BROKEN + NO_ANSWERS))
def test_an_unreadable_answer_is_transient(api: Api, net: Net, answer: Any) -> None:
    """A missing or unreadable answer is a transient error that contains no secret."""
    net.answers["users.get"] = [answer, OK]
    with pytest.raises(TransientError) as raised:
        call(api)
    assert type(raised.value) is TransientError
    assert raised.value.__suppress_context__
    assert not re.search(f"{TOKEN}|access_token|http:|https:", str(raised.value))
    assert call(api) == [1]


def raising(failure: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise failure

    return fail


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (ConnectionError("secret"), r"is unavailable \(ConnectionError\)"),
        (urllib3.exceptions.HTTPError("secret"), r"is unavailable \(HTTPError\)"),
        (RecursionError("secret"), r"unreadable answer \(RecursionError\)"),
        (KeyError("secret"), r"unreadable answer \(KeyError\)"),
        (StopIteration("secret"), r"unreadable answer \(StopIteration\)"),
        (AttributeError("secret"), r"unreadable answer \(AttributeError\)"),
    ],
)
def test_exceptions_of_libraries_are_translated(failure: Exception, sentence: str) -> None:
    """Exceptions of libraries become ours, without their text; our own are passed on unchanged."""
    with (
        pytest.raises(TransientError, match=f"VK's long poll .*{sentence}") as raised,
        translate_errors("long poll"),
    ):
        raising(failure)()
    assert "secret" not in str(raised.value)
    for ours in (FatalError("ours"), RequestRejected("ours")):
        with pytest.raises(type(ours), match="ours"), translate_errors("API"):
            raising(ours)()


def test_a_bug_of_ours_is_not_translated(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in our own code around a request is raised as it is, not as an unreadable answer."""

    def broken(**_: str) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(api.metrics.vk_requests, "labels", broken)
    with pytest.raises(TypeError, match="a bug"):
        call(api)


def test_answers_are_read_by_fastjson(api: Api, net: Net) -> None:
    """Answers are read by fastjson: NaN becomes CheckedFloat, and numbers beyond 64 bits stay exact."""
    net.answers["users.get"] = [(200, '{"response": [NaN, 123456789012345678901234567890]}')]
    nan, number = call(api)
    assert isinstance(nan, CheckedFloat)
    assert number == 123456789012345678901234567890


def test_vk_apis_own_classes_accept_the_client(api: Api) -> None:
    """vk_api's long poll, its request pool and its short spelling (`get_api().users.get()`) accept this client."""
    assert isinstance(api, VkApi)
    assert api.get_api().users.get(user_ids=1) == [{"id": 1}]
