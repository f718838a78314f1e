// A durable consumer for Node.js 18 and newer: npm install && node consumer.mjs node-1
// Where Redis goes away it ends; run it under something that starts it again: what it had in hand then comes first.
import { createClient } from "redis";

const stream = "events", group = "node", consumer = process.argv[2] ?? "node-1";
const redis = createClient({ url: process.env.REDIS_URL ?? "redis://localhost:6379/0" });
redis.on("error", (error) => console.error(`Redis: ${error.message}`)); // the client connects again by itself
await redis.connect();

// The fields of an event: event.schema.json
function handle(event) {
  const { message, button, reaction } = event;
  console.log(event.event_type, event.user.name, JSON.stringify(message ?? button ?? reaction));
}

async function createGroup() {
  try {
    await redis.xGroupCreate(stream, group, "$", { MKSTREAM: true }); // "$": new events; "0": all that is kept
  } catch (error) {
    if (!error.message.startsWith("BUSYGROUP")) throw error; // it is there already
  }
}

async function next(from) {
  const [found] = (await redis.xReadGroup(group, consumer, { key: stream, id: from }, { COUNT: 1, BLOCK: 1000 })) ?? [];
  if (found?.messages.length) return found.messages[0];
  if (from === ">") return (await redis.xAutoClaim(stream, group, consumer, 60_000, "0", { COUNT: 1 })).messages[0];
}

await createGroup();
for (let from = "0"; ; ) { // "0": what this consumer had and did not acknowledge; ">": new events
  const entry = await next(from);
  if (entry) {
    if (entry.message?.event) handle(JSON.parse(entry.message.event)); // else it was trimmed from the stream
    await redis.xAck(stream, group, entry.id);
  } else {
    from = ">"; // and what others left for a minute, when there is nothing new
  }
}

// Live instead, what is published while this listens:
//   await redis.subscribe(["events:command", "events:button"], (text) => handle(JSON.parse(text)));
//   await redis.pSubscribe("events:*", (text) => handle(JSON.parse(text)));
