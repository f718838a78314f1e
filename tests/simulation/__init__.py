"""Whole histories of the real fetcher against a VK and a Redis in memory, under a clock and a scheduler of our own.

    python -m tests.simulation                      # random histories, one minute
    python -m tests.simulation --minutes 10         # 1,000,000 faults and more
    python -m tests.simulation --seed 123           # one history again, with what happened in it
    python -m tests.simulation --exhaustive         # every interleaving of a small world
    python -m tests.simulation --sabotage           # break the core in every known way: each has to be noticed

The loop, the backlog, the entry builder with its names, the bus and the long poll are those of `fetcher`. VK's server,
VK's lookups, redis-py's client with the server behind it, and `time` are replaced. Each fetcher runs in a greenlet that
switches to the scheduler at every request and every sleep.

    world.py       the scheduler, the clock, the life of the fetchers, and what must always hold
    vk.py          VK: its history, its memory, its answers
    store.py       Redis: the real commit.lua on keys in memory, and copies for failovers
    client.py      redis-py's client, with its connections
    chaos.py       what goes wrong at random
    exhaustive.py  every choice of a small world
    sabotage.py    ways to break the core
"""
