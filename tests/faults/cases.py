"""Single faults: each is a function that causes it in an environment, and repairs what does not pass by itself."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.faults.environment import PASSWORD, Environment, restore_stream
from tests.faults.recording import Process
from tests.vk import Fault, error

Inject = Callable[[Environment], Any]


class Case(NamedTuple):
    """A fault: its name, what makes it happen, where it can happen, and what may come of it."""

    name: str
    inject: Inject
    linked: bool = False  # it breaks the link to Redis, which a cluster's client bypasses
    clustered: bool = False  # it needs a cluster
    fetchers: int = 1  # how many it needs at least
    single: bool = False  # it needs to be the only fetcher
    quiet: bool = False  # alone, it happens without traffic, so that what is lost is known
    forgets: bool = False  # updates that no living fetcher has had may be gone
    # It may therefore happen beside a second fault: VK may have forgotten what a dead fetcher held.
    kills: bool = False
    restarts: bool = False  # VK restarts its numbering, which version 1.1 does not count
    splits: bool = False  # the checkpoint may stand inside one VK answer, where version 1.1 cannot go on
    fatal: bool = False  # fetchers with nothing pending end with code 1

    @property
    def side(self) -> str:
        """What fails: poll, API, Redis, fetcher, ..."""
        return self.name.partition(":")[0]

    @property
    def concerns_redis(self) -> bool:
        """Whether it may turn out differently in a cluster."""
        return self.side not in ("poll", "API", "VK")


CASES: dict[str, Case] = {}


def case(name: str, **more: Any) -> Callable[[Inject], Inject]:
    """Add the decorated function to the cases."""

    def add(inject: Inject) -> Inject:
        assert name not in CASES, name
        CASES[name] = Case(name, inject, **more)
        return inject

    return add


# VK's long poll


def failing_polls(fault: Fault, times: int = 3) -> Inject:
    """Return a function that answers this many polls with the fault."""

    def inject(env: Environment) -> None:
        env.vk.fail_poll(fault, times)
        env.expect(lambda: not env.vk.faults_left, what="all injected answers")

    return inject


POLL_FAULTS: dict[str, tuple[Fault, int]] = {
    "HTTP 502": (502, 3),
    "HTML with 200": ("html", 3),
    "JSON cut in the middle": ("cut", 3),
    "body shorter than announced": ("short", 3),
    "connection reset": ("reset", 3),
    "no ts": ({"updates": []}, 3),
    "failed 4": ({"failed": 4, "min_version": 0, "max_version": 3}, 3),
    "failed 2 again and again": ({"failed": 2}, 3),
    "accepted and never answered": ("hang", 1),
    "answered by drops": ("slow", 1),
}
for name, fault in POLL_FAULTS.items():
    # While a poll hangs, VK may forget updates from bursts and from another fault.
    case(f"poll: {name}", forgets=fault[0] == "hang")(failing_polls(*fault))


@case("poll: keys expired (failed 2)")
def expire_keys(env: Environment) -> None:
    env.vk.expire_keys()


@case("poll: silent until a new key")
def silence(env: Environment) -> None:
    keys = len(env.vk.keys)
    env.vk.silence()
    env.expect(lambda: len(env.vk.keys) >= keys + len(env.fetchers), what="new keys")


def miss(env: Environment, count: int, lose: Callable[[], Any]) -> None:
    """Make all fetchers miss this many updates for good, and wait until the gap is recorded, once."""
    for fetcher in env.fetchers:
        fetcher.pause()
    env.vk.down()  # polls under way would return them
    with env.pushing:
        since = env.vk.ts
        env.forget(env.push(count))
        lose()
    env.vk.up()
    for fetcher in env.fetchers:
        fetcher.resume()
    env.expect(lambda: env.has_gap(since), what="the gap's dead letter")
    assert not env.is_strict or len(env.gaps) == 1, env.gaps


@case("poll: history lost (failed 3)", quiet=True, forgets=True)
def lose_history(env: Environment) -> None:
    miss(env, 7, env.vk.lose)


@case("poll: history outdated (failed 1)", quiet=True, forgets=True)
def forget_history(env: Environment) -> None:
    miss(env, 7, env.vk.forget)


@case("poll: VK restarts its numbering", quiet=True, forgets=True, restarts=True)
def restart_numbering(env: Environment) -> None:
    miss(env, 7, lambda: env.restart_numbering(500 if env.is_strict else 10**6))


@case("poll: longer absence than VK's history", quiet=True, forgets=True)
def outlast_history(env: Environment) -> None:
    for fetcher in env.fetchers:
        fetcher.kill()
    pushed = env.push(env.vk.kept + 44)
    env.forget(pushed if env.vk.newest_on_failed_1 else pushed[:44])
    for fetcher in env.fetchers:
        fetcher.start()
    env.expect(env.has_arrived, what="the rest")  # before traffic makes VK forget more


@case("poll: VK replays old updates")
def replay(env: Environment) -> None:
    env.replay(40)


@case("poll: unreadable for too long, then a fresh ts", quiet=True, forgets=True)
def stay_unreadable(env: Environment) -> None:
    for fetcher in env.fetchers:
        fetcher.kill()
    with env.pushing:
        since = env.vk.ts
        env.vk.unreadable.add(str(since))
        env.forget(env.push(3))
    for fetcher in env.fetchers:
        fetcher.start()
    env.expect(lambda: env.has_gap(since), what="the gap's dead letter")
    env.vk.unreadable.clear()


@case("VK: down")
def vk_down(env: Environment) -> None:
    env.vk.down()
    time.sleep(1)
    env.vk.up()


@case("VK: all connections dropped")
def vk_cut(env: Environment) -> None:
    for _ in range(3):
        env.vk.cut()
        time.sleep(0.1)


# VK's API: traffic always includes new people, so names are requested


def failing_requests(fault: Fault, times: int = 2, method: str | None = None) -> Inject:
    """Return a function that answers this many requests with the fault."""

    def inject(env: Environment) -> None:
        env.vk.fail_api(fault, times, method)
        env.expect(lambda: not env.vk.faults_left, what="all injected answers")

    return inject


for code in (1, 6, 9, 10, 13, 14, 29, 36, 43, 995):
    case(f"API: error {code}")(failing_requests("captcha" if code == 14 else error(code)))
API_FAULTS: dict[str, tuple[Fault, int]] = {
    "HTTP 503": (503, 2),
    "HTML with 200": ("html", 2),
    "JSON cut in the middle": ("cut", 2),
    "connection reset": ("reset", 2),
    "an answer of another form": ({"response": None}, 2),
    "fewer answers than questions": ({"response": []}, 2),
    "accepted and never answered": ("hang", 1),
}
for name, fault in API_FAULTS.items():
    case(f"API: {name}")(failing_requests(*fault))
case("API: error 10 of one call inside execute")(failing_requests(error(10), 2, "messages.getConversationsById"))


@case("API: one chat refused inside execute (917)")
def refuse_chat(env: Environment) -> None:
    env.vk.refused.update(dict.fromkeys(env.next_chats(3), 917))
    time.sleep(0.3)


# Redis


@case("Redis: refuses connections", linked=True)
def refuse_connections(env: Environment) -> None:
    links = env.any_links()
    for link in links:
        link.down()
    time.sleep(1)
    for link in links:
        link.up()


@case("Redis: all clients cut")
def cut_clients(env: Environment) -> None:
    for _ in range(5):
        env.command(lambda client: client.client_kill_filter(user="default"))
        time.sleep(0.1)


@case("Redis: replies lost after the commit", linked=True)
def lose_replies(env: Environment) -> None:
    link = env.random.choice(env.links)
    dropped = link.dropped
    link.drop_replies(3)
    env.expect(lambda: link.dropped >= dropped + 3, what="the lost replies")


@case("Redis: replies lost while many batches are held", linked=True)
def lose_replies_of_many(env: Environment) -> None:
    link = env.random.choice(env.links)
    dropped = link.dropped
    env.down()
    time.sleep(1)
    link.drop_replies(4)
    env.up()
    env.expect(lambda: link.dropped >= dropped + 4, what="the lost replies")


@case("Redis: paused")
def pause(env: Environment) -> None:
    server = env.server
    server.pause()
    time.sleep(1.5)
    server.resume()


@case("Redis: killed and started (AOF)")
def kill_server(env: Environment) -> None:
    with env.server_lock:
        env.server.kill()
        time.sleep(0.3)
        env.server.start()


@case("Redis: stopped and started, loading for a while")
def load(env: Environment) -> None:
    with env.server_lock:
        env.command(lambda client: client.bgrewriteaof())
        env.expect(lambda: not env.command(lambda client: client.info("persistence"))["aof_rewrite_in_progress"])
        delay = 700_000 // (200 + env.command(lambda client: client.dbsize()))  # microseconds for each key
        settings = env.server.directory / "server.conf"
        usual = settings.read_text()
        settings.write_text(f"{usual}key-load-delay {delay}\nloading-process-events-interval-bytes 1024\n")
        try:
            env.server.load()
        finally:
            settings.write_text(usual)
            env.command(lambda client: client.config_set("key-load-delay", 0))


@case("Redis: a read-only replica", linked=True)
def make_read_only(env: Environment) -> None:
    env.command(lambda client: client.replicaof("127.0.0.1", "1"))
    time.sleep(0.7)
    env.command(lambda client: client.replicaof("NO", "ONE"))


def refusing(seconds: float, name: str, value: int) -> Inject:
    """Return a function that makes Redis refuse writes for some time, by a setting whose usual value is 0."""

    def inject(env: Environment) -> None:
        env.command(lambda client: client.config_set(name, value))
        time.sleep(seconds)
        env.command(lambda client: client.config_set(name, 0))

    return inject


case("Redis: out of memory")(refusing(0.7, "maxmemory", 1))
case("Redis: too few replicas")(refusing(0.7, "min-replicas-to-write", 1))


@case("Redis: busy with another script")
def keep_busy(env: Environment) -> None:
    script = "local t = redis.call('TIME') repeat local n = redis.call('TIME') until n[1] - t[1] > 1 return 1"
    env.command(
        lambda client: client.config_set("busy-reply-threshold", 50),
        lambda client: client.eval(script, 0),
        lambda client: client.config_set("busy-reply-threshold", 5000),
    )


def set_password(password: str) -> Callable[[Any], Any]:
    """Return a function that sets the password of the fetchers' user, and drops clients that know the old one."""

    def run(client: Any) -> None:
        client.execute_command("ACL", "SETUSER", "default", "resetpass", f">{password}")
        client.client_kill_filter(user="default")

    return run


