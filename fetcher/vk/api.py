"""VK's API through vk_api: one client, and the meaning of VK's errors. https://dev.vk.com/ru/api/api-requests"""

import io
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import requests
from jconfig.memory import MemoryConfig
from urllib3.exceptions import DecodeError, HTTPError
from vk_api import ApiError, VkApiGroup

from ..core.backoff import backoff
from ..errors import CallFailed, FatalError, RequestRejected, TransientError
from ..fastjson import loads
from ..logs import log
from ..metrics import OFF
from .fields import Json, object_or_empty

API_VERSION = "5.199"
API_TIMEOUT = 5.0  # seconds, to connect and for the answer
MIN_RATE = 1000  # bytes per second at which a body must arrive that takes longer than API_TIMEOUT
API_INTERVAL = 0.0525  # seconds between the starts of two requests: VK allows a community 20 requests a second
MIN_PAUSE, MAX_PAUSE = 1.0, 60.0  # seconds for which a method is not called after a rate-limit error

# VK's error codes by their meaning: https://dev.vk.com/ru/reference/errors. Any other code rejects the request.
RATE_LIMITED = {9, 14, 29}  # they go away after a pause in requests; 14 demands a captcha
TOO_LARGE = 13  # an `execute` takes too long, or its response is too large
TRANSIENT = RATE_LIMITED | {1, 6, 10, TOO_LARGE, 36, 43, 995}
FATAL = {  # errors that only the operator can fix, and how
    5: "VK refuses the token: put a valid community token into TOKEN",
    27: "VK refuses the community token: make a new one in the community's settings and put it into TOKEN",
    28: "VK refuses the token: put a community token, not an application's, into TOKEN",
    42: "VK refuses this server's address for the token: allow it, or make a token without such a limit",
    1117: "The token has expired: put a new one into TOKEN",
}
FATAL_AT_START = FATAL | {  # these are fatal only when the Long Poll server is requested
    15: "The token lacks the right to manage the community: make one with the rights 'manage' and 'messages'",
    100: "VK does not know the community, or Long Poll is off: check GROUPID and switch Long Poll on",
    125: "VK does not know the community: check GROUPID",
}


class Session(requests.Session):
    """A session that sets a timeout on every request, which vk_api does not, and parses JSON fast."""

    def __init__(self) -> None:
        """Take the proxies and the certificates from the environment once, as doing so for each request takes 0.1 ms.

        What the environment says about VK's API applies to all requests. With `trust_env` requests would also look for
        a .netrc file each time, and send VK the credentials in it.
        """
        super().__init__()
        found = self.merge_environment_settings("https://api.vk.ru", {}, None, None, None)
        self.proxies, self.verify, self.trust_env = found["proxies"], found["verify"], False

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        """Send the request with our timeout, unless the caller sets one, and read the whole answer.

        The libraries restart their timeout with every byte that arrives, so a body that arrives more slowly than
        MIN_RATE is abandoned. Raise requests.HTTPError if the answer's status means an error.
        """
        # Only get() follows redirects, because it asks for them itself. A redirected POST would lose its parameters,
        # the token among them, and VK would report that the token is invalid.
        options: Any = {"timeout": API_TIMEOUT, "allow_redirects": False, "stream": True} | kwargs
        with super().request(*args, **options) as response:
            # urllib3 has read1, which returns what has arrived, since 2.2. Before, read waits for the whole piece.
            read = getattr(response.raw, "read1", response.raw.read)
            data, deadline = bytearray(), float("inf")  # none until the body begins: a proxy may send headers early
            while piece := read(2**16, decode_content=True):
                data += piece
                if time.monotonic() > deadline:
                    raise requests.Timeout
                deadline = min(deadline + len(piece) / MIN_RATE, time.monotonic() + API_TIMEOUT)
        response.raise_for_status()
        response.raw = io.BytesIO(data)
        # The lambda must not refer to the response: the cycle would keep it alive until the garbage collector runs.
        response.json = lambda **_: loads(data)  # type: ignore[method-assign]
        return response


class Api(VkApiGroup):  # type: ignore[misc]
    """vk_api's client, but it raises our exceptions, sends up to 20 requests a second and requests Russian names."""

    RPS_DELAY = float("-inf")  # vk_api adds no delay; ours counts from the start of a request, on a monotonic clock

    def __init__(self, token: str, metrics: Any = OFF) -> None:
        """Create the client without sending a request; `metrics` are those of fetcher.metrics."""
        super().__init__(token=token, api_version=API_VERSION, session=Session(), config=MemoryConfig)
        self.error_handlers.clear()  # vk_api's handlers need a human, or retry by endless recursion
        self.metrics = metrics
        self.next_request = 0.0
        self.rate_limits = Counter[str]()  # consecutive rate-limit errors, by method
        self.paused_until = defaultdict[str, float](float)  # by method

    def method(self, method: str, values: Json | None = None, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the API and return its response.

        Raise TransientError if the failure is temporary, RequestRejected if VK refuses the request, and FatalError if
        the operator must fix something.
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

    def failure(self, method: str, error: Any, ids: Sequence[Any] = ()) -> TransientError | FatalError:
        """Log VK's error, in a request of ours or in a call for `ids` inside an execute, and return the exception."""
        error = object_or_empty(error)
        code = error["error_code"] if type(error.get("error_code")) is int else 1  # 1 is VK's "unknown error"
        text = " ".join(str(error.get("error_msg")).split()).replace(self.token["access_token"], "***")
        sentence = f"VK error {code} in {method}: {text}"
        self.metrics.vk_errors.labels(code=code).inc()
        log.debug("%s%s", sentence, f", of {ids}" if ids else "")
        hint = None if ids else FATAL.get(code)
        if method == "groups.getLongPollServer":
            # The code of the error that says that Long Poll is off is not documented, so it counts as 100.
            hint = FATAL_AT_START.get(100 if "not enabled" in text else code)
        if hint:
            return FatalError(f"{hint} ({sentence})")
        if code in RATE_LIMITED:
            paused = "execute" if ids else method  # only this: polls need new keys even while VK limits lookups
            self.rate_limits[paused] += 1
            self.paused_until[paused] = time.monotonic() + backoff(self.rate_limits[paused], MIN_PAUSE, MAX_PAUSE)
        if code not in TRANSIENT:
            return RequestRejected(sentence)
        return CallFailed(sentence) if ids or code == TOO_LARGE else TransientError(sentence)


@contextmanager
def translate_errors(what: str, kind: type[TransientError] = TransientError) -> Iterator[None]:
    """Translate the libraries' exceptions into TransientError, without address, key or token.

    Raise `kind` if the answer cannot be read. Put only a request and the code that reads its answer inside the block:
    vk_api and our own code read answers without checking their structure, so a LookupError, a TypeError and the like
    count as an unreadable answer.
    """
    try:
        yield
    except requests.HTTPError as error:
        raise kind(f"VK's {what} answers HTTP {error.response.status_code}") from None
    except (DecodeError, ValueError, LookupError, TypeError, AttributeError, StopIteration, RuntimeError) as error:
        # DecodeError, which is an HTTPError, too, means that the body does not match its Content-Encoding.
        raise kind(f"VK's {what} returns an unreadable answer ({type(error).__name__})") from None
    except (OSError, HTTPError) as error:
        raise TransientError(f"VK's {what} is unavailable ({type(error).__name__})") from None
