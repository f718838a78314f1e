"""VK's API through vk_api: one client, and what VK's errors mean. https://dev.vk.com/ru/api/api-requests"""

import io
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any
from urllib.parse import urlsplit

import requests
from jconfig.memory import MemoryConfig
from urllib3.exceptions import DecodeError, HTTPError
from vk_api import ApiError, ApiHttpError, VkApiGroup

from ..core.backoff import backoff
from ..errors import CallFailed, RequestRejected, TransientError, VkFatalError
from ..fastjson import loads
from ..metrics import OFF
from .fields import Json, object_or_empty, require_number

API_VERSION = "5.199"
API_TIMEOUT = 5.0  # seconds, to connect and for the answer
MIN_RATE = 1000  # bytes a second: an answer may take the timeout, and so may each piece of it at this rate
API_INTERVAL = 0.0525  # seconds from start to start: VK allows a community 20 requests a second
MIN_PAUSE, MAX_PAUSE = 1.0, 60.0  # seconds without a request of this method after an error that limits the rate

# VK's errors by what they mean: https://dev.vk.com/ru/reference/errors. All others reject the request.
RATE_LIMITED = {9, 14, 29}  # they pass after a pause in requests; 14 wants a captcha
TOO_LARGE = 13  # an `execute` takes too long or answers too much
TRANSIENT = RATE_LIMITED | {1, 6, 10, TOO_LARGE, 36, 43, 995}
FATAL = {  # and what the operator can do
    5: "VK refuses the token: put a valid community token into TOKEN",
    27: "VK refuses the community token: make a new one in the community's settings and put it into TOKEN",
    28: "VK refuses the token: put a community token, not an application's, into TOKEN",
    42: "VK refuses this server's address for the token: allow it, or make a token without such a limit",
    1117: "The token has expired: put a new one into TOKEN",
}
LONG_POLL_OFF = "VK does not know the community, or Long Poll is off: check GROUPID and switch Long Poll on"
FATAL_AT_START = FATAL | {  # where the Long Poll server is requested
    15: "The token lacks the right to manage the community: make one with the rights 'manage' and 'messages'",
    100: LONG_POLL_OFF,
    125: "VK does not know the community: check GROUPID",
}


@cache
def environment_settings(session: requests.Session, host: str) -> Any:
    """Return the settings for requests to a host; searching the environment takes long."""
    return requests.Session.merge_environment_settings(session, f"https://{host}", {}, True, None, None)


