"""The other end of the bus: one core without I/O, and two drivers that do what it says.

`steps` is what the core and a driver say to each other. `live` and `durable` are the core. `blocking` is one driver,
`fetcher.asyncio` the other; `connection` is what both need of redis-py.
"""
