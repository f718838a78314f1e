"""redis-py's client in memory: connections that break, answers that are late, the few commands that the bus uses."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar

from redis.exceptions import AuthenticationError, ConnectionError, ResponseError, TimeoutError

if TYPE_CHECKING:
    from .world import Process

T = TypeVar("T")
CONNECT_TIMEOUT = 1.0  # seconds


class Client:
    """One client of one fetcher: as with redis-py, a request that fails costs the connection."""

    def __init__(self, process: "Process", on_connect: Callable[[], None], timeout: float) -> None:
        self.process, self.world, self.on_connect, self.timeout = process, process.world, on_connect, timeout
        self.server = 0  # which server it is connected to; 0: to none
        self.refusals = 0  # requests that will be refused
        process.clients.append(self)
        self.connect()

    def connect(self) -> None:
        process, world = self.process, self.world
        if world.now < process.link_down_until:
            process.wait(min(CONNECT_TIMEOUT, world.plan.latency("connect")))
            raise ConnectionError
        if world.now < world.refused_until:
            process.wait(world.plan.latency("connect"))
            raise AuthenticationError
        self.server = world.server
        self.on_connect()

    def call(self, name: str, effect: Callable[[], T], size: int = 0) -> T:
        """Let the effect happen and return its answer; or not, and raise what redis-py raises."""
        process, world = self.process, self.world
        fault = world.plan.redis_fault(process, name)
        world.note(process, f"asks Redis: {name}, {size} bytes{fault and ', '}{fault}")
        if self.server != world.server:  # closed by a failover, or by an error before
            if self.server and world.plan.breaks_loudly():
                self.server = 0
                raise ConnectionError
            self.connect()
        due = world.plan.latency(name) + size / process.bandwidth
        if fault == "timeout":
            due += self.timeout
        process.request = name
        process.wait(min(due, self.timeout))
        process.request = ""
        if self.server != world.server or world.now < process.link_down_until:
            self.server = 0
            raise ConnectionError
        if fault == "lost request":
            self.server = 0
            raise ConnectionError
        if due > self.timeout:  # the server may do it all the same, later
            self.server = 0
            if world.plan.takes_effect_late():
                world.later(due - self.timeout, effect)
            raise TimeoutError
        if fault == "refused" or self.refusals:
            self.refusals = 0
            raise ResponseError(world.plan.refusal())
        answer = effect()
        if fault == "kill after":
            process.die()
        if fault == "lost reply":
            self.server = 0
            raise ConnectionError
        if delay := world.plan.delay():
            process.wait(delay)
        process.answered_at = world.now
        return answer

    def register_script(self, text: str) -> Callable[..., str]:
        def script(keys: list[str], arguments: list[Any], client: Self) -> str:
            size = sum(len(one) for one in arguments if isinstance(one, bytes))
            return client.call("commit", lambda: client.world.commit(client.process, arguments), size)

        return script

    def set(self, key: str, value: object, nx: bool = False, ex: int = 0) -> None:
        if nx:
            self.call("set", lambda: self.world.store.set_if_missing(str(value)))
        else:
            self.call("beat", lambda: None)

    def get(self, key: str) -> str:
        return self.call("get", lambda: self.world.store.checkpoint)

    def mget(self, keys: list[str]) -> list[str | None]:
        return self.call("mget", lambda: [self.world.cached(key) for key in keys])

    def pipeline(self, transaction: bool) -> "Pipeline":
        return Pipeline(self)


class Pipeline:
    """Several SETs in one request."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.values: list[tuple[str, str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.values.clear()

    def set(self, key: str, value: str, ex: int) -> None:
        self.values.append((key, value, ex))

    def execute(self) -> None:
        values = self.values[:]
        self.client.call("cache", lambda: self.client.world.cache(values))
