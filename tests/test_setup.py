"""`--setup` makes the community ready, and its exit code says whether the fetcher would run."""

from collections.abc import Callable, Iterator
from socket import gethostname
from typing import Any

import pytest
import redis
from requests.adapters import HTTPAdapter

from fetcher import config
from fetcher.commands.setup import setup as make_ready
from fetcher.vk.builders import BUILDERS
from tests import HOST, free_port
from tests.processes import Fetcher
from tests.run import redirect_vk_to
from tests.servers import Server, address, cluster
from tests.test_deploy import acl, rules
from tests.vk import GROUP, VK, error

Setup = Callable[..., tuple[int, dict[str, str]]]
Fetch = Callable[..., Fetcher]
TYPES = ", ".join(BUILDERS)
READY = {
    "token": f"ok      token: of the community 'Сообщество {GROUP}'",
    "GROUPID": f"ok      GROUPID: {GROUP}",
    "rights": "ok      rights: manage, messages",
    "Long Poll": "ok      Long Poll: on",
    "Long Poll version": "ok      Long Poll version: 5.199",
    "event types": f"ok      event types: {TYPES}",
    "Redis": "ok      Redis: it answers",
    "Redis permissions": "ok      Redis permissions: all that the fetcher needs",
    "Redis role": "ok      Redis role: master",
    "Redis maxmemory-policy": "ok      Redis maxmemory-policy: noeviction",
    "Redis appendonly": "ok      Redis appendonly: 1",
}
REDIS = {subject: line for subject, line in READY.items() if subject.startswith("Redis")}


def lines_by_subject(output: str) -> dict[str, str]:
    """Return the lines by their subject."""
    return {line[8:].partition(":")[0]: line for line in output.splitlines()}


@pytest.fixture
def setup(vk: VK, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Setup:
    """Return a function that runs --setup in this process, with further settings, and returns exit code and lines."""
    monkeypatch.setattr(HTTPAdapter, "send", HTTPAdapter.send)  # so that monkeypatch restores it
    redirect_vk_to(vk.url)

    def run(**settings: Any) -> tuple[int, dict[str, str]]:
        usual = {"TOKEN": vk.token, "GROUPID": vk.group_id, "REDIS_URL": server.url}
        given = {name: str(value) for name, value in (usual | settings).items() if value is not None}
        code = make_ready(config.parse(given, ("TOKEN",)))
        return code, lines_by_subject(capsys.readouterr().out)

    return run


@pytest.fixture
def process(vk: VK, fetch: Fetch) -> Setup:
    """Return the same for a process of its own, which must print no secret and no traceback."""

    def run(**settings: Any) -> tuple[int, dict[str, str]]:
        process = fetch("--setup", **settings)
        code = process.wait(60)
        assert settings.get("TOKEN", vk.token) not in process.output
        assert "Traceback" not in process.output
        return code, lines_by_subject(process.output)

    return run


def changes(vk: VK) -> list[dict[str, Any]]:
    """Return the requests to VK that change something."""
    return [request.params for request in vk.requests if request.name == "groups.setLongPollSettings"]


def test_a_ready_community(process: Setup, vk: VK, server: Server) -> None:
    """All is ok, and nothing is changed at VK or on the bus."""
    assert process() == (0, READY)
    assert not changes(vk)
    with server.client() as client:
        assert client.dbsize() == 0


def test_a_new_community_is_made_ready(process: Setup, fetch: Fetch, vk: VK, server: Server) -> None:
    """Wrong settings are changed and reported, other event types stay on or off, and then the fetcher runs."""
    events = dict.fromkeys(vk.settings["events"], 0) | {"message_new": 1, "message_read": 1}
    vk.settings = {"is_enabled": False, "api_version": "5.131", "events": events}
    types = f"changed event types: {TYPES} (was without {TYPES.removeprefix('message_new, ')})"
    assert process() == (0, READY | {
        "Long Poll": "changed Long Poll: on (was off)",
        "Long Poll version": "changed Long Poll version: 5.199 (was 5.131)",
        "event types": types,
    })  # fmt: skip
    on = {**dict.fromkeys(BUILDERS, 1), "message_read": 1}
    assert vk.settings == {
        "is_enabled": True, "api_version": "5.199", "events": dict.fromkeys(events, 0) | on
    }  # fmt: skip
    assert len(changes(vk)) == 1
    assert process() == (0, READY)
    assert len(changes(vk)) == 1
    fetch().wait_for("Polling VK", 60)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"is_enabled": False}, "changed Long Poll: on (was off)"),
        ({"api_version": "5.95"}, "changed Long Poll version: 5.199 (was 5.95)"),
        ({"events": dict.fromkeys(BUILDERS, 1) | {"message_reaction_event": 0}},
         f"changed event types: {TYPES} (was without message_reaction_event)"),
    ],
)  # fmt: skip
def test_one_wrong_setting(setup: Setup, vk: VK, wrong: dict[str, Any], line: str) -> None:
    """Only the line for that setting reports a change."""
    vk.settings |= wrong
    code, lines = setup()
    assert code == 0
    assert {subject: text for subject, text in lines.items() if text != READY[subject]} == {
        line[8:].partition(":")[0]: line
    }


