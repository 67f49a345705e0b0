// The npm package `eventsource` as it comes: tells each event in a line, its name and its data.
import { EventSource } from "eventsource";

// While it waits before it comes back, it does not keep a program alive that has no other work.
setInterval(() => {}, 60_000);

const source = new EventSource(process.argv[2]);
for (const name of ["CONNECTED", "MESSAGE", "GAP", "SERVER_SHUTDOWN", "message"]) {
  source.addEventListener(name, (event) => console.log(`${name}\t${event.data}`));
}
