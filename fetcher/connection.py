"""Temporary."""

from redis import Redis, RedisCluster
from redis.exceptions import NoPermissionError


def connect(url, on_connect=None, **options):
    def hook(connection):
        connection.on_connect()
        if on_connect:
            on_connect()

    client = Redis.from_url(url, single_connection_client=True, redis_connect_func=hook, **options)
    try:
        clustered = client.info("cluster").get("cluster_enabled")
    except NoPermissionError:
        clustered = False
    return (
        RedisCluster.from_url(url, redis_connect_func=lambda c: on_connect and on_connect(), **options)
        if clustered
        else client
    )


def check(url):
    import redis

    redis.ConnectionPool.from_url(url).make_connection()


def passwords(url):
    import redis
    from urllib.parse import urlsplit

    return [
        p for p in (redis.ConnectionPool.from_url(url).connection_kwargs.get("password"), urlsplit(url).password) if p
    ]
