// LangChain's package, and the AI SDK through its providers for Ollama and for servers like OpenAI's.
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { ChatOllama, Ollama, OllamaEmbeddings } from "@langchain/ollama";
import { embedMany, generateObject, generateText, stepCountIs, streamText, tool } from "ai";
import { createOllama } from "ollama-ai-provider-v2";
import { z } from "zod";
import { all, checkArguments, expectedText, makeCaller, QUESTION, TOOLS, URL_OF_SERVER } from "./shared.mjs";

const ollama = createOllama({ baseURL: `${URL_OF_SERVER}/api` });
const compatible = createOpenAICompatible({ name: "ollampi", baseURL: `${URL_OF_SERVER}/v1`, includeUsage: true,
  supportsStructuredOutputs: true });
// The provider for Ollama sends temperature and the limit where Ollama looks for neither; only its options count.
const inOptions = (count) => ({ ollama: { options: { temperature: 0, num_predict: count } } });
const ASKED = { providerOptions: inOptions(24), messages: QUESTION, temperature: 0, maxOutputTokens: 24, maxRetries: 0 };
const LONG = { ...ASKED, providerOptions: inOptions(250), maxOutputTokens: 250 };
const SAID = { baseUrl: URL_OF_SERVER, model: "demo", temperature: 0, numPredict: 24, maxRetries: 0 };
const Small = z.object({ yes: z.boolean() });
const City = z.object({ city: z.string().max(12), days: z.number().int().min(1).max(5) });
let expected;
before(async () => {
  await makeCaller();
  expected = await expectedText(24);
});

for (const [name, provider] of [["ollama-ai-provider-v2", ollama], ["@ai-sdk/openai-compatible", compatible]]) {
  test(`${name}: text, whole and streamed`, async () => {
    const whole = await generateText({ ...ASKED, model: provider("demo") });
    assert.deepEqual([whole.text, whole.finishReason, whole.usage.outputTokens], [expected, "length", 24]);
    const streamed = streamText({ ...ASKED, model: provider("demo") });
    assert.equal((await all(streamed.textStream)).join(""), expected);
    assert.equal((await streamed.usage).outputTokens, 24);
  });

  test(`${name}: an object`, async () => {
    const { object } = await generateObject({ ...LONG, model: provider("demo"), schema: Small });
    assert.equal(typeof object.yes, "boolean");
  });

  test(`${name}: vectors`, async () => {
    const { embeddings } = await embedMany({ model: provider.textEmbeddingModel("demo"), values: ["import os", "def"] });
    assert.deepEqual(embeddings.map((vector) => vector.length), [256, 256]);
  });

  test(`${name}: an unknown model`, async () => {
    await assert.rejects(generateText({ ...ASKED, model: provider("nope") }), { statusCode: 404, message: /not found/i });
  });
}

test("@ai-sdk/openai-compatible: a tool", async () => {
  const seen = [];
  const weather = tool({ description: "d", inputSchema: City, execute: async (values) => { seen.push(values); return "sunny"; } });
  const settings = { ...LONG, model: compatible("caller"), tools: { weather }, stopWhen: stepCountIs(2),
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? { type: "tool", toolName: "weather" } : "none" }) };
  const { steps } = await generateText(settings);
  assert.deepEqual([steps.length, steps[0].finishReason], [2, "tool-calls"]);
  checkArguments(seen[0]);
});

test("ollama-ai-provider-v2: a model with tools gets them", async () => {
  const weather = tool({ description: "d", inputSchema: City, execute: async () => "sunny" });
  const told = await generateText({ ...ASKED, model: ollama("caller"), tools: { weather } });
  const plain = await generateText({ ...ASKED, model: ollama("caller") });
  assert.ok(told.usage.inputTokens > plain.usage.inputTokens);
});

test("@langchain/ollama: chat, whole and streamed", async () => {
  const model = new ChatOllama(SAID);
  const answer = await model.invoke(QUESTION);
  assert.equal(answer.content, expected);
  assert.equal(answer.usage_metadata.output_tokens, 24);
  assert.equal((await all(await model.stream(QUESTION))).map((part) => part.content).join(""), expected);
  await assert.rejects(new ChatOllama({ ...SAID, model: "nope" }).invoke(QUESTION), /model 'nope' not found/);
});

test("@langchain/ollama: tools, an object, text, vectors", async () => {
  const plain = await new ChatOllama({ ...SAID, model: "caller" }).invoke(QUESTION);
  const told = await new ChatOllama({ ...SAID, model: "caller" }).bindTools(TOOLS).invoke(QUESTION);
  assert.ok(told.usage_metadata.input_tokens > plain.usage_metadata.input_tokens);
  const structured = new ChatOllama({ ...SAID, numPredict: 250 }).withStructuredOutput(Small, { method: "jsonSchema" });
  assert.equal(typeof (await structured.invoke(QUESTION)).yes, "boolean");
  assert.ok((await new Ollama(SAID).invoke("import os\n")).length > 0);
  const vectors = new OllamaEmbeddings({ baseUrl: URL_OF_SERVER, model: "demo" });
  assert.equal((await vectors.embedQuery("import os")).length, 256);
  assert.equal((await vectors.embedDocuments(["import os", "def"])).length, 2);
});