@case("Redis: password changed, and back, with nothing pending", quiet=True, fatal=True)
def lock_out(env: Environment) -> None:
    """Only the operator can fix this: the fetcher logs one sentence and ends with code 1."""
    env.wait_for_commits()
    env.command(set_password("other"))
    env.expect(lambda: not any(fetcher.running for fetcher in env.fetchers), what="the end")
    for fetcher in env.fetchers if env.is_strict else ():
        assert fetcher.wait() == 1, fetcher.output
        assert "password" in fetcher.lines[-1], fetcher.output
    env.command(set_password(PASSWORD))
    for fetcher in env.fetchers:
        fetcher.start()


def fatal_while_pending(refuse: Callable[[Any], Any], fix: Callable[[Any], Any], sentence: str) -> Inject:
    """Return a function that makes Redis refuse commits, and fixes that once fetchers have logged it.

    The fetchers keep trying.
    """

    def inject(env: Environment) -> None:
        wait_for_sentence = env.wait_for_line(sentence)
        env.command(refuse)
        env.push(3)
        wait_for_sentence()
        env.command(fix)
        if env.is_strict:
            assert all(fetcher.running for fetcher in env.fetchers), env.output

    return inject


def take_the_stream(client: Any) -> None:
    """Put something else in the stream's place, in one step."""
    if client.type("events") == "stream":
        with client.pipeline(transaction=True) as both:
            both.rename("events", "{events}:aside").set("events", "not a stream").execute()


