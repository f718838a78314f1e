"""What blocking and asynchronous consumers may rely on, on real servers: live events and durable ones."""

import asyncio
import contextlib
import functools
import gc
import inspect
import json
import queue
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any, ClassVar, Self

import pytest
import redis
import redis.asyncio.sentinel
import redis.sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry

import fetcher.asyncio
from fetcher import Event, Message, Peer, User
from fetcher.consumers import connection, consumer, durable
from tests import HOST, Loopback, free_port, servers
from tests.forks import LIBRARIES, ROOT, template
from tests.processes import environment, uncovered
from tests.servers import Proxy, Server, cluster, program

GROUP = "moderation"
ATTEMPTS = f"{{events}}:attempts:{GROUP}"
PATIENCE = 60  # seconds; a test that takes longer hangs
ONCE = Retry(NoBackoff(), 0)  # a client that leaves all retries to the consumer
wait_until = functools.partial(servers.wait_until, timeout=PATIENCE)
KINDS: list[dict[str, Any]] = [
    {"decode_responses": decode, "protocol": protocol} for decode in (True, False) for protocol in (2, 3)
]
KINDS += [{}, *({name: False} for name in inspect.signature(redis.Redis).parameters if name == "legacy_responses")]


def event(id: Any, event_type: str = "message") -> Event:
    message = Message(1, f"текст {id}", None, [], [])
    return Event(event_type, str(id), User(1, "Ян Ли", "Ян", "Ли", "yan"), Peer(1, 0, "Ян Ли"), message)


class Asynchronous:
    """Use an asynchronous generator like a blocking one; all of them run in one loop, in a thread."""

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    cluster_clients: ClassVar[list[Any]] = []  # to be closed: redis-py logs an error if they are not

    def __init__(self, events: AsyncGenerator[Event, None]) -> None:
        self.events = events

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        given: Event = self._run(lambda: anext(self.events))
        return given

    def close(self) -> None:
        self._run(self.events.aclose)

    @classmethod
    def _run(cls, step: Callable[[], Awaitable[Any]]) -> Any:

        async def wait() -> Any:
            # The generator starts inside the loop, which therefore closes it when it is no longer needed.
            return await step()

        return asyncio.run_coroutine_threadsafe(wait(), cls.loop).result()

    @classmethod
    def close_cluster_clients(cls) -> None:
        while cls.cluster_clients:
            cls._run(cls.cluster_clients.pop().aclose)

    @staticmethod
    def client(client: Any) -> Any:
        """Return a client of redis.asyncio with the same settings, unless it already is one."""
        if isinstance(client, redis.asyncio.Redis):
            return client
        if isinstance(client, redis.RedisCluster):
            node: Any = client.get_default_node()
            Asynchronous.cluster_clients.append(redis.asyncio.RedisCluster(host=node.host, port=node.port))
            return Asynchronous.cluster_clients[-1]
        known = client.connection_pool.connection_kwargs
        names = ["host", "port", "username", "password", "decode_responses", "protocol", "socket_timeout"]
        names += ["legacy_responses"]
        return redis.asyncio.Redis(**{name: known[name] for name in names if name in known})


DRIVERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sync": (fetcher.subscribe, fetcher.consume),
    "async": (
        lambda client, *types, **more: Asynchronous(
            fetcher.asyncio.subscribe(Asynchronous.client(client), *types, **more)
        ),
        lambda client, *names, **more: Asynchronous(
            fetcher.asyncio.consume(Asynchronous.client(client), *names, **more)
        ),
    ),
}


@pytest.fixture(autouse=True, params=DRIVERS)
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run each test with the blocking functions and with the asynchronous ones."""
    global subscribe, consume
    subscribe, consume = DRIVERS[request.param]
    yield str(request.param)
    Asynchronous.close_cluster_clients()


subscribe, consume = DRIVERS["sync"]


def text(event: Event) -> str:
    return json.dumps(event.as_dict(), ensure_ascii=False)


def add(client: Any, bus: str, *ids: Any) -> list[str]:
    """Put events into the stream; return the ids of the entries."""
    return [client.xadd(bus, {"event": text(event(id))}) for id in ids]


def fill(client: Any, count: int, length: int = 0) -> int:
    """Put many events into the stream, each with a text of this length; return roughly how many bytes they have."""
    texts = [text(event(id)._replace(raw={"text": "x" * length} if length else None)) for id in range(count)]
    pipe = client.pipeline(transaction=False)
    for one in texts:
        pipe.xadd("events", {"event": one})
    pipe.execute()
    return sum(map(len, texts))


def pending(client: Any, bus: str) -> dict[str, str]:
    """Return the entries that are not acknowledged, and the consumer of each."""
    return {entry["message_id"]: entry["consumer"] for entry in client.xpending_range(bus, GROUP, "-", "+", 100)}


class Reading(threading.Thread):
    """Takes events from an iterator, one after the other until the test ends, and handles each."""

    running: ClassVar[list["Reading"]] = []

    def __init__(self, events: Iterator[Event], handle: Callable[[Event], Any] = lambda event: None) -> None:
        super().__init__(daemon=True)
        self.events, self.handle = events, handle
        self.got: list[str] = []
        self.error: Exception | None = None
        self.running.append(self)
        self.start()

    def run(self) -> None:
        try:
            for event in self.events:
                self.got.append(event.event_id)
                self.handle(event)
        except Exception as error:
            self.error = error

    def wait_for(self, *ids: Any) -> None:
        """Wait until exactly these events have come, in this order."""
        expected = [str(id) for id in ids]
        with contextlib.suppress(AssertionError):
            wait_until(lambda: self.error or len(self.got) >= len(expected))
        assert (self.got, self.error) == (expected, None)


def end(*servers: Server) -> None:
    """End all readings in the only possible way: Redis forbids them to continue."""
    for server in servers:
        with server.client() as client:
            client.execute_command("ACL SETUSER", "default", "resetchannels", "-@stream")
            client.client_kill_filter(_type="pubsub")
            with contextlib.suppress(redis.ResponseError):  # the key is on another node
                client.delete("events")  # wakes the readers that wait for a new entry
    readings, Reading.running = Reading.running, []
    try:
        wait_until(lambda: not any(reading.is_alive() for reading in readings), what="the end of the readings")
    finally:
        for server in servers:
            with server.client() as client:
                client.execute_command("ACL SETUSER", "default", "allchannels", "+@stream")


def take(events: Iterator[Event], count: int = 1) -> list[str]:
    """Take this many events and return their ids; raise here what the iterator raises."""
    taken: queue.Queue[Any] = queue.Queue()

    def work() -> None:
        try:
            taken.put([next(events).event_id for _ in range(count)])
        except BaseException as error:
            taken.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = taken.get(timeout=PATIENCE)
    except queue.Empty:
        raise AssertionError(f"{count} events did not come within {PATIENCE} s") from None
    if isinstance(answer, BaseException):
        raise answer
    assert isinstance(answer, list)
    return answer


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@contextlib.contextmanager
def own_server(**options: Any) -> Iterator[Server]:
    """Run a server that a test may stop."""
    with Server(**options) as server:
        yield server
        end(server)


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with server.client() as client:
        client.flushall()
        yield client
        end(server)  # so that no reading takes an event of the next test


def listeners(client: Any, bus: str = "events", event_type: str = "message") -> int:
    return int(client.pubsub_numsub(f"{bus}:{event_type}")[0][1])


def calls(client: Any, command: str) -> int:
    return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


def consumers(client: Any) -> int:
    return sum(int(group["consumers"]) for group in client.xinfo_groups("events"))


# --- Live ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_live_subscribers_get_exactly_their_types_in_order(server: Server, client: Any, kind: Any) -> None:
    own = server.client(**kind)
    two = Reading(subscribe(own, "command", "button"))
    one = Reading(subscribe(own, "message"))
    every = Reading(subscribe(own))
    other = Reading(subscribe(own, bus="events:other"))
    wait_until(lambda: listeners(client) and listeners(client, event_type="button"))
    wait_until(lambda: client.pubsub_numpat() == 2)
    types = ["message", "command", "button", "reaction"] * 25
    for id, event_type in enumerate(types):
        client.publish(f"events:{event_type}", text(event(id, event_type)))
        client.publish(f"events:other:{event_type}", text(event(f"other {id}", event_type)))
        client.publish(f"events2:{event_type}", text(event("of nobody's bus", event_type)))
    every.wait_for(*range(100))
    two.wait_for(*(id for id, event_type in enumerate(types) if event_type in ("command", "button")))
    one.wait_for(*range(0, 100, 4))
    other.wait_for(*(f"other {id}" for id in range(100)))


def test_an_event_equals_the_published_one(server: Server, client: Any) -> None:
    client.xgroup_create("events", GROUP, "$", mkstream=True)
    client.xadd("events", {"event": text(event("ид", "command"))})
    for given in consume(client, GROUP, "a"):
        assert type(given) is Event
        assert given.as_dict() == event("ид", "command").as_dict()
        break


def test_a_subscriber_resubscribes_after_an_outage_of_redis(caplog: pytest.LogCaptureFixture) -> None:
    """That Redis breaks every few seconds is logged only once."""
    with own_server() as server:
        own = server.client(retry=ONCE)
        readings = [Reading(subscribe(own, "message")), Reading(subscribe(own))]
        for outage in range(3):
            if outage:
                server.kill()
                time.sleep(0.3)
                server.start()
            with server.client() as client:
                wait_until(lambda: listeners(client) and client.pubsub_numpat())
                client.publish("events:message", text(event(outage)))
            for reading in readings:
                reading.wait_for(*range(outage + 1))
        logged = [
            message for message in caplog.messages if message == "Redis is unavailable (ConnectionError), trying again"
        ]
        assert len(logged) == len(readings)


def test_a_subscriber_never_gives_up(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py's own back-off fails at the 1,024th failure."""
    monkeypatch.setattr(consumer, "MAX_BACKOFF", 1e-6)
    monkeypatch.setattr(consumer, "REMIND_INTERVAL", 0)  # each failure is logged
    with own_server() as server:
        own = server.client(retry=ONCE)
        server.stop()
        reading = Reading(subscribe(own, "message"))
        wait_until(lambda: len(caplog.messages) > 1100)
        server.start()
        with server.client() as client:
            wait_until(lambda: listeners(client))
            client.publish("events:message", text(event(1)))
        reading.wait_for(1)


