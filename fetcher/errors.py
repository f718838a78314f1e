"""Exceptions, divided by how the loop reacts to them. Their messages contain no token, key or password."""


class TransientError(Exception):
    """VK or the network failed this time; the loop tries again."""


class MalformedResponse(TransientError):
    """VK's long poll answered, but the answer cannot be read."""


class CallFailed(TransientError):
    """A call inside an `execute` failed this time, or its calls together were too large; VK may answer the others."""


class RequestRejected(TransientError):
    """VK refuses this request, and would refuse it again."""


class RedisUnavailable(TransientError):
    """Redis cannot be reached or refuses the request for now; it is unknown whether the request took effect."""


class RedisTimeout(RedisUnavailable):
    """Redis did not answer in time."""


class ConnectionReplaced(Exception):
    """The client has replaced a closed connection; the request was not sent, as the new server may lack something."""


class FatalError(Exception):
    """Only the operator can fix this; the message says how."""


class RedisFatalError(FatalError):
    """Redis refuses the user, a permission, a key or the database."""


Failure = TransientError | FatalError | None
