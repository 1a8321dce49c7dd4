// Asks a server in every form with the official client, and prints what the client gives its caller as one JSON object.
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const asked = { vllm_xargs: { corevital_return: 1 } };
const chat = { model, messages: [{ role: "user", content: "What is 1 + 2?" }], max_tokens: 12, seed: 1 };
const respond = { model, input: "What is 1 + 2?", max_output_tokens: 12, temperature: 0 };
const found = {};

for (const [name, extra] of [["plain", {}], ["asked", asked]]) {
  const all = async (stream) => {
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    return chunks;
  };
  const { data, response } = await client.chat.completions.create({ ...chat, n: 2, ...extra }).withResponse();
  found[name] = {
    chat: data,
    header: response.headers.get("x-corevital-risk-level"),
    chat_stream: await all(
      await client.chat.completions.create({
        ...chat, stream: true, stream_options: { include_usage: true }, ...extra,
      }),
    ),
    chat_helper: await client.chat.completions.stream({ ...chat, ...extra }).finalChatCompletion(),
    completion: await client.completions.create({ model, prompt: ["1 + 2 =", "2 + 2 ="], max_tokens: 4, ...extra }),
    completion_stream: await all(
      await client.completions.create({ model, prompt: "1 + 2 =", max_tokens: 4, stream: true, ...extra }),
    ),
    response: await client.responses.create({ ...respond, ...extra }),
    response_stream: await all(
      await client.responses.create({ ...respond, stream: true, ...extra }),
    ),
    response_helper: await client.responses
      .stream({ ...respond, ...extra })
      .finalResponse(),
  };
}
console.log(JSON.stringify(found));
