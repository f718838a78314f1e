"""Names: which of them a batch needs, how events get them, and where they come from."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from fetcher.core.backlog import Pending
from fetcher.core.history import Entry, Name, Position
from fetcher.errors import FatalError, RedisUnavailable, TransientError
from fetcher.events import Action, Event, Message, Peer, User
from fetcher.vk.entries import NAMES_MEMORY_TTL, EntryBuilder, ids_to_resolve, with_names
from tests.net import Clock

CHAT = 2_000_000_000
MAIL = -CHAT - 123
DOWN = TransientError("VK error 10")


def event(uuid: int, bpid: int, title: str = "", invited: int | None = None) -> Event:
    """Make an event as the builders leave it."""
    user, peer = User(uuid, "", "", "", ""), Peer(bpid, max(0, bpid - CHAT), title)
    whom = None if invited is None else User(invited, "", "", "", "")
    action = Action("chat_invite_user", whom, "", 0) if invited is not None or title else None
    return Event("message", "1", user, peer, message=Message(1, "", None, [], []), action=action)


def filled(names: dict[int, Name], *events: Event) -> list[tuple[str, str]]:
    """Put the names in, and return those of the user and the peer of each event."""
    return [(event.user.name, event.peer.name) for event in (with_names(event, names) for event in events)]


# Whose names are needed


@pytest.mark.parametrize(
    ("uuid", "bpid", "ids"),
    [
        (5, 5, {5}),
        (5, CHAT + 7, {5, CHAT + 7}),
        (-3, CHAT + 1, {-3, CHAT + 1}),
        (-3, -3, {-3}),
        (5, -3, {5, -3}),
        (5, MAIL, {5}),
        (MAIL, MAIL, set()),
        (MAIL, CHAT + 7, {CHAT + 7}),
        (5, CHAT, {5}),
        (CHAT, -CHAT, set()),
        (CHAT + 7, 5, {5}),
        (0, 0, set()),
        (CHAT - 1, 1 - CHAT, {CHAT - 1, 1 - CHAT}),
    ],
)
def test_ids_to_resolve(uuid: int, bpid: int, ids: set[int]) -> None:
    """Names are looked up for people, communities and chats, but not for e-mail addresses and impossible ids."""
    assert ids_to_resolve([event(uuid, bpid)]) == ids


def test_ids_to_resolve_of_a_batch() -> None:
    """Each id is listed once, however many events need it, including the users of actions."""
    assert ids_to_resolve([event(5, 5), event(5, CHAT + 1), event(6, CHAT + 1)]) == {5, 6, CHAT + 1}
    assert ids_to_resolve([event(5, CHAT + 1, invited=9), event(5, CHAT + 1, invited=-4)]) == {5, 9, -4, CHAT + 1}
    assert ids_to_resolve([event(5, 5, invited=MAIL), event(5, 5, invited=CHAT + 9)]) == {5}
    assert ids_to_resolve([]) == set()


# Putting names in


def test_names_of_a_person() -> None:
    """A person's names go to the user; the rest of the event is unchanged."""
    bare = event(5, CHAT + 7)
    given = with_names(bare, {5: Name("Анна Черных", "Анна", "Черных", "anna"), CHAT + 7: Name("Беседа")})
    assert given.user == User(5, "Анна Черных", "Анна", "Черных", "anna")
    assert given.peer == Peer(CHAT + 7, 7, "Беседа")
    assert given._replace(user=bare.user, peer=bare.peer) == bare


def test_names_of_an_action() -> None:
    """The user of an action is named like any other; the rest of the action is unchanged."""
    given = with_names(event(5, CHAT + 7, invited=9), {9: Name("Пётр", "Пётр", "", "id9")})
    assert given.action == Action("chat_invite_user", User(9, "Пётр", "Пётр", "", "id9"), "", 0)
    given = with_names(event(5, CHAT + 7, invited=MAIL), {})
    assert given.action == Action("chat_invite_user", User(MAIL, "", "", "", ""), "", 0)


def test_names_of_a_private_dialog() -> None:
    """A private dialog is named after the other side, whoever acts in it."""
    names = {5: Name("Анна Черных", "Анна", "Черных", "anna"), -3: Name("Паб", "Паб", "", "pub")}
    assert filled(names, event(5, 5), event(-3, 5), event(5, -3)) == [
        ("Анна Черных", "Анна Черных"),
        ("Паб", "Анна Черных"),
        ("Анна Черных", "Паб"),
    ]


def test_names_of_the_unknown() -> None:
    """People whom VK does not know, and chats without a title, have an id but no name."""
    assert with_names(event(5, CHAT + 7), {5: Name()}) == event(5, CHAT + 7)


def test_a_chats_title_is_not_a_users_name() -> None:
    """A user whose id equals a chat's peer id never gets the chat's title."""
    assert filled({CHAT + 7: Name("Беседа")}, event(CHAT + 7, CHAT + 7)) == [("", "Беседа")]
    assert filled({MAIL: Name("почта")}, event(MAIL, 5)) == [("", "")]
    assert filled({CHAT: Name("nobody's")}, event(CHAT, 5)) == [("", "")]


