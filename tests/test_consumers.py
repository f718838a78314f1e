"""Which commands consumers write to Redis, and when: on a scripted Redis, without waiting.

What real servers make of these commands is tested in test_subscriber.py.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from redis import exceptions

import fetcher.asyncio
from fetcher import Event
from fetcher.consumers import connection, consumer, durable
from tests import net
from tests.test_subscriber import GROUP, PATIENCE, Asynchronous, event, text

READ = f"XREADGROUP GROUP {GROUP} a COUNT"
BEGIN = ["CONNECT", f"XCLAIM events {GROUP} a 0 0-0 JUSTID"]
READ_PENDING, READ_NEW = f"{READ} 1 STREAMS events 0", f"{READ} 1 BLOCK 1000 STREAMS events >"
CLAIM = f"XAUTOCLAIM events {GROUP} a 60000 0-0 COUNT 1 JUSTID"
LOST = exceptions.ConnectionError("Connection closed by server.")
NOTHING = object()  # no answer at all


class End(Exception):
    """The end of a script: the consumer raises it, like every error that the caller has to fix."""


END = End()


class Wire:
    """A connection to a test's Redis with redis-py's methods; like redis-py's, it reconnects by itself to write."""

    def __init__(self, redis: "Redis", **options: Any) -> None:
        self.redis, self.is_open, self.is_cut = redis, False, False
        redis.options.append(options)
        redis.wires.append(self)

    def connect(self) -> None:
        self.redis.replies.clear()
        self.redis.write("CONNECT")
        self.is_open = True
        Wire.read_response(self, False)

    def pack_commands(self, commands: Any) -> list[Any]:
        return list(commands)

    def send_packed_command(self, commands: list[Any]) -> None:
        if not self.is_open:
            Wire.connect(self)
        if self.is_cut:
            self.is_open = False
            raise LOST
        for command in commands:
            self.redis.write(*command)

    def can_read(self, timeout: float) -> bool:
        """Say that no reply has arrived: replies are read when they are needed."""
        return False

    def read_response(self, disconnect_on_error: bool) -> Any:
        reply = self.redis.next_reply() if self.is_open else LOST
        if reply is NOTHING:
            self.redis.written.append("WAIT")
            raise exceptions.TimeoutError("Timeout reading from socket")
        if isinstance(reply, Exception):
            if disconnect_on_error or reply is LOST:
                self.is_open = False
            raise reply
        return reply

    def disconnect(self, nowait: bool = False) -> None:
        self.redis.written.append("DISCONNECT")


class AsyncWire(Wire):
    """The same with the methods of a connection of redis.asyncio."""

    async def connect(self) -> None:  # type: ignore[override]
        await self.settle(super().connect)

    async def send_packed_command(self, commands: list[Any]) -> None:  # type: ignore[override]
        super().send_packed_command(commands)

    async def read_response(self, disconnect_on_error: bool) -> Any:
        return await self.settle(partial(super().read_response, disconnect_on_error))

    async def settle(self, step: Callable[[], Any]) -> Any:
        """Take the step; if a blocking socket would time out, wait instead, because this connection has no timeout."""
        try:
            return step()
        except exceptions.TimeoutError as error:
            if self.redis.written[-1] == "WAIT":
                await asyncio.sleep(10 * PATIENCE)
            raise error

    async def disconnect(self, nowait: bool = False) -> None:  # type: ignore[override]
        if not nowait:
            await asyncio.sleep(10 * PATIENCE)  # until Redis has taken what was written, which it never does
        super().disconnect()


