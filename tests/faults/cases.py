"""The faults, each a function that makes it happen on a stage under traffic, and mends what does not mend itself."""

import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.faults.scene import PASSWORD, Scene
from tests.servers import wait_until
from tests.vk import error

Act = Callable[[Scene], Any]


class Case(NamedTuple):
    """A fault: its name, what makes it happen, and what it needs: the proxy, a server of its own, quiet before it."""

    name: str
    act: Act
    proxied: bool = False
    single: bool = False  # it needs to be the only fetcher
    alone: bool = False  # it bears no other fault beside it
    quiet: bool = False  # traffic begins only afterwards: what is lost then must be known
    repeats: bool = False  # the channels may repeat what the surviving stream holds once


CASES: dict[str, Case] = {}


def case(name: str, **more: Any) -> Callable[[Act], Act]:
    def keep(act: Act) -> Act:
        CASES[name] = Case(name, act, **more)
        return act

    return keep


def _spent(scene: Scene) -> None:
    wait_until(lambda: not scene.vk.faults_left, 30, "all injected answers")


# VK's long poll


def _poll(fault: Any, times: int = 3) -> Act:
    def act(scene: Scene) -> None:
        scene.vk.fail_poll(fault, times)
        _spent(scene)

    return act


for name, fault in {
    "poll: HTTP 502": 502,
    "poll: HTML with 200": "html",
    "poll: JSON cut in the middle": "cut",
    "poll: body shorter than announced": "short",
    "poll: connection reset": "reset",
    "poll: no ts": {"updates": []},
    "poll: failed 4": {"failed": 4, "min_version": 0, "max_version": 3},
    "poll: failed 2 again and again": {"failed": 2},
}.items():
    case(name)(_poll(fault))
case("poll: accepted and never answered")(_poll("hang", 1))


@case("poll: keys expired (failed 2)")
def _(scene: Scene) -> None:
    scene.vk.expire_keys()


@case("poll: silent until a new key", alone=True)
def _(scene: Scene) -> None:
    keys = len(scene.vk.keys)
    scene.vk.silence()
    wait_until(lambda: len(scene.vk.keys) > keys, 20, "a new key")


@case("poll: history lost (failed 3)", quiet=True)
def _(scene: Scene) -> None:
    _lose(scene, 7, scene.vk.lose)


@case("poll: history outdated (failed 1)", quiet=True)
def _(scene: Scene) -> None:
    _lose(scene, 7, scene.vk.forget)


def _lose(scene: Scene, count: int, lose: Callable[[], Any]) -> None:
    """Let the fetcher miss so many updates for good, and wait until the gap is on record."""
    for fetcher in scene.fetchers:
        fetcher.signal(signal.SIGSTOP)
    scene.vk.cut()  # the polls under way would bring them
    since, begun = scene.vk.ts, len(scene.sent)
    scene.say(count)
    until = scene.vk.ts
    lose()
    scene.forgiven.update(scene.sent[begun:])
    scene.gaps += 1
    for fetcher in scene.fetchers:
        fetcher.signal(signal.SIGCONT)

    def recorded() -> bool:
        gaps = [entry for entry in scene.dead_letters() if entry.get("since") == str(since)]
        return any(int(entry["until"]) >= until and entry["error"] for entry in gaps)

    wait_until(recorded, 20, "the gap's dead letter")


@case("poll: longer absence than VK's history", quiet=True, single=True)
def _(scene: Scene) -> None:
    begun = len(scene.sent)
    scene.fetcher.kill()
    scene.say(300)
    scene.forgiven.update(scene.sent[begun : len(scene.sent) - scene.vk.history])
    scene.gaps += 1
    scene.fetcher.start()
    wait_until(scene.arrived, 20, "the rest")  # before traffic makes VK forget more


@case("poll: VK replays old updates")
def _(scene: Scene) -> None:
    with scene.pushing:
        scene.vk.replay(40)


