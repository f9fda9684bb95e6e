// The ollama package takes this server for Ollama: all methods that a server of one's own answers.
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { Ollama } from "ollama";
import { all, checkArguments, makeCaller, norm, QUESTION, REGISTRY, SCHEMA, TOOLS, untilIdle, URL_OF_SERVER } from "./shared.mjs";

const client = new Ollama({ host: URL_OF_SERVER });
const LONG = { temperature: 0, num_predict: 250 }; // the demo model is fond of empty lines between values
const SHORT = { temperature: 0, num_predict: 6 };
before(makeCaller);

test("version", async () => {
  assert.match((await client.version()).version, /^\d+\.\d+\.\d+/);
});

test("list, show, ps", async () => {
  const model = (await client.list()).models.find((found) => found.name === "demo:latest");
  assert.equal(model.model, "demo:latest");
  assert.ok(model.size > 0 && model.digest.length === 64 && new Date(model.modified_at) < new Date());
  const shown = await client.show({ model: "demo" });
  assert.deepEqual(shown.capabilities, ["completion"]);
  assert.equal(shown.model_info["llama.context_length"], 2048);
  assert.match(shown.modelfile, /FROM/);
  assert.equal((await client.generate({ model: "demo", prompt: "", keep_alive: "10m" })).done_reason, "load");
  const running = (await client.ps()).models.find((found) => found.name === "demo:latest");
  assert.ok(running.size > 0 && new Date(running.expires_at) > new Date());
});

test("generate, whole and streamed", async () => {
  const asked = { model: "demo", prompt: "import os\n", raw: true, options: SHORT };
  const whole = await client.generate(asked);
  assert.deepEqual([whole.done, whole.done_reason, whole.eval_count], [true, "length", 6]);
  const parts = await all(await client.generate({ ...asked, stream: true }));
  assert.equal(parts.map((part) => part.response).join(""), whole.response);
  assert.deepEqual(parts.map((part) => part.done), [...Array(parts.length - 1).fill(false), true]);
});

test("chat, whole and streamed", async () => {
  const asked = { model: "demo", messages: QUESTION, options: SHORT };
  const whole = await client.chat(asked);
  assert.equal(whole.message.role, "assistant");
  const parts = await all(await client.chat({ ...asked, stream: true }));
  assert.equal(parts.map((part) => part.message.content).join(""), whole.message.content);
  assert.equal(parts.at(-1).eval_count, 6);
  const history = [...QUESTION, whole.message, ...QUESTION];
  assert.ok((await client.chat({ ...asked, messages: history, think: false, format: "", keep_alive: 60 })).done);
});

test("logprobs", async () => {
  const asked = { model: "demo", messages: QUESTION, options: SHORT, logprobs: true, top_logprobs: 2 };
  const { message, logprobs } = await client.chat(asked);
  assert.equal(logprobs.map((entry) => entry.token).join(""), message.content);
  assert.ok(logprobs.every((entry) => entry.top_logprobs.length === 2 && entry.logprob <= 0));
});

test("answers in the form of a schema", async () => {
  const { message } = await client.chat({ model: "demo", messages: QUESTION, format: SCHEMA, options: LONG });
  assert.equal(typeof JSON.parse(message.content).yes, "boolean");
  const { response } = await client.generate({ model: "demo", prompt: "import os\n", format: SCHEMA, options: LONG });
  assert.equal(typeof JSON.parse(response).yes, "boolean");
});

test("tools, whole and streamed, and their results", async () => {
  const asked = { model: "caller", messages: QUESTION, tools: TOOLS, options: LONG };
  const forced = { ...asked, tool_choice: "required", parallel_tool_calls: false };
  assert.ok((await client.show({ model: "caller" })).capabilities.includes("tools"));
  const { message } = await client.chat(forced);
  assert.equal(message.tool_calls.length, 1);
  assert.equal(message.tool_calls[0].function.name, "weather");
  checkArguments(message.tool_calls[0].function.arguments);
  const parts = await all(await client.chat({ ...forced, stream: true }));
  const streamed = parts.flatMap((part) => part.message.tool_calls ?? []);
  assert.deepEqual(streamed[0].function.arguments, message.tool_calls[0].function.arguments);
  const result = { role: "tool", content: "sunny", tool_name: "weather" };
  const again = await client.chat({ ...asked, messages: [...QUESTION, message, result] });
  assert.ok(again.prompt_eval_count > (await client.chat(asked)).prompt_eval_count);
});

