"""The directory of names: whose names a batch needs, where they come from, and filling them in."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from fetcher.core import names as limits
from fetcher.core.names import Directory, Name, fill, ids_to_resolve
from fetcher.errors import FatalError, RedisUnavailable, TransientError
from fetcher.events import Action, Event, Message, Peer, User
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
    """Tell the names of user and peer of each event."""
    return [(event.user.name, event.peer.name) for event in fill(events, names)]


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
    """People, communities and chats are; e-mail addresses and numbers that nobody can have are not."""
    assert ids_to_resolve([event(uuid, bpid)]) == ids


def test_ids_to_resolve_of_a_batch() -> None:
    """Each is needed once, whoever needs it, and whom an action names as well."""
    assert ids_to_resolve([event(5, 5), event(5, CHAT + 1), event(6, CHAT + 1)]) == {5, 6, CHAT + 1}
    assert ids_to_resolve([event(5, CHAT + 1, invited=9), event(5, CHAT + 1, invited=-4)]) == {5, 9, -4, CHAT + 1}
    assert ids_to_resolve([event(5, 5, invited=MAIL), event(5, 5, invited=CHAT + 9)]) == {5}
    assert ids_to_resolve([]) == set()


# Filling in


def test_fill_a_person() -> None:
    """A person's names go to the user; all the rest of the event stays."""
    bare = event(5, CHAT + 7)
    (given,) = fill([bare], {5: Name("Анна Черных", "Анна", "Черных", "anna"), CHAT + 7: Name("Беседа")})
    assert given.user == User(5, "Анна Черных", "Анна", "Черных", "anna")
    assert given.peer == Peer(CHAT + 7, 7, "Беседа")
    assert given._replace(user=bare.user, peer=bare.peer) == bare


def test_fill_an_action() -> None:
    """Whom it concerns is named like any other; the rest of it stays."""
    (given,) = fill([event(5, CHAT + 7, invited=9)], {9: Name("Пётр", "Пётр", "", "id9")})
    assert given.action == Action("chat_invite_user", User(9, "Пётр", "Пётр", "", "id9"), "", 0)
    (given,) = fill([event(5, CHAT + 7, invited=MAIL)], {})
    assert given.action == Action("chat_invite_user", User(MAIL, "", "", "", ""), "", 0)


def test_fill_a_private_dialog() -> None:
    """A private dialog bears the other side's name, whoever acts in it."""
    names = {5: Name("Анна Черных", "Анна", "Черных", "anna"), -3: Name("Паб", "Паб", "", "pub")}
    assert filled(names, event(5, 5), event(-3, 5), event(5, -3)) == [
        ("Анна Черных", "Анна Черных"),
        ("Паб", "Анна Черных"),
        ("Анна Черных", "Паб"),
    ]


def test_fill_the_unknown() -> None:
    """Whom VK does not know, and what it does not tell, has its number and nothing else."""
    assert list(fill([event(5, CHAT + 7)], {5: Name()})) == [event(5, CHAT + 7)]


def test_a_chats_title_is_no_users_name() -> None:
    """A number that is a chat's never gives its title to a user of the same number."""
    assert filled({CHAT + 7: Name("Беседа")}, event(CHAT + 7, CHAT + 7)) == [("", "Беседа")]
    assert filled({MAIL: Name("почта")}, event(MAIL, 5)) == [("", "")]


def test_title_holds_from_the_update_on() -> None:
    """A title that an event tells is the peer's from that event on, until the next one, and in no other chat."""
    names = {CHAT + 7: Name("Старая"), CHAT + 8: Name("Другая")}
    chat, other = event(5, CHAT + 7), event(5, CHAT + 8)
    batch = [chat, event(5, CHAT + 7, "Новая"), chat, other, event(5, CHAT + 7, "Новейшая"), chat]
    assert [peer for _, peer in filled(names, *batch)] == ["Старая", "Новая", "Новая", "Другая", "Новейшая", "Новейшая"]
    assert names == {CHAT + 7: Name("Старая"), CHAT + 8: Name("Другая")}, "what was handed in is left as it was"


# The directory


