"""Ways to break the core, one at a time: a simulation that notices none of them would prove nothing.

Each is an edit of the source of one function, made in memory. An edit that no longer fits its source is an error.
"""

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from fetcher.core import entries
from fetcher.core.backlog import Backlog
from fetcher.core.names import Directory
from fetcher.core.relay import Relay
from fetcher.vk.longpoll import LongPoll

from .chaos import play
from .store import Store

MAX_HISTORIES = 2000  # in which a sabotage has to be noticed


class Sabotage(NamedTuple):
    """An edit: the function `name` of `owner` gets `new` in place of `old`."""

    owner: Any
    name: str
    old: str
    new: str


WAYS = {
    "drop on conflict": Sabotage(Backlog, "_find_hole", "self.hole = checkpoint", "self.pending.clear()"),
    "no recent batches": Sabotage(Backlog, "_remember", "self.recent.append(done)", "return"),
    "recent not committed again": Sabotage(Backlog, "connected", "self._recall(list(self.recent))", "pass"),
    "late batches not remembered": Sabotage(Backlog, "_remember", ', "late")', ")"),
    "late batches fill holes": Sabotage(Backlog, "_find_hole", 'if one.kind == "repeat"', ""),
    "gap not bounded by what is pending": Sabotage(
        Backlog, "fill", "answer.until if inside else first.since", "answer.until"
    ),
    "gap back into the time before": Sabotage(Backlog, "fill", "and is_after(answer.until, hole) and not", "and not"),
    "hole filled from next_ts": Sabotage(
        Relay, "fill", "self.longpoll.poll(hole, 1)", "self.longpoll.poll(self.backlog.next_ts, 1)"
    ),
    "VK is not asked how far it is": Sabotage(Backlog, "in_doubt", "return bool(ends) and", "return False and"),
    "late decided by one empty answer": Sabotage(
        Relay, "fill", "if empty and is_after(self.longpoll.renew(), hole):", "if False:"
    ),
    "poll from the checkpoint while pending": Sabotage(
        Backlog, "next_ts", "return checkpoint if past and not self.in_doubt else last.until", "return checkpoint"
    ),
    "parts counted after a failover": Sabotage(Backlog, "connected", "one.committed = 0", "pass"),
    "part of a batch completes it": Sabotage(
        Backlog, "next_commit", "before + entries, 0, 0, size", "before + entries, 1, keep, size"
    ),
    "part of a batch moves the checkpoint": Sabotage(Store, "moves", " and keep > 0", ""),
    "part before not asked for": Sabotage(Store, "commit", "if events and not events[0][2]", "if False"),
    "merge of batches with a hole between": Sabotage(Backlog, "next_commit", " or one.since != last.until", ""),
    "merge into a batch that is built": Sabotage(Backlog, "add", " and last.entries is None", ""),
    "pending popped on time-out": Sabotage(
        Relay, "commit_piece", "shrink_piece()\n        raise", "pending.popleft()\n        raise"
    ),
    "memory without bounds": Sabotage(Relay, "poll", "while not self.backlog.is_full", "while True"),
    "no poll while draining": Sabotage(Relay, "commit", "if time.monotonic() >= deadline:", "if False:"),
    "no poll while Redis is away": Sabotage(Relay, "step", "self.poll(bool(errors))", "errors or self.poll(False)"),
    "fatal drops memory": Sabotage(Relay, "run", " and not self.backlog.pending", ""),
    "names wait for ever": Sabotage(Relay, "build", "bool(overdue)", "False"),
    "given-up name cached": Sabotage(
        Directory, "with_names", "named = list", "self.uncached |= dict.fromkeys(missing, Name())\n    named = list"
    ),
    "dead letter known by a number of its own": Sabotage(
        entries,
        "dead_letter",
        'id = f"sha256:{sha256(raw.encode()).hexdigest()}"',
        "dead_letter.n = getattr(dead_letter, 'n', 0) + 1; id = str(dead_letter.n)",
    ),
    "gap of failed 1 not told": Sabotage(
        LongPoll,
        "poll",
        'Gap(ts, answer["ts"], "VK has forgotten the updates between (failed 1)")',
        "Batch(ts, answer['ts'], [])",
    ),
    "failed 3 in silence": Sabotage(
        LongPoll,
        "poll",
        'Gap(ts, self.renew(), "VK has forgotten the updates between (failed 3)")',
        "Batch(ts, self.renew(), [])",
    ),
    "a failure does not mean another Redis": Sabotage(Relay, "step", "self.bus.reconnected = True", "pass"),
    "checkpoint before events": Sabotage(
        Store, "commit", "if why := self.refused():", "if moves: self.checkpoint = until\n    if why := self.refused():"
    ),
    "PUBLISH before writes": Sabotage(
        Store,
        "commit",
        "if why := self.refused():",
        "self.published += [event[1:] for event in events if event[0] not in self.seen]\n    if why := self.refused():",
    ),
    "PUBLISH what is in seen": Sabotage(Store, "write", "channel, text in new]", "channel, text in events]"),
    "seen too short": Sabotage(Store, "commit", "len(self.seen) - keep)", "len(self.seen) - keep // 20)"),
    "seen trimmed at the wrong end": Sabotage(Store, "commit", "[: max(0, len(self.seen) - keep)]", "[keep:]"),
    "late batch moves the checkpoint": Sabotage(Store, "moves", 'kind != "late" and ', ""),
    "batch after a hole is taken": Sabotage(Store, "is_missing", "int(since) > int(stored)", "False"),
    "batch that seen may have forgotten is taken": Sabotage(
        Store, "is_forgotten", "behind >= window / 2 and len(self.seen) >= window", "False"
    ),
    "gap taken anywhere": Sabotage(Store, "commit", "if stored != since:", "if False:"),
    "gap without a record": Sabotage(Store, "add_letter", "if not known or (", "if id and not known or ("),
    "restore without a record": Sabotage(
        Store, "commit", "self.write(events, letters,", "self.write(events, [] if kind == 'restore' else letters,"
    ),
    "restore that overwrites": Sabotage(
        Store, "commit", 'if kind == "restore":\n        if stored:', 'if kind == "restore":\n        if False:'
    ),
}