def within(seconds: float, action: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what the action returns; raise TimeoutError in it after these seconds, whatever it waits for.

    It is interrupted on Unix, and in the main thread.
    """

    def on_alarm(*of_signal: object) -> None:
        raise TimeoutError

    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return action(*args, **kwargs)
    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return action(*args, **kwargs)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Session(requests.Session):
    """A session that gives every request a timeout, which vk_api does not, and reads JSON fast."""

    def merge_environment_settings(self, url: Any, *of_request: Any) -> Any:
        """Return proxies and certificates; a request of ours has none of its own."""
        return environment_settings(self, urlsplit(url).netloc)

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send the request with our timeout, unless the caller has one, and read the whole answer.

        The timeout is also for all headers, and for each piece of the body: libraries restart theirs at each byte.
        """
        timeout = kwargs.setdefault("timeout", API_TIMEOUT)
        limit = max(timeout) if isinstance(timeout, tuple) else timeout
        # Only get() allows redirects: a POST would go on without its parameters, and VK would refuse the token.
        # Without an `auth` requests searches for a .netrc each time, and sends VK what that says.
        options: Any = {"allow_redirects": False, "auth": lambda request: request} | kwargs
        response: requests.Response = within(limit, super().request, *args, **options | {"stream": True})
        read = partial(within, limit, response.raw.read, int(limit * MIN_RATE), decode_content=True)
        data = b"".join(iter(read, b""))
        response.raw = io.BytesIO(data)
        # Not of the response itself: that would keep it until the garbage collector runs.
        response.json = lambda **_: loads(data)  # type: ignore[method-assign]
        return response


class Api(VkApiGroup):  # type: ignore[misc]
    """vk_api's client with errors in our classes, 20 requests a second and Russian names."""

    RPS_DELAY = float("-inf")  # ours is counted from the start of a request, on a monotonic clock

    def __init__(self, token: str, metrics: Any = OFF) -> None:
        """Send no request yet; `metrics` are those of fetcher.metrics."""
        super().__init__(token=token, api_version=API_VERSION, session=Session(), config=MemoryConfig)
        self.error_handlers.clear()  # they wait for a person, or call themselves without end
        self.metrics = metrics
        self.next_request = 0.0
        self.rate_limits = Counter[str]()  # by method, in a row
        self.paused_until = defaultdict[str, float](float)  # by method

    def method(self, method: str, values: Json | None = None, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the API and return its response.

        Raise TransientError for what passes, RequestRejected for what VK refuses, VkFatalError for what the operator
        must fix.
        """
        if time.monotonic() < self.paused_until[method]:
            raise TransientError("VK has asked for a pause in API requests")
        time.sleep(max(0.0, self.next_request - time.monotonic()))
        self.next_request = time.monotonic() + API_INTERVAL
        self.metrics.vk_requests.labels(method=method).inc()
        try:
            with translate_errors("API"):
                answer = super().method(method, {"lang": "ru", **(values or {})}, *args, **kwargs)
        except ApiError as error:
            raise self.failure(method, error.error) from None
        if "execute_errors" not in object_or_empty(answer):
            self.rate_limits[method] = 0
        return answer

    def failure(self, method: str, error: Any, inside: bool = False) -> TransientError | VkFatalError:
        """Return what VK's error means, for a request of ours or for a call `inside` an execute."""
        error, code = object_or_empty(error), 1  # VK's "unknown error"
        with suppress(ValueError):
            code = require_number(error, "error_code")
        text = " ".join(str(error.get("error_msg")).split()).replace(self.token["access_token"], "***")
        sentence = f"VK error {code} in {method}: {text}"
        self.metrics.vk_errors.labels(code=code).inc()
        hint = None if inside else FATAL.get(code)
        if method == "groups.getLongPollServer":  # VK says in words that Long Poll is off; the code is not documented
            hint = LONG_POLL_OFF if "not enabled" in text else FATAL_AT_START.get(code)
        if hint:
            return VkFatalError(f"{hint} ({sentence})")
        if code in RATE_LIMITED:
            paused = "execute" if inside else method  # no other: polls need new keys while VK limits names
            self.rate_limits[paused] += 1
            self.paused_until[paused] = time.monotonic() + backoff(self.rate_limits[paused], MIN_PAUSE, MAX_PAUSE)
        if code not in TRANSIENT:
            return RequestRejected(sentence)
        return CallFailed(sentence) if inside or code == TOO_LARGE else TransientError(sentence)


@contextmanager
def translate_errors(what: str, kind: type[TransientError] = TransientError) -> Iterator[None]:
    """Raise what the libraries raise as TransientError, without address, key or token.

    Raise `kind` if the answer cannot be read. Put only a request and the reading of its answer inside: vk_api, too,
    reads answers without checking their form.
    """
    try:
        yield
    except ApiHttpError as error:
        raise TransientError(f"VK's {what} answers HTTP {error.response.status_code}") from None
    except DecodeError:  # though an HTTPError: the answer is not compressed as it says
        raise kind(f"VK's {what} returns an unreadable answer (DecodeError)") from None
    except (OSError, HTTPError) as error:
        raise TransientError(f"VK's {what} is unavailable ({type(error).__name__})") from None
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RuntimeError) as error:
        raise kind(f"VK's {what} returns an unreadable answer ({type(error).__name__})") from None