class Other(socketserver.BaseRequestHandler):
    """Answer as a load balancer does while Redis is down."""

    def handle(self) -> None:
        self.request.recv(100)
        self.request.sendall(b"HTTP/1.0 503 Service Unavailable\r\n\r\n")


@pytest.mark.parametrize("live", [True, False])
def test_an_answer_that_is_not_from_redis_is_an_outage(live: bool, caplog: pytest.LogCaptureFixture) -> None:
    other = Loopback(free_port(), Other)
    own = redis.Redis(HOST, other.server_address[1], retry=ONCE)
    reading = Reading(subscribe(own) if live else consume(own, GROUP, "a", start="0"))
    wait_until(lambda: "Redis is unavailable (InvalidResponse), trying again" in caplog.messages)
    other.close()
    with own_server(port=other.server_address[1]) as server, server.client() as client:
        wait_until(lambda: client.pubsub_numpat() or not live)
        add(client, "events", 1)
        client.publish("events:message", text(event(1)))
        reading.wait_for(1)


def test_silence_is_not_a_failure(server: Server, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is logged, even if the silence is longer than the client's timeout."""
    own = server.client(socket_timeout=0.5, retry=ONCE)
    live, durable = Reading(subscribe(own, "message")), Reading(consume(own, GROUP, "a"))
    wait_until(lambda: listeners(client) and client.exists("events"))
    before = calls(client, "xreadgroup")
    wait_until(lambda: calls(client, "xreadgroup") > before + 2)  # each has waited for longer than the timeout
    client.publish("events:message", text(event(1)))
    add(client, "events", 1)
    live.wait_for(1)
    durable.wait_for(1)
    assert caplog.messages == []


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize(
    "data", [b"garbage", b"", b"null", b'{"event_type": "message"}', b"[" * 100_000, b"\xff\xfe\x00"]
)  # fmt: skip
def test_a_message_that_is_not_an_event_is_logged_and_skipped(
    server: Server, client: Any, caplog: pytest.LogCaptureFixture, decode: bool, data: bytes
) -> None:
    own = server.client(decode_responses=decode, retry=ONCE)
    live = Reading(subscribe(own, "message"))
    wait_until(lambda: listeners(client))
    client.publish("events:message", data)
    wait_until(lambda: caplog.messages)
    wait_until(lambda: listeners(client))  # a message that cannot be decoded costs the connection
    client.publish("events:message", text(event(1)))
    live.wait_for(1)
    caplog.clear()

    client.xadd("events", {"event": data})
    add(client, "events", 1)
    assert take(consume(own, GROUP, "a", start="0")) == ["1"]
    assert any("No event in entry" in message for message in caplog.messages)
    assert len(pending(client, "events")) == 1  # the event in hand


def test_an_entry_without_the_field_is_not_an_event(client: Any) -> None:
    client.xadd("events", {"other": "field"})
    add(client, "events", 1)
    assert take(consume(client, GROUP, "a", start="0")) == ["1"]


READERS: list[Callable[[Any], Iterator[Event]]] = [
    lambda client: subscribe(client, "message"),
    lambda client: subscribe(client),
    lambda client: consume(client, GROUP, "a"),
]


@pytest.mark.parametrize("read", READERS)
def test_errors_that_the_caller_must_fix_are_raised(read: Callable[[Any], Iterator[Event]]) -> None:
    rules = ["user limited on >secret ~other* resetchannels &other* +@all"]
    with Server(password="right", acl=rules) as server:
        with server.client(password="wrong", retry=ONCE) as own, pytest.raises(redis.AuthenticationError):
            take(read(own))
        with server.client(password=None, retry=ONCE) as own, pytest.raises(redis.AuthenticationError):
            take(read(own))
        limited = server.client(username="limited", password="secret")
        with limited as own, pytest.raises(redis.ResponseError, match="permission"):
            take(read(own))


def test_a_key_of_another_type_is_raised(client: Any) -> None:
    client.set("events", "text")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        take(consume(client, GROUP, "a"))


def test_a_closed_subscriber_listens_no_longer(server: Server, client: Any) -> None:
    events = subscribe(client, "message")
    publishing = threading.Event()

    def publish() -> None:
        with server.client() as other:
            while not publishing.wait(0.05):
                other.publish("events:message", text(event(1)))

    threading.Thread(target=publish, daemon=True).start()
    assert take(events) == ["1"]
    publishing.set()
    assert listeners(client) == 1
    events.close()
    wait_until(lambda: not listeners(client))


LOAD = """
import sys
for name in ("fcntl", "grp", "pwd", "resource", "termios", "readline"):
    sys.modules[name] = None
import fetcher.consumers.blocking, fetcher.asyncio
print(*sorted(name for name in sys.modules if name.startswith(("fetcher", "vk_api"))))
"""


def test_a_consumer_loads_nothing_of_the_fetcher_itself() -> None:
    """Importing it loads neither VK's library nor Lua, nor any module that exists only on Unix."""
    run = subprocess.run([sys.executable, "-c", LOAD], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == {"fetcher", *(f"fetcher.{name}" for name in LOADED)}


LOADED = ["asyncio", "consumers", "core", "core.backoff", "events", "fastjson", "logs"]
LOADED += [f"consumers.{name}" for name in ("blocking", "connection", "consumer", "durable")]


# --- Redis's host disappears silently ---------------------------------------------------------------------------


def test_a_silent_host_is_noticed_within_a_minute() -> None:
    """The worst case is a silence, a request without an answer, and a pause before the new connection."""
    assert 2 * connection.REPLY_TIMEOUT + consumer.MAX_BACKOFF + connection.REPLY_TIMEOUT < 60


def test_a_connection_that_swallows_everything_is_given_up(
    server: Server, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Subscribers and consumers give it up, although nothing ever closes or resets it."""
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 1.5)
    with Proxy(server.port) as proxy:
        own = redis.Redis(HOST, proxy.port, retry=ONCE)
        readings = [Reading(subscribe(own, "message")), Reading(subscribe(own)), Reading(consume(own, GROUP, "a"))]
        wait_until(lambda: listeners(client) and client.pubsub_numpat() and client.exists("events"))
        proxy.swallow()
        wait_until(lambda: len(caplog.messages) >= len(readings), what="the notice of each")
        assert set(caplog.messages) == {"Redis is unavailable (TimeoutError), trying again"}
        proxy.cut()
        wait_until(lambda: not listeners(client) and not client.pubsub_numpat())  # Redis has noticed, too
        proxy.release()
        wait_until(lambda: listeners(client) and client.pubsub_numpat())
        add(client, "events", 1)
        client.publish("events:message", text(event(1)))
        for reading in readings:
            reading.wait_for(1)
        end(server)


def test_a_subscriber_of_a_silent_channel_keeps_its_connection(
    server: Server, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 0.3)
    reading = Reading(subscribe(client, "message"))
    wait_until(lambda: listeners(client))
    (before,) = client.client_list(_type="pubsub")
    client.config_resetstat()
    wait_until(lambda: client.info("commandstats").get("cmdstat_subscribe", {"calls": 0})["calls"] > 2)
    (after,) = client.client_list(_type="pubsub")
    assert after["id"] == before["id"]
    client.publish("events:message", text(event(1)))
    reading.wait_for(1)
    assert caplog.messages == []


# --- Durable: what is given, and when it is acknowledged ---------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_acknowledged_when_the_next_is_requested(server: Server, client: Any, kind: Any) -> None:
    entries = add(client, "events", 1, 2)
    own = server.client(**kind)
    events = consume(own, GROUP, "a", start="0")
    assert take(events) == ["1"]
    assert pending(client, "events") == {entries[0]: "a"}
    assert take(events) == ["2"]
    assert pending(client, "events") == {entries[1]: "a"}
    add(client, "events", 3)
    assert take(events) == ["3"]


def test_break_and_exception_leave_the_event_unacknowledged(client: Any) -> None:
    entries = add(client, "events", 1, 2)
    for given in consume(client, GROUP, "a", start="0"):
        assert given.event_id == "1"
        break
    assert pending(client, "events") == {entries[0]: "a"}

    def fail() -> None:
        for given in consume(client, GROUP, "a"):
            if given.event_id == "2":
                raise LookupError(given.event_id)

    with pytest.raises(LookupError, match="2"):  # the first event was given again, and handled
        fail()
    assert pending(client, "events") == {entries[1]: "a"}
    add(client, "events", 3)
    assert take(consume(client, GROUP, "a"), 2) == ["2", "3"]


@pytest.mark.parametrize(("start", "first"), [("$", "new"), ("0", "old")])
def test_a_new_group_begins_where_start_says(client: Any, start: str, first: str) -> None:
    add(client, "events", "old")
    reading = Reading(consume(client, GROUP, "a", start=start))
    wait_until(lambda: client.xinfo_groups("events"))
    add(client, "events", "new")
    wait_until(lambda: len(reading.got) == (1 if start == "$" else 2))
    assert reading.got[0] == first


def test_consumers_share_a_group_and_groups_share_nothing(client: Any) -> None:
    add(client, "events", *range(10))
    one, two = consume(client, GROUP, "a", start="0"), consume(client, GROUP, "b", start="0")
    other = consume(client, "other", "a", start="0")
    shared = []
    for events in [one, two] * 5:
        shared += take(events)
        time.sleep(durable.READ_AHEAD_INTERVAL / 2)  # so each is too slow to read ahead
    assert shared == [str(id) for id in range(10)]
    assert take(other, 10) == shared


def test_one_event_is_in_hand_at_a_time(client: Any) -> None:
    """A slow consumer does not keep events that others could handle."""
    add(client, "events", *range(10))
    assert take(consume(client, GROUP, "slow", start="0")) == ["0"]
    assert take(consume(client, GROUP, "quick"), 9) == [str(id) for id in range(1, 10)]


def test_an_abandoned_event_is_claimed_once_it_was_idle_long_enough(client: Any) -> None:
    entries = add(client, "events", 1, 2)
    client.xgroup_create("events", GROUP, "0")
    client.xreadgroup(GROUP, "dead", {"events": ">"}, count=1)
    begun = time.monotonic()
    events = consume(client, GROUP, "a", idle=1)
    assert take(events) == ["2"]
    assert pending(client, "events") == {entries[0]: "dead", entries[1]: "a"}
    assert take(events) == ["1"]
    assert time.monotonic() - begun >= 1


def test_an_abandoned_event_is_found_behind_those_of_other_consumers(client: Any) -> None:
    """XAUTOCLAIM looks at ten entries at a time, and `idle` is a minute by default."""
    *_, last = add(client, "events", *range(25))
    client.xgroup_create("events", GROUP, "0")
    client.xreadgroup(GROUP, "busy", {"events": ">"})
    client.xclaim("events", GROUP, "dead", 0, [last], idle=61_000)
    assert take(consume(client, GROUP, "a")) == ["24"]


def test_abandoned_events_are_claimed_from_a_busy_stream_too(client: Any) -> None:
    client.xgroup_create("events", GROUP, "0", mkstream=True)
    (left,) = add(client, "events", "left")
    client.xreadgroup(GROUP, "dead", {"events": ">"})
    reading = Reading(consume(client, GROUP, "a"), lambda event: add(client, "events", "one more"))
    add(client, "events", "first")
    wait_until(lambda: len(reading.got) > 3)
    client.xclaim("events", GROUP, "dead", 0, [left], idle=61_000)
    wait_until(lambda: "left" in reading.got)


def test_a_slow_consumer_does_not_claim_its_own_event(client: Any) -> None:
    add(client, "events", 1, 2, 3)
    reading = Reading(consume(client, GROUP, "a", start="0", idle=0.01), lambda event: time.sleep(0.2))
    reading.wait_for(1, 2, 3)
    wait_until(lambda: not pending(client, "events"))
    before = calls(client, "xautoclaim")
    wait_until(lambda: calls(client, "xautoclaim") > before + 1)
    reading.wait_for(1, 2, 3)


def test_trimmed_entries_are_logged_and_skipped(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    entries = add(client, "events", *range(6))
    client.xgroup_create("events", GROUP, "0")
    client.xreadgroup(GROUP, "a", {"events": ">"}, count=2)
    client.xreadgroup(GROUP, "dead", {"events": ">"}, count=2)
    client.xclaim("events", GROUP, "dead", 0, entries[2:4], idle=61_000)
    client.xtrim("events", minid=entries[5], approximate=False)
    events = consume(client, GROUP, "a", idle=30)
    assert take(events) == ["5"]
    add(client, "events", 6)
    assert take(events) == ["6"]
    assert list(pending(client, "events").values()) == ["a"]
    for entry in entries[:4]:
        assert any("rimmed" in message and entry in message for message in caplog.messages)


def test_a_consumer_works_with_redis_6_2(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its XAUTOCLAIM does not say which entries were trimmed, and claims those, too."""
    ask = connection.Connection.ask

    async def ask_redis_6_2(self: connection.Connection, *command: Any) -> Any:
        reply = await ask(self, *command)
        return reply[:2] if command[0] == "XAUTOCLAIM" else reply

    monkeypatch.setattr(connection.Connection, "ask", ask_redis_6_2)
    entries = add(client, "events", 1, 2, 3)
    client.xgroup_create("events", GROUP, "0")
    client.xreadgroup(GROUP, "dead", {"events": ">"}, count=2)
    client.xclaim("events", GROUP, "dead", 0, entries[:2], idle=61_000)
    assert take(consume(client, GROUP, "a"), 3) == ["1", "2", "3"]


# --- Durable: reading ahead -------------------------------------------------------------------------------------


def test_a_fast_consumer_reads_many_at_once(client: Any) -> None:
    """It reads at most a hundred at once, but each event is still acknowledged by itself."""
    fill(client, 3000)
    client.config_resetstat()
    assert take(consume(client, GROUP, "a", start="0"), 3000) == [str(id) for id in range(3000)]

    assert 30 <= calls(client, "xreadgroup") < 300
    wait_until(lambda: calls(client, "xack") == 2999)


def test_slow_consumers_share_the_work_fairly(client: Any) -> None:
    fill(client, 30)
    readings = [Reading(consume(client, GROUP, name, start="0"), lambda event: time.sleep(0.12)) for name in "abc"]
    wait_until(lambda: sum(len(reading.got) for reading in readings) == 30)
    assert min(len(reading.got) for reading in readings) >= 7
    assert sorted(int(id) for reading in readings for id in reading.got) == list(range(30))


def test_events_read_ahead_are_released_when_the_handler_becomes_slow(client: Any) -> None:
    """Others get those events at once, long before they would count as abandoned; nothing is handled twice."""
    fill(client, 400)
    turned = threading.Event()

    def handle(event: Event) -> None:
        if int(event.event_id) == 250:  # by then it reads a hundred at once
            turned.set()
            time.sleep(0.5)

    slow = Reading(consume(client, GROUP, "slow", start="0"), handle)
    assert turned.wait(PATIENCE)
    slow.handle = lambda event: time.sleep(0.5)
    quick = Reading(consume(client, GROUP, "quick"))
    wait_until(lambda: len(slow.got) + len(quick.got) >= 400)
    wait_until(lambda: len(pending(client, "events")) <= 1)
    assert sorted(map(int, slow.got + quick.got)) == list(range(400))


def test_a_single_consumer_keeps_the_order_when_its_handler_becomes_slow(client: Any) -> None:
    fill(client, 400)
    slow = {200, 201, 333}
    reading = Reading(
        consume(client, GROUP, "a", start="0"), lambda event: time.sleep(0.3 * (int(event.event_id) in slow))
    )
    reading.wait_for(*range(400))


def test_events_that_waited_too_long_are_handled_by_only_one_consumer(client: Any) -> None:
    """If a handler takes longer than `idle`, others take over what was read ahead, and the slow consumer drops it."""
    fill(client, 400)
    turned = threading.Event()

    def handle(event: Event) -> None:
        if int(event.event_id) == 250:
            turned.set()
            time.sleep(3)

    slow = Reading(consume(client, GROUP, "slow", start="0", idle=1), handle)
    assert turned.wait(PATIENCE)
    quick = Reading(consume(client, GROUP, "quick", idle=1))
    wait_until(lambda: len(slow.got) > 251 or len(slow.got) + len(quick.got) >= 401)
    wait_until(lambda: not pending(client, "events"))
    times = Counter(slow.got + quick.got)
    assert times.keys() == {str(id) for id in range(400)}
    assert [id for id, count in times.items() if count > 1] == ["250"]  # its handler took too long


def test_events_read_ahead_are_released_when_the_loop_ends(client: Any) -> None:
    """The event in hand stays unacknowledged."""
    fill(client, 400)
    events = consume(client, GROUP, "leaving", start="0")
    in_hand = int(take(events, 251)[-1])
    while len(pending(client, "events")) == 1:  # nothing is read ahead at the moment
        in_hand = int(take(events)[-1])
    events.close()
    assert take(consume(client, GROUP, "other"), 399 - in_hand) == [str(id) for id in range(in_hand + 1, 400)]
    assert take(consume(client, GROUP, "leaving")) == [str(in_hand)]


class Interrupted(redis.Connection):
    """Raises KeyboardInterrupt, as Ctrl-C does, while a command is written."""

    interrupts = False

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if self.interrupts:
            raise KeyboardInterrupt
        super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]


def test_an_interrupted_consumer_raises_only_the_interrupt(
    server: Server, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the consumer was doing, it raises only the KeyboardInterrupt."""
    unraisable: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)
    monkeypatch.setattr(durable, "READ_AHEAD_INTERVAL", PATIENCE)
    fill(client, 10)
    pool: Any = redis.ConnectionPool(connection_class=Interrupted, host=HOST, port=server.port)
    events = fetcher.consume(redis.Redis(connection_pool=pool), GROUP, "a", start="0")
    for _ in range(5):
        next(events)
    monkeypatch.setattr(Interrupted, "interrupts", True)
    with pytest.raises(KeyboardInterrupt):
        next(events)
    del events
    gc.collect()
    assert unraisable == []


INTERRUPTED = """
import random, signal
from redis import Redis
from fetcher import consume

def interrupt(*of_signal):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
for _ in range(500):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0005, 0.004), 1)  # again, if one is lost in a callback
        for event in consume(Redis(port={port}), "group", "consumer", idle=0.001):
            pass
    except KeyboardInterrupt:
        pass
signal.signal(signal.SIGALRM, signal.SIG_IGN)  # Python restores the default when it exits
print("ended five hundred times")
"""


FORKED = """
import os, sys
from redis import Redis
from fetcher import consume

handled = 0
for event in consume(Redis(port={port}), "group", "consumer", start="0", attempts=9):
    handled += 1
    if handled == 250:
        if not os.fork():
            sys.exit()
        os.wait()
    if handled == 500:
        break
"""


def test_a_forked_process_that_leaves_the_loop_leaves_the_connection_to_its_parent(server: Server, client: Any) -> None:
    """The child takes none of the replies, and releases nothing that the parent has read ahead."""
    fill(client, 500)
    program = FORKED.format(port=server.port)
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=environment())
    assert (ended.returncode, ended.stderr) == (0, "")


class Numbers(redis.Connection):
    """Collects the numbers in its commands."""

    found: ClassVar[list[Any]] = []

    def send_command(self, *args: Any, **kwargs: Any) -> None:
        self.found.extend(word for word in args if isinstance(word, int))
        super().send_command(*args, **kwargs)  # type: ignore[no-untyped-call]


def test_no_number_is_written_even_to_choose_a_database(server: Server) -> None:
    """A signal that arrives while hiredis turns a number into text crashes the process."""
    pool: Any = redis.ConnectionPool(connection_class=Numbers, host=HOST, port=server.port, db=3, protocol=3)
    client = redis.Redis(host=HOST, port=server.port, db=3)
    add(client, "events", 1)
    events = fetcher.consume(redis.Redis(connection_pool=pool), GROUP, "a", start="0")
    assert next(events).event_id == "1"
    events.close()
    client.flushdb()
    assert Numbers.found == []


def test_ctrl_c_at_any_moment_ends_a_consumer_and_crashes_nothing(server: Server) -> None:
    """It does not even if it interrupts a library's C function."""
    command = [sys.executable, "-c", INTERRUPTED.format(port=server.port)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=uncovered())
    assert (ended.returncode, ended.stdout) == (0, "ended five hundred times\n"), ended.stderr


def test_no_connection_of_the_clients_pool_is_kept(server: Server, client: Any) -> None:
    """A handler that uses the same client does not wait forever; a consumer that ends leaves no connection behind."""
    add(client, "events", 1)

    def connections() -> set[str]:
        return {one["id"] for one in client.client_list()}

    before = connections()  # some of an earlier test may still be closing
    pool_of_one: Any = redis.BlockingConnectionPool
    pool = pool_of_one(host=HOST, port=server.port, max_connections=1, timeout=1)
    own = redis.Redis(connection_pool=pool)
    durable, live = consume(own, GROUP, "a", start="0"), subscribe(own)
    assert take(durable) == ["1"]
    listening = threading.Thread(target=take, args=(live,))
    listening.start()
    wait_until(client.pubsub_numpat)
    assert own.get("nothing") is None
    client.publish("events:message", text(event(1)))
    listening.join()
    durable.close()
    live.close()
    pool.disconnect()
    wait_until(lambda: connections() <= before)


# --- Durable: what fails again and again ----------------------------------------------------------------------


class Poison(Exception):
    """The exception of a handler."""


def handle_until_it_fails(events: Iterator[Event], poison: str, last: str) -> list[str]:
    """Take events up to the last one, or until the handler of `poison` fails, as in a worker that is then restarted."""
    got: list[str] = []
    with contextlib.suppress(Poison):
        for given in events:
            got.append(given.event_id)
            if given.event_id == poison:
                raise Poison
            if given.event_id == last:
                break
    return got


def dead_letters(client: Any) -> list[dict[str, str]]:
    return [fields for _, fields in client.xrange(f"{{events}}:dead-letter:{GROUP}")]


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("poison", ["0", "2", "60"])
def test_an_event_that_fails_too_often_becomes_a_dead_letter(
    client: Any, caplog: pytest.LogCaptureFixture, attempts: int, poison: str
) -> None:
    """It is given exactly `attempts` times, even if it was read ahead; its neighbours are handled once."""
    fill(client, 100)
    lives = [
        handle_until_it_fails(consume(client, GROUP, "a", start="0", attempts=attempts), poison, "99")
        for _ in range(attempts + 1)
    ]
    assert [life[-1] for life in lives] == [poison] * attempts + ["99"]
    assert Counter(id for life in lives for id in life) == Counter(map(str, range(100))) + Counter(
        [poison] * (attempts - 1)
    )
    (letter,) = dead_letters(client)
    (entry,) = [entry for entry, fields in client.xrange("events") if fields["event"] == letter["event"]]
    assert letter == {"event": text(event(poison)), "id": entry, "attempts": str(attempts)}
    assert any("Dead letter" in message and entry in message for message in caplog.messages)
    assert len(pending(client, "events")) == 1  # the last event, in hand


@pytest.mark.parametrize("attempts", [None, 0, -1])
def test_without_attempts_an_event_is_redelivered_forever(client: Any, attempts: int | None) -> None:
    """A number below 1 is no limit, so no unhandled event is set aside."""
    add(client, "events", 1, 2)
    for _ in range(10):
        assert handle_until_it_fails(consume(client, GROUP, "a", start="0", attempts=attempts), "1", "2") == ["1"]
    assert dead_letters(client) == []


def test_attempts_of_other_consumers_count_too(client: Any) -> None:
    add(client, "events", 1, 2)
    for name in "ab":
        own = consume(client, GROUP, name, start="0", idle=0.3, attempts=2)
        assert handle_until_it_fails(own, "1", "2") == ["1"]
        time.sleep(0.4)
    assert take(consume(client, GROUP, "c", idle=0.3, attempts=2)) == ["2"]
    assert [letter["attempts"] for letter in dead_letters(client)] == ["2"]


def test_reading_an_event_is_not_an_attempt(server: Server, client: Any) -> None:
    """Events whose reply was lost, or which were read ahead but never handed over, have had no attempt."""
    fill(client, 100)
    with Proxy(server.port) as proxy:
        own = redis.Redis(HOST, proxy.port, retry=ONCE)
        proxy.drop_replies(5, matching=b"XREADGROUP")
        events = consume(own, GROUP, "a", start="0", attempts=1)
        assert take(events, 50) == [str(id) for id in range(50)]
        assert proxy.dropped == 5
        wait_until(lambda: len(client.hkeys(ATTEMPTS)) == 1)
        assert len(pending(client, "events")) > 1
        proxy.down()
        events.close()
    assert take(consume(client, GROUP, "a", attempts=1), 50) == [str(id) for id in range(50, 100)]
    assert [json.loads(letter["event"])["event_id"] for letter in dead_letters(client)] == ["49"]


def test_an_attempt_is_counted_while_its_event_is_in_hand(client: Any) -> None:
    """The attempt is forgotten when the event is acknowledged."""
    entries = add(client, "events", 1, 2)
    events = consume(client, GROUP, "a", start="0", attempts=2)
    for entry in entries:
        take(events)
        wait_until(lambda: client.hgetall(ATTEMPTS) == {entry: "1"})  # noqa: B023
    events.close()
    assert client.hgetall(ATTEMPTS) == {entries[1]: "1"}
    reading = Reading(consume(client, GROUP, "a", attempts=2))
    reading.wait_for(2)
    wait_until(lambda: not client.exists(ATTEMPTS))


def test_without_attempts_nothing_is_counted() -> None:
    with own_server() as server, server.client() as client:
        fill(client, 100)
        assert take(consume(client, GROUP, "a", start="0"), 100) == [str(id) for id in range(100)]
        wait_until(lambda: calls(client, "xack") > 90)
        assert not any(calls(client, command) for command in ("hincrby", "hdel", "hmget"))


@pytest.mark.parametrize("attempts", [None, 3])
def test_an_event_that_was_read_ahead_costs_no_round_trip(
    server: Server, client: Any, monkeypatch: pytest.MonkeyPatch, attempts: int | None
) -> None:
    """A hundred events are handed over while Redis answers nothing, and each is still acknowledged."""
    monkeypatch.setattr(durable, "READ_AHEAD_INTERVAL", PATIENCE)
    fill(client, 300)
    events = consume(client, GROUP, "a", start="0", attempts=attempts)
    assert take(events, 128)[-1] == "127"  # event 127 is the first of a hundred that were read ahead
    server.pause()
    try:
        assert take(events, 90)[-1] == "217"
    finally:
        server.resume()
    wait_until(lambda: client.xpending("events", GROUP)["min"] == client.xrange("events")[217][0])
    assert take(events, 82)[-1] == "299"


@pytest.mark.parametrize("attempts", [None, 1])
def test_a_consumer_works_with_a_distant_redis(
    server: Server, client: Any, monkeypatch: pytest.MonkeyPatch, attempts: int | None
) -> None:
    """This works even if a search for abandoned entries takes longer than the time until the next search."""
    monkeypatch.setattr(durable, "BLOCK_TIMEOUT", 0.01)
    add(client, "events", 1, 2)
    with Proxy(server.port, delay=0.02) as proxy:
        own = redis.Redis(HOST, proxy.port, retry=ONCE)
        assert take(consume(own, GROUP, "a", start="0", attempts=attempts), 2) == ["1", "2"]


def test_a_distant_redis_costs_no_round_trip_for_each_event(server: Server, client: Any) -> None:
    """What counts is how long handling takes, not how far away Redis is: 0.12 s in this test."""
    fill(client, 300)
    before = calls(client, "xreadgroup")
    with Proxy(server.port, delay=0.06) as proxy:
        own = redis.Redis(HOST, proxy.port, retry=ONCE)
        assert take(consume(own, GROUP, "a", start="0"), 300) == [str(id) for id in range(300)]
    assert calls(client, "xreadgroup") < before + 100


@pytest.mark.parametrize("attempts", [None, 3])
def test_a_consumer_works_with_a_distant_redis_over_short_lived_connections(
    server: Server, client: Any, attempts: int | None
) -> None:
    """Two round trips bring an event, and each further one more than the one before."""
    fill(client, 20)
    with Proxy(server.port, delay=0.2) as proxy:
        proxy.lifetime = (2, 2)  # less than five round trips
        own = redis.Redis(HOST, proxy.port, retry=ONCE)
        assert take(consume(own, GROUP, "a", start="0", attempts=attempts), 20) == [str(id) for id in range(20)]
        assert proxy.opened_count < 10


def test_less_is_read_ahead_if_connections_do_not_live_for_it(server: Server, client: Any) -> None:
    """A hundred entries would take six seconds, but connections live for 0.8 s."""
    fill(client, 200, 3000)
    with Proxy(server.port) as proxy:
        own = redis.Redis(HOST, proxy.port, retry=ONCE)
        events = consume(own, GROUP, "a", start="0")
        assert take(events, 100) == [str(id) for id in range(100)]
        proxy.bandwidth, proxy.lifetime = 50_000, (0.8, 0.8)
        proxy.cut()
        left = set(map(str, range(100, 200)))
        while left:
            left -= set(take(events))


@pytest.mark.long
def test_no_more_is_read_ahead_than_the_link_brings_in_time(server: Server, client: Any) -> None:
    """What arrives too late is released and read again; on a narrow link, that would be nearly everything."""
    size = fill(client, 100, 3000)
    with Proxy(server.port, bandwidth=100_000) as proxy:
        own = redis.Redis(HOST, proxy.port, retry=ONCE)
        assert take(consume(own, GROUP, "a", start="0", idle=0.5), 100) == [str(id) for id in range(100)]
        assert sum(proxy.sent) < 3 * size


def test_less_is_read_ahead_after_a_timeout(
    server: Server, client: Any, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In asyncio, the whole reply has to arrive within the timeout, long before half of `idle` has passed."""
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 0.5 if driver == "async" else 60)
    size = fill(client, 60, 3000)
    with Proxy(server.port, bandwidth=50_000) as proxy:
        own = redis.Redis(HOST, proxy.port, retry=ONCE)
        assert take(consume(own, GROUP, "a", start="0"), 60) == [str(id) for id in range(60)]
        assert sum(proxy.sent) < 2.5 * size


@pytest.mark.parametrize("attempts", [None, 3])
def test_a_consumer_works_with_a_redis_farther_away_than_idle(
    server: Server, client: Any, attempts: int | None
) -> None:
    """A consumer that checked whether an event is still its own would get the answer too late, and check forever."""
    add(client, "events", 1, 2, 3)
    with Proxy(server.port, delay=0.05) as proxy:
        own = redis.Redis(HOST, proxy.port, retry=ONCE)
        events = consume(own, GROUP, "a", start="0", idle=0.05, attempts=attempts)
        assert take(events, 3) == ["1", "2", "3"]


def test_attempts_of_trimmed_entries_are_forgotten(client: Any) -> None:
    """The hash of attempts does not keep growing."""
    entries = add(client, "events", *range(3))
    client.xgroup_create("events", GROUP, "0")
    client.xreadgroup(GROUP, "dead", {"events": ">"})
    client.xclaim("events", GROUP, "dead", 0, entries, idle=61_000)
    client.hset(ATTEMPTS, mapping=dict.fromkeys(entries, 1))
    client.xtrim("events", 0, approximate=False)
    reading = Reading(consume(client, GROUP, "a", attempts=2, start="0"))
    wait_until(lambda: not client.exists(ATTEMPTS))
    assert reading.error is None


def test_attempts_are_counted_across_lost_connections(server: Server, client: Any) -> None:
    """The event in hand is neither counted twice nor set aside, however often the connection breaks meanwhile."""
    add(client, "events", *range(20))
    with Proxy(server.port) as proxy:
        own = redis.Redis(HOST, proxy.port, retry=ONCE)
        reading = Reading(consume(own, GROUP, "a", start="0", attempts=1), lambda event: proxy.cut())
        reading.wait_for(*range(20))
        wait_until(lambda: not pending(client, "events") and not client.exists(ATTEMPTS))
        assert dead_letters(client) == []
        end(server)


def test_a_dead_letter_whose_reply_is_lost_is_not_redelivered(server: Server, client: Any) -> None:
    """The dead letter itself may then be recorded twice."""
    entry, _ = add(client, "events", 1, 2)
    assert handle_until_it_fails(consume(client, GROUP, "a", start="0", attempts=1), "1", "2") == ["1"]
    with Proxy(server.port) as proxy:
        own = redis.Redis(HOST, proxy.port, retry=ONCE)
        proxy.drop_replies(matching=b"dead-letter")
        assert take(consume(own, GROUP, "a", attempts=1)) == ["2"]
        assert proxy.dropped
    assert {letter["id"] for letter in dead_letters(client)} == {entry}


# --- Durable: a group or a Redis that is lost --------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("lose", ["group", "stream", "everything"])
def test_a_lost_group_is_created_again_with_all_that_the_stream_keeps(
    client: Any, caplog: pytest.LogCaptureFixture, lose: str, known: bool
) -> None:
    """This includes a group that existed before this consumer, which therefore did not create it."""
    add(client, "events", "old")
    if known:
        client.xgroup_create("events", GROUP, "$")
    reading = Reading(consume(client, GROUP, "a"))
    wait_until(lambda: consumers(client))
    reading.wait_for()
    # In one step, as after a failover: the consumer must not see in between that the group is missing.
    steps = client.pipeline()
    {"group": lambda: steps.xgroup_destroy("events", GROUP), "stream": lambda: steps.delete("events"),
     "everything": steps.flushall}[lose]()  # fmt: skip
    steps.xadd("events", {"event": text(event("new"))})
    steps.execute()
    reading.wait_for(*(["old", "new"] if lose == "group" else ["new"]))
    assert any("was lost" in message for message in caplog.messages)


def test_consumers_that_begin_together_agree_on_one_group(client: Any) -> None:
    readings = [Reading(consume(client, GROUP, f"c{number}")) for number in range(8)]
    wait_until(lambda: consumers(client) == 8)
    add(client, "events", *range(20))
    wait_until(lambda: sum(len(reading.got) for reading in readings) >= 20)
    assert sorted(int(id) for reading in readings for id in reading.got) == list(range(20))
    assert [reading.error for reading in readings] == [None] * 8


@pytest.mark.parametrize("restart", [Server.stop, Server.kill])
def test_a_handled_event_is_not_redelivered_after_a_restart_of_redis(restart: Callable[[Server], None]) -> None:
    """Its acknowledgement waits until Redis is back."""
    with Server(aof=True) as server, server.client(retry=ONCE) as own:
        with server.client() as client:
            entries = add(client, "events", 1, 2)
        events = consume(own, GROUP, "a", start="0")
        assert take(events) == ["1"]
        restart(server)
        threading.Timer(0.5, server.start).start()
        assert take(events) == ["2"]
        with server.client() as client:
            assert pending(client, "events") == {entries[1]: "a"}
        server.restart()
        with server.client() as client:
            add(client, "events", 3)
        assert take(events) == ["3"]


@pytest.mark.parametrize("retry", [ONCE, Retry(NoBackoff(), 3)])
@pytest.mark.parametrize("lost", [b"BLOCK", b"XACK", b"XAUTOCLAIM", b"XGROUP"])
def test_a_lost_reply_loses_no_event_and_repeats_none(server: Server, client: Any, lost: bytes, retry: Retry) -> None:
    """This holds even if redis-py itself repeats the request: the entry in the lost reply already has this consumer."""
    add(client, "events", 1, 2, 3)
    with Proxy(server.port) as proxy:
        own = redis.Redis(HOST, proxy.port, retry=retry)
        proxy.drop_replies(matching=lost)
        reading = Reading(consume(own, GROUP, "a", start="0"))
        wait_until(lambda: len(reading.got) == 3)
        wait_until(lambda: proxy.dropped and not pending(client, "events"))
        assert sorted(reading.got) == ["1", "2", "3"]
        end(server)


def test_a_consumer_waits_for_a_redis_that_refuses_writes(
    server: Server, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with own_server() as primary:
        own = primary.client()
        add(own, "events", 1, 2)
        reading = Reading(consume(own, GROUP, "a", start="0"), lambda event: primary.config(min_replicas_to_write=1))
        wait_until(lambda: "Redis is unavailable (NOREPLICAS), trying again" in caplog.messages)
        reading.wait_for(1)
        reading.handle = lambda event: None
        primary.config(min_replicas_to_write=0)
        reading.wait_for(1, 2)
        caplog.clear()
        primary.replica_of(server)  # READONLY, UNBLOCKED
        wait_until(lambda: caplog.messages)
        primary.replica_of(None)
        add(own, "events", 3)
        wait_until(lambda: "3" in reading.got)
        assert reading.error is None


# --- Durable: processes -----------------------------------------------------------------------------------

WORKER = """
import asyncio, os, sys, time
import redis, fetcher.asyncio
driver, consumer = sys.argv[1:3]
port, stop_at, idle, attempts = map(int, sys.argv[3:])
options = {"start": "0", "idle": idle, "attempts": attempts or None}

def handle(number, event):
    os.write(1, f"{event.event_id}\\n".encode())
    if number == stop_at:
        time.sleep(1000)  # in the middle of this event

async def consume():
    client = redis.asyncio.Redis(host="127.0.0.1", port=port)
    number = 0
    async for event in fetcher.asyncio.consume(client, "moderation", consumer, **options):
        handle(number := number + 1, event)

if driver == "async":
    asyncio.run(consume())
client = redis.Redis("127.0.0.1", port)
for number, event in enumerate(fetcher.consume(client, "moderation", consumer, **options), 1):
    handle(number, event)
"""


class Worker:
    """Runs a consumer in a process of its own, which writes the ids of its events to a file, one per line."""

    def __init__(
        self, driver: str, directory: Any, server: Server | Proxy, consumer: str, *, stop_at: int = 0, idle: int = 60,
        attempts: int = 0,
    ) -> None:  # fmt: skip
        self.path = directory / f"{consumer}-{time.monotonic_ns()}"
        with self.path.open("w") as out:
            arguments = [driver, consumer, *map(str, (server.port, stop_at, idle, attempts))]
            start = template(*LIBRARIES).start
            self.process = start(["-c", WORKER, *arguments], ROOT, environment(), out.fileno(), 2)

    @property
    def got(self) -> list[str]:
        return str(self.path.read_text()).splitlines()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def test_a_consumer_killed_in_the_middle_of_an_event_gets_it_again(
    driver: str, server: Server, client: Any, tmp_path: Any
) -> None:
    add(client, "events", *range(6))
    first = Worker(driver, tmp_path, server, "a", stop_at=3)
    try:
        wait_until(lambda: len(first.got) == 3)
    finally:
        first.kill()
    second = Worker(driver, tmp_path, server, "a")
    try:
        wait_until(lambda: len(second.got) >= 4)
        assert (first.got, second.got) == (["0", "1", "2"], ["2", "3", "4", "5"])
    finally:
        second.kill()


@pytest.mark.usefixtures("untraced")
@pytest.mark.long
def test_a_consumer_killed_at_any_moment_repeats_one_event_at_most(
    driver: str, server: Server, client: Any, tmp_path: Any
) -> None:
    """However many it has read ahead, each acknowledgement is sent before the next event is handed over."""
    fill(client, 60_000)
    seen: list[str] = []
    for life in range(5):
        worker = Worker(driver, tmp_path, server, "a")
        try:
            wait_until(lambda: len(worker.got) > 500 + 37 * life)  # noqa: B023
        finally:
            worker.kill()
        repeated = set(seen) & set(worker.got)
        assert repeated <= set(seen[-1:])
        assert sorted(map(int, {*seen, *worker.got})) == list(range(len({*seen, *worker.got})))  # none is left out
        seen += worker.got


def test_a_consumer_killed_in_its_handler_has_had_its_attempt(
    driver: str, server: Server, client: Any, tmp_path: Any
) -> None:
    """However many events it had read ahead, only the one in hand is set aside."""
    fill(client, 100)
    first = Worker(driver, tmp_path, server, "a", stop_at=61, attempts=1)
    try:
        wait_until(lambda: len(first.got) == 61)
    finally:
        first.kill()
    second = Worker(driver, tmp_path, server, "a", attempts=1)
    try:
        wait_until(lambda: len(second.got) == 39)
        assert first.got + second.got == [str(id) for id in range(100)]
        assert [json.loads(letter["event"])["event_id"] for letter in dead_letters(client)] == ["60"]
    finally:
        second.kill()


@pytest.mark.long
def test_a_consumer_killed_before_an_event_reaches_it_has_had_no_attempt(
    driver: str, server: Server, client: Any, tmp_path: Any
) -> None:
    """Redis has delivered the event by then; over a distant link, that may happen again and again."""
    add(client, "events", 1, 2)
    with Proxy(server.port, delay=0.3) as proxy:
        for _ in range(3):
            worker = Worker(driver, tmp_path, proxy, "a", attempts=1)
            try:
                before = calls(client, "xreadgroup")
                wait_until(lambda: calls(client, "xreadgroup") > before and pending(client, "events"))  # noqa: B023
            finally:
                worker.kill()
            assert worker.got == []
    worker = Worker(driver, tmp_path, server, "a", attempts=1)
    try:
        wait_until(lambda: worker.got == ["1", "2"])
        assert dead_letters(client) == []
    finally:
        worker.kill()


@pytest.mark.long
def test_three_consumers_of_which_one_is_killed_handle_10_000_events(
    driver: str, server: Server, client: Any, tmp_path: Any
) -> None:
    """Each is handled at least once, and only the event in the killed consumer's hands twice."""
    fill(client, 10_000)
    victim = Worker(driver, tmp_path, server, "victim", stop_at=500, idle=3)
    others = [Worker(driver, tmp_path, server, name, idle=3) for name in ("a", "b")]
    try:
        wait_until(lambda: len(victim.got) == 500)
        victim.kill()
        wait_until(lambda: sum(len(worker.got) for worker in [victim, *others]) >= 10_001)
        wait_until(lambda: not pending(client, "events"))
        times = Counter(id for worker in [victim, *others] for id in worker.got)
        assert times.keys() == {str(id) for id in range(10_000)}
        assert [id for id, count in times.items() if count > 1] == [victim.got[-1]]
        assert min(len(worker.got) for worker in others) > 1000  # they shared the work
    finally:
        for worker in [victim, *others]:
            worker.kill()


# --- Sentinels ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sentinel(primary: Server, directory: Any) -> Iterator[int]:
    """Run a sentinel of this primary, and yield its port."""
    port, path = free_port(), directory / "sentinel.conf"
    monitor = f"sentinel monitor mymaster {HOST} {primary.port} 1"
    path.write_text(f"port {port}\nbind {HOST}\ndir {directory}\n{monitor}\n")
    process = subprocess.Popen([program(), str(path), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


def test_a_sentinels_master_serves_both_and_may_change(driver: str, tmp_path: Any) -> None:
    with Server() as one, Server() as two:
        two.replica_of(one)
        with sentinel(one, tmp_path) as port, redis.Redis(HOST, port, decode_responses=True) as watcher:
            wait_until(lambda: len(watcher.execute_command("SENTINEL REPLICAS", "mymaster")) == 1)
            kind = redis.sentinel if driver == "sync" else redis.asyncio.sentinel
            own = kind.Sentinel([(HOST, port)]).master_for("mymaster")
            durable, live = Reading(consume(own, GROUP, "a")), Reading(subscribe(own, "message"))
            with one.client() as client:
                wait_until(lambda: client.exists("events") and listeners(client))
                add(client, "events", 1)
                client.publish("events:message", text(event(1)))
            durable.wait_for(1)
            live.wait_for(1)
            wait_until(lambda: watcher.execute_command("SENTINEL FAILOVER", "mymaster"))
            with two.client() as client:
                wait_until(lambda: client.info("replication")["role"] == "master")
                one.kill()
                add(client, "events", 2)
                wait_until(lambda: listeners(client))
                client.publish("events:message", text(event(2)))
            durable.wait_for(1, 2)
            live.wait_for(1, 2)
            end(two)


def test_a_sentinel_that_is_silent(server: Server, client: Any, driver: str, tmp_path: Any) -> None:
    """It may be the first in the client's list, whose retries would take longer than connecting may."""
    silent = Loopback(free_port(), lambda *_: time.sleep(60))
    with contextlib.closing(silent), sentinel(server, tmp_path) as port:
        kind = redis.sentinel if driver == "sync" else redis.asyncio.sentinel
        hosts = [(HOST, silent.server_address[1]), (HOST, port)]
        own = kind.Sentinel(hosts, sentinel_kwargs={"socket_timeout": 1.0}).master_for("mymaster")
        reading = Reading(consume(own, GROUP, "a", start="0"))
        add(client, "events", 1)
        begun = time.monotonic()
        reading.wait_for(1)
        assert time.monotonic() - begun < 20, "it is queried once, for a second"
        end(server)


def test_sentinels_that_redis_py_has_lost(server: Server, client: Any, driver: str, tmp_path: Any) -> None:
    """redis-py swaps them in a list that consumers share and may swap, too, so that only a dead one may be left."""
    with sentinel(server, tmp_path) as port:
        kind = redis.sentinel if driver == "sync" else redis.asyncio.sentinel
        dead = free_port()
        own = kind.Sentinel([(HOST, port), (HOST, dead)]).master_for("mymaster")
        reading = Reading(consume(own, GROUP, "a"))
        wait_until(lambda: client.exists("events"))
        manager = own.connection_pool.sentinel_manager
        manager.sentinels = [one for one in manager.sentinels if str(dead) in repr(one)] * 2
        client.client_kill_filter(_type="normal")
        add(client, "events", 1)
        reading.wait_for(1)
        end(server)


# --- A cluster --------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_cluster_serves_both_and_may_lose_a_node(caplog: pytest.LogCaptureFixture) -> None:
    """The lost node must not be the one with the stream, which has no replica here.

    All nodes may also be down for a while.
    """
    with cluster(cluster_require_full_coverage="no") as nodes:
        own: Any = redis.RedisCluster(HOST, nodes[0].port, retry=ONCE)
        writer = redis.RedisCluster(HOST, nodes[0].port, retry=ONCE)
        holder = next(node for node in nodes if node.port == own.get_node_from_key("events").port)
        with holder.client() as client:
            durable = Reading(consume(own, GROUP, "a"))
            live = [Reading(subscribe(own, "message")) for _ in range(4)]
            every = Reading(subscribe(own))
            wait_until(lambda: client.exists("events"))
            wait_until(lambda: sum(_subscribers(node) for node in nodes) == 5)
            add(writer, "events", 1)
            durable.wait_for(1)
            client.publish("events:message", text(event(1)))
            for reading in [*live, every]:
                reading.wait_for(1)

            default = next(node for node in nodes if node.port == own.get_default_node().port)
            lost = default if default is not holder else next(node for node in nodes if node is not holder)
            lost.kill()
            rest = [node for node in nodes if node is not lost]
            wait_until(lambda: sum(_subscribers(node) for node in rest) == 5)
            client.xadd("events", {"event": text(event(2))})
            durable.wait_for(1, 2)
            client.publish("events:message", text(event(2)))
            for reading in [*live, every]:
                reading.wait_for(1, 2)

            for node in rest:
                node.kill()
            time.sleep(1)
            for node in rest:
                node.start()
            wait_until(lambda: sum(_subscribers(node) for node in rest) == 5)
            client.publish("events:message", text(event(3)))
            for reading in [*live, every]:
                reading.wait_for(1, 2, 3)
            wait_until(lambda: client.exists("events"))
            client.xadd("events", {"event": text(event(3))})
            durable.wait_for(1, 2, 3)
        end(*rest)


def _subscribers(node: Server) -> int:
    with node.client() as client:
        return listeners(client) + int(client.pubsub_numpat())