@case("poll: unreadable for too long, then a fresh ts", quiet=True, single=True)
def _(scene: Scene) -> None:
    begun, since = len(scene.sent), scene.vk.ts
    scene.fetcher.kill()
    scene.say(3)
    scene.forgiven.update(scene.sent[begun:])
    scene.gaps += 1
    scene.vk.unreadable.add(str(since))
    scene.fetcher.start()
    wait_until(
        lambda: any(entry.get("since") == str(since) for entry in scene.dead_letters()), 20, "the gap's dead letter"
    )
    scene.vk.unreadable.clear()


@case("VK: down")
def _(scene: Scene) -> None:
    scene.vk.down()
    time.sleep(1)
    scene.vk.up()


@case("VK: all connections dropped")
def _(scene: Scene) -> None:
    for _ in range(3):
        scene.vk.cut()
        time.sleep(0.1)


# VK's API: traffic brings new people all the time, so names are wanted


def _api(fault: Any, times: int = 2, method: str | None = None) -> Act:
    def act(scene: Scene) -> None:
        scene.vk.fail_api(fault, times, method)
        _spent(scene)

    return act


for code in (1, 6, 9, 10, 13, 14, 29, 36, 43, 995):
    case(f"API: error {code}")(_api("captcha" if code == 14 else error(code)))
for name, fault in {
    "API: HTTP 503": 503,
    "API: HTML with 200": "html",
    "API: JSON cut in the middle": "cut",
    "API: connection reset": "reset",
    "API: an answer of another form": {"response": None},
    "API: fewer answers than questions": {"response": []},
}.items():
    case(name)(_api(fault))
case("API: accepted and never answered")(_api("hang", 1))
case("API: error 10 of one call inside execute")(_api(error(10), 2, "messages.getConversationsById"))


@case("API: one chat refused inside execute (917)")
def _(scene: Scene) -> None:
    scene.vk.refused.update({2_000_000_001 + scene.people + ahead: 917 for ahead in range(1, 4)})
    time.sleep(0.3)


# Redis


@case("Redis: refuses connections", proxied=True)
def _(scene: Scene) -> None:
    scene.proxy.down()
    time.sleep(1)
    scene.proxy.up()


@case("Redis: all clients cut", proxied=True)
def _(scene: Scene) -> None:
    for _ in range(5):
        scene.proxy.cut()
        time.sleep(0.1)


@case("Redis: replies lost after the commit", proxied=True)
def _(scene: Scene) -> None:
    scene.proxy.drop_replies(3)
    wait_until(lambda: not scene.proxy._to_drop, 20, "the lost replies")


@case("Redis: replies lost while many batches are held", proxied=True)
def _(scene: Scene) -> None:
    scene.proxy.down()
    time.sleep(1)
    scene.proxy.drop_replies(4)
    scene.proxy.up()
    wait_until(lambda: not scene.proxy._to_drop, 20, "the lost replies")


@case("Redis: paused")
def _(scene: Scene) -> None:
    scene.server.pause()
    time.sleep(1.5)
    scene.server.resume()


@case("Redis: killed and started (AOF)")
def _(scene: Scene) -> None:
    scene.server.kill()
    time.sleep(0.3)
    scene.server.start()


@case("Redis: stopped and started, loading for a while")
def _(scene: Scene) -> None:
    scene.config(key_load_delay=500, loading_process_events_interval_bytes=1024)
    scene.server.load()
    scene.config(key_load_delay=0)


@case("Redis: a read-only replica", proxied=True)
def _(scene: Scene) -> None:
    with scene.server.client() as client:
        client.replicaof("127.0.0.1", "1")
        time.sleep(0.7)
        client.replicaof("NO", "ONE")


def _refusing(seconds: float, refusing: dict[str, Any], usual: dict[str, Any]) -> Act:
    def act(scene: Scene) -> None:
        scene.server.config(**refusing)
        time.sleep(seconds)
        scene.server.config(**usual)

    return act


