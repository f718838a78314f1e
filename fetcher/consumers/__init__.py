"""The other end of the bus, written once in coroutines, for programs that block and for those that do not.

`consumer` is what live and durable consumers share, `live` and `durable` say what to request and what the answers mean,
`connection` writes and reads. With a client that blocks, its coroutines never suspend, so `blocking` runs them without
an event loop; `fetcher.asyncio` leaves them to asyncio.
"""