case("Redis: no permission for a channel, and back")(
    fatal_while_pending(
        lambda client: client.execute_command("ACL", "SETUSER", "default", "resetchannels", "&none"),
        lambda client: client.execute_command("ACL", "SETUSER", "default", "allchannels"),
        "permission",
    )
)
case("Redis: the stream's key of another type, and back")(fatal_while_pending(take_the_stream, restore_stream, "type"))


@case("Redis: checkpoint lost", quiet=True, forgets=True)
def lose_checkpoint(env: Environment) -> None:
    before = env.letters("lost the checkpoint")
    env.is_emptied = True
    env.command(lambda client: client.delete(f"{{events}}:ts:{env.vk.group_id}"))
    env.push()
    env.expect(lambda: env.letters("lost the checkpoint") > before, what="the record")


@case("Redis: failover to a replica that lacks acknowledged writes", linked=True)
def fail_over(env: Environment) -> None:
    replica = env.detached_replica()
    time.sleep(0.6)
    env.fail_over(replica)


@case("link: delay", linked=True)
def delay(env: Environment) -> None:
    links = env.any_links()
    for link in links:
        link.delay = env.random.uniform(0.05, 0.3)
    time.sleep(1)
    for link in links:
        link.delay = 0


@case("link: narrow", linked=True, splits=True)
def narrow(env: Environment) -> None:
    links = env.any_links()
    for link in links:
        link.bandwidth = env.random.uniform(150_000, 1_000_000)
    time.sleep(1)
    for link in links:
        link.bandwidth = 0


