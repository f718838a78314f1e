// A durable consumer for Node.js 18 or later: npm install && node consumer.mjs node-1
// It exits when Redis goes away, so run it under a supervisor. After a restart it begins with the event that it was
// handling.
import { createClient } from "redis";

const stream = "events", group = "node", consumer = process.argv[2] ?? "node-1";
const redis = createClient({ url: process.env.REDIS_URL ?? "redis://localhost:6379/0" });
redis.on("error", (error) => console.error(`Redis: ${error.message}`)); // without a listener, Node.js throws it
await redis.connect();

// fetcher/event.schema.json describes the fields of an event.
function handle(event) {
  const { message, button, reaction } = event;
  console.log(event.event_type, event.user.name, JSON.stringify(message ?? button ?? reaction));
}

async function createGroup() {
  try {
    await redis.xGroupCreate(stream, group, "$", { MKSTREAM: true }); // "$": only new events; "0": all that are kept
  } catch (error) {
    if (!error.message.startsWith("BUSYGROUP")) throw error; // the group already exists
  }
}

// Return an entry: [id, [field, value]], or [id, null] if it was trimmed from the stream. The client's own xReadGroup
// throws if an entry was trimmed, so the commands go through sendCommand.
async function next(from) {
  const read = ["XREADGROUP", "GROUP", group, consumer, "COUNT", "1", "BLOCK", "1000", "STREAMS", stream, from];
  const [entry] = (await redis.sendCommand(read))?.[0][1] ?? [];
  if (entry || from !== ">") return entry;
  const [, [left]] = await redis.sendCommand(["XAUTOCLAIM", stream, group, consumer, "60000", "0", "COUNT", "1"]);
  return left; // an entry that a consumer left unacknowledged more than a minute ago
}

await createGroup();
for (let from = "0"; ; ) { // "0": entries that this consumer has not acknowledged; ">": new entries
  const entry = await next(from);
  if (entry) {
    const [id, fields] = entry;
    if (fields) handle(JSON.parse(fields[1]));
    await redis.xAck(stream, group, id);
  } else {
    from = ">";
  }
}

// To get live events instead, those that are published while this is listening:
//   await redis.subscribe(["events:command", "events:button"], (text) => handle(JSON.parse(text)));
//   await redis.pSubscribe("events:*", (text) => handle(JSON.parse(text)));
