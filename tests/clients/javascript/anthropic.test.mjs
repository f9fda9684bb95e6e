// Anthropic's package takes this server for Anthropic: messages, streams, count_tokens, models, errors.
import assert from "node:assert/strict";
import { before, test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { all, checkArguments, expectedText, makeCaller, PARAMETERS, QUESTION, untilIdle, URL_OF_SERVER } from "./shared.mjs";

const client = new Anthropic({ baseURL: URL_OF_SERVER, apiKey: "none", maxRetries: 0 });
const ASKED = { model: "demo", messages: QUESTION, max_tokens: 24, temperature: 0 };
const FORCED = { model: "caller", messages: QUESTION, max_tokens: 250, temperature: 0,
  tools: [{ name: "weather", description: "d", input_schema: PARAMETERS }],
  tool_choice: { type: "any", disable_parallel_tool_use: true } };
let expected;
before(async () => {
  await makeCaller();
  expected = await expectedText(24);
});

test("messages, whole and streamed", async () => {
  const answer = await client.messages.create(ASKED);
  assert.equal(answer.content[0].text, expected);
  assert.deepEqual([answer.stop_reason, answer.usage.output_tokens], ["max_tokens", 24]);
  assert.match(answer._request_id, /^req_/);
  const stream = client.messages.stream(ASKED);
  let text = "";
  stream.on("text", (piece) => { text += piece; });
  assert.deepEqual((await stream.finalMessage()).usage.output_tokens, 24);
  assert.equal(text, expected);
  const events = await all(await client.messages.create({ ...ASKED, stream: true }));
  assert.deepEqual([events[0].type, events.at(-1).type], ["message_start", "message_stop"]);
});

test("count_tokens", async () => {
  const { input_tokens } = await client.messages.countTokens({ model: "demo", messages: QUESTION });
  assert.equal(input_tokens, (await client.messages.create(ASKED)).usage.input_tokens);
});

test("system texts, blocks and stop sequences", async () => {
  const stop = expected.slice(5, 8);
  const system = [{ type: "text", text: "Be brief.", cache_control: { type: "ephemeral" } }];
  const messages = [{ role: "user", content: [{ type: "text", text: QUESTION[0].content }] }];
  const stopped = await client.messages.create({ ...ASKED, messages, stop_sequences: [stop] });
  assert.deepEqual([stopped.stop_reason, stopped.stop_sequence], ["stop_sequence", stop]);
  const told = await client.messages.create({ ...ASKED, messages, system, metadata: { user_id: "me" } });
  assert.ok(told.usage.input_tokens > stopped.usage.input_tokens);
});

test("tools, whole and streamed, and their results", async () => {
  const answer = await client.messages.create(FORCED);
  assert.equal(answer.stop_reason, "tool_use");
  const [call] = answer.content.filter((block) => block.type === "tool_use");
  checkArguments(call.input);
  const streamed = await client.messages.stream(FORCED).finalMessage();
  assert.deepEqual(streamed.content.find((block) => block.type === "tool_use").input, call.input);
  const result = { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "sunny" }] };
  const history = [...QUESTION, { role: "assistant", content: answer.content }, result];
  const again = await client.messages.create({ ...FORCED, messages: history, tool_choice: { type: "none" }, max_tokens: 4 });
  assert.equal(again.usage.output_tokens, 4);
});

test("models", async () => {
  const models = await all(client.models.list());
  const demo = models.find((model) => model.id === "demo:latest");
  assert.deepEqual([demo.type, demo.display_name], ["model", "demo:latest"]);
  assert.ok(new Date(demo.created_at) < new Date());
  assert.equal((await client.models.retrieve("demo")).type, "model");
  await assert.rejects(client.models.retrieve("nope"), Anthropic.NotFoundError);
});

test("abort of a stream", async () => {
  const stream = client.messages.stream({ ...ASKED, max_tokens: 400 });
  stream.on("text", () => stream.abort());
  await assert.rejects(stream.done(), Anthropic.APIUserAbortError);
  await untilIdle();
  assert.equal((await client.messages.create(ASKED)).content[0].text, expected);
});

for (const [call, kind, type] of [
  [() => client.messages.create({ ...ASKED, model: "nope" }), Anthropic.NotFoundError, "not_found_error"],
  [() => client.messages.create({ ...ASKED, model: "nope", stream: true }), Anthropic.NotFoundError, "not_found_error"],
  [() => client.messages.create({ ...ASKED, max_tokens: 0 }), Anthropic.BadRequestError, "invalid_request_error"],
  [() => client.messages.create({ ...ASKED, messages: [] }), Anthropic.BadRequestError, "invalid_request_error"],
]) {
  test(`the error: ${kind.name}`, async () => {
    await assert.rejects(call, (error) => error instanceof kind && error.error.error.type === type && /^req_/.test(error.requestID));
  });
}