def test_a_newer_version_stays(setup: Setup, vk: VK) -> None:
    """A newer version is not lowered, because other programs may need it."""
    vk.settings |= {"api_version": "5.1000", "is_enabled": False}
    assert setup()[0] == 0
    assert vk.settings["api_version"] == "5.1000"


@pytest.mark.parametrize("given", [None, 5])
def test_groupid_is_printed(process: Setup, vk: VK, given: int | None) -> None:
    """If GROUPID is missing or not the token's, the fetcher would not run, so the right one is printed.

    Everything else is checked and made ready.
    """
    vk.settings |= {"is_enabled": False}
    code, lines = process(GROUPID=given)
    assert code == 1
    assert lines == READY | {
        "GROUPID": f"to do   GROUPID: put GROUPID={GROUP} into .env",
        "Long Poll": "changed Long Poll: on (was off)",
    }


def test_without_a_token(fetch: Fetch) -> None:
    """The token is the only setting that --setup needs."""
    process = fetch("--setup", TOKEN=None, GROUPID=None)
    assert process.wait(60) == 2
    assert "TOKEN must hold the community's access token" in process.output


REFUSED = "VK refuses the token: put a valid community token into TOKEN (VK error 5 in groups.getById: User authorization failed: invalid access_token (4).)"  # noqa: E501
NEW_TOKEN = "make a community token with the rights manage and messages, and put it into TOKEN"
TRY_AGAIN = f"try again, or {NEW_TOKEN}"
NOT_A_COMMUNITYS = f"{TRY_AGAIN} (VK error 100 in groups.getById: Error of the tests)"


def test_a_refused_token(process: Setup, vk: VK) -> None:
    """One line reports the refusal; Redis is checked all the same."""
    vk.token = "another"
    assert process(TOKEN="vk1.a.wrong") == (1, {"VK": f"to do   VK: {REFUSED}", **REDIS})


def test_a_token_of_a_person(setup: Setup, vk: VK) -> None:
    """A person's token belongs to no community."""
    vk.fail_api(error(100), times=9, method="groups.getById")
    assert setup() == (1, {"VK": f"to do   VK: {NOT_A_COMMUNITYS}", **REDIS})


@pytest.mark.parametrize(
    ("rights", "missing"),
    [(["manage"], "messages"), (["messages", "docs"], "manage"), ([], "manage and messages")],
)  # fmt: skip
def test_missing_rights(setup: Setup, vk: VK, rights: list[str], missing: str) -> None:
    """Each missing right is named; without `manage`, VK does not return the Long Poll settings."""
    vk.rights = rights
    denied = "VK error 15 in groups.getLongPollSettings: Access denied: no access to call this method"
    long_poll = {"VK": f"to do   VK: {TRY_AGAIN} ({denied})"}
    if "manage" in rights:
        long_poll = {subject: READY[subject] for subject in ("Long Poll", "Long Poll version", "event types")}
    assert setup() == (1, {
        "token": READY["token"], "GROUPID": READY["GROUPID"],
        "rights": f"to do   rights: {missing} missing: {NEW_TOKEN}", **long_poll, **REDIS,
    })  # fmt: skip


def test_vk_is_down(process: Setup, vk: VK) -> None:
    """One line reports the outage; Redis is checked all the same."""
    vk.down()
    again = f"{TRY_AGAIN} (VK's API is unavailable (ConnectionError))"
    assert process() == (1, {"VK": f"to do   VK: {again}"} | REDIS)


