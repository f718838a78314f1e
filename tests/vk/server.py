"""VK itself: a log of updates behind a long poll, the API, and every fault that a test needs."""

import functools
import json
import math
import re
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlsplit

from fetcher.commands.demo import inner_calls
from fetcher.vk.builders import BUILDERS
from tests import HOST, Loopback, free_port
from tests.vk.history import History
from tests.vk.methods import METHODS, RequestRejected, numbers
from tests.vk.updates import GROUP, Json, error

TOKEN = "vk1.a.Tests-0f_secret-T0ken.3bF9xQ"
MAX_CALLS = 25  # in one execute
MAX_WAIT = 90.0  # seconds that a poll may request

Fault = int | str | dict[str, Any] | list[Any]
Calls = list[tuple[str, Json]]


class Request(NamedTuple):
    time: float  # of time.monotonic()
    kind: str  # "poll" or "api"
    name: str  # of the method; "a_check" for a poll
    params: Json
    inner: Calls  # the calls inside an execute


class VK(History):
    """Answers like VK, with a log of updates, people and chats, and with the faults that a test asks for.

    A test may change all of this at any time, including `latency` and `rps`. Ids: people > 0, communities < 0 (but > 0
    in `communities`, as in VK's answer), chats > 2000000000.
    """

    def __init__(
        self, group_id: int = GROUP, token: str = TOKEN, *, port: int = 0, ts: int = 1000, kept: int = 256,
        batch: int = 100, latency: float = 0, rps: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(ts, kept, batch)
        self.group_id, self.token = group_id, token
        self.port = port or free_port()
        # Seconds that an answer of the API takes, and its requests a second, 0 for no limit.
        self.latency, self.rps = latency, rps
        self.ts_type: type[str] | type[int] = str
        self.lag: int | Callable[[], int] = 0  # how many of the latest updates the polled server lacks
        # The least and the most seconds that a poll waits, whatever it requests.
        self.min_wait, self.max_wait = 0.0, MAX_WAIT
        self.drip = 3.0  # seconds that a slow answer takes
        self.settings: dict[str, Any] = {
            "is_enabled": True, "api_version": "5.199",
            "events": dict.fromkeys(BUILDERS, 1) | {"message_reply": 0, "message_read": 0, "group_join": 0},
        }  # fmt: skip

        self.rights = ["photos", "messages", "docs", "manage"]  # of the token

        self.people: dict[int, dict[str, Any]] = {}  # by id: what differs from an invented person; None removes a field
        self.communities: dict[int, dict[str, Any]] = {}
        self.chats: dict[int, str] = {}  # by peer: its title
        self.unknown: set[int] = set()  # people, and communities (negative), that VK leaves out
        self.hidden: set[int] = set()  # peers that VK leaves out
        self.untitled: set[int] = set()  # chats for which VK returns no chat_settings
        self.refused: dict[Any, int] = {}  # by person, -community, peer or (peer, cmid): the error's code
        self.failing: dict[Any, int] = {}  # the same, for errors that last until the test removes them
        self.messages: dict[tuple[int, int], dict[str, Any]] = {}  # by (peer, cmid): the message

        self.keys: list[str] = []  # all keys ever issued
        self.requests: list[Request] = []
        self.lookup_counts: Counter[int] = Counter()  # how often each person, -community and peer was looked up
        self.injected: Counter[str] = Counter()
        self.too_many = 0  # requests refused because of `rps`

        self._expired: set[str] = set()
        self._lost: set[str] = set()
        self._silent: set[str] = set()
        self.unreadable: set[str] = set()  # ts at which every answer is cut in the middle
        self._readable_from: dict[
            str | None, int
        ] = {}  # by ts, or None for any: the place in `keys` of the first key that can read it
        self._faults: list[list[Any]] = []  # kind, fault, method, times
        self._accepted: deque[float] = deque()
        self._changed = threading.Condition(threading.RLock())
        self._server: Loopback | None = None
        self._opening = threading.Lock()  # two faults may open or close the server at once
        self._openings = 0
        self.up()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    # The long poll

    def push(self, *updates: Any) -> int:
        """Append updates to the log and return the new ts."""
        with self._changed:
            self.add(*updates)
            self._changed.notify_all()
            return self.ts

    def replay(self, count: int) -> int:
        """Send the latest updates once more, after all others."""
        with self._changed:
            self.injected["replay"] += 1
            return self.push(*self.updates[-count:] if count else ())

    def expire_keys(self) -> None:
        """Answer {"failed": 2} to all keys issued so far."""
        with self._changed:
            self.injected["expired keys"] += 1
            self._expired.update(self.keys)
            self._changed.notify_all()

    def lose(self, ts: int | None = None) -> None:
        """Forget all updates and answer {"failed": 3} to all keys issued so far; ts jumps."""
        with self._changed:
            self.injected["lost information"] += 1
            self._lost.update(self.keys)
            self.begin_at(self.ts + 1000 if ts is None else ts)
            self._changed.notify_all()

    def restart(self, ts: int = 1, *, keep_keys: bool = False) -> None:
        """Restart the numbering: ts falls back and the log is empty.

        A poll with an earlier key is answered {"failed": 3}; with `keep_keys`, a poll at a higher ts is answered
        {"failed": 1}.
        """
        with self._changed:
            self.injected["restart"] += 1
            if not keep_keys:
                self._lost.update(self.keys)
            self.begin_at(ts)
            self._changed.notify_all()

    def forget(self) -> None:
        """Keep no update: a poll at an earlier ts is answered {"failed": 1}."""
        with self._changed:
            self.injected["forgotten history"] += 1
            self.begin_at(self.ts)
            self._changed.notify_all()

    def silence(self) -> None:
        """Send no update to polls with the keys issued so far."""
        with self._changed:
            self.injected["silence"] += 1
            self._silent.update(self.keys)

    def unreadable_until_new_key(self, ts: int | None = None, keys: int = 1) -> None:
        """Cut every answer at this ts, or at any ts, until it is polled with the next key or a later one.

        `keys` says which of the next keys heals it, to test a fetcher that takes new keys in vain.
        """
        with self._changed:
            self.injected["unreadable until a new key"] += 1
            self._readable_from[None if ts is None else str(ts)] = len(self.keys) + keys - 1

    def _is_unreadable(self, key: str, ts: str) -> bool:
        place = self.keys.index(key) if key in self.keys else 0
        return ts in self.unreadable or any(place < self._readable_from.get(at, 0) for at in (ts, None))

    def _answer(self, key: str, ts: str, lag: int) -> Json | None:
        """Return a poll's answer from a server that lacks this many updates, or None while it has nothing."""
        if key in self._lost:
            return {"failed": 3}
        if key in self._expired or key not in self.keys:
            return {"failed": 2}
        if key in self._silent:
            return None
        newest = self.ts if not lag else max([self.oldest, *self.places[:-lag][-1:]])
        answer = self.answer_at(int(ts) if ts.isdigit() else math.inf, newest)
        if "failed" in answer:
            return answer
        return answer | {"ts": self.ts_type(answer["ts"])} if answer["updates"] else None

    def poll(self, params: Json) -> tuple[Fault | None, Any]:
        """Answer a request of the long poll, with updates or after the wait that it requests."""
        key, ts = params.get("key", ""), params.get("ts", "")
        wait = max(self.min_wait, min(float(params.get("wait") or 25), MAX_WAIT, self.max_wait))
        with self._changed:
            self.requests.append(Request(time.monotonic(), "poll", params.get("act", ""), params, []))
            fault, _ = self._next_fault("poll", [])
            if not fault and self._is_unreadable(key, ts):
                fault = "cut"
            if isinstance(fault, dict | list):
                return None, fault
            opening, answer = self._openings, None
            lag = self.lag() if callable(self.lag) else self.lag

            def is_over() -> bool:
                nonlocal answer
                answer = self._answer(key, ts, lag)
                return answer is not None or self._openings != opening

            self._changed.wait_for(is_over, 0 if fault else wait)
            return fault, answer or {"ts": ts if self.ts_type is str else int(ts), "updates": []}

    # The API

    def ask(self, name: str, params: Json) -> tuple[Fault | None, Any]:
        """Answer a request of the API."""
        inner: Calls = []
        rejected: RequestRejected | None = None
        if name == "execute":
            try:
                inner = inner_calls(params.get("code", ""))
            except ValueError:
                rejected = RequestRejected(12, "Unable to compile code")
            if len(inner) > MAX_CALLS:
                rejected = RequestRejected(13, "Runtime error occurred during code invocation: Too many API calls")
        with self._changed:
            now = time.monotonic()
            self.requests.append(Request(now, "api", name, params, inner))
            self._count(inner or [(name, params)])
            fault, method = self._next_fault("api", [name, *(called for called, _ in inner)])
            if not fault and self._is_too_often(now):
                rejected = RequestRejected(6, "Too many requests per second")
            if params.get("access_token") != self.token:
                rejected = RequestRejected(5, "User authorization failed: invalid access_token (4).")
            inside = fault if isinstance(fault, dict) and "error" in fault and method != name else None
            if isinstance(fault, dict | list) and not inside:
                answer = fault
            elif rejected:
                answer = error(rejected.code, rejected.message)
            elif name == "execute":
                answer = self._execute(inner, params.get("lang", ""), method, inside)
            else:
                answer = self._call(name, params)
        time.sleep(self.latency)
        if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
            open_params = {"method": name, "oauth": "1"} | params
            open_params.pop("access_token", None)
            request_params = [{"key": key, "value": value} for key, value in open_params.items()]
            answer = answer | {"error": answer["error"] | {"request_params": request_params}}
        return None if isinstance(fault, dict | list) else fault, answer

    def _call(self, name: str, params: Json) -> Any:
        try:
            return {"response": self._result(name, params)}
        except RequestRejected as rejected:
            return error(rejected.code, rejected.message)

    def _execute(self, calls: Calls, lang: str, failing: str | None, failure: Json | None) -> Any:
        """Answer an execute; the first call of the method `failing` fails."""
        response: list[Any] = []
        errors = []
        for method, values in calls:
            answer = self._call(method, {"lang": lang} | values)
            if failure and method == failing:
                answer, failure = failure, None
            response.append(answer.get("response", False))
            if "error" in answer:
                errors.append({"method": method, **answer["error"]})
        return {"response": response} | ({"execute_errors": errors} if errors else {})

    def _result(self, name: str, params: Json) -> Any:
        if name not in METHODS:
            raise RequestRejected(3, "Unknown method passed")
        return METHODS[name](self, params)

    def _count(self, calls: Calls) -> None:
        for method, values in calls:
            if method == "users.get":
                self.lookup_counts.update(numbers(values.get("user_ids")))
            elif method == "groups.getById":
                self.lookup_counts.update(-id for id in numbers(values.get("group_ids") or values.get("group_id")))
            elif method == "messages.getConversationsById":
                self.lookup_counts.update(numbers(values.get("peer_ids")))

    def _is_too_often(self, now: float) -> bool:
        while self._accepted and self._accepted[0] <= now - 1:
            self._accepted.popleft()
        if self.rps and len(self._accepted) >= self.rps:
            self.too_many += 1
            return True
        self._accepted.append(now)
        return False

    def busiest_second(self) -> int:
        """Return the number of API requests in the busiest second."""
        with self._changed:
            times = [request.time for request in self.requests if request.kind == "api"]
        most = first = 0
        for last, moment in enumerate(times):
            while times[first] <= moment - 1:
                first += 1
            most = max(most, last - first + 1)
        return most

    # Faults

    def fail_poll(self, fault: Fault, times: float = 1) -> None:
        """Answer the next polls with a fault.

        A fault is an HTTP status, "html", "cut", "short", "reset", "hang", "slow", or what to send as JSON.
        """
        with self._changed:
            self._faults.append(["poll", fault, None, times])

    def fail_api(self, fault: Fault, times: float = 1, method: str | None = None) -> None:
        """Answer the next requests of the API, or only those of one method, with a fault; "captcha" is one, too.

        An execute that calls the method inside counts as well: an error of VK's then affects the inner call.
        """
        if fault == "captcha":
            sid = "872349871261"
            fault = error(14, "Captcha needed")
            fault["error"] |= {"captcha_sid": sid, "captcha_img": f"https://api.vk.ru/captcha.php?sid={sid}"}
        with self._changed:
            self._faults.append(["api", fault, method, times])

    @property
    def faults_left(self) -> int:
        """How many kinds of faults have yet to happen."""
        return len(self._faults)

    def heal(self) -> None:
        """Cancel all faults that have not happened yet, the silence, and what only a new key would heal."""
        with self._changed:
            self._faults.clear()
            self._silent.clear()
            self._readable_from.clear()
            self._changed.notify_all()

    def _next_fault(self, kind: str, methods: list[str]) -> tuple[Fault | None, str | None]:
        for entry in self._faults:
            of_kind, fault, method, _ = entry
            if of_kind == kind and (method is None or method in methods):
                entry[3] -= 1
                if entry[3] <= 0:
                    self._faults.remove(entry)
                self.injected[f"{kind} {_name(fault)}"] += 1
                return fault, method or (methods[0] if methods else None)
        return None, None

    def cut(self) -> None:
        """Drop all connections."""
        self.injected["cut"] += 1
        if self._server:
            self._server.disconnect()

    def down(self) -> None:
        """Refuse connections and drop those that are open."""
        self.injected["down"] += 1
        self.close()

    def up(self) -> None:
        """Listen, on the same port as before."""
        with self._opening:
            if not self._server:
                self._server = Loopback(self.port, functools.partial(Handler, self))

    def close(self) -> None:
        with self._opening:
            if self._server:
                self._server.close()
                self._server = None
        with self._changed:
            self._openings += 1
            self._changed.notify_all()

    def stats(self) -> dict[str, Any]:
        """Return figures about the requests."""
        busiest = self.busiest_second()
        with self._changed:
            api = [request for request in self.requests if request.kind == "api"]
            return {
                "ts": self.ts, "polls": len(self.requests) - len(api), "api": len(api),
                "methods": Counter(request.name for request in api),
                "inner": Counter(method for request in api for method, _ in request.inner),
                "busiest_second": busiest, "too_many": self.too_many, "looked_up": len(self.lookup_counts),
                "looked_up_again": sum(times > 1 for times in self.lookup_counts.values()), "injected": self.injected,
            }  # fmt: skip


def _name(fault: Fault) -> str:
    if isinstance(fault, int | str):
        return str(fault)
    if isinstance(fault, dict) and "failed" in fault:
        return f"failed {fault['failed']}"
    if isinstance(fault, dict) and isinstance(fault.get("error"), dict):
        return f"error {fault['error'].get('error_code')}"
    return "malformed answer"


NESTED = re.compile(rb'"nested ([0-9]+)"')  # sent as this many nested lists, which is more than json can write


def nest(found: re.Match[bytes]) -> bytes:
    """Return nested lists."""
    depth = int(found[1])
    return b"[" * depth + b"]" * depth


class Handler(BaseHTTPRequestHandler):
    """Speak HTTP for a VK."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, vk: VK, *of_connection: Any) -> None:
        self.vk = vk
        super().__init__(*of_connection)

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _serve(self, body: bytes) -> None:
        address = urlsplit(self.path)
        fault: Fault | None = None
        answer: Any = {}
        match address.path.split("/")[1:]:
            case ["push"]:
                answer = {"ts": self.vk.push(*json.loads(body))}
            case ["stats"]:
                answer = self.vk.stats()
            case ["method", name]:
                fault, answer = self.vk.ask(name, self._params(address.query, body))
            case ["whp", _]:
                fault, answer = self.vk.poll(self._params(address.query, body))
            case _:
                fault = 404
        self._send(fault, answer)

    def _params(self, query: str, body: bytes) -> Json:
        both = f"{query}&{body.decode()}"
        return dict(parse_qsl(both, keep_blank_values=True, errors="surrogatepass"))

    def _send(self, fault: Fault | None, answer: Any) -> None:
        page = b"<html><head><title>VK</title></head><body>Something went wrong</body></html>"
        body = page
        if not isinstance(fault, int) and fault != "html":
            try:
                body = json.dumps(answer, ensure_ascii=False).encode()
            except UnicodeEncodeError:  # lone surrogates
                body = json.dumps(answer).encode()
            body = NESTED.sub(nest, body)
        if fault == "cut":
            body = body[: len(body) // 2]
        status = fault if isinstance(fault, int) else 200
        length = len(body) + (100 if fault == "short" else 0)
        of_type = "text/html" if body is page else "application/json"
        head = (f"HTTP/1.1 {status} {self.responses.get(status, ('?',))[0]}\r\nServer: kittenx\r\n"
                f"Content-Type: {of_type}; charset=utf-8\r\nContent-Length: {length}\r\n\r\n")  # fmt: skip
        self.close_connection = self.close_connection or fault in ("short", "reset", "hang")
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif fault == "hang":
            self.connection.recv(1)  # until it is closed by either side
        elif fault == "slow":
            self.wfile.write(head.encode())
            piece = math.ceil(len(body) / 30)
            for start in range(0, len(body), piece):
                time.sleep(self.vk.drip / 30)
                self.wfile.write(body[start : start + piece])
        else:
            self.wfile.write(head.encode() + body)
