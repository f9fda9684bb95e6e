// What the tests of all clients share: the server, a model that calls tools, and what to ask.
import assert from "node:assert/strict";

export const URL_OF_SERVER = process.env.OLLAMPI_URL;
export const REGISTRY = process.env.OLLAMPI_REGISTRY;
export const QUESTION = [{ role: "user", content: "Write the function close. Close the file." }];
export const PARAMETERS = {
  type: "object",
  properties: {
    city: { type: "string", maxLength: 12 },
    days: { type: "integer", minimum: 1, maximum: 5 },
  },
  required: ["city", "days"],
  additionalProperties: false,
};
export const TOOLS = [{ type: "function", function: { name: "weather", description: "d", parameters: PARAMETERS } }];
export const SCHEMA = { type: "object", properties: { yes: { type: "boolean" } }, required: ["yes"], additionalProperties: false };
// Says in Ollama's language that a model knows tools and thoughts; ours find calls as Hermes writes them.
const TEMPLATE = `{{ range .Tools }}{{ . }}{{ end }}{{ range .Messages }}{{ .Role }}: {{ .Content }}
{{ range .ToolCalls }}<tool_call>
{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
</tool_call>
{{ end }}{{ end }}assistant:{{ if .Think }}<think>{{ .Thinking }}</think>{{ end }}`;

// Make `caller` of demo, which answers with calls of tools where these are forced.
export async function makeCaller() {
  const body = { model: "caller", from: "demo", template: TEMPLATE, stream: false };
  const answer = await fetch(`${URL_OF_SERVER}/api/create`, { method: "POST", body: JSON.stringify(body) });
  assert.equal(answer.status, 200, await answer.text());
}

export function checkArguments(values) {
  assert.deepEqual(Object.keys(values).sort(), ["city", "days"]);
  assert.equal(typeof values.city, "string");
  assert.ok([...values.city].length <= 12);
  assert.ok(values.days >= 1 && values.days <= 5);
}

// Return what Ollama's route answers to the question, greedily, in `count` tokens.
export async function expectedText(count) {
  const options = { temperature: 0, num_predict: count };
  const body = { model: "demo", messages: QUESTION, stream: false, options };
  const answer = await fetch(`${URL_OF_SERVER}/api/chat`, { method: "POST", body: JSON.stringify(body) });
  assert.equal(answer.status, 200);
  return (await answer.json()).message.content;
}

export function norm(vector) {
  return Math.sqrt(vector.reduce((sum, x) => sum + x * x, 0));
}

// Return all parts of a stream.
export async function all(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

// Wait until the server works on no request any more; a client that left is seen soon, not at once.
export async function untilIdle() {
  for (let tries = 0; tries < 200; tries++) {
    const text = await (await fetch(`${URL_OF_SERVER}/metrics`)).text();
    const running = [...text.matchAll(/^ollampi_requests_(?:running|waiting){[^}]*} (\S+)$/gm)];
    assert.ok(running.length > 0, "/metrics tells how many requests are running");
    if (running.every((found) => Number(found[1]) === 0)) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  assert.fail("a request that its client left is still running after 10 s");
}