class Redis(net.Clock):
    """A Redis, its client, and its clock: time passes only when a test says so.

    `answers` has a list of answers for each command; the last one is given again and again. A function is called, and
    its result is the answer; an exception is raised. `pushed` is what is published, in RESP2.
    """

    def __init__(self, is_async: bool) -> None:
        super().__init__()
        self.is_async = is_async
        self.written: list[str] = []  # what reached this Redis, and what its consumer did
        self.replies: deque[Any] = deque()  # on their way
        self.pushed: list[Any] = []
        self.answers: dict[str, list[Any]] = {"XREADGROUP 0": [entries()], "XREADGROUP >": [END]}
        self.answers["XAUTOCLAIM"] = [claimed()]
        self.turns = 0  # of other tasks
        self.wires: list[Wire] = []
        self.options: list[dict[str, Any]] = []  # of each connection
        self.client: Any = self
        wire = partial(AsyncWire if is_async else Wire, self)
        self.connection_pool = SimpleNamespace(connection_kwargs={}, connection_class=wire)
        self.consumers: list[Any] = []

    def write(self, name: str, *arguments: Any) -> None:
        words = [word.decode() if isinstance(word, bytes) else str(word) for word in arguments]
        self.written.append(" ".join([name, *words]))
        answers = self.answers.get(f"XREADGROUP {words[-1]}" if name == "XREADGROUP" else name, [None])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.replies.append(answer)

    def next_reply(self) -> Any:
        if not self.replies and self.pushed:
            self.replies.append(self.pushed.pop(0))
        reply = self.replies.popleft() if self.replies else END
        return reply() if callable(reply) else reply

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self.written.append(f"SLEEP {seconds:g}")

    async def async_sleep(self, seconds: float) -> None:
        """Stand in for asyncio.sleep()."""
        self.turns += 1
        if seconds:
            self.sleep(seconds)

    def cut(self) -> None:
        """Break the first connection: writing to it fails."""
        self.wires[0].is_cut = True

    def consume(self, consumer: str = "a", **options: Any) -> Any:
        return self.create(fetcher.asyncio if self.is_async else fetcher, "consume", GROUP, consumer, **options)

    def subscribe(self, *event_types: str, **options: Any) -> Any:
        return self.create(fetcher.asyncio if self.is_async else fetcher, "subscribe", *event_types, **options)

    def create(self, module: Any, name: str, *arguments: Any, **options: Any) -> Any:
        events = getattr(module, name)(self.client, *arguments, **options)
        self.consumers.append(Asynchronous(events) if self.is_async else events)
        return self.consumers[-1]

    def run(self, events: Iterator[Event], takes: float = 1, handle: Callable[[], Any] = lambda: None) -> list[str]:
        """Handle events until the end of the script, taking `takes` seconds for each; return what was written."""
        try:
            for given in events:
                self.written.append(f"handle {given.event_id}")
                self.now += takes
                handle()
        except End:
            return self.written
        raise AssertionError("it must go on forever")


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def redis(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    redis = Redis(request.param)
    for module in (consumer, durable):
        monkeypatch.setattr(module, "time", redis)
    monkeypatch.setattr(connection, "time", redis)
    monkeypatch.setattr(
        connection,
        "asyncio",
        SimpleNamespace(sleep=redis.async_sleep, timeout=asyncio.timeout, CancelledError=asyncio.CancelledError),
    )
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    yield redis
    for events in redis.consumers:
        events.close()


def entry(id: str, data: str | None = None) -> list[Any]:
    """Return an entry as Redis sends it; in these tests an event has the id of its entry."""
    return [id.encode(), [b"event", (text(event(id)) if data is None else data).encode()]]


def entries(*ids: str) -> list[Any]:
    """Return the answer to XREADGROUP."""
    return [[b"events", [entry(id) for id in ids]]]


def claimed(*ids: str, cursor: str = "0-0", trimmed: tuple[bytes, ...] = ()) -> list[Any]:
    """Return the answer to XAUTOCLAIM."""
    return [cursor.encode(), [id.encode() for id in ids], list(trimmed)]


def ack(*ids: str) -> str:
    return " ".join([f"XACK events {GROUP}", *ids])


# --- Durable: what is read, handed over and acknowledged -------------------------------------------------------


def test_pending_and_abandoned_events_come_before_new_ones(redis: Redis) -> None:
    """An event is acknowledged when the next one is requested; abandoned entries are claimed, then read as pending."""
    redis.answers["XREADGROUP 0"] = [entries("1-0"), entries("2-0"), entries("3-0"), entries()]
    redis.answers["XAUTOCLAIM"] = [claimed("2-0"), claimed(), claimed("3-0"), claimed()]
    redis.answers["XREADGROUP >"] = [entries("4-0"), None, entries("5-0"), END]
    assert redis.run(redis.consume(), takes=0.25) == [
        *BEGIN, CLAIM, READ_PENDING, "handle 1-0",
        ack("1-0"), CLAIM, READ_PENDING, "handle 2-0",
        ack("2-0"), CLAIM, READ_PENDING, "handle 3-0",
        ack("3-0"), CLAIM, READ_PENDING,
        READ_NEW, "handle 4-0",
        ack("4-0"), READ_NEW,
        READ_NEW, "handle 5-0",
        ack("5-0"), READ_NEW, "DISCONNECT",
    ]  # fmt: skip
    assert redis.turns == (5 + 1 if redis.is_async else 0)  # one for each event, and one before the connection


def test_the_caller_chooses_the_names(redis: Redis) -> None:
    redis.answers["XREADGROUP >"] = [[[b"b", [entry("1-0")]]], END]
    assert redis.run(redis.consume("other", bus="b", idle=30, attempts=7)) == [
        "CONNECT", f"XCLAIM b {GROUP} other 0 0-0 JUSTID",
        f"XAUTOCLAIM b {GROUP} other 30000 0-0 COUNT 1 JUSTID",
        f"XREADGROUP GROUP {GROUP} other COUNT 1 STREAMS b 0",
        f"XREADGROUP GROUP {GROUP} other COUNT 1 BLOCK 1000 STREAMS b >",
        f"HINCRBY {{b}}:attempts:{GROUP} 1-0 1", "handle 1-0",
        f"XACK b {GROUP} 1-0", f"HDEL {{b}}:attempts:{GROUP} 1-0",
        f"XAUTOCLAIM b {GROUP} other 30000 0-0 COUNT 1 JUSTID",
        f"XREADGROUP GROUP {GROUP} other COUNT 1 STREAMS b 0",
        f"XREADGROUP GROUP {GROUP} other COUNT 1 BLOCK 1000 STREAMS b >", "DISCONNECT",
    ]  # fmt: skip


def test_an_entry_without_an_event_is_acknowledged_and_logged(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """An entry without an event, or trimmed, is acknowledged and logged; other fields of an entry are ignored."""
    rich = entry("5-0")
    rich[1] = [b"trace", b"x", *rich[1], b"more", b"y"]
    malformed = [entry("1-0", "garbage"), [b"2-0", None], [b"3-0", [b"other", b"x"]], [b"4-0", []], rich]
    redis.answers["XREADGROUP >"] = [[[b"events", malformed]], END]
    assert redis.run(redis.consume())[4:] == [
        READ_NEW, *map(ack, ["1-0", "2-0", "3-0", "4-0"]), "handle 5-0", ack("5-0"),
        CLAIM, READ_PENDING, READ_NEW, "DISCONNECT",
    ]  # fmt: skip
    garbage, *nothing = caplog.messages
    assert garbage.startswith("No event in entry 1-0, passed over: ")
    assert "trimmed" not in garbage
    assert nothing == [
        f"No event in entry {id}, passed over: empty, or trimmed from the stream" for id in ("2-0", "3-0", "4-0")
    ]


@pytest.mark.parametrize(("idle", "milliseconds"), [(60, 1000), (4, 1000), (2, 500), (0.5, 125), (0.001, 1)])
def test_reading_waits_for_a_second_or_a_quarter_of_idle(redis: Redis, idle: float, milliseconds: int) -> None:
    """A read never waits for 0 milliseconds, which would mean forever."""
    assert f"{READ} 1 BLOCK {milliseconds} STREAMS events >" in redis.run(redis.consume(idle=idle))


# --- Durable: looking for abandoned entries ----------------------------------------------------------------


def test_a_search_continues_where_the_last_one_ended(redis: Redis) -> None:
    """A look for abandoned entries goes on until it has come to the end and found nothing.

    Meanwhile new entries are read, but not waited for. The next look begins when the wait for a new entry is over.
    """
    redis.answers["XAUTOCLAIM"] = [
        claimed(cursor="5-0"), claimed("6-0", cursor="7-0"), claimed("8-0"), claimed(), claimed("9-0"), claimed(),
    ]  # fmt: skip

    redis.answers["XREADGROUP 0"] = [
        entries(), entries("6-0"), entries("8-0"), entries(), entries("9-0"), entries(),
    ]  # fmt: skip

    def wait(seconds: float) -> None:
        redis.now += seconds

    redis.answers["XREADGROUP >"] = [None] + [lambda: wait(durable.BLOCK_TIMEOUT / 2)] * 4 + [END]
    assert redis.run(redis.consume())[2:] == [
        CLAIM, READ_PENDING, READ_NEW.replace("BLOCK 1000 ", ""),
        CLAIM.replace("0-0", "5-0"), READ_PENDING, "handle 6-0",
        ack("6-0"), CLAIM.replace("0-0", "7-0"), READ_PENDING, "handle 8-0",
        ack("8-0"), CLAIM, READ_PENDING,
        READ_NEW, READ_NEW,
        CLAIM, READ_PENDING, "handle 9-0",
        ack("9-0"), CLAIM, READ_PENDING,
        READ_NEW, READ_NEW,
        CLAIM, READ_PENDING, READ_NEW, "DISCONNECT",
    ]  # fmt: skip


def test_entries_whose_reply_is_lost_are_read_again(redis: Redis) -> None:
    """Entries are read again as pending if their reply is lost.

    After a pause of the link, Redis may receive a request of the old connection when there is already a new one.
    """
    redis.answers["XREADGROUP 0"] = [entries(), entries("1-0"), entries()]

    def wait(seconds: float) -> None:
        redis.now += seconds

    redis.answers["XREADGROUP >"] = [lambda: wait(durable.BLOCK_TIMEOUT), END]
    assert redis.run(redis.consume())[2:] == [
        CLAIM, READ_PENDING, READ_NEW,
        CLAIM, READ_PENDING, "handle 1-0",
        ack("1-0"), CLAIM, READ_PENDING, READ_NEW, "DISCONNECT",
    ]  # fmt: skip


def test_the_first_search_does_not_depend_on_the_machines_uptime(redis: Redis) -> None:
    redis.now = 0.0
    assert redis.run(redis.consume()) == [*BEGIN, CLAIM, READ_PENDING, READ_NEW, "DISCONNECT"]


def test_an_entry_trimmed_while_pending_elsewhere_is_logged(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    redis.answers["XAUTOCLAIM"] = [claimed(trimmed=(b"1-0", b"2-0")), claimed()]
    redis.run(redis.consume())
    assert caplog.messages == ["Trimmed from the stream before it was handled: [b'1-0', b'2-0']"]


def test_a_redis_before_version_7_also_claims_trimmed_entries(redis: Redis) -> None:
    """A trimmed entry that was claimed is read, skipped and acknowledged."""
    cursor, found, _ = claimed("1-0", "3-0")
    redis.answers["XAUTOCLAIM"] = [[cursor, found], [cursor, []]]
    redis.answers["XREADGROUP 0"] = [[[b"events", [[b"1-0", None], entry("3-0")]]], entries()]
    handle = [ack("1-0"), "handle 3-0", ack("3-0")]
    assert redis.run(redis.consume()) == [
        *BEGIN, CLAIM, READ_PENDING, *handle, CLAIM, READ_PENDING, READ_NEW, "DISCONNECT"
    ]  # fmt: skip


# --- Durable: reading ahead --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("takes", "counts"),
    [(0.25, [1, 1, 1, 1]), (0.125, [1, 1, 1, 1]), (0.0625, [1, 2, 2, 2]), (0.03125, [1, 2, 4, 4]), (0, [1, 2, 4, 8])],
)
def test_a_read_asks_for_as_many_as_are_handled_in_time(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, takes: float, counts: list[int]
) -> None:
    """A read asks for at most twice as many as the latest one has brought."""
    monkeypatch.setattr(durable, "READ_AHEAD_INTERVAL", 0.125)
    ids = iter(range(1, 100))
    redis.answers["XREADGROUP >"] = [entries(*(f"{next(ids)}-0" for _ in range(count))) for count in counts] + [END]
    written = redis.run(redis.consume(), takes)
    assert [int(line.split()[5]) for line in written if line.startswith(READ) and line.endswith(">")][:4] == counts


def test_at_most_a_hundred_are_read_at_once(redis: Redis) -> None:
    ids = iter(range(1, 1000))
    counts = [1, 2, 4, 8, 16, 32, 64, 100]
    redis.answers["XREADGROUP >"] = [entries(*(f"{next(ids)}-0" for _ in range(count))) for count in counts] + [END]
    *_, last = [line for line in redis.run(redis.consume(), takes=0) if line.startswith(READ)]
    assert last.startswith(f"{READ} 100 ")


def test_a_read_that_brought_nothing_is_followed_by_a_small_one(redis: Redis) -> None:
    redis.answers["XREADGROUP >"] = [entries("1-0"), entries("2-0", "3-0"), None, END]
    written = redis.run(redis.consume(), takes=0)
    assert [int(line.split()[5]) for line in written if line.startswith(READ) and line.endswith(">")] == [1, 2, 4, 1]


def test_each_session_begins_with_one_entry(redis: Redis) -> None:
    """The latest read may have been too large for the link."""
    redis.answers["XREADGROUP >"] = [entries("1-0"), entries("2-0", "3-0"), LOST, END]
    written = redis.run(redis.consume(), takes=0)
    assert [int(line.split()[5]) for line in written if line.startswith(READ) and line.endswith(">")] == [1, 2, 4, 1]


@pytest.mark.parametrize(("wait", "takes_long"), [(30, False), (30.125, True)])
def test_new_entries_that_arrive_late_are_read_again(redis: Redis, wait: float, takes_long: bool) -> None:
    """Another consumer may claim an entry when `idle` has passed since Redis sent it, so Redis must confirm it."""

    def read() -> Any:
        redis.now += wait
        return entries("1-0")

    redis.answers["XREADGROUP >"] = [read, END]
    redis.answers["XREADGROUP 0"] = [entries(), entries("1-0"), entries()] if takes_long else [entries()]
    again = [CLAIM, READ_PENDING] * takes_long
    assert redis.run(redis.consume())[4:] == [
        READ_NEW, *again, "handle 1-0", ack("1-0"), CLAIM, READ_PENDING, READ_NEW, "DISCONNECT"
    ]  # fmt: skip


def test_an_entry_that_was_read_again_is_handed_over_even_if_it_is_late(redis: Redis) -> None:
    """Otherwise a consumer that is farther from Redis than `idle` would read the same entries forever."""

    def read() -> Any:
        redis.now += 40
        return entries("1-0", "2-0")

    redis.answers["XREADGROUP 0"] = [read, entries()]
    assert redis.run(redis.consume())[2:] == [
        CLAIM, READ_PENDING, "handle 1-0", ack("1-0"), CLAIM, READ_PENDING, READ_NEW, "DISCONNECT"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("idle", "wait", "takes", "handled", "release"),
    [
        pytest.param(60, 0, 0.25, 2, True, id="a handler that takes 0.25 s"),
        pytest.param(60, 0, 0.125, 3, True, id="one that takes 0.125 s"),
        pytest.param(60, 20, 0.125, 3, True, id="the wait for the first entry does not count"),
        pytest.param(60, 29.875, 0.125, 2, False, id="but for idle, which may have begun then"),
        pytest.param(60, 0, 50, 1, False, id="a handler that takes 50 s"),
        pytest.param(0.25, 0, 0.0625, 3, False, id="a short idle"),
        pytest.param(0, 0, 0, 4, False, id="no idle at all"),
    ],
)
def test_entries_that_wait_too_long_are_left_for_others(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, idle: float, wait: float, takes: float, handled: int, release: bool
) -> None:
    """Entries that wait for twice the read-ahead interval, or half of `idle`, are read again.

    Anyone may claim them before, but if another consumer may already have claimed them, they are not touched.
    """
    monkeypatch.setattr(durable, "READ_AHEAD_INTERVAL", 0.125)
    ids = ["1-0", "2-0", "3-0", "4-0"]

    def read() -> Any:
        redis.now += wait
        return entries(*ids)

    redis.answers["XREADGROUP >"] = [read, END]
    written = redis.run(redis.consume(idle=idle), takes)
    begin = written.index("handle 1-0")
    expected = [line for id in ids[:handled] for line in (f"handle {id}", ack(id))]
    if release:
        expected.append(f"XCLAIM events {GROUP} a 0 {' '.join(ids[handled:])} IDLE {int(1000 * idle)} JUSTID")
    assert written[begin : begin + len(expected)] == expected
    reads_pending = written[begin + len(expected) + 1].endswith("STREAMS events 0")  # what it still owns
    assert reads_pending is (handled < len(ids))


def test_entries_read_ahead_are_released_when_the_loop_ends(redis: Redis) -> None:
    """Entries that were only read ahead are released; the event being handled stays unacknowledged."""
    redis.answers["XREADGROUP >"] = [entries("1-0", "2-0", "3-0")]
    events = redis.consume()
    next(events)
    events.close()
    release = f"XCLAIM events {GROUP} a 0 2-0 3-0 IDLE 60000 JUSTID"
    assert redis.written[4:] == [READ_NEW, release, "DISCONNECT"]


# --- Durable: attempts -------------------------------------------------------------------------------------

ATTEMPTS, DEAD_LETTERS = f"{{events}}:attempts:{GROUP}", f"{{events}}:dead-letter:{GROUP}"


def attempt(id: str) -> list[str]:
    return [f"HINCRBY {ATTEMPTS} {id} 1", f"handle {id}", ack(id), f"HDEL {ATTEMPTS} {id}"]


def test_an_event_that_fails_too_often_becomes_a_dead_letter(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Pending and abandoned entries become dead letters; trimmed ones do not, and their neighbours are handed over."""
    redis.answers["XREADGROUP 0"] = [
        [[b"events", [entry("1-0"), entry("2-0"), [b"3-0", None], entry("4-0")]]],
        entries("5-0"), entries(),
    ]  # fmt: skip
    redis.answers["XAUTOCLAIM"] = [claimed(), claimed("5-0"), claimed()]
    redis.answers["HMGET"] = [[None, b"2", b"2", b"1"], [b"3"]]
    redis.answers["XREADGROUP >"] = [entries("6-0"), END]

    def dead_letter(id: str, attempts: int) -> list[str]:
        letter = f"XADD {DEAD_LETTERS} MAXLEN ~ 10000 * event {text(event(id))} id {id} attempts {attempts}"
        return [letter, ack(id), f"HDEL {ATTEMPTS} {id}"]

    assert redis.run(redis.consume(attempts=2), takes=0.15) == [
        *BEGIN, CLAIM, READ_PENDING, f"HMGET {ATTEMPTS} 1-0 2-0 3-0 4-0", *dead_letter("2-0", 2),
        *attempt("1-0"), ack("3-0"), f"HDEL {ATTEMPTS} 3-0", *attempt("4-0"),
        CLAIM, READ_PENDING, f"HMGET {ATTEMPTS} 5-0", *dead_letter("5-0", 3),
        CLAIM, READ_PENDING, READ_NEW, *attempt("6-0"), READ_NEW, "DISCONNECT",
    ]  # fmt: skip
    assert caplog.messages == [
        "Dead letter: entry 2-0 of events, handling has failed 2 times",
        "No event in entry 3-0, passed over: empty, or trimmed from the stream",
        "Dead letter: entry 5-0 of events, handling has failed 3 times",
    ]


def test_an_event_that_was_never_handed_over_is_handed_over_once(redis: Redis) -> None:
    """An event without an attempt so far is handed over even if only one attempt is allowed."""
    redis.answers["XREADGROUP 0"] = [entries("1-0"), entries()]
    redis.answers["HMGET"] = [[None]]
    assert "handle 1-0" in redis.run(redis.consume(attempts=1))


def test_attempts_of_trimmed_entries_are_forgotten(redis: Redis) -> None:
    redis.answers["XAUTOCLAIM"] = [claimed(trimmed=(b"1-0", b"2-0")), claimed()]
    assert redis.run(redis.consume(attempts=1))[2:] == [
        CLAIM, READ_PENDING, ack("1-0", "2-0"), f"HDEL {ATTEMPTS} 1-0 2-0", READ_NEW, "DISCONNECT",
    ]  # fmt: skip


# --- Durable: after an error -------------------------------------------------------------------------------


def test_a_lost_acknowledgement_is_written_again_until_redis_has_confirmed_it(redis: Redis) -> None:
    redis.answers["XREADGROUP >"] = [entries("1-0"), LOST, LOST, entries("2-0"), LOST, END]
    again = ["DISCONNECT", "SLEEP 0.1", "CONNECT"]
    written = redis.run(redis.consume(attempts=1), takes=0.25)
    written = [line for line in written if not line.startswith("XAUTOCLAIM")]
    claim = BEGIN[1]
    acknowledge = [ack("1-0"), f"HDEL {ATTEMPTS} 1-0"]
    assert written[3:] == [
        READ_NEW, *attempt("1-0"), READ_NEW, *again,
        *acknowledge, claim, READ_PENDING, READ_NEW, *again,
        claim, READ_PENDING, READ_NEW, *attempt("2-0"), READ_NEW, *again,
        ack("2-0"), f"HDEL {ATTEMPTS} 2-0", claim, READ_PENDING, READ_NEW, "DISCONNECT",
    ]  # fmt: skip


def test_reading_pending_entries_confirms_an_acknowledgement(redis: Redis) -> None:
    redis.answers["XREADGROUP 0"] = [entries("1-0"), entries("2-0"), LOST, entries()]
    written = redis.run(redis.consume())
    assert [line for line in written if line.startswith("XACK")] == [ack("1-0"), ack("2-0"), ack("2-0")]


NO_GROUP = exceptions.ResponseError("NOGROUP No such key 'events' or consumer group 'moderation'")
BUSY_GROUP = exceptions.ResponseError("BUSYGROUP Consumer Group name already exists")


def test_a_missing_group_is_created_though_the_next_connection_fails(redis: Redis) -> None:
    """The group is created on the connection after that: a link may refuse every other one."""
    redis.answers |= {"XCLAIM": [NO_GROUP, None], "CONNECT": [None, LOST, None]}
    written = redis.run(redis.consume(start="0"))
    assert written.count(f"XGROUP CREATE events {GROUP} 0 MKSTREAM") == 1
    assert sum(line.startswith("XCLAIM") for line in written) == 2


@pytest.mark.parametrize("start", ["$", "0", "5-0"])
@pytest.mark.parametrize("created", [None, BUSY_GROUP])
def test_a_missing_group_is_created_at_once(
    redis: Redis, caplog: pytest.LogCaptureFixture, start: str, created: Any
) -> None:
    """The group begins at `start`; if another consumer creates it first, that is just as good."""
    redis.answers |= {"XCLAIM": [NO_GROUP, None], "XGROUP": [created]}
    create = f"XGROUP CREATE events {GROUP} {start} MKSTREAM"
    written = redis.run(redis.consume(start=start))
    once_more = ["DISCONNECT", "CONNECT"] if created else []
    assert [line for line in written if line.startswith(("CONNECT", "SLEEP", "XGROUP", "DISCONNECT"))] == [
        "CONNECT", "DISCONNECT", "CONNECT", create, *once_more, "DISCONNECT"
    ]  # fmt: skip
    assert caplog.messages == []


def test_a_lost_group_is_created_again_from_the_beginning(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """A group is created once for each loss, and each loss is logged."""
    redis.answers["XREADGROUP >"] = [NO_GROUP, LOST, NO_GROUP, END]
    create = f"XGROUP CREATE events {GROUP} 0 MKSTREAM"
    session = [BEGIN[1], READ_PENDING]
    written = [line for line in redis.run(redis.consume()) if line != CLAIM]
    assert written == [
        "CONNECT", *session, READ_NEW, "DISCONNECT",
        "CONNECT", create, *session, READ_NEW, "DISCONNECT",
        "SLEEP 0.1", "CONNECT", *session, READ_NEW, "DISCONNECT",
        "CONNECT", create, *session, READ_NEW, "DISCONNECT",
    ]  # fmt: skip
    lost = f"The group {GROUP} was lost: created again, from the beginning of the stream"
    assert caplog.messages == [lost, "Redis is unavailable (ConnectionError), trying again", lost]


# --- Both: what is waited for, and what the caller has to fix -------------------------------------------------

TRANSIENT_ERRORS = [
    (LOST, "ConnectionError"),
    (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "BusyLoadingError"),
    (exceptions.TimeoutError("Timeout reading from socket"), "TimeoutError"),
    (TimeoutError(), "TimeoutError"),
    (OSError("Network is unreachable"), "OSError"),
    (exceptions.ClusterDownError("CLUSTERDOWN The cluster is down"), "ClusterDownError"),
    (exceptions.RedisClusterException("Redis Cluster cannot be connected"), "RedisClusterException"),
    (exceptions.MovedError("1 127.0.0.1:7000"), "MovedError"),
    (exceptions.AskError("1 127.0.0.1:7000"), "AskError"),
    (exceptions.ReadOnlyError("You can't write against a read only replica."), "ReadOnlyError"),
    (exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), "OutOfMemoryError"),
    *(
        (exceptions.ResponseError(f"{code} for a reason"), code)
        for code in ("BUSY", "MISCONF", "NOREPLICAS", "UNBLOCKED")
    ),
]
PERMANENT_ERRORS = [
    exceptions.AuthenticationError("WRONGPASS invalid username-password pair or user is disabled."),
    exceptions.NoPermissionError("this user has no permissions to run the command"),
    exceptions.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    exceptions.ResponseError("ERR BUSY is not the code of this"),
    TypeError("a bug"),
]
both = pytest.mark.parametrize("read", [Redis.consume, Redis.subscribe], ids=["consume", "subscribe"])


@pytest.mark.parametrize(("error", "name"), TRANSIENT_ERRORS, ids=[name for _, name in TRANSIENT_ERRORS])
@both
def test_transient_errors_are_retried(
    redis: Redis, caplog: pytest.LogCaptureFixture, read: Any, error: Exception, name: str
) -> None:
    """The log names the error's class or code, and quotes no text of Redis or redis-py, which may hold an address."""
    redis.answers["CONNECT"] = [error, None]
    assert redis.run(read(redis))[:4] == ["CONNECT", "DISCONNECT", "SLEEP 0.1", "CONNECT"]
    assert caplog.messages == [f"Redis is unavailable ({name}), trying again"]


@pytest.mark.parametrize("error", PERMANENT_ERRORS, ids=lambda error: str(error).partition(" ")[0])
@both
def test_errors_that_the_caller_must_fix_are_raised(
    redis: Redis, caplog: pytest.LogCaptureFixture, read: Any, error: Exception
) -> None:
    redis.answers["CONNECT"] = [error]
    with pytest.raises(type(error)) as raised:
        next(read(redis))
    assert raised.value is error
    assert redis.written == ["CONNECT", "DISCONNECT"]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("failures", "pause", "lines"),
    [(1, 5, 1), (1, 59, 1), (1, 60, 2), (33, 0.5, 1), (34, 1, 2), (35, 57, 2), (35, 59, 3), (64, 1, 3), (65, 1, 3)],
)
@both
def test_a_long_outage_is_logged_about_once_a_minute(
    redis: Redis, caplog: pytest.LogCaptureFixture, read: Any, failures: int, pause: float, lines: int
) -> None:
    """The pauses grow up to two seconds; the next outage begins with a short pause again.

    Errors of one kind are logged at most once a minute, even across outages, as a link may break every few seconds.
    """

    def later() -> Any:
        redis.now += pause
        return LOST

    redis.answers |= {"CONNECT": [*[LOST] * failures, None, LOST, None], "XREADGROUP >": [later, END]}
    redis.pushed = [later, END]
    waits = [line for line in redis.run(read(redis)) if line.startswith("SLEEP")]
    growing = [f"SLEEP {seconds}" for seconds in (0.1, 0.2, 0.4, 0.8, 1.6)]
    assert waits == [*growing, *["SLEEP 2"] * failures][:failures] + growing[:2]
    assert caplog.messages == ["Redis is unavailable (ConnectionError), trying again"] * lines


# --- Live --------------------------------------------------------------------------------------------------


def published(channel: str, id: str, *pattern: str, data: str | None = None) -> list[Any]:
    """Return what Redis sends to a subscriber of a channel, or of a pattern."""
    kind = "pmessage" if pattern else "message"
    words = [kind, *pattern, channel, text(event(id)) if data is None else data]
    return [word.encode() for word in words]


@pytest.mark.parametrize(
    ("types", "command"),
    [([], "PSUBSCRIBE events:*"), (["message"], "SUBSCRIBE events:message"),
     (["command", "button"], "SUBSCRIBE events:command events:button")],
)  # fmt: skip
def test_a_subscriber_gets_what_is_published_on_its_channels(redis: Redis, types: list[str], command: str) -> None:
    """A subscriber ignores the replies to its subscription, and what other buses publish."""
    pattern = [] if types else ["events:*"]
    redis.pushed = [
        *([b"subscribe", f"events:{name}".encode(), 1] for name in types[1:]),
        published("events:message", "1", *pattern),
        published("events:other:message", "2", *pattern),
        published("events:command", "3", *pattern),
        [b"unsubscribe", b"events:message", 0],
    ]  # fmt: skip
    assert redis.run(redis.subscribe(*types)) == ["CONNECT", command, "handle 1", "handle 3", "DISCONNECT"]
    assert redis.turns == (1 + max(0, len(types) - 1) + 4 if redis.is_async else 0)


def test_a_message_that_is_not_an_event_is_logged(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    redis.pushed = [published("b:message", "", data=""), published("b:message", "", data="[]")]
    redis.pushed += [published("b:message", "1")]
    assert redis.run(redis.subscribe("message", bus="b")) == [
        "CONNECT", "SUBSCRIBE b:message", "handle 1", "DISCONNECT"
    ]  # fmt: skip
    assert caplog.messages[0] == "No event in a message on b, passed over: empty, or trimmed from the stream"
    assert caplog.messages[1].startswith("No event in a message on b, passed over: ")
    assert len(caplog.messages) == 2


@pytest.mark.parametrize("timeout", [TimeoutError(), exceptions.TimeoutError("Timeout reading from socket")])
def test_a_silent_redis_must_answer_a_command(
    redis: Redis, caplog: pytest.LogCaptureFixture, timeout: Exception
) -> None:
    """If Redis is silent, it must answer a command on the same connection; otherwise a new one is opened."""
    redis.answers["SUBSCRIBE"] = [[b"subscribe", b"events:message", 1]] * 2 + [timeout, None]
    redis.pushed = [published("events:message", "1"), timeout, published("events:message", "2"), timeout]
    redis.pushed += [published("events:message", "3")]
    subscribe = "SUBSCRIBE events:message"
    assert redis.run(redis.subscribe("message")) == [
        "CONNECT", subscribe, "handle 1", subscribe, "handle 2", subscribe, "DISCONNECT",
        "SLEEP 0.1", "CONNECT", subscribe, "handle 3", "DISCONNECT",
    ]  # fmt: skip
    assert caplog.messages == ["Redis is unavailable (TimeoutError), trying again"]


# --- Both: the connection --------------------------------------------------------------------------------------


def test_a_connection_has_the_clients_options_but_the_consumer_alone_retries(redis: Redis) -> None:
    """Replies have the same form, whatever the client decodes.

    `db` is text, because hiredis may crash if a signal arrives while it turns a number into text.
    """
    redis.connection_pool.connection_kwargs = {
        "db": 3, "host": "redis.internal", "password": "secret", "protocol": 3, "decode_responses": True,
        "socket_timeout": 1, "health_check_interval": 5, "retry": 3, "retry_on_timeout": True,
        "maint_notifications_config": "any",
    }  # fmt: skip
    redis.run(redis.consume())
    timeout = None if redis.is_async else 10.0
    assert redis.options == [
        {"db": "3", "host": "redis.internal", "password": "secret", "protocol": 2, "decode_responses": False,
         "health_check_interval": 0, "socket_timeout": timeout}
    ]  # fmt: skip


def test_the_cause_of_a_failure_is_logged(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """redis-py raises the same ConnectionError for each of them; the text is not logged, as it may hold an address."""
    untrusted = exceptions.ConnectionError("Error 1 connecting to redis.internal:6379")
    untrusted.__context__ = ssl.SSLCertVerificationError("self-signed certificate")
    redis.answers["CONNECT"] = [untrusted, None]
    redis.run(redis.consume())
    assert caplog.messages == ["Redis is unavailable (SSLCertVerificationError), trying again"]


class Cluster:
    """A client of a cluster whose nodes are all the same Redis."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.nodes_manager = SimpleNamespace(initialize=self.query_nodes)

    async def initialize(self) -> None:
        """Prepare the client, once; only redis.asyncio's has this method, as the other one is ready when it is made."""
        assert self.redis.is_async
        if "initialize" not in self.redis.written:
            self.redis.written.append("initialize")

    def query_nodes(self) -> Any:
        self.redis.written.append("query the nodes")
        return asyncio.sleep(0) if self.redis.is_async else None

    def get_node_from_key(self, key: str) -> Any:
        return self.node(f"take the node of {key}")

    def get_random_node(self) -> Any:
        return self.node("take any node")

    def node(self, line: str) -> Any:
        """Return a node: in redis-py it has a client; in redis.asyncio it is itself like the pool of one."""
        self.redis.written.append(line)
        return self.redis.connection_pool if self.redis.is_async else SimpleNamespace(redis_connection=self.redis)


@pytest.mark.parametrize(
    ("read", "line"),
    [
        pytest.param(Redis.consume, "take the node of events", id="consume"),
        pytest.param(Redis.subscribe, "take any node", id="subscribe"),
    ],
)
def test_each_connection_queries_the_cluster_for_its_nodes(redis: Redis, read: Any, line: str) -> None:
    """A stream is on one node, which may be another one by the next connection; channels are on all nodes.

    A client of redis.asyncio is first initialized, as its own commands would do it, so that handlers can use it, too.
    """
    redis.client = Cluster(redis)
    redis.answers["CONNECT"] = [LOST, None]
    expected = ["query the nodes", line, "CONNECT", "DISCONNECT", "SLEEP 0.1", "query the nodes", line, "CONNECT"]
    expected = ["initialize"] * redis.is_async + expected
    assert redis.run(read(redis))[: len(expected)] == expected


@pytest.mark.parametrize("command", ["CONNECT", "XCLAIM", "XREADGROUP 0", "XREADGROUP >", "XAUTOCLAIM"])
def test_after_a_timeout_the_connection_is_closed_at_once(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, command: str
) -> None:
    """After a timeout the connection is closed at once: no other reply is waited for."""
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 0.01)
    redis.answers[command] = [NOTHING, redis.answers.get(command, [None])[0]]
    written = redis.run(redis.consume())
    wait = written.index("WAIT")
    assert written[wait : wait + 4] == ["WAIT", "DISCONNECT", "SLEEP 0.1", "CONNECT"]
    assert written.count("WAIT") == 1
    assert caplog.messages == ["Redis is unavailable (TimeoutError), trying again"]


def test_nothing_of_a_broken_connection_is_written_to_the_next(redis: Redis) -> None:
    """Only the acknowledgement of handled events is written again; the other entries are read again."""
    redis.answers["XREADGROUP 0"] = [entries(), entries("2-0", "3-0"), entries()]
    redis.answers["XREADGROUP >"] = [entries("1-0", "2-0", "3-0"), END]
    first, *others = BEGIN
    written = redis.run(redis.consume(), takes=0, handle=redis.cut)
    assert [line for line in written if line != CLAIM][3:] == [
        READ_NEW, "handle 1-0", "DISCONNECT", "SLEEP 0.1",
        first, ack("1-0"), *others, READ_PENDING, "handle 2-0", ack("2-0"), "handle 3-0",
        ack("3-0"), CLAIM.replace("COUNT 1", "COUNT 4"), READ_PENDING.replace("1", "4"),
        READ_NEW.replace(" 1 ", " 4 "), "DISCONNECT",
    ]  # fmt: skip


def test_replies_that_have_arrived_are_read_between_events(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the process is killed, unread replies reset the connection, and Redis may drop the latest XACKs.

    With asyncio the event loop reads what arrives.
    """
    monkeypatch.setattr(Wire, "can_read", lambda wire, timeout: bool(wire.redis.replies))
    redis.answers["XREADGROUP >"] = [entries("1-0", "2-0", "3-0", "4-0"), entries("5-0", "6-0"), END]
    unread: list[int] = []
    redis.run(redis.consume(), takes=0.01, handle=lambda: unread.append(len(redis.replies)))
    assert unread == ([0, 1, 2, 3, 0, 1] if redis.is_async else [0, 1, 1, 1, 0, 1])


def test_an_error_among_these_replies_ends_the_session(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The acknowledgement that Redis has refused is written again on the next connection."""
    monkeypatch.setattr(Wire, "can_read", lambda wire, timeout: bool(wire.redis.replies))
    redis.answers["XREADGROUP >"] = [entries("1-0", "2-0", "3-0"), END]
    redis.answers["XREADGROUP 0"] = [entries(), entries() if redis.is_async else entries("3-0"), entries()]
    redis.answers["XACK"] = [exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."), 1]
    written = [line for line in redis.run(redis.consume(), takes=0.01) if line.startswith(("handle", "XACK", "SLEEP"))]
    one, two, three = ([f"handle {id}", ack(id)] for id in ("1-0", "2-0", "3-0"))
    again = written.index("SLEEP 0.1") + 1
    assert written[:again] == [*one, *(two + three if redis.is_async else two[:1]), "SLEEP 0.1"]
    assert set(written[again].split()[3:]) == {"1-0", "2-0", *["3-0"] * redis.is_async}
    assert written[again + 1 :] == ([] if redis.is_async else three)


class Interrupted(BaseException):
    """Interrupts a consumer in the middle, like Ctrl-C or the cancellation of a task."""


def test_a_closed_consumer_waits_for_the_reply_to_its_release(redis: Redis) -> None:
    """A consumer that is closed waits for the reply to its release, which Redis might otherwise drop."""
    redis.answers["XREADGROUP >"] = [entries("1-0", "2-0")]
    events = redis.consume()
    next(events)
    events.close()
    assert (redis.written[-1], list(redis.replies)) == ("DISCONNECT", [])


def test_closing_over_a_broken_connection_is_silent(redis: Redis) -> None:
    redis.answers["XREADGROUP >"] = [entries("1-0", "2-0")]
    events = redis.consume()
    next(events)
    redis.cut()
    events.close()
    assert redis.written[-2:] == [READ_NEW, "DISCONNECT"]


def test_an_interrupt_during_the_release_closes_the_connection(redis: Redis) -> None:
    def interrupt() -> None:
        raise Interrupted

    redis.answers |= {"XREADGROUP >": [entries("1-0", "2-0")], "XCLAIM": [None, interrupt]}
    events = redis.consume()
    next(events)
    with pytest.raises(Interrupted):
        events.close()
    assert redis.written[-1] == "DISCONNECT"


def test_after_an_interrupted_write_no_reply_is_awaited(redis: Redis) -> None:
    """After an interrupted write no reply is waited for: it may never come, and Ctrl-C would last until the timeout."""

    def interrupt(_: Any) -> None:
        wire.send_packed_command = write
        redis.pushed.append(NOTHING)
        raise Interrupted

    redis.answers["XREADGROUP >"] = [entries("1-0", "2-0", "3-0")]
    events = redis.consume()
    next(events)
    wire: Any = redis.wires[0]
    write, wire.send_packed_command = wire.send_packed_command, interrupt
    with pytest.raises(Interrupted):
        next(events)
    assert "WAIT" not in redis.written
    assert redis.written[-2:] == [f"XCLAIM events {GROUP} a 0 3-0 IDLE 60000 JUSTID", "DISCONNECT"]


def test_a_consumer_that_never_connected_has_nothing_to_close(redis: Redis) -> None:
    """If no connection can be made, only the error that the caller has to fix is raised."""
    redis.connection_pool.connection_class = None
    with pytest.raises(TypeError, match="NoneType"):
        next(redis.consume())
    assert redis.written == []