class Cache:
    """A cache in memory."""

    def __init__(self) -> None:
        self.names_ttl = 600
        self.known: dict[int, Name] = {}
        self.asked: list[set[int]] = []
        self.down = False

    def names(self, ids: Iterable[int]) -> dict[int, Name]:
        self.asked.append(set(ids))
        if self.down:
            raise RedisUnavailable("Redis is unavailable")
        return {id: self.known[id] for id in ids if id in self.known}

    def cache_names(self, names: Mapping[int, Name]) -> None:
        if self.down:
            raise RedisUnavailable("Redis is unavailable")
        self.known |= names


class VK:
    """Tells a name of everybody, but of `failing`."""

    def __init__(self) -> None:
        self.asked: list[set[int]] = []
        self.failing: set[int] = set()
        self.failure: TransientError | FatalError = DOWN

    def names(self, ids: Iterable[int]) -> tuple[dict[int, Name], TransientError | FatalError | None]:
        ids = set(ids)
        self.asked.append(ids)
        names = {id: Name(f"name of {id}") for id in ids - self.failing}
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
    monkeypatch.setattr("fetcher.core.names.time", clock)
    return clock


@pytest.fixture
def directory(cache: Cache, vk: VK, clock: Clock) -> Directory:
    return Directory(cache, vk)


def names(directory: Directory, *events: Event, give_up: bool = False, use_cache: bool = True) -> list[tuple[str, str]]:
    return [(one.user.name, one.peer.name) for one in directory.with_names([*events], give_up, use_cache)]


def test_memory_then_cache_then_vk(directory: Directory, cache: Cache, vk: VK) -> None:
    """Each asks for what the one before does not know; what VK tells is known to all afterwards."""
    cache.known[6] = Name("Six")
    assert names(directory, event(5, CHAT + 7), event(6, 6)) == [
        ("name of 5", f"name of {CHAT + 7}"),
        ("Six", "Six"),
    ]
    assert (cache.asked, vk.asked) == ([{5, 6, CHAT + 7}], [{5, CHAT + 7}])
    assert cache.known == {5: Name("name of 5"), CHAT + 7: Name(f"name of {CHAT + 7}"), 6: Name("Six")}
    assert names(directory, event(5, 6)) == [("name of 5", "Six")]
    assert (len(cache.asked), len(vk.asked)) == (1, 1)


def test_nobody_to_ask_for(directory: Directory, cache: Cache, vk: VK) -> None:
    """A batch without events costs nothing."""
    assert directory.with_names([], give_up=False, use_cache=True) == []
    assert names(directory, event(MAIL, MAIL)) == [("", "")]
    assert not cache.asked
    assert not vk.asked


def test_memory_lasts_for_a_while(directory: Directory, cache: Cache, clock: Clock) -> None:
    """So long is the cache not asked; as long as names may be cached, at most."""
    for _ in range(2):
        names(directory, event(5, 5))
    clock.now += limits.NAMES_MEMORY_TTL
    names(directory, event(5, 5))
    assert len(cache.asked) == 2
    cache.names_ttl = 3
    clock.now += limits.NAMES_MEMORY_TTL
    names(directory, event(5, 5))
    clock.now += 3
    names(directory, event(5, 5))
    assert len(cache.asked) == 4


def test_without_a_cache_there_is_no_memory(directory: Directory, cache: Cache, vk: VK) -> None:
    """NAMES_TTL=0: every batch asks VK."""
    cache.names_ttl = 0
    cache.known.clear()
    for _ in range(3):
        names(directory, event(5, 5))
        cache.known.clear()
    assert vk.asked == [{5}] * 3


def test_what_another_fetcher_was_told(directory: Directory, cache: Cache) -> None:
    """When it was first, it may have put a newer title into the cache."""
    names(directory, event(5, CHAT + 7))
    cache.known[CHAT + 7] = Name("Newer")
    assert names(directory, event(5, CHAT + 7)) == [("name of 5", f"name of {CHAT + 7}")]
    directory.forget()
    assert names(directory, event(5, CHAT + 7)) == [("name of 5", "Newer")]


