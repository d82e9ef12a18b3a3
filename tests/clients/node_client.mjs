// openai for node: an answer, a stream, a tool loop by runTools, the Responses API whole and as a stream.
import assert from "node:assert";
import OpenAI from "openai";

const [url, scripted] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const answer = await client.chat.completions.create({ model: "any", messages });
let text = "";
for await (const chunk of await client.chat.completions.create({ model: "any", messages, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(text, answer.choices[0].message.content);
const asked = [];
const find = {
  name: "find",
  description: "Find a person.",
  parameters: { type: "object", properties: { who: { type: "string" } } },
  parse: JSON.parse,
  function: ({ who }) => { asked.push(who); return "in the garden"; },
};
const mock = new OpenAI({ baseURL: scripted, apiKey: "none", maxRetries: 0 });
const runner = mock.chat.completions.runTools({ model: "any", messages, tools: [{ type: "function", function: find }] });
assert.equal((await runner.finalContent()).trim(), "In the garden.");
assert.deepEqual(asked, ["Ada"]);
const response = await client.responses.create({ model: "any", input: "hello" });
assert.equal(response.output_text, text);
const stream = client.responses.stream({ model: "any", input: "hello" });
let streamed = "";
stream.on("response.output_text.delta", (event) => { streamed += event.delta; });
assert.equal((await stream.finalResponse()).output_text, text);
assert.equal(streamed, text);
const embedding = await client.embeddings.create({ model: "any", input: "Ada" });
assert.ok(embedding.data[0].embedding.length > 100);
await assert.rejects(client.responses.create({ model: "any", input: "x", previous_response_id: "resp_1" }), /nothing is stored/);
console.log("ok");
