"""What may go wrong, as the loop tells it apart. Messages are safe to print: no token, key or password in them."""


class Trouble(Exception):
    """What passes by itself: VK or the network failed this time, and the loop tries again."""


class Unreadable(Trouble):
    """VK's long poll answered, and the answer cannot be read."""


class Away(Trouble):
    """Redis is not there, or does not take anything now."""


class Fatal(Exception):
    """What only the operator can mend; the message says how."""