@pytest.mark.parametrize(
    ("method", "before"),
    [
        ("groups.getById", []),
        ("groups.getTokenPermissions", ["token", "GROUPID"]),
        ("groups.getLongPollSettings", ["token", "GROUPID", "rights"]),
        ("groups.setLongPollSettings", ["token", "GROUPID", "rights"]),
    ],
)
def test_vk_fails_once(setup: Setup, vk: VK, method: str, before: list[str]) -> None:
    """A line reports the failure, after the results so far; Redis is checked all the same."""
    vk.settings |= {"is_enabled": False}
    vk.fail_api(error(10, "Internal server error"), method=method)
    failed = f"to do   VK: {TRY_AGAIN} (VK error 10 in {method}: Internal server error)"
    assert setup() == (1, {subject: READY[subject] for subject in before} | {"VK": failed} | REDIS)


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("groups.getById", {"groups": []}),
        ("groups.getById", {"groups": [{}]}),
        ("groups.getById", []),
        ("groups.getTokenPermissions", {"permissions": [1]}),
        ("groups.getTokenPermissions", {}),
        ("groups.getLongPollSettings", {}),
        ("groups.getLongPollSettings", {"is_enabled": True, "api_version": "5.199", "events": ["a"]}),
    ],
)
def test_vk_returns_an_unreadable_answer(setup: Setup, vk: VK, method: str, answer: Any) -> None:
    """One line says that the answer cannot be read, and nothing is changed because of it."""
    vk.fail_api({"response": answer}, times=9, method=method)
    code, lines = setup()
    assert code == 1
    assert any(f"VK's {method} returns an unreadable answer" in line for line in lines.values())
    assert REDIS.items() <= lines.items()
    assert not changes(vk)


def test_vk_has_no_types_yet(setup: Setup, vk: VK) -> None:
    """VK may return an empty object as an empty list."""
    vk.fail_api(
        {"response": {"is_enabled": True, "api_version": "5.199", "events": []}}, method="groups.getLongPollSettings"
    )
    code, lines = setup()
    assert code == 0
    assert lines["event types"] == f"changed event types: {TYPES} (was without {TYPES})"


# --- Redis -------------------------------------------------------------------------------------------------------


def test_redis_is_down(process: Setup) -> None:
    """One line reports it, with the remedy."""
    code, lines = process(REDIS_URL=f"redis://user:Very-Secret@{HOST}:{free_port()}/0")
    assert code == 1
    remedy = "start Redis, or correct REDIS_URL (Redis is unavailable (connection refused))"
    assert lines == {subject: READY[subject] for subject in READY if subject not in REDIS} | {
        "Redis": f"to do   Redis: {remedy}"
    }


def test_a_wrong_password(process: Setup) -> None:
    """No line quotes the password."""
    with Server(password="right") as server:
        code, lines = process(REDIS_URL=address(server.port, "Very-Secret"))
    assert code == 1
    assert lines["Redis"] == "to do   Redis: Redis refuses the user or the password: fix REDIS_URL"
    assert "Very-Secret" not in "".join(lines.values())


def test_a_server_that_may_lose_the_bus(setup: Setup) -> None:
    """The lines are only advice: the fetcher runs all the same."""
    with Server(maxmemory="100mb", maxmemory_policy="allkeys-lru") as server:
        code, lines = setup(REDIS_URL=server.url)
    policy, appendonly = lines["Redis maxmemory-policy"], lines["Redis appendonly"]
    assert code == 0
    assert policy == "advice  Redis maxmemory-policy: allkeys-lru: it may discard the bus, set noeviction"
    assert appendonly == "advice  Redis appendonly: 0: a crash loses what no snapshot has yet, set appendonly yes"