def test_title_holds_from_the_update_on() -> None:
    """A title in an event is the peer's title from that event until the next title, and in no other chat."""
    names = {CHAT + 7: Name("Старая"), CHAT + 8: Name("Другая")}
    chat, other = event(5, CHAT + 7), event(5, CHAT + 8)
    batch = [chat, event(5, CHAT + 7, "Новая"), chat, other, event(5, CHAT + 7, "Новейшая"), chat]
    assert [peer for _, peer in filled(names, *batch)] == ["Старая", "Новая", "Новая", "Другая", "Новейшая", "Новейшая"]
    assert names == {CHAT + 7: Name("Новейшая"), CHAT + 8: Name("Другая")}, "later batches know it, too"


# Where they come from


class Cache:
    """A cache in memory."""

    def __init__(self) -> None:
        self.names_ttl, self.is_connected = 600, True
        self.known: dict[int, Name] = {}
        self.requested: list[set[int]] = []
        self.down = False

    def names(self, ids: Iterable[int]) -> dict[int, Name]:
        if not ids:
            return {}
        self.requested.append(set(ids))
        if self.down:
            raise RedisUnavailable("Redis is unavailable")
        return {id: self.known[id] for id in ids if id in self.known}

    def cache_names(self, names: Mapping[int, Name]) -> None:
        if self.down:
            raise RedisUnavailable("Redis is unavailable")
        self.known |= names if self.names_ttl else {}


class VK:
    """Returns a name for each id, an empty one if it is `unknown`, and a failure for those that are `failing`."""

    def __init__(self) -> None:
        self.requested: list[set[int]] = []
        self.failing: set[int] = set()
        self.unknown: set[int] = set()
        self.failure: TransientError | FatalError = DOWN

    def full_messages(self, places: Iterable[tuple[int, int]]) -> tuple[dict[Any, Any], None]:
        return {}, None

    def names(self, ids: Iterable[int]) -> tuple[dict[int, Name], TransientError | FatalError | None]:
        ids = set(ids)
        if not ids:
            return {}, None
        self.requested.append(ids)
        names = {id: Name() if id in self.unknown else Name(f"name of {id}") for id in ids - self.failing}
        return names, self.failure if ids & self.failing else None


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def vk() -> VK:
    return VK()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fetcher.vk.entries.time", clock)
    return clock


class Builder(EntryBuilder):
    """Builds entries from updates that hold their event."""

    def event_of(self, update: Any) -> Event:
        event: Event = update["event"]
        return event


@pytest.fixture
def builder(cache: Any, vk: Any, clock: Clock, own_lookups: None) -> EntryBuilder:
    return Builder(vk, cache, 1, "/", raw=False)


def names(builder: EntryBuilder, *events: Event, give_up: bool = False) -> list[tuple[str, str]]:
    """Build the events, and return the names of the user and the peer of each."""
    batch = Pending("batch", Position(0, 10), Position(0, 99), [{"type": "any", "event": event} for event in events])
    failure = builder.build([batch], give_up)
    assert failure == (DOWN if give_up else None)
    built = [json.loads(entry.text) for entry in batch.entries if isinstance(entry, Entry)]
    return [(event["user"]["name"], event["peer"]["name"]) for event in built]


FIVE, SIX = ("name of 5", "name of 5"), ("name of 6", "name of 6")


def test_memory_then_cache_then_vk(builder: EntryBuilder, cache: Cache, vk: VK) -> None:
    """Each is queried only for the names that the previous one lacks; afterwards all have VK's answers."""
    cache.known[6] = Name("Six")
    assert names(builder, event(5, CHAT + 7), event(6, 6)) == [
        ("name of 5", f"name of {CHAT + 7}"),
        ("Six", "Six"),
    ]
    assert (cache.requested, vk.requested) == ([{5, 6, CHAT + 7}], [{5, CHAT + 7}])
    assert cache.known == {5: Name("name of 5"), CHAT + 7: Name(f"name of {CHAT + 7}"), 6: Name("Six")}
    assert names(builder, event(5, 6)) == [("name of 5", "Six")]
    assert (len(cache.requested), len(vk.requested)) == (1, 1)


def test_nobody_to_look_up(builder: EntryBuilder, cache: Cache, vk: VK) -> None:
    """A batch without events, or without ids to look up, sends no request."""
    assert names(builder) == []
    assert names(builder, event(MAIL, MAIL)) == [("", "")]
    assert not cache.requested
    assert not vk.requested


@pytest.mark.parametrize(("ttl", "lasts"), [(600, NAMES_MEMORY_TTL), (10, 10)])
def test_memory_lasts_a_minute(
    builder: EntryBuilder, cache: Cache, vk: VK, clock: Clock, ttl: int, lasts: float
) -> None:
    """Names stay in memory for a minute, or for the cache's TTL if that is shorter.

    Until then neither the cache nor VK is queried, however many batches arrive.
    """
    cache.names_ttl = ttl
    vk.unknown.add(6)
    for seconds in (0.0, lasts / 2, lasts / 2 - 0.1):
        clock.now += seconds
        assert names(builder, event(5, 5), event(6, 6)) == [FIVE, ("", "")]
    assert (len(cache.requested), len(vk.requested)) == (1, 1)
    cache.known = {5: Name("Newer")}
    vk.unknown.clear()
    clock.now += 0.2
    assert names(builder, event(5, 5), event(6, 6)) == [("Newer", "Newer"), SIX]
    assert (len(cache.requested), vk.requested[1:]) == (2, [{6}])


