"""A consumer's own connection: the one place that uses redis-py below its clients.

A client waits for the reply to each command or pipeline. A consumer must not: it writes the XACK of one event and hands
over the next, or each event would cost a round trip. redis-py's Connection can do that, with its own methods: connect,
pack_commands, send_packed_command, read_response, disconnect. It also leaves the client's pool to the handlers, and
gives replies one form, whatever the client decodes.
"""

from typing import Any

REPLY_TIMEOUT = 10.0  # seconds without a reply after which a connection is in doubt

# Of the client's own options all but these, and none whose name begins with one of those: the core alone retries.
OPTIONS = {"protocol": 2, "decode_responses": False, "health_check_interval": 0}
LEFT_OUT = ("retry", "maint_notifications")


def new_connection(redis: Any, key: str | None, socket_timeout: float | None) -> Any:
    """Make a connection with the client's address and credentials; in a cluster to the key's node, or to any.

    It is not connected yet.
    """
    source = redis
    if hasattr(redis, "get_node_from_key"):
        source = redis.get_node_from_key(key) if key else redis.get_random_node()
    if hasattr(redis, "get_redis_connection"):
        source = redis.get_redis_connection(source)
    # A cluster's node in redis.asyncio has no pool, but is like one.
    source = getattr(source, "connection_pool", source)
    options = {name: value for name, value in source.connection_kwargs.items() if not name.startswith(LEFT_OUT)}
    return source.connection_class(**options | OPTIONS | {"socket_timeout": socket_timeout})
