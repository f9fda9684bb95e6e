// The openai package takes this server for OpenAI: chat, completions, embeddings, models, responses.
import assert from "node:assert/strict";
import { before, test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { all, checkArguments, expectedText, makeCaller, norm, PARAMETERS, QUESTION, TOOLS, untilIdle, URL_OF_SERVER } from "./shared.mjs";

const client = new OpenAI({ baseURL: `${URL_OF_SERVER}/v1`, apiKey: "none", maxRetries: 0 });
const ASKED = { model: "demo", messages: QUESTION, temperature: 0, max_completion_tokens: 24 };
const FORCED = { model: "caller", messages: QUESTION, tools: TOOLS, tool_choice: "required", temperature: 0,
  parallel_tool_calls: false, max_tokens: 250 };
const FLAT_TOOLS = [{ type: "function", name: "weather", description: "d", parameters: PARAMETERS, strict: true }];
const Small = z.object({ yes: z.boolean() });
let expected;
before(async () => {
  await makeCaller();
  expected = await expectedText(24);
});

test("models", async () => {
  assert.ok((await all(client.models.list())).some((model) => model.id === "demo:latest"));
  assert.equal((await client.models.retrieve("demo")).object, "model");
  await assert.rejects(client.models.retrieve("nope"), OpenAI.NotFoundError);
});

test("chat", async () => {
  const answer = await client.chat.completions.create(ASKED);
  assert.equal(answer.choices[0].message.content, expected);
  assert.equal(answer.choices[0].finish_reason, "length");
  assert.equal(answer.usage.completion_tokens, 24);
  assert.match(answer._request_id, /^req_/);
});

test("chat in a stream, with usage", async () => {
  const chunks = await all(await client.chat.completions.create({ ...ASKED, stream: true, stream_options: { include_usage: true } }));
  assert.equal(chunks.flatMap((chunk) => chunk.choices).map((choice) => choice.delta.content ?? "").join(""), expected);
  assert.deepEqual([chunks.at(-1).choices, chunks.at(-1).usage.completion_tokens], [[], 24]);
  const stream = client.chat.completions.stream(ASKED);
  assert.equal(await stream.finalContent(), expected);
});

test("several choices, logprobs, logit_bias, a seed", async () => {
  const settings = { ...ASKED, temperature: 1.5, seed: 5, n: 3, max_completion_tokens: 12 };
  const [one, other] = [await client.chat.completions.create(settings), await client.chat.completions.create(settings)];
  const texts = (answer) => answer.choices.map((choice) => choice.message.content);
  assert.deepEqual(texts(one), texts(other));
  assert.equal(new Set(texts(one)).size, 3);
  const biased = await client.chat.completions.create({ ...ASKED, logit_bias: { 100: 100 }, logprobs: true, top_logprobs: 2 });
  assert.equal(new Set(biased.choices[0].logprobs.content.map((entry) => entry.token)).size, 1);
});

test("structured outputs through zod", async () => {
  const settings = { model: "demo", messages: QUESTION, temperature: 0, max_tokens: 250 };
  const answer = await client.chat.completions.parse({ ...settings, response_format: zodResponseFormat(Small, "small") });
  assert.equal(typeof answer.choices[0].message.parsed.yes, "boolean");
  const response = await client.responses.parse({
    model: "demo", input: "Write.", temperature: 0, max_output_tokens: 250, text: { format: zodTextFormat(Small, "small") },
  });
  assert.equal(typeof response.output_parsed.yes, "boolean");
  const plain = await client.chat.completions.create({ ...settings, response_format: { type: "json_object" } });
  assert.match(plain.choices[0].message.content, /^\s*{/);
});

test("tools, whole and streamed, and their results", async () => {
  const answer = await client.chat.completions.create(FORCED);
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
  const [call] = answer.choices[0].message.tool_calls;
  checkArguments(JSON.parse(call.function.arguments));
  const message = await client.chat.completions.stream(FORCED).finalMessage();
  assert.equal(message.tool_calls[0].function.arguments, call.function.arguments);
  const result = { role: "tool", tool_call_id: call.id, content: "sunny" };
  const history = [...QUESTION, answer.choices[0].message, result];
  const again = await client.chat.completions.create({ model: "caller", messages: history, tools: TOOLS, max_tokens: 5 });
  assert.ok(again.usage.prompt_tokens > answer.usage.prompt_tokens);
});

test("the package's runner calls a function of ours", async () => {
  const seen = [];
  const weather = { type: "function", function: { name: "weather", description: "d", parameters: PARAMETERS, parse: JSON.parse,
    function: (values) => { seen.push(values); return "sunny"; } } };
  const named = { type: "function", function: { name: "weather" } };
  const runner = client.chat.completions.runTools({ ...FORCED, tools: [weather], tool_choice: named });
  await runner.done();
  assert.equal(seen.length, 1);
  checkArguments(seen[0]);
});

test("completions", async () => {
  const settings = { model: "demo", prompt: "import os\n", temperature: 0, max_tokens: 12 };
  const answer = await client.completions.create({ ...settings, logprobs: 1 });
  assert.equal(answer.usage.completion_tokens, 12);
  assert.ok(answer.choices[0].logprobs.tokens.join("").startsWith(answer.choices[0].text));
  const chunks = await all(await client.completions.create({ ...settings, stream: true }));
  assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), answer.choices[0].text);
});

