"""A stage for faults: VK, a server, fetchers, traffic, and the count of what came through."""

import contextlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.processes import Fetcher
from tests.servers import Proxy, Server, cluster, wait_until
from tests.vk import CHAT, PERSON, VK, button, message, reaction

SHORT = {  # seconds; the product's own are too long to wait for in a test
    "fetcher.relay:BACKOFF_MOST": 0.5,
    "fetcher.vk:API_TIMEOUT": 1.0,
    "fetcher.vk:POLL_MARGIN": 1.0,
    "fetcher.vk:QUIET_UP_TO": 1.0,
    "fetcher.vk:UNREADABLE_LIMIT": 2.0,
    "fetcher.vk:ASK_AGAIN": 1.0,
}
PASSWORD = "s3cret/of Redis@home"


class Count(NamedTuple):
    """What came of the events of one fault: on the stream that survives, and on the channels."""

    events: int = 0
    lost: int = 0
    repeated: int = 0
    disordered: int = 0
    channel_repeated: int = 0
    channel_disordered: int = 0

    @property
    def clean(self) -> bool:
        return not any(self[1:])

    def plus(self, other: "Count") -> "Count":
        return Count(*map(sum, zip(self, other, strict=True)))


class Listener(threading.Thread):
    """Keeps what the channels bring; what is published while it is not connected it cannot know."""

    def __init__(self, server: Server, heard: list[str]) -> None:
        super().__init__(daemon=True)
        self.client = server.client(socket_timeout=5, retry=Retry(NoBackoff(), 0))  # ends as soon as the server does
        self.heard = heard
        self.ended = False
        self.start()

    def run(self) -> None:
        while not self.ended:
            with contextlib.suppress(redis.RedisError, OSError), self.client.pubsub() as live:
                live.psubscribe("events:*")
                while not self.ended:
                    if (got := live.get_message(timeout=0.2)) and got["type"] == "pmessage":
                        self.heard.append(json.loads(got["data"])["event_id"])
            time.sleep(0.02)

    def end(self) -> None:
        """Listen no longer."""
        self.ended = True
        self.join()


