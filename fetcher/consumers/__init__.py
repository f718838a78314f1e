"""The consumers of the bus, written once as coroutines, for both blocking and asynchronous programs.

`consumer` holds what all consumers share, and live consumers; `durable` holds durable ones. Both decide which commands
to send and what the replies mean; `connection` writes the commands and reads the replies. With a blocking client the
coroutines never suspend, so `blocking` runs them without an event loop; `fetcher.asyncio` leaves them to asyncio.
"""
