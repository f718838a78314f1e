"""VK in memory: its history and how much of it is kept, its answers to polls, its names, and its faults."""

import json
import random
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from fetcher.core.history import Answer, Name, Position
from fetcher.errors import Failure, FatalError, MalformedResponse, TransientError
from fetcher.events import CHATS
from tests.vk import GROUP
from tests.vk.history import History

if TYPE_CHECKING:
    from .world import Process

ERA = 1_000_000  # ts per era of VK's; when it restarts its numbering, its ts falls into the next lower million
FIRST_ERA = 9
PEOPLE, COMMUNITY, UNKNOWN, CHAT_PEERS = (101, 102, 103, 104), -55, 999, (CHATS + 1, CHATS + 2)
POLL_LIMIT = 0.001  # seconds: a shorter wait is no wait

Json = dict[str, Any]


class Pushed(NamedTuple):
    """One update: `order` grows through all eras; `key` is its event_id, or its text if it has none."""

    order: int
    key: str
    update: Any
    size: int
    passed_over: bool


def order_of(ts: int) -> int:
    """Convert a ts into a number that grows through all eras."""
    return (FIRST_ERA - ts // ERA) * ERA + ts % ERA


def key_of(update: Any) -> str:
    """Return what identifies an update: its event_id, or its text."""
    id = update.get("event_id") if isinstance(update, dict) else None
    return id if isinstance(id, str) and id else json.dumps(update)


@dataclass
class Habits:
    """How a VK behaves."""

    memory: int = 10**6  # updates that it keeps
    answers_newest: bool = False  # what `failed: 1` carries: the newest ts, or the oldest that it keeps
    steps: tuple[int, ...] = (1,)  # by how much ts grows with an update; with 0, ts grows without an update
    batch: int = 5  # updates in an answer
    beyond: str = "failed 3"  # the answer to a ts that it has not reached yet
    apart: int = 0  # by how many numbers one of its servers may be behind
    kinds: tuple[str, ...] = ("message",)
    text: int = 20  # characters of a message, at most


class VK(History):
    """VK without its server, which does all the waiting."""

    def __init__(self, rng: random.Random, habits: Habits) -> None:
        super().__init__(FIRST_ERA * ERA + 1000, habits.memory, habits.batch)
        self.rng, self.habits, self.newest_on_failed_1 = rng, habits, habits.answers_newest
        self.era, self.key = FIRST_ERA, 1
        self.begin = self.ts  # the ts at which this era begins
        self.history: list[Pushed] = []  # of all eras
        self.has_lost = False  # whether it has ever forgotten something, or claimed to
        self.titles = {chat: [f"Chat {chat}"] for chat in CHAT_PEERS}
        self.keys: dict[str, str] = {}  # keys of malformed updates, by text and by its hash
        self.cropped: dict[tuple[int, int], Json] = {}
        self.unreadable_ts = 0  # an answer that covers this ts cannot be read…
        self.unreadable_until = 0.0  # …until this time…
        self.healing_key = 0  # …or until a key as new as this

    def push(self) -> None:
        """Let something happen in the community."""
        self.step = self.rng.choice(self.habits.steps)
        if not self.step:
            self.ts += 1
            return
        number = len(self.history)
        kind = self.rng.choice(self.habits.kinds)
        update = self.make(kind, number)
        order = order_of(self.ts + self.step)
        one = Pushed(order, key_of(update), update, 200 + self.text_size, kind == "unknown type")
        if kind in MALFORMED:
            self.keys[json.dumps(update)] = self.keys[sha256(json.dumps(update).encode()).hexdigest()] = one.key
        self.history.append(one)
        self.add(one)
        self.has_lost |= self.oldest > self.begin

    def make(self, kind: str, number: int) -> Any:
        """Make an update of some kind."""
        rng = self.rng
        person = rng.choice((*PEOPLE, COMMUNITY, UNKNOWN))
        chat = rng.choice(CHAT_PEERS)
        peer = chat if rng.random() < 0.5 else rng.choice(PEOPLE)
        self.text_size = rng.randrange(self.habits.text)
        message: Json = {"date": 0, "from_id": person, "peer_id": peer, "conversation_message_id": number}
        message["text"] = "x" * self.text_size
        envelope: Json = {"type": "message_new", "event_id": f"e{number}", "object": {"message": message}}
        match kind:
            case "command":
                message["text"] = "/go"
            case "cropped":
                self.cropped[peer, number] = message | {"text": "whole"}
                envelope["object"]["message"] = message | {"is_cropped": True}
            case "title":
                self.titles[chat].append(f"Title {number}")
                action = {"type": "chat_title_update", "text": f"Title {number}"}
                envelope["object"]["message"] = message | {"peer_id": chat, "action": action}
            case "button":
                pressed = {"user_id": person, "peer_id": peer, "event_id": "b", "payload": {"n": number}}
                envelope |= {"type": "message_event", "object": pressed}
            case "reaction":
                given = {"reacted_id": person, "peer_id": peer, "cmid": number, "reaction_id": 1}
                envelope |= {"type": "message_reaction_event", "object": given}
            case "unknown type":
                envelope["type"] = "message_edit"
            case "negative reaction":
                given = {"reacted_id": person, "peer_id": peer, "cmid": number, "reaction_id": -1}
                envelope |= {"type": "message_reaction_event", "object": given}
            case "NaN":
                pressed = {"user_id": person, "peer_id": peer, "event_id": "b", "payload": {"n": float("nan")}}
                envelope |= {"type": "message_event", "object": pressed}
            case "without id":
                envelope["event_id"] = None
            case "number":
                return number
            case "text":
                return f"an update, number {number}"
            case "list":
                return [number]
        return envelope

    def place(self, text: str) -> int:
        """Return a position's place in the order of all eras."""
        position = Position.parse(text)
        order = order_of(position.ts)
        if not position.part:
            return order
        return self.history[bisect_right(self.history, order, key=attrgetter("order")) + position.part - 1].order

    def restart(self) -> None:
        """Lose everything, and count on from lower numbers."""
        self.era -= 1
        self.begin_at(self.era * ERA + self.rng.randrange(1000))
        self.begin, self.key, self.has_lost = self.ts, self.key + 1, True

    def forget(self) -> None:
        """Forget all updates."""
        self.oldest, self.has_lost = self.ts, True

    def answer(self, since: int, newest: int) -> tuple[Json, int]:
        """Return the answer at `since` from a server that knows everything up to `newest`, and its size."""
        if since > newest:
            return self.answer_beyond(newest), 30
        answer = self.answer_at(since, newest)
        if "failed" in answer:
            return answer, 30
        found = answer["updates"]
        return answer | {"updates": [one.update for one in found]}, sum(one.size for one in found) + 50

    def answer_beyond(self, ts: int) -> Json:
        if self.habits.beyond == "failed 3":
            return {"failed": 3}
        if self.habits.beyond == "failed 1":
            return {"failed": 1, "ts": ts}
        first = -1 if self.habits.beyond == "updates" and ts == self.ts else len(self.updates)
        return {"ts": ts, "updates": [one.update for one in self.updates[first:]]}

    def is_unreadable(self, since: int, until: int, now: float, key: int) -> bool:
        """Return whether an answer from one ts to another cannot be read now with this key."""
        there = since < self.unreadable_ts <= until and now < self.unreadable_until
        return there and not (self.healing_key and key >= self.healing_key)

    def name_of(self, id: int) -> Name:
        """Return the name that VK answers."""
        if id in self.titles:
            return Name(self.titles[id][-1])
        return name_of(id)


MALFORMED = {"negative reaction", "NaN", "without id", "number", "text", "list"}
KINDS = ("message", "command", "cropped", "title", "button", "reaction", "unknown type", *sorted(MALFORMED))


def name_of(id: int) -> Name:
    """Return the name of a person or the community."""
    if id == UNKNOWN:
        return Name()
    if id < 0:
        return Name(f"Community {-id}", f"Community {-id}", "", f"club{-id}")
    return Name(f"First{id} Last{id}", f"First{id}", f"Last{id}", f"id{id}")


class Api:
    """The part of VK's API that the long poll needs."""

    def __init__(self, process: "Process") -> None:
        self.process = process

    def method(self, method: str, values: Json) -> Json:
        self.process.request_vk("settings")
        return {}


class Server:
    """VK's long poll server, in place of `vk_api.bot_longpoll.VkBotLongPoll`."""

    server = "https://lp.vk.ru"

    def __init__(self, api: Api, group: int) -> None:
        assert group == GROUP
        self.process = api.process
        self.update_longpoll_server()

    def update_longpoll_server(self) -> None:
        self.process.request_vk("key")
        vk = self.process.world.vk
        self.key, self.ts = vk.key, vk.ts

    def poll(self, ts: int, wait: int) -> tuple[int, Answer]:
        answer, size = self.answer(ts, wait)
        return answer.get("failed", 0), Answer(ts, answer.get("ts", ts), answer.get("updates", []), size)

    def answer(self, ts: int, wait: int) -> tuple[Json, int]:
        process, world = self.process, self.process.world
        process.polls()
        try:
            fault = world.plan.vk_fault(process, "poll")
            process.wait(world.plan.latency("poll"))
            if world.now < process.link.vk_down_until or fault == "unavailable":
                raise TransientError("VK's long poll is unavailable")
            if fault == "malformed":
                raise MalformedResponse("VK's long poll returns an unreadable answer")
            if fault == "failed 2" or self.key != world.vk.key:
                return {"failed": 2}, 20
            world.vk.has_lost |= fault in ("failed 1", "failed 3")
            if fault == "failed 3":
                return {"failed": 3}, 20
            if fault == "failed 1":
                return {"failed": 1, "ts": world.vk.ts}, 20
            if fault == "silence":  # the key is too old
                process.wait(wait)
                world.answered.add(ts)
                return {"ts": ts, "updates": []}, 30
            deadline, behind = world.now + wait, world.plan.rng.randint(0, world.vk.habits.apart)
            is_ahead = world.vk.habits.beyond == "no answer" and ts > self.known(behind)
            while (is_ahead or self.known(behind) == ts) and world.now < deadline - POLL_LIMIT:
                process.wait_for_update(deadline)
                if world.now < process.link.vk_down_until:
                    raise TransientError("VK's long poll is unavailable")
                is_ahead = is_ahead and ts > self.known(behind)
            nothing: Json = {"ts": ts, "updates": []}
            answer, size = (nothing, 30) if is_ahead else world.vk.answer(ts, self.known(behind))
            if "failed" in answer:
                world.faults["gap"] += 1
                world.vk.has_lost |= answer["failed"] == 3
            elif world.vk.is_unreadable(ts, answer["ts"], world.now, self.key):
                world.faults["unreadable"] += 1
                world.vk.has_lost = True
                raise MalformedResponse("VK's long poll returns an unreadable answer")
            else:
                world.answered |= {ts, answer["ts"]}
            return answer, size
        finally:
            process.polled()

    def known(self, behind: int) -> int:
        """Return the ts of a server that is behind by this many numbers."""
        vk = self.process.world.vk
        return max(vk.begin, vk.ts - behind)


class Lookups:
    """VK's lookups, as a client that answers them itself."""

    def __init__(self, process: "Process") -> None:
        self.process = process

    def names(self, ids: Iterable[int]) -> tuple[dict[int, Name], Failure]:
        vk = self.process.world.vk
        resolved, failure = self.resolve(ids) if ids else ([], None)
        return {id: vk.name_of(id) for id in resolved}, failure

    def full_messages(self, places: Iterable[tuple[int, int]]) -> tuple[dict[tuple[int, int], Json], Failure]:
        vk = self.process.world.vk
        resolved, failure = self.resolve(places) if places else ([], None)
        return {place: vk.cropped[place] for place in resolved if place[1] % 4}, failure  # some are gone

    def resolve(self, ids: Iterable[Any]) -> tuple[list[Any], Failure]:
        """Return the ids for which VK answers, and the failure of the others."""
        ids, world = sorted(ids), self.process.world
        fault = world.plan.vk_fault(self.process, "names")
        try:
            self.process.request_vk("names")
        except (TransientError, FatalError) as error:
            return [], error
        if fault == "unavailable" or world.names_fail == "all":
            return [], TransientError("VK error 10")
        if fault == "refused":
            return [], FatalError("VK refuses the token")
        broken = {ids[0]} if fault == "partly" else {id for id in ids if id in world.nameless}
        return [id for id in ids if id not in broken], TransientError("VK error 29") if broken else None