class Scene:
    """One VK, one server behind a proxy (or a cluster), and one fetcher or two, with traffic when it is wanted."""

    def __init__(self, seed: int = 0, clustered: bool = False, level: str = "DEBUG", **config: Any) -> None:
        self.random = random.Random(seed)
        self.stack = contextlib.ExitStack()
        self.vk = self.stack.enter_context(VK())
        self.options: dict[str, Any] = {"password": PASSWORD, "aof": True, **config}
        self.spare: Server | None = None
        options = self.options
        if clustered:
            self.nodes = self.stack.enter_context(cluster(**options))
            self.server = self.nodes[0]
            slot = self.server.client().execute_command("CLUSTER KEYSLOT", "events")
            self.server = self.nodes[slot * len(self.nodes) // 16384]
            self.proxy, url = None, self.nodes[0].url
        else:
            self.server = self.stack.enter_context(Server(**options))
            self.proxy = self.stack.enter_context(Proxy(self.server.port, PASSWORD))
            url = self.proxy.url
        settings = {"VK_URL": self.vk.url, "TOKEN": self.vk.token, "GROUPID": self.vk.group_id, "REDIS_URL": url}
        self.settings = settings | {"LOG_LEVEL": level, "POLL_WAIT": 2, "RENEW_AFTER": 3}
        self.fetchers = [self.stack.enter_context(Fetcher(constants=SHORT, **self.settings))]
        self.sent: list[str] = []  # event_ids in VK's order
        self.place: dict[str, int] = {}
        self.times: Counter[str] = Counter()  # of each event on the stream
        self.channel_times: Counter[str] = Counter()
        self.last = ""  # the newest entry of the stream that has been counted
        self.checked = 0  # so many of them are accounted for
        self.forgiven: set[str] = set()  # lost by a gap that was injected
        self.gaps = 0  # that were injected
        self.people = 0
        self.stop = threading.Event()
        self.pushing = threading.Lock()
        self.listener = Listener(self.server, [])
        checkpoint = f"{{events}}:ts:{self.vk.group_id}"
        wait_until(lambda: self.server.client().exists(checkpoint), what="the first start")
        self.say(5)
        self.verify()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.stop.set()
        self.listener.end()
        self.stack.close()

    @property
    def fetcher(self) -> Fetcher:
        return self.fetchers[0]

    def second(self) -> Fetcher:
        """Start another fetcher of the same community."""
        self.fetchers.append(self.stack.enter_context(Fetcher(constants=SHORT, **self.settings)))
        return self.fetchers[-1]

    def config(self, **values: Any) -> None:
        """Set the server's own settings, for the next start as well."""
        with self.server.client() as client:
            for name, value in values.items():
                client.config_set(name.replace("_", "-"), value)
            client.config_rewrite()

    @property
    def replica(self) -> Server:
        """A second server, for a failover."""
        if not self.spare:
            self.spare = self.stack.enter_context(Server(**self.options))
        return self.spare

    def fail_over(self) -> None:
        """End the primary and put the spare server in its place."""
        assert self.proxy
        assert self.spare
        self.server.kill()
        self.proxy.target_port = self.spare.port
        self.server, self.spare = self.spare, None
        self.listener.end()
        self.listener = Listener(self.server, self.listener.heard)
        self.last = ""

    # Traffic

    def say(self, count: int = 1) -> None:
        """Push so many updates; about one in four comes from somebody new, so that names are asked for."""
        updates = []
        for _ in range(count):
            new = self.random.random() < 0.25
            self.people += new
            who = {"user": PERSON + (self.people if new else self.random.randrange(20))}
            who["peer"] = CHAT + 1 + (self.people if new else self.random.randrange(5))
            updates.append(self.random.choice((message, message, button, reaction))(**who))
        with self.pushing:
            for update in updates:
                self.place[update["event_id"]] = len(self.sent)
                self.sent.append(update["event_id"])
            self.vk.push(*updates)

    @contextlib.contextmanager
    def traffic(self, rate: float = 40) -> Iterator[None]:
        """Push updates at about this rate, in seconds, one to three at a time."""
        self.stop.clear()

        def push() -> None:
            while not self.stop.is_set():
                self.say(self.random.choice((1, 1, 1, 3)))
                time.sleep(self.random.expovariate(rate / 1.5))

        thread = threading.Thread(target=push)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join()

    def leaks(self) -> list[str]:
        """Return the secrets that a fetcher has printed."""
        printed = "\n".join(fetcher.output for fetcher in self.fetchers)
        secrets = [self.vk.token, *self.vk.keys, PASSWORD, quote(PASSWORD, safe=""), quote(PASSWORD)]
        return [secret for secret in secrets if secret in printed]

    # What came through

    def read(self) -> list[str]:
        """Return the event_ids that came to the stream since the last time, in its order."""
        with self.server.client(socket_timeout=10) as client:
            entries = client.xrange("events", "(" + self.last if self.last else "-")
        if entries:
            self.last = entries[-1][0]
        return [json.loads(entry["event"])["event_id"] for _, entry in entries]

    def dead_letters(self) -> list[dict[str, str]]:
        with self.server.client(socket_timeout=5) as client:
            return [entry for _, entry in client.xrange("{events}:dead-letter")]

    def arrived(self) -> bool:
        """Tell whether the last of what has to arrive is there."""
        wanted = next((id for id in reversed(self.sent) if id not in self.forgiven), None)
        with self.server.client(socket_timeout=5) as client:
            last = client.xrevrange("events", count=1)
        return not wanted or (bool(last) and json.loads(last[0][1]["event"])["event_id"] == wanted)

    def verify(self, timeout: float = 20, repeats_allowed: bool = False) -> Count:
        """Wait until the traffic's end has arrived, and count what came since the last time."""
        with contextlib.suppress(AssertionError):
            wait_until(self.arrived, timeout)
        time.sleep(0.1)  # for what comes a second time
        if not self.last:
            self.times.clear()  # another server: all that it has is counted anew
        found = self.read()
        self.times.update(found)
        expected = [id for id in self.sent[self.checked :] if id not in self.forgiven]
        lost = sum(not self.times[id] for id in expected)
        repeated = sum(self.times[id] > 1 for id in set(found))
        recorded = sum("since" in entry for entry in self.dead_letters())
        lost += max(0, recorded - self.gaps)  # a gap that nobody injected
        heard, self.listener.heard = self.listener.heard, []
        twice = sum(self.channel_times[id] > 0 for id in heard) + len(heard) - len(set(heard))
        self.channel_times.update(heard)
        self.gaps, self.checked = recorded, len(self.sent)
        disorder = self.disorder(found), self.disorder(heard)
        if repeats_allowed:
            twice, disorder = 0, (disorder[0], 0)
        return Count(len(expected), lost, repeated, disorder[0], twice, disorder[1])

    def disorder(self, found: list[str]) -> int:
        """Count the events that come after one which VK sent later; but what a gap hid VK may yet replay."""
        places = [self.place[id] for id in dict.fromkeys(found) if id not in self.forgiven]
        return sum(later < earlier for earlier, later in pairwise(places))