def test_without_a_cache_there_is_no_memory(builder: EntryBuilder, cache: Cache, vk: VK) -> None:
    """With NAMES_TTL=0, every batch queries VK."""
    cache.names_ttl = 0
    for _ in range(3):
        assert names(builder, event(5, 5), event(5, CHAT + 7, "Title")) == [FIVE, ("name of 5", "Title")]
    assert vk.requested == [{5, CHAT + 7}] * 3


def test_a_title_that_another_fetcher_has_cached(builder: EntryBuilder, cache: Cache) -> None:
    """A newer title that another fetcher has cached is used once this fetcher's memory is emptied."""
    names(builder, event(5, CHAT + 7))
    cache.known[CHAT + 7] = Name("Newer")
    assert names(builder, event(5, CHAT + 7)) == [("name of 5", f"name of {CHAT + 7}")]
    builder.forget_at = 0.0
    assert names(builder, event(5, CHAT + 7)) == [("name of 5", "Newer")]


def test_a_new_title_applies_to_later_batches(builder: EntryBuilder, cache: Cache, vk: VK) -> None:
    """The latest title in a batch applies to the next batches, and is cached."""
    names(builder, event(5, CHAT + 7, "New"), event(5, CHAT + 8), event(5, CHAT + 7, "Newest"))
    assert cache.known[CHAT + 7] == Name("Newest")
    assert names(builder, event(5, CHAT + 7)) == [("name of 5", "Newest")]
    assert len(vk.requested) == 1


def test_redis_goes_down_while_names_are_cached(builder: EntryBuilder, cache: Cache, vk: VK) -> None:
    """VK's answers are not requested again, and a title still applies from its own event on."""
    names(builder, event(5, CHAT + 7))
    batch = [event(5, CHAT + 7), event(5, CHAT + 7, "Title")]
    cache.down = True
    with pytest.raises(RedisUnavailable):
        names(builder, *batch)
    cache.down = False
    assert names(builder, *batch) == [("name of 5", f"name of {CHAT + 7}"), ("name of 5", "Title")]
    assert cache.known[CHAT + 7] == Name("Title")
    assert len(vk.requested) == 1


def test_names_that_arrive_while_redis_is_down_are_not_cached(builder: EntryBuilder, cache: Cache, vk: VK) -> None:
    """During an outage, thousands of names would gather and be written all at once when Redis is back.

    Titles from updates are the exception, because the cache does not know them.
    """
    cache.is_connected = False
    assert names(builder, event(5, CHAT + 7, "Title")) == [("name of 5", "Title")]
    assert cache.known == {CHAT + 7: Name("Title")}


def test_the_cache_cannot_be_read(builder: EntryBuilder, cache: Cache, vk: VK) -> None:
    """The batch waits, because names that may be in the cache are not requested from VK."""
    cache.down = True
    with pytest.raises(RedisUnavailable):
        names(builder, event(5, 5))
    assert not vk.requested


@pytest.mark.parametrize("failure", [DOWN, FatalError("VK refuses the token")])
def test_vk_fails(builder: EntryBuilder, cache: Cache, vk: VK, failure: Any) -> None:
    """The failure is raised; the names that VK did return are kept and cached, and only the rest is looked up again."""
    vk.failing, vk.failure = {6}, failure
    with pytest.raises(type(failure), match=str(failure)):
        names(builder, event(5, 5), event(6, 6))
    assert cache.known.keys() == {5}
    vk.failing = set()
    assert names(builder, event(5, 5), event(6, 6)) == [FIVE, SIX]
    assert vk.requested == [{5, 6}, {6}]
    assert cache.known.keys() == {5, 6}


def test_a_title_is_not_cached_before_its_batch_is_built(builder: EntryBuilder, cache: Cache, vk: VK) -> None:
    """While a batch waits for a name, its new title is not cached: the batch is built again, from the old title."""
    batch = [event(6, CHAT + 7), event(6, CHAT + 7, "New")]
    vk.failing = {6}
    with pytest.raises(TransientError):
        names(builder, *batch)
    assert cache.known == {CHAT + 7: Name(f"name of {CHAT + 7}")}
    vk.failing = set()
    assert names(builder, *batch) == [("name of 6", f"name of {CHAT + 7}"), ("name of 6", "New")]
    assert cache.known[CHAT + 7] == Name("New")


def test_names_are_given_up(builder: EntryBuilder, cache: Cache, vk: VK) -> None:
    """Events that have waited too long are published with "", which is not cached; the failure is returned."""
    vk.failing = {6}
    assert names(builder, event(5, 5), event(6, 6), give_up=True) == [FIVE, ("", "")]
    assert cache.known.keys() == {5}
    vk.failing = set()
    assert names(builder, event(6, 6)) == [SIX]