def test_a_title_is_known_to_all(directory: Directory, cache: Cache) -> None:
    """The latest one that a batch tells goes to memory and cache."""
    names(directory, event(5, CHAT + 7, "New"), event(5, CHAT + 8), event(5, CHAT + 7, "Newest"))
    assert cache.known[CHAT + 7] == Name("Newest")
    assert names(directory, event(5, CHAT + 7)) == [("name of 5", "Newest")]


def test_redis_is_down(directory: Directory, cache: Cache, vk: VK) -> None:
    """Then VK alone is asked, and the cache gets what it lacks when Redis is back."""
    cache.down = True
    with pytest.raises(RedisUnavailable):
        names(directory, event(5, 5))
    for _ in range(2):
        assert names(directory, event(5, CHAT + 7, "Title"), use_cache=False) == [("name of 5", "Title")]
    assert vk.asked == [{5, CHAT + 7}]
    cache.down = False
    names(directory, event(6, 6))
    assert cache.known == {5: Name("name of 5"), CHAT + 7: Name("Title"), 6: Name("name of 6")}


def test_redis_goes_down_meanwhile(directory: Directory, cache: Cache, vk: VK, monkeypatch: pytest.MonkeyPatch) -> None:
    """What VK has told is not asked again, and is cached as soon as Redis is back."""

    def fail(names: Mapping[int, Name]) -> None:
        raise RedisUnavailable("Redis is unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "cache_names", fail)
        with pytest.raises(RedisUnavailable):
            names(directory, event(5, 5))
    assert names(directory, event(5, 5)) == [("name of 5", "name of 5")]
    assert vk.asked == [{5}]
    assert cache.known == {5: Name("name of 5")}


@pytest.mark.parametrize("failure", [DOWN, FatalError("VK refuses the token")])
def test_vk_fails(directory: Directory, cache: Cache, vk: VK, failure: Any) -> None:
    """It is told, what VK did tell is kept, and only the rest is asked for again."""
    vk.failing, vk.failure = {6}, failure
    with pytest.raises(type(failure), match=str(failure)):
        names(directory, event(5, 5), event(6, 6))
    vk.failing = set()
    assert names(directory, event(5, 5), event(6, 6)) == [("name of 5",) * 2, ("name of 6",) * 2]
    assert vk.asked == [{5, 6}, {6}]
    assert cache.known.keys() == {5, 6}


def test_names_are_given_up(directory: Directory, cache: Cache, vk: VK) -> None:
    """Who waited for long enough goes out with "", which nobody remembers."""
    vk.failing = {6}
    assert names(directory, event(5, 5), event(6, 6), give_up=True) == [("name of 5",) * 2, ("", "")]
    assert cache.known.keys() == {5}
    vk.failing = set()
    assert names(directory, event(6, 6)) == [("name of 6",) * 2]


def test_who_was_given_up_delays_nobody(directory: Directory, cache: Cache, vk: VK) -> None:
    """VK is asked for them with each batch, but nobody waits, until it tells: then they are like any other."""
    vk.failing = {6}
    names(directory, event(6, 6), give_up=True)
    for _ in range(3):
        assert names(directory, event(5, 5), event(6, 6)) == [("name of 5",) * 2, ("", "")]
    vk.failing = {6, 7}
    with pytest.raises(TransientError):
        names(directory, event(6, 6), event(7, 7))
    vk.failing = set()
    assert names(directory, event(6, 6)) == [("name of 6",) * 2]
    directory.forget()
    cache.known.clear()
    vk.failing = {6}
    with pytest.raises(TransientError):
        names(directory, event(6, 6))


def test_who_was_given_up_is_forgotten(directory: Directory, vk: VK, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be any number of them; the latest are known."""
    monkeypatch.setattr(limits, "MAX_GIVEN_UP", 3)
    vk.failing = set(range(1, 100))
    for id in range(1, 8):
        names(directory, event(id, id), give_up=True)
        assert len(directory.given_up) <= 4
    assert names(directory, event(7, 7)) == [("", "")]
    with pytest.raises(TransientError):
        names(directory, event(1, 1))