SEEDS = {
    "drop on conflict": 6,
    "no recent batches": 6,
    "recent not committed again": 8,
    "late batches not remembered": 39,
    "late batches fill holes": 35,
    "gap not bounded by what is pending": 8,
    "gap back into the time before": 74,
    "hole filled from next_ts": 6,
    "VK is not asked how far it is": 437,
    "late decided by one empty answer": 551,
    "poll from the checkpoint while pending": 7,
    "parts counted after a failover": 8,
    "part of a batch completes it": 0,
    "part of a batch moves the checkpoint": 0,
    "part before not asked for": 355,
    "merge of batches with a hole between": 6,
    "merge into a batch that is built": 4,
    "pending popped on time-out": 10,
    "memory without bounds": 0,
    "no poll while draining": 33,
    "no poll while Redis is away": 0,
    "fatal drops memory": 0,
    "names wait for ever": 13,
    "given-up name cached": 13,
    "dead letter known by a number of its own": 6,
    "gap of failed 1 not told": 0,
    "failed 3 in silence": 16,
    "a failure does not mean another Redis": 76,
    "checkpoint before events": 30,
    "PUBLISH before writes": 1,
    "PUBLISH what is in seen": 1,
    "seen too short": 41,
    "seen trimmed at the wrong end": 41,
    "late batch moves the checkpoint": 13,
    "batch after a hole is taken": 6,
    "batch that seen may have forgotten is taken": 171,
    "gap taken anywhere": 7,
    "gap without a record": 0,
    "restore without a record": 0,
    "restore that overwrites": 614,
}  # a history that notices each of them


@contextmanager
def sabotaged(way: str) -> Iterator[None]:
    """Break the core in this way."""
    owner, name, old, new = WAYS[way]
    whole = inspect.getattr_static(owner, name)
    function: Any = whole.fget if isinstance(whole, property) else whole
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(old) != 1:
        raise ValueError(f"the sabotage {way!r} does not fit {name}() any more")
    names: dict[str, Any] = {}
    exec(compile(source.replace(old, new), f"<sabotage: {way}>", "exec"), function.__globals__, names)
    setattr(owner, name, names[name])
    try:
        yield
    finally:
        setattr(owner, name, whole)


def histories_until_noticed(way: str, first_seed: int, most: int = MAX_HISTORIES) -> tuple[int, str]:
    """Return in which history it was noticed, and how; 0 if in none. The clock and the seams have to be in place."""
    with sabotaged(way):
        for number in range(1, most + 1):
            if violation := play(first_seed + number - 1).violation:
                return number, violation
    return 0, ""
