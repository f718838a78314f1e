"""Stand in for watch.py: an event in one line for people."""

import json

from .events import Event, Message


def describe(event: Event) -> str:
    """Return the event in one line for people."""
    where = f"in «{event.peer.name}»" if event.peer.cid else "in private"
    if event.message:
        what = contents(event.message)
    elif event.button:
        what = f"pressed {json.dumps(event.button.payload, ensure_ascii=False)} below message {event.button.cmid}"
    elif event.reaction and event.reaction.rid:
        what = f"reaction {event.reaction.rid} to message {event.reaction.cmid}"
    else:
        what = f"took back the reaction to message {event.reaction and event.reaction.cmid}"
    return f"{event.event_type:8} {event.user.name} (@{event.user.nick}) {where}: {what}"


def contents(message: Message) -> str:
    """Return what the message consists of."""
    parts = [message.text] if message.text else []
    parts += [f"[{', '.join(message.attachments)}]"] if message.attachments else []
    parts += [f"(in reply to «{message.reply.text}»)"] if message.reply else []
    parts += [f"(forwards «{forward.text}»)" for forward in message.forward]
    return " ".join(parts) or "(no text)"
