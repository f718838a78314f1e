"""VK's API through vk_api: one client, one table of VK's errors. https://dev.vk.com/ru/api/api-requests"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any, NamedTuple

import requests
from jconfig.memory import MemoryConfig
from urllib3.exceptions import HTTPError
from vk_api import ApiError, ApiHttpError, VkApiGroup

from ..core.backoff import backoff
from ..errors import FatalError, RequestRejected, TransientError
from ..metrics import OFF

API_VERSION = "5.199"
API_TIMEOUT = 5.0  # seconds, to connect and for the answer
SHORT_TIMEOUT = 1.0  # seconds, while nothing may wait for VK
API_INTERVAL = 0.0525  # seconds from start to start: VK allows a community 20 requests a second
MIN_PAUSE, MAX_PAUSE = 1.0, 60.0  # seconds without a request after an error that limits the rate

Json = dict[str, Any]


class Kind(Enum):
    """What an error of VK's means for us."""

    TRANSIENT = auto()  # it passes
    RATE_LIMITED = auto()  # it passes, if there is a pause in requests
    TOO_LARGE = auto()  # it passes; inside `execute` fewer ids at once may work
    FATAL = auto()  # only the operator can fix it
    FATAL_AT_START = auto()  # so it is when VK gives no Long Poll server; it is about one object elsewhere
    REJECTED = auto()  # this request will not be answered


class VkError(NamedTuple):
    """One of VK's errors: its name, what it means, and what the operator can do."""

    code: int
    name: str
    kind: Kind
    hint: str = ""


# https://dev.vk.com/ru/reference/errors; whatever is not here is REJECTED
ERRORS = {
    error.code: error
    for error in (
        VkError(1, "unknown error", Kind.TRANSIENT),
        VkError(5, "authorization failed", Kind.FATAL, "VK refuses the token: put a valid community token into TOKEN"),
        VkError(6, "too many requests per second", Kind.TRANSIENT),
        VkError(9, "flood control", Kind.RATE_LIMITED),
        VkError(10, "internal server error", Kind.TRANSIENT),
        VkError(13, "runtime error in execute", Kind.TOO_LARGE),
        VkError(14, "captcha needed", Kind.RATE_LIMITED),
        VkError(
            15,
            "access denied",
            Kind.FATAL_AT_START,
            "the token lacks the right to manage the community: make one with the rights 'manage' and 'messages'",
        ),
        VkError(
            27,
            "group authorization failed",
            Kind.FATAL,
            "VK refuses the community token: make a new one in the community's settings and put it into TOKEN",
        ),
        VkError(
            28,
            "application authorization failed",
            Kind.FATAL,
            "VK refuses the token: put a community token, not an application's, into TOKEN",
        ),
        VkError(29, "rate limit reached", Kind.RATE_LIMITED),
        VkError(36, "execution timed out", Kind.TRANSIENT),
        VkError(
            42,
            "address not allowed",
            Kind.FATAL,
            "VK refuses this server's address for the token: allow it, or make a token without such a limit",
        ),
        VkError(43, "section temporarily unavailable", Kind.TRANSIENT),
        VkError(
            100,
            "bad parameter",
            Kind.FATAL_AT_START,
            "VK does not know the community, or Long Poll is off: check GROUPID and switch Long Poll on",
        ),
        VkError(
            125, "invalid group id", Kind.FATAL_AT_START, "VK does not know the community: check GROUPID"
        ),
        VkError(995, "messenger degradation", Kind.TRANSIENT),
        VkError(1117, "token expired", Kind.FATAL, "The token has expired: put a new one into TOKEN"),
    )
}  # fmt: skip
LONG_POLL_OFF = ERRORS[100]  # VK's text says it, with a code that is not documented


class Session(requests.Session):
    """A session whose every request has a time-out; vk_api gives none to API calls."""

    timeout = API_TIMEOUT

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send the request with our time-out, unless the caller has one."""
        kwargs.setdefault("timeout", self.timeout)
        return super().request(*args, **kwargs)


class Api(VkApiGroup):  # type: ignore[misc]
    """VK's API, inherited for its requests: errors in our classes, 20 requests a second, Russian names.

    Methods raise TransientError for what passes, RequestRejected for what VK refuses, FatalError for what the operator
    must fix.
    """

    RPS_DELAY = 0  # ours is counted from the start of a request, and by a clock that nobody sets

    def __init__(self, token: str, metrics: Any = OFF) -> None:
        """Send nothing yet; `metrics` are those of fetcher.metrics."""
        super().__init__(token=token, api_version=API_VERSION, session=Session(), config=MemoryConfig)
        self.metrics = metrics
        self.error_handlers.clear()  # they wait for a person, or call themselves without end
        self.next_request = self.pause_until = 0.0
        self.rate_limits = 0  # in a row

    def method(self, method: str, values: Json | None = None, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the API and return its response."""
        now = time.monotonic()
        if now < self.pause_until:
            raise TransientError("VK has asked for a pause in API requests")
        time.sleep(max(0.0, self.next_request - now))
        self.next_request = time.monotonic() + API_INTERVAL
        self.last_request = 0.0
        self.metrics.vk_requests.labels(method=method).inc()
        with translate_errors("API"):
            try:
                answer = super().method(method, {"lang": "ru", **(values or {})}, *args, **kwargs)
            except ApiError as error:
                raise self.failure(method, error.error) from None
            if "execute_errors" not in answer:
                self.rate_limits = 0
        return answer

    def failure(self, method: str, error: Json, inside: bool = False) -> TransientError | FatalError:
        """Return what VK's error means, to a request of ours or to a call `inside` an execute."""
        code, text = error["error_code"], str(error.get("error_msg")).replace(self.token["access_token"], "***")
        sentence = f"VK error {code} in {method}: {text}"
        self.metrics.vk_errors.labels(code=code).inc()
        known = ERRORS.get(code, VkError(code, "", Kind.REJECTED))
        if method == "groups.getLongPollServer" and "not enabled" in text:
            known = LONG_POLL_OFF
        match known.kind:
            case Kind.FATAL if not inside:
                return FatalError(f"{known.hint} ({sentence})")
            case Kind.FATAL_AT_START if method == "groups.getLongPollServer":
                return FatalError(f"{known.hint} ({sentence})")
            case Kind.RATE_LIMITED:
                self.rate_limits += 1
                self.pause_until = time.monotonic() + backoff(self.rate_limits, MIN_PAUSE, MAX_PAUSE)
                return TransientError(sentence)
            case Kind.TRANSIENT:
                return TransientError(sentence)
            case Kind.TOO_LARGE if method != "execute":
                return TransientError(sentence)
        return RequestRejected(sentence, code)


@contextmanager
def translate_errors(what: str, kind: type[TransientError] = TransientError) -> Iterator[None]:
    """Raise what the libraries raise for a failed or odd answer as `kind`, without any address, key or token."""
    try:
        yield
    except ApiHttpError as error:
        raise kind(f"VK's {what} answers HTTP {error.response.status_code}") from None
    except (OSError, HTTPError) as error:
        raise kind(f"VK's {what} is unavailable ({type(error).__name__})") from None
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RuntimeError) as error:
        raise kind(f"VK's {what} answers what cannot be read ({type(error).__name__})") from None