case("Redis: out of memory")(_refusing(0.7, {"maxmemory": 1}, {"maxmemory": 0}))
case("Redis: too few replicas")(_refusing(0.7, {"min_replicas_to_write": 1}, {"min_replicas_to_write": 0}))


@case("Redis: busy with another script")
def _(scene: Scene) -> None:
    with scene.server.client(socket_timeout=10) as client:
        client.config_set("busy-reply-threshold", 50)
        client.eval(
            "local t = redis.call('TIME') repeat local n = redis.call('TIME') until n[1] - t[1] > 1 return 1", 0
        )
        client.config_set("busy-reply-threshold", 5000)


def _fatal(refuse: Callable[[Any], Any], mend: Callable[[Any], Any], said: str) -> Act:
    """Something that only an operator mends: the fetcher says it in one sentence and ends with code 1."""

    def act(scene: Scene) -> None:
        with scene.server.client() as client:
            refuse(client)
            for fetcher in scene.fetchers:
                assert fetcher.wait(20) == 1, fetcher.output
                assert said in fetcher.lines[-1], fetcher.output
            mend(client)
        for fetcher in scene.fetchers:
            fetcher.start()

    return act


@case("Redis: password changed, and back", alone=True)
def _(scene: Scene) -> None:
    def reset(client: Any, password: str) -> None:
        client.execute_command("ACL", "SETUSER", "default", "resetpass", ">" + password)
        if password != PASSWORD:
            client.client_kill_filter(_type="normal", skipme=True)

    _fatal(lambda client: reset(client, "other"), lambda client: reset(client, PASSWORD), "password")(scene)


case("Redis: no permission for a channel, and back", alone=True)(
    _fatal(
        lambda client: client.execute_command("ACL", "SETUSER", "default", "resetchannels", "&events:message"),
        lambda client: client.execute_command("ACL", "SETUSER", "default", "allchannels"),
        "permission",
    )
)


def _take_the_stream(client: Any) -> None:
    with client.pipeline(transaction=True) as both:  # nothing may come between
        both.rename("events", "{events}:aside").set("events", "not a stream").execute()


case("Redis: the stream's key of another type, and back", alone=True)(
    _fatal(_take_the_stream, lambda client: client.rename("{events}:aside", "events"), "type")
)


@case("Redis: checkpoint lost", quiet=True)
def _(scene: Scene) -> None:
    def recorded() -> int:
        return sum("lost the checkpoint" in entry["error"] for entry in scene.dead_letters())

    before = recorded()
    with scene.server.client() as client:
        client.delete(f"{{events}}:ts:{scene.vk.group_id}")
    scene.gaps += 1
    scene.say()
    wait_until(lambda: recorded() > before, 20, "the record")


@case("Redis: failover to a replica that lacks acknowledged writes", proxied=True, alone=True, repeats=True)
def _(scene: Scene) -> None:
    replica = scene.replica
    replica.replica_of(scene.server)
    time.sleep(0.3)
    replica.replica_of(None)  # from here on it lacks what is written
    time.sleep(0.6)
    scene.fail_over()


# The fetcher


@case("fetcher: kill -9")
def _(scene: Scene) -> None:
    for _ in range(3):
        time.sleep(scene.random.uniform(0.3, 0.7))
        scene.random.choice(scene.fetchers).restart()


@case("fetcher: stopped and started")
def _(scene: Scene) -> None:
    fetcher = scene.random.choice(scene.fetchers)
    assert fetcher.terminate() == 0
    time.sleep(0.3)
    fetcher.start()


@case("fetcher: kill -9 while Redis is away", proxied=True)
def _(scene: Scene) -> None:
    scene.proxy.down()
    time.sleep(0.5)
    scene.random.choice(scene.fetchers).restart()
    time.sleep(0.5)
    scene.proxy.up()