test("embeddings, packed and plain", async () => {
  const input = ["import os", "def close(self):"];
  const packed = await client.embeddings.create({ model: "demo", input }); // in base64, which the package unpacks
  const plain = await client.embeddings.create({ model: "demo", input, encoding_format: "float" });
  assert.equal(packed.data.length, 2);
  packed.data.forEach(({ embedding }, at) => {
    assert.ok(Math.abs(norm(embedding) - 1) < 1e-4);
    embedding.forEach((x, column) => assert.ok(Math.abs(x - plain.data[at].embedding[column]) < 1e-5));
  });
});

test("responses, whole and streamed", async () => {
  const asked = { model: "demo", input: QUESTION[0].content, temperature: 0, max_output_tokens: 24 };
  const answer = await client.responses.create(asked);
  assert.equal(answer.output_text, expected);
  const events = await all(await client.responses.create({ ...asked, stream: true }));
  assert.deepEqual(events.slice(0, 2).map((event) => event.type), ["response.created", "response.in_progress"]);
  assert.equal(events.at(-1).response.output[0].content[0].text, expected);
  const final = await client.responses.stream(asked).finalResponse();
  assert.equal(final.output_text, expected);
});

test("responses with tools", async () => {
  const asked = { model: "caller", input: "x", tools: FLAT_TOOLS, tool_choice: "required", temperature: 0,
    parallel_tool_calls: false, max_output_tokens: 250 };
  const answer = await client.responses.create(asked);
  const [call] = answer.output.filter((item) => item.type === "function_call");
  checkArguments(JSON.parse(call.arguments));
  const input = [{ role: "user", content: "x" }, ...answer.output,
    { type: "function_call_output", call_id: call.call_id, output: "sunny" }];
  const again = await client.responses.create({ model: "caller", input, max_output_tokens: 4 });
  assert.ok(again.usage.input_tokens > 0);
});

test("abort of a stream", async () => {
  const stream = await client.chat.completions.create({ model: "demo", messages: QUESTION, stream: true });
  for await (const _ of stream) stream.controller.abort(); // ends the loop without an error
  const controller = new AbortController();
  const whole = client.chat.completions.create({ model: "demo", messages: QUESTION }, { signal: controller.signal });
  controller.abort();
  await assert.rejects(whole, OpenAI.APIUserAbortError);
  await untilIdle();
  assert.equal((await client.chat.completions.create(ASKED)).choices[0].message.content, expected);
});

for (const [call, kind, text] of [
  [() => client.chat.completions.create({ ...ASKED, model: "nope" }), OpenAI.NotFoundError, /model 'nope' not found/],
  [() => client.chat.completions.create({ ...ASKED, model: "nope", stream: true }), OpenAI.NotFoundError, /not found/],
  [() => client.chat.completions.create({ ...ASKED, messages: [] }), OpenAI.BadRequestError, /too short/],
  [() => client.chat.completions.create({ ...ASKED, tools: TOOLS }), OpenAI.BadRequestError, /does not support tools/],
  [() => client.embeddings.create({ model: "nope", input: "x" }), OpenAI.NotFoundError, /not found/],
  [() => client.responses.create({ model: "demo", input: "x", previous_response_id: "resp_1" }), OpenAI.BadRequestError, /not supported/],
]) {
  test(`the error: ${kind.name} ${text}`, async () => {
    await assert.rejects(call, (error) => error instanceof kind && text.test(error.message) && /^req_/.test(error.requestID));
  });
}