def test_a_server_that_hides_a_field(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """A managed server may hide a field: then there is no line for it."""
    info: Any = redis.Redis.info

    def shown(client: redis.Redis, *sections: str) -> dict[str, Any]:
        return {field: value for field, value in info(client, *sections).items() if field != "aof_enabled"}

    monkeypatch.setattr(redis.Redis, "info", shown)
    assert setup() == (0, {subject: line for subject, line in READY.items() if subject != "Redis appendonly"})


def test_a_replica(setup: Setup, server: Server) -> None:
    """A replica answers but takes no writes."""
    with Server() as replica:
        replica.replica_of(server)
        code, lines = setup(REDIS_URL=replica.url)
    assert code == 1
    remedy = "slave: a replica takes no writes, put the address of its master into REDIS_URL"
    assert lines["Redis role"] == f"to do   Redis role: {remedy}"


@pytest.mark.parametrize(
    "key", ["events", "{events}:dead-letter", f"{{events}}:seen:{GROUP}", f"{{events}}:ts:{GROUP}"]
)
def test_a_bus_of_another_program(setup: Setup, server: Server, key: str) -> None:
    """The fetcher cannot write to a key of another type."""
    with server.client() as client:
        client.hset(key, "mine", "1")
    code, lines = setup()
    assert code == 1
    assert lines["Redis"].startswith("to do   Redis: a key of the bus is of another type")


def test_a_cluster(setup: Setup) -> None:
    """The address of any node will do."""
    with cluster(3, aof=True) as nodes:
        for node in nodes:
            assert setup(REDIS_URL=node.url) == (0, READY)


@pytest.fixture(scope="module")
def limited() -> Iterator[Server]:
    """A server with the documented user for the fetcher."""
    with Server(acl=acl("fetcher"), aof=True) as server:
        yield server


def test_the_documented_rules_suffice(setup: Setup, limited: Server) -> None:
    """The user from the operations page has all permissions that the fetcher needs."""
    assert setup(REDIS_URL=address(limited.port, "SECRET", "fetcher")) == (0, READY)


@pytest.mark.parametrize("rule", [rule for rule in rules("fetcher") if rule not in ("-@all", "resetchannels")])
def test_a_missing_rule(setup: Setup, rule: str) -> None:
    """If the fetcher cannot work without the rule, the line for Redis or its permissions says so, and the code is 1."""
    with Server(acl=acl("fetcher", without=rule), aof=True) as server:
        code, lines = setup(REDIS_URL=address(server.port, "SECRET", "fetcher"))
    if rule == "+info":
        assert (code, lines) == (0, {subject: READY[subject] for subject in list(READY)[:8]})
    else:
        found = lines.get("Redis permissions", lines["Redis"])
        assert code == 1
        assert found.startswith("to do")
        assert found.endswith("give the user of REDIS_URL the ACL rules of docs/operations.md")


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("-xadd", "XADD events, XADD {events}:dead-letter"),
        ("resetchannels &others", "PUBLISH events:message"),
        ("-set (~{events}:ts:* +set)", "SET {events}:alive:GROUP:HOST, SET {events}:name:1"),
        ("-set (~{events}:name:* ~{events}:alive:* +set)", "SET {events}:ts:GROUP"),
        ("-type (~events +type)", "TYPE {events}:dead-letter"),
        ("-xadd (~events +xadd)", "XADD {events}:dead-letter"),
        ("-xadd (~{events}:dead-letter +xadd)", "XADD events"),
        ("-mget -exists", "EXISTS {events}:alive:GROUP:HOST, MGET {events}:name:1"),
        ("-zadd -zrevrange -zremrangebyrank",
         "ZADD {events}:seen:GROUP, ZREVRANGE {events}:seen:GROUP, ZREMRANGEBYRANK {events}:seen:GROUP"),
    ],
)  # fmt: skip
def test_refused_permissions_are_named(setup: Setup, rule: str, named: str) -> None:
    """Each is named with its key or channel, and no others; the check writes nothing."""
    with Server(acl=[f"user fetcher on >SECRET ~* &* +@all {rule}"]) as server:
        code, lines = setup(REDIS_URL=address(server.port, "SECRET", "fetcher"))
        with server.client() as client:
            assert client.dbsize() == 0
    named = named.replace("GROUP", str(GROUP)).replace("HOST", gethostname())
    assert code == 1
    assert lines["Redis permissions"].startswith(f"to do   Redis permissions: {named} refused: give the user")


def test_a_terminal_without_cyrillic(process: Setup) -> None:
    """A name that the terminal cannot show is no reason to fail."""
    code, lines = process(PYTHONIOENCODING="ascii")
    assert code == 0
    assert lines["token"] == f"ok      token: of the community '?????????? {GROUP}'"
