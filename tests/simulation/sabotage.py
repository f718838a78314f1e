"""Ways to break the core, one at a time: a simulation that noticed none of them would prove nothing.

Each replaces a right part with a wrong one: a public method or function, a limit, or the text of the script.
"""

import inspect
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from fetcher.bus import bus
from fetcher.bus.bus import SCRIPTS, Bus
from fetcher.core import backlog, relay
from fetcher.core.backlog import Backlog, Pending
from fetcher.core.history import Answer, DeadLetter, Name
from fetcher.core.pieces import PieceSize
from fetcher.core.relay import Relay
from fetcher.core.reports import Reports
from fetcher.errors import RedisTimeout, TransientError
from fetcher.vk.entries import EntryBuilder, ids_to_resolve
from fetcher.vk.longpoll import LongPoll

from .chaos import run
from .store import Store

MAX_HISTORIES = 5000  # within which a sabotage has to be noticed


class Sabotage(NamedTuple):
    """What replaces `name` of `owner`: a value, or a function that gets the right one as its first argument."""

    owner: Any
    name: str
    wrong: Any


WAYS: dict[str, Sabotage] = {}


def instead_of(owner: Any, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function that replaces another one, which it gets as its first argument."""

    def register(wrong: Callable[..., Any]) -> Callable[..., Any]:
        WAYS[wrong.__name__.replace("_", " ")] = Sabotage(owner, name, wrong)
        return wrong

    return register


def limit(way: str, owner: Any, name: str, value: float) -> None:
    """Register a wrong limit."""
    WAYS[way] = Sabotage(owner, name, value)


def script(way: str, old: str, new: str) -> None:
    """Register a wrong script, with `new` in place of `old`."""
    assert old in SCRIPTS["commit"], way
    WAYS[way] = Sabotage(bus, "SCRIPTS", SCRIPTS | {"commit": SCRIPTS["commit"].replace(old, new)})


# A backlog


@instead_of(Backlog, "answered")
def pending_dropped_on_conflict(right: Any, self: Any, commit: Any, outcome: Any) -> Any:
    if outcome.checkpoint and commit.since > outcome.checkpoint:
        self.pending.clear()
    return right(self, commit, outcome)


@instead_of(Backlog, "answered")
def earlier_checkpoint_is_believed(right: Any, self: Any, commit: Any, outcome: Any) -> Any:
    if outcome.checkpoint and outcome.checkpoint < self.checkpoint:
        self.checkpoint = outcome.checkpoint
        return True
    return right(self, commit, outcome)


@instead_of(Backlog, "answered")
def nothing_is_remembered(right: Any, self: Any, commit: Any, outcome: Any) -> Any:
    answer = right(self, commit, outcome)
    self.replay.clear()
    self.replay_weight = 0
    return answer


@instead_of(Backlog, "answered")
def what_came_late_is_not_remembered(right: Any, self: Any, commit: Any, outcome: Any) -> Any:
    before = deque(self.replay), self.replay_weight
    answer = right(self, commit, outcome)
    if commit.kind == "batch" and outcome.checkpoint and commit.until < outcome.checkpoint:
        self.replay, self.replay_weight = before
    return answer


@instead_of(Backlog, "is_missing_updates")
def what_is_missing_is_not_noticed(right: Any, self: Any) -> bool:
    return False


@instead_of(Backlog, "connected")
def nothing_is_committed_again(right: Any, self: Any, checkpoint: Any, missing: Any) -> None:
    replay, self.replay = self.replay, deque()
    right(self, checkpoint, missing)
    self.replay = replay


@instead_of(Backlog, "connected")
def only_what_is_after_the_checkpoint_is_committed_again(right: Any, self: Any, checkpoint: Any, missing: Any) -> None:
    right(self, checkpoint, set())


@instead_of(Backlog, "connected")
def lost_checkpoint_is_not_restored(right: Any, self: Any, checkpoint: Any, missing: Any) -> None:
    right(self, checkpoint or self.checkpoint, missing)


@instead_of(Backlog, "connected")
def committed_again_last(right: Any, self: Any, checkpoint: Any, missing: Any) -> None:
    held = list(self.pending)
    self.pending.clear()
    right(self, checkpoint, missing)
    self.pending.extendleft(reversed(held))


@instead_of(Backlog, "rebase")
def epochs_counted_from_zero(right: Any, self: Any, checkpoint: Any, latest_ts: int) -> None:
    pass


@instead_of(Backlog, "rebase")
def every_epoch_is_the_one_of_the_checkpoint(right: Any, self: Any, checkpoint: Any, latest_ts: int) -> None:
    right(self, checkpoint, max(checkpoint.ts, self.pending[-1].until.ts))


@instead_of(Backlog, "fill")
def gap_hides_what_is_pending(right: Any, self: Any, answer: Any) -> Any:
    return self.pending.extendleft(reversed(backlog.located(self.checkpoint, answer)))


@instead_of(Backlog, "next")
def polled_from_the_checkpoint_while_pending(right: Any, self: Any) -> Any:
    return self.checkpoint or self.start


@instead_of(Backlog, "is_full")
def memory_without_bounds(right: Any, self: Any) -> bool:
    return False


@instead_of(Backlog, "next_commit")
def newest_first(right: Any, self: Any) -> Any:
    if len(self.pending) > 1 and not self.pending[-1].updates:
        self.pending.rotate(1)
    return right(self)


@instead_of(Backlog, "next_commit")
def batches_merged_over_a_gap(right: Any, self: Any) -> Any:
    commit = right(self)
    rest = list(self.pending)[1:3] if commit and commit.kind == "batch" else []
    if [one.kind for one in rest] == ["gap", "batch"] and not rest[1].updates:
        commit.join(rest[1])
        del self.pending[1], self.pending[1]
    return commit


@instead_of(Pending, "split")
def part_of_a_batch_moves_the_checkpoint_to_its_end(right: Any, self: Any, count: int) -> Any:
    rest = right(self, count)
    self.until = rest.until
    return rest


@instead_of(Pending, "split")
def rest_of_a_batch_is_dropped(right: Any, self: Any, count: int) -> Any:
    rest = right(self, count)
    rest.set_entries([])
    return rest


@instead_of(backlog, "located")
def restart_is_no_new_epoch(right: Any, since: Any, answer: Any) -> Any:
    found = right(since, answer)
    for one in found:
        one.since, one.until = (place._replace(epoch=since.epoch) for place in (one.since, one.until))
    return found


@instead_of(PieceSize, "failed")
def pieces_stay_as_large_after_a_time_out(right: Any, self: Any, count: int, size: int, timed_out: bool) -> None:
    if not timed_out:
        right(self, count, size, timed_out)


@instead_of(PieceSize, "failed")
def pieces_stay_as_large_whatever_breaks(right: Any, self: Any, count: int, size: int, timed_out: bool) -> None:
    if timed_out:
        right(self, count, size, timed_out)


# A loop


@instead_of(Relay, "fill")
def filled_from_the_end_of_what_is_pending(right: Any, self: Any) -> None:
    self.backlog.fill(self.longpoll.poll(self.backlog.next.ts, 1))


@instead_of(Relay, "fill")
def one_empty_answer_is_believed(right: Any, self: Any) -> None:
    since = self.backlog.checkpoint
    if since.epoch < self.backlog.pending[0].since.epoch:
        right(self)
    else:
        self.backlog.fill(self.longpoll.poll(since.ts, 1))


@instead_of(Relay, "commit_piece")
def pending_dropped_on_a_time_out(right: Any, self: Any, commit: Any) -> None:
    try:
        right(self, commit)
    except RedisTimeout:
        self.backlog.pending.popleft()
        raise


@instead_of(Relay, "poll")
def no_poll_while_something_fails(right: Any, self: Any, failing: bool, commit_time: float) -> None:
    if not failing:
        right(self, failing, commit_time)


@instead_of(Relay, "attempt")
def fatal_drops_memory(right: Any, self: Any, action: Any) -> Any:
    try:
        action()
    except TransientError as error:
        return error
    return None


limit("no poll while draining", relay, "DRAIN_TIME", 1e9)
limit("names wait forever", relay, "NAMES_TIMEOUT", 1e9)


@instead_of(Reports, "holds")
def a_stall_is_not_logged(right: Any, self: Any, held: int, is_pending: bool) -> None:
    pass


@instead_of(Reports, "committed")
def progress_is_not_noted(right: Any, self: Any, commit: Any, outcome: Any, seconds: float) -> None:
    progress_at = self.progress_at
    right(self, commit, outcome, seconds)
    self.progress_at = progress_at


@instead_of(Reports, "committed")
def counted_what_was_offered(right: Any, self: Any, commit: Any, outcome: Any, seconds: float) -> None:
    right(self, commit, outcome._replace(recorded=[one for one in commit.entries if one]), seconds)


# Entries, a long poll


@instead_of(EntryBuilder, "resolve_names")
def name_that_was_given_up_is_cached(right: Any, self: Any, events: Any) -> Any:
    failure = right(self, events)
    self.bus.cache_names({id: Name() for id in ids_to_resolve(events) - self.names.keys()})
    return failure


numbers = itertools.count()


@instead_of(EntryBuilder, "dead_letter")
def dead_letter_known_by_a_number_of_its_own(right: Any, self: Any, update: Any, error: Any) -> Any:
    return DeadLetter(str(next(numbers)), right(self, update, error).fields)


def without_gap(ts: int, answer: Any, error: str) -> Any:
    return answer._replace(since=ts, gap="") if error in answer.gap else answer


@instead_of(LongPoll, "poll")
def gap_of_failed_1_in_silence(right: Any, self: Any, ts: int, wait: int) -> Any:
    return without_gap(ts, right(self, ts, wait), "failed 1")


@instead_of(LongPoll, "poll")
def gap_of_failed_3_in_silence(right: Any, self: Any, ts: int, wait: int) -> Any:
    return without_gap(ts, right(self, ts, wait), "failed 3")


@instead_of(LongPoll, "poll")
def gaps_recorded_one_by_one(right: Any, self: Any, ts: int, wait: int) -> Any:
    failed, answer = self.request(ts, 0)
    is_gap = failed == 1
    return Answer(answer.until, answer.until, [], 0, "forgotten") if is_gap else right(self, ts, wait)


@instead_of(LongPoll, "renew_in_time")
def restart_in_silence_is_not_noticed(right: Any, self: Any, ts: int) -> int:
    right(self, ts)
    return ts


@instead_of(LongPoll, "renew")
def lower_ts_is_believed(right: Any, self: Any) -> int:
    return int(right(self)) - 10


# A bus


@instead_of(Bus, "disconnect")
def failure_does_not_mean_another_redis(right: Any, self: Any) -> None:
    pass


@instead_of(Bus, "read")
def everything_is_sent_again(right: Any, self: Any, ids: Any, *more: Any) -> Any:
    checkpoint, _ = right(self, ids, *more)
    return checkpoint, set(ids)


@instead_of(Bus, "commit")
def gap_without_a_record(right: Any, self: Any, commit: Any) -> Any:
    return right(self, replace(commit, entries=[] if commit.kind == "gap" else commit.entries))


@instead_of(Bus, "commit")
def restore_without_a_record(right: Any, self: Any, commit: Any) -> Any:
    return right(self, replace(commit, entries=[] if commit.kind == "restore" else commit.entries))


@instead_of(Bus, "commit")
def checkpoint_passes_what_is_not_there(right: Any, self: Any, commit: Any) -> Any:
    return right(self, replace(commit, entries=commit.entries[:-1] if len(commit.entries) > 9 else commit.entries))


@instead_of(Store, "call")
def seen_does_not_stop_repetitions(right: Any, self: Any, command: str, *arguments: Any) -> Any:
    answer = right(self, command, *arguments)
    return 1 if command == "ZADD" else answer


limit("seen too short", bus, "DEDUP_WINDOW", 9)

REFUSED, MOVES = "if refused then return refused end", "if moves then redis.call('SET', checkpoint, till) end"
script("checkpoint before events", REFUSED, f"{MOVES}\n{REFUSED}")
script(
    "PUBLISH before writes",
    REFUSED,
    "for _, i in ipairs(entries) do\n"
    "  if ARGV[i + 1] ~= '' then redis.call('PUBLISH', ARGV[i + 1], ARGV[i + 4]) end\n"
    f"end\n{REFUSED}",
)
script("PUBLISH what is in seen", "for _, number in ipairs(recorded) do", "for number in ipairs(entries) do")
script("seen trimmed at the wrong end", "seen, 0, -1 - window)", "seen, window, -1)")
script("late batch moves the checkpoint", "or sortable(till) > sortable(stored)", "or true")
script("batch after a gap is taken", " and sortable(since) <= sortable(stored)", "")
script("positions compared without their epoch", "return ('0'):rep(9 - #epoch) .. epoch .. ", "return ")
script("positions compared without their part", " .. ('0'):rep(9 - #part) .. part", "")
script("batch that seen may have forgotten is taken", "local is_late = ", "local is_late = false and ")
script("gap taken anywhere", "applies = stored == since", "applies = stored == since or kind == 'gap' and stored ~= ''")
script("restore that overwrites", "applies = stored == ''", "applies = true")


@contextmanager
def sabotaged(way: str) -> Iterator[None]:
    """Break the core in this way."""
    owner, name, wrong = WAYS[way]
    whole = inspect.getattr_static(owner, name)
    if isinstance(whole, property):
        broken: Any = property(lambda self: wrong(whole.fget, self))
    elif callable(wrong):

        def broken(*arguments: Any, **named: Any) -> Any:
            return wrong(whole, *arguments, **named)
    else:
        broken = wrong
    setattr(owner, name, broken)
    try:
        yield
    finally:
        setattr(owner, name, whole)


def histories_until_noticed(way: str, first_seed: int, max_histories: int = MAX_HISTORIES) -> tuple[int, str]:
    """Return the number of the history that noticed it, 0 if none did, and how; call this inside simulated()."""
    with sabotaged(way):
        for number in range(1, max_histories + 1):
            if violation := run(first_seed + number - 1).violation:
                return number, violation
    return 0, ""
