// A durable consumer for Node.js 18 and newer: npm install && node consumer.mjs node-1
// It exits when Redis goes away. Run it under a supervisor: after a restart it gets the current event again, first.
import { createClient } from "redis";

const stream = "events", group = "node", consumer = process.argv[2] ?? "node-1";
const redis = createClient({ url: process.env.REDIS_URL ?? "redis://localhost:6379/0" });
redis.on("error", (error) => console.error(`Redis: ${error.message}`)); // without a listener it would be thrown
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
    if (!error.message.startsWith("BUSYGROUP")) throw error; // it exists already
  }
}

// An entry is [id, [field, value]], or [id, null] if it was trimmed from the stream: then the client's own xReadGroup
// throws, so the commands are sent as they are.
async function next(from) {
  const read = ["XREADGROUP", "GROUP", group, consumer, "COUNT", "1", "BLOCK", "1000", "STREAMS", stream, from];
  const [entry] = (await redis.sendCommand(read))?.[0][1] ?? [];
  if (entry || from !== ">") return entry;
  const [, [left]] = await redis.sendCommand(["XAUTOCLAIM", stream, group, consumer, "60000", "0", "COUNT", "1"]);
  return left; // by any consumer, more than a minute ago
}

await createGroup();
for (let from = "0"; ; ) { // "0": what this consumer had and did not acknowledge; ">": new events
  const entry = await next(from);
  if (entry) {
    const [id, fields] = entry;
    if (fields) handle(JSON.parse(fields[1]));
    await redis.xAck(stream, group, id);
  } else {
    from = ">";
  }
}

// Live instead, what is published while this listens:
//   await redis.subscribe(["events:command", "events:button"], (text) => handle(JSON.parse(text)));
//   await redis.pSubscribe("events:*", (text) => handle(JSON.parse(text)));