test("embed and embeddings", async () => {
  const { embeddings } = await client.embed({ model: "demo", input: ["import os", "def close(self):"] });
  assert.deepEqual(embeddings.map((vector) => vector.length), [256, 256]);
  for (const vector of embeddings) assert.ok(Math.abs(norm(vector) - 1) < 1e-4);
  const short = await client.embed({ model: "demo", input: "import os", dimensions: 8, truncate: true });
  assert.equal(short.embeddings[0].length, 8);
  const { embedding } = await client.embeddings({ model: "demo", prompt: "import os" });
  embedding.forEach((x, at) => assert.ok(Math.abs(x / norm(embedding) - embeddings[0][at]) < 1e-3));
});

test("abort of one stream, and of all", async () => {
  const asked = { model: "demo", prompt: "import os\n", raw: true, stream: true, options: { num_predict: 2000 } };
  const one = await client.generate(asked);
  await assert.rejects(async () => {
    for await (const part of one) if (part.response) one.abort();
  }, { name: "AbortError" });
  const streams = await Promise.all([client.generate({ ...asked }), client.generate({ ...asked })]);
  const ends = streams.map((stream) => assert.rejects(all(stream), { name: "AbortError" }));
  client.abort();
  await Promise.all(ends);
  await untilIdle();
  assert.equal((await client.generate({ ...asked, stream: false, options: SHORT })).eval_count, 6);
});

test("create, copy, delete", async () => {
  const wanted = { model: "brief-js", from: "demo", system: "Be brief.", parameters: { num_predict: 3 } };
  const steps = await all(await client.create({ ...wanted, stream: true }));
  assert.equal(steps.at(-1).status, "success");
  assert.ok((await client.generate({ model: "brief-js", prompt: "x" })).eval_count <= 3);
  assert.equal((await client.create(wanted)).status, "success");
  assert.equal((await client.copy({ source: "brief-js", destination: "short-js" })).status, "success");
  for (const model of ["brief-js", "short-js"]) {
    assert.equal((await client.delete({ model })).status, "success");
    await assert.rejects(client.delete({ model }), { error: `model '${model}' not found`, status_code: 404 });
  }
});

test("push and pull", async () => {
  const model = `${REGISTRY}/library/pushed-js:latest`;
  await client.create({ model, from: "demo", system: "Be brief." });
  const pushed = await all(await client.push({ model, insecure: true, stream: true }));
  assert.equal(pushed.at(-1).status, "success");
  await client.delete({ model });
  const pulled = await all(await client.pull({ model, insecure: true, stream: true }));
  assert.equal(pulled[0].status, "pulling manifest");
  assert.ok(pulled.some((part) => part.total > 0));
  assert.equal(pulled.at(-1).status, "success");
  assert.equal((await client.pull({ model, insecure: true })).status, "success");
  assert.equal((await client.generate({ model, prompt: "x", options: SHORT })).done, true);
  await client.delete({ model });
});

const FULL = "registry.ollama.ai/library/demo:latest";
for (const [call, status_code, error] of [
  [() => client.show({ model: "nope" }), 404, "model 'nope' not found"],
  [() => client.generate({ model: "nope", prompt: "x", stream: true }), 404, "model 'nope' not found"],
  [() => client.chat({ model: "demo", messages: QUESTION, tools: TOOLS }), 400, `${FULL} does not support tools`],
  [() => client.generate({ model: "demo", prompt: "x", images: [new Uint8Array([1])] }), 400, `${FULL} does not support vision`],
  [() => client.chat({ model: "demo", messages: QUESTION, think: true }), 400, '"demo" does not support thinking'],
  [() => client.embed({ model: "nope", input: "x" }), 404, 'model "nope" not found, try pulling it first'],
]) {
  test(`the error: ${error}`, async () => {
    await assert.rejects(call, { name: "ResponseError", status_code, error });
  });
}