@case("link: silent", linked=True)
def swallow(env: Environment) -> None:
    links = env.any_links()
    for link in links:
        link.swallow()
    time.sleep(1.3)
    for link in links:
        link.release()


# The fetcher


@case("fetcher: kill -9", kills=True)
def kill_fetcher(env: Environment) -> None:
    for _ in range(3):
        time.sleep(env.random.uniform(0.3, 0.7))
        env.any_fetcher().restart()


@case("fetcher: stopped and started", kills=True)
def stop_fetcher(env: Environment) -> None:
    fetcher = env.any_fetcher()
    stop(env, fetcher)
    time.sleep(0.3)
    fetcher.start()


def stop(env: Environment, fetcher: Process) -> None:
    """Send the fetcher SIGTERM."""
    with fetcher.changing:
        if fetcher.running:
            fetcher.resume()
            code = fetcher.terminate()
            assert code == 0 or not env.is_strict


@case("fetcher: kill -9 while Redis is away", linked=True, kills=True)
def kill_fetcher_without_redis(env: Environment) -> None:
    env.down()
    time.sleep(0.5)
    env.any_fetcher().restart()
    time.sleep(0.5)
    env.up()


@case("fetcher: frozen for a while")
def freeze(env: Environment) -> None:
    fetcher = env.any_fetcher()
    fetcher.pause()
    time.sleep(env.random.uniform(0.5, 2))
    fetcher.resume()


@case("everything killed at once", kills=True)
def power_cut(env: Environment) -> None:
    with env.server_lock:
        env.server.kill()
        for fetcher in env.fetchers:
            fetcher.kill()
        env.vk.cut()
        for fetcher in env.fetchers:
            fetcher.start()
        env.server.start()


@case("cluster: another node killed and started", clustered=True)
def kill_node(env: Environment) -> None:
    with env.server_lock:
        node = env.random.choice([node for node in env.nodes if node is not env.server])
        node.kill()
        time.sleep(env.random.uniform(0.3, 3))  # the other nodes notice after two seconds
        node.start()
