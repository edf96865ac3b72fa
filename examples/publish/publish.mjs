// Publishes GitHub's example payloads (npm package @octokit/webhooks-examples) to Posthorn, one event a
// request, with the token of a ServiceAccount: what a service of yours would do.
//
//   npm install --no-package-lock
//   POSTHORN_TOKEN=$(kubectl create token publisher -n posthorn-demo --audience posthorn) \
//     node publish.mjs http://localhost:8080 posthorn-demo
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { setTimeout as pause } from "node:timers/promises";

const ATTEMPTS = 10;
const PARALLEL = 8;

const [url, namespace] = process.argv.slice(2);
const token = process.env.POSTHORN_TOKEN;
if (!url || !namespace || !token) {
  console.error("usage: POSTHORN_TOKEN=… node publish.mjs URL NAMESPACE");
  process.exit(2);
}

const examples = createRequire(import.meta.url).resolve("@octokit/webhooks-examples/package.json");
const index = JSON.parse(readFileSync(examples.replace("package.json", "api.github.com/index.json"), "utf8"));
const events = index.flatMap(({ name, examples }) => examples.map((data) => ({ type: `github.${name}`, data })));

// Connection errors, 429 and 503 are tried again with the same id, so that nothing is published twice.
async function publish(event, number) {
  const body = JSON.stringify({ id: `example-${process.pid}-${number}`, source: "https://github.com", ...event });
  for (let attempt = 1; ; attempt += 1) {
    try {
      const answer = await fetch(`${url}/v1/namespaces/${namespace}/events`, {
        method: "POST",
        headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
        body,
      });
      if (answer.status === 202) return answer.json();
      if (![429, 503].includes(answer.status) || attempt === ATTEMPTS) {
        throw new Error(`${event.type}: ${answer.status} ${await answer.text()}`, { cause: "answer" });
      }
    } catch (error) {
      if (error.cause === "answer" || attempt === ATTEMPTS) throw error;
    }
    await pause(200 * attempt);
  }
}

const counts = {};
let next = 0;
async function worker() {
  while (next < events.length) {
    const number = next++;
    await publish(events[number], number);
    counts[events[number].type] = (counts[events[number].type] ?? 0) + 1;
  }
}
await Promise.all(Array.from({ length: PARALLEL }, worker));
console.log(JSON.stringify({ published: events.length, byType: counts }));
