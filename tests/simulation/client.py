"""redis-py's client in memory: connections that break, answers that are late, and the few commands of the bus."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

from redis.exceptions import AuthenticationError, ConnectionError, ResponseError, TimeoutError

if TYPE_CHECKING:
    from .world import Process

T = TypeVar("T")
COMMAND_BYTES = 100  # of a request, in addition to its data


class Client:
    """One client of one fetcher; as in redis-py, a request that fails closes the connection."""

    def __init__(self, process: "Process", on_connect: Callable[[], None], timeout: float) -> None:
        self.process, self.world, self.on_connect, self.timeout = process, process.world, on_connect, timeout
        self.server = 0  # the number of the server to which it is connected; 0: none
        self.dies_at = 0.0  # when something on the way drops the connection
        self.is_refused = False  # the server has become a replica, and refuses every request on this connection
        process.client = self.connection_pool = self
        self.connect()

    @property
    def is_connected(self) -> bool:
        return self.server == self.world.server and self.world.now < self.dies_at

    def connect(self) -> None:
        process, world, link = self.process, self.world, self.process.link
        if world.now < link.down_until:
            process.wait(min(self.timeout, world.plan.latency("connect")))
            raise ConnectionError
        if world.plan.rng.random() < link.refuses:
            raise ConnectionError
        if world.now < world.refused_until:
            process.wait(world.plan.latency("connect"))
            raise AuthenticationError
        self.is_refused = False
        self.server, self.dies_at = world.server, world.now + world.plan.rng.uniform(*link.life)
        self.on_connect()

    def disconnect(self) -> None:
        self.server, self.is_refused = 0, False

    def call(self, name: str, effect: Callable[[], T], size: int = 0) -> T:
        """Execute the effect and return its answer, or raise what redis-py raises."""
        process, world, plan = self.process, self.world, self.world.plan
        fault = plan.redis_fault(process, name)
        size += COMMAND_BYTES
        world.note(process, f"sends Redis: {name}, {size} bytes{fault and ', '}{fault}")
        if not self.is_connected:  # closed by a failover, by something on the way, or by an earlier error
            if self.server and plan.closes_with_error():
                self.server = 0
                raise ConnectionError
            self.connect()
        process.sent_bytes += size
        due = plan.latency(name) + process.link.delay(plan.rng) + size / process.link.bandwidth
        if fault == "timeout":
            due += self.timeout
        process.request = name
        process.wait(min(due, self.timeout, self.dies_at - world.now))
        process.request = ""
        if not self.is_connected or world.now < process.link.down_until or fault == "lost request":
            self.server = 0
            raise ConnectionError
        if due > self.timeout:  # the server may still execute it, later
            self.server = 0
            resent = self.is_refused  # by a proxy, to another server: see docs/reliability.md
            if plan.takes_effect_late() and not (resent and len(world.processes) > 1):
                world.later(due - self.timeout, effect)
            raise TimeoutError
        if fault == "refused" or self.is_refused:
            raise ResponseError(plan.refusal())
        answer = effect()
        if fault == "kill after":
            process.die()
        if fault == "lost reply":
            self.server = 0
            raise ConnectionError
        if delay := plan.delay():
            process.wait(delay)
        process.answered_at = world.now
        return answer

    def register_script(self, text: str) -> Callable[..., list[Any]]:
        def script(keys: list[str], arguments: list[Any]) -> list[Any]:
            size = sum(len(one) for one in arguments if isinstance(one, bytes))
            answer: list[Any]
            answer, growth = self.call("commit", lambda: self.world.commit(self.process, text, keys, arguments), size)
            self.process.recorded += growth
            return answer

        return script

    def set(self, key: str, value: int, ex: int) -> None:
        self.call("heartbeat", lambda: None)

    def mget(self, keys: list[str]) -> list[str | None]:
        return self.call("mget", lambda: [self.world.cached(key) for key in keys])

    def pipeline(self, transaction: bool) -> "Pipeline":
        return Pipeline(self)


class Pipeline:
    """Several commands in one request."""

    def __init__(self, client: Client) -> None:
        self.client, self.store = client, client.world.store
        self.name, self.size = "", 0
        self.commands: list[Callable[[], Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.commands.clear()

    def add(self, name: str, command: Callable[[], Any], size: int = 0) -> None:
        self.name, self.size = name, self.size + size
        self.commands.append(command)

    def set(self, key: str, value: str | bytes, nx: bool = False, ex: int = 0) -> None:
        if isinstance(value, str):
            self.add("read", lambda: self.client.world.store.set_if_missing(value))
        else:
            self.add("cache", lambda: self.client.world.cache(key, value, ex), len(value))

    def get(self, key: str) -> None:
        self.add("read", lambda: self.store.checkpoint or None)

    def zmscore(self, key: str, ids: list[bytes]) -> None:
        self.add("read", lambda: [self.store.seen.get(id.decode()) for id in ids], sum(len(id) + 5 for id in ids))

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = self.commands[:]
        return self.client.call(self.name, lambda: [command() for command in commands], self.size)
