"""The event as bots make it: the keys of our contract, taken from the update without any checks."""

from typing import Any


def event(update: dict[str, Any], user: dict[str, Any], title: str) -> dict[str, Any]:
    """Return the update as an event, with the person as VK returns it and the title of the chat."""
    contents = update["object"]
    message = contents.get("message", contents)
    peer = message["peer_id"]
    first, last = user["first_name"], user["last_name"]
    made: dict[str, Any] = {
        "event_type": kind(update),
        "event_id": update["event_id"],
        "user": {"uuid": user["id"], "name": f"{first} {last}", "firstname": first, "lastname": last,
                 "nick": user["domain"]},
        "peer": {"bpid": peer, "cid": max(peer - 2000000000, 0), "name": title},
    }  # fmt: skip
    cmid = message.get("conversation_message_id", message.get("cmid"))
    match update["type"]:
        case "message_new":
            reply = message.get("reply_message")
            made["message"] = {
                "cmid": cmid, "text": message["text"],
                "reply": reply and {"cmid": reply["conversation_message_id"], "text": reply["text"]},
                "forward": [
                    {"cmid": one["conversation_message_id"], "text": one["text"]} for one in message["fwd_messages"]
                ],
                "attachments": [one["type"] for one in message["attachments"]],
            }  # fmt: skip
        case "message_event":
            made["button"] = {"cmid": cmid, "beid": message["event_id"], "payload": message["payload"]}
        case "message_reaction_event":
            made["reaction"] = {"cmid": cmid, "rid": message.get("reaction_id", 0)}
    return made


def kind(update: dict[str, Any]) -> str:
    """Return the type of the event."""
    if update["type"] == "message_new":
        return "command" if update["object"]["message"]["text"].startswith(("/", "!")) else "message"
    return {"message_event": "button", "message_reaction_event": "reaction"}[update["type"]]


def who_and_where(update: dict[str, Any]) -> tuple[int, int]:
    """Return the ids of the person and of the peer."""
    contents = update["object"]
    message = contents.get("message", contents)
    return message.get("from_id") or message.get("user_id") or message["reacted_id"], message["peer_id"]
