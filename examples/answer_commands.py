"""Answer commands in the chat they come from. Live: commands sent while this is not running stay unanswered.

TOKEN is the community's token, with the *messages* right; REDIS_URL is the address of the bus. Both are read from the
environment or from `.env`. Run this in the repository's directory: python -m examples.answer_commands
"""

import os
import sys
import zlib
from contextlib import suppress

from dotenv import load_dotenv
from redis import Redis
from requests import RequestException
from vk_api import VkApi, VkApiError

from fetcher import Event, subscribe

ANSWERS = {
    "help": "I know /help and /start.",
    "start": "Hello, {name}!",
}


def answer(event: Event) -> str | None:
    """Return the answer to a command, whatever its prefix; None if the command is unknown."""
    command = event.message.text[1:].split()[0].lower() if event.message else ""
    return ANSWERS[command].format(name=event.user.firstname) if command in ANSWERS else None


def main() -> None:
    """Answer commands forever."""
    load_dotenv(".env", interpolate=False)
    if not (token := os.environ.get("TOKEN")):
        sys.exit("TOKEN is missing: put the community's token into .env or into the environment.")
    redis = Redis.from_url(os.environ.get("REDIS_URL") or "redis://localhost:6379/0")
    vk = VkApi(token=token, api_version="5.199").get_api()
    for event in subscribe(redis, "command", bus=os.environ.get("BUS") or "events"):
        if text := answer(event):
            # VK sends only one message per random_id, so an event that is published again is not answered again.
            random_id = zlib.crc32(event.event_id.encode()) >> 1
            try:
                # https://dev.vk.com/ru/method/messages.send
                vk.messages.send(peer_id=event.peer.bpid, message=text, random_id=random_id)
            except (VkApiError, RequestException) as error:
                print(f"{event.event_id} stays unanswered: {type(error).__name__}", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # Ctrl-C ends it
        main()
