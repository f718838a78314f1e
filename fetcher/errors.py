"""What can go wrong, in classes that the loop distinguishes. Messages hold no token, key or password."""


class TransientError(Exception):
    """VK or the network failed this time; the loop tries again."""


class MalformedResponse(TransientError):
    """VK's long poll answered, and the answer cannot be read."""


class CallFailed(TransientError):
    """A call in a request failed this time, or all of them together were too much; VK may answer the others."""


class RequestRejected(TransientError):
    """VK refuses this request, now and later."""


class RedisUnavailable(TransientError):
    """Redis cannot be reached, or does not take writes now; whether the request took effect is unknown."""


class RedisTimeout(RedisUnavailable):
    """Redis did not answer in time."""


class ConnectionReplaced(Exception):
    """The Redis client has replaced a closed connection; nothing was sent, as the new server may lack something."""


class FatalError(Exception):
    """Only the operator can fix this; the message says how."""


class VkFatalError(FatalError):
    """VK refuses the token, the right or the community."""


class RedisFatalError(FatalError):
    """Redis refuses the user, a permission or a key."""


Failure = TransientError | FatalError | None
