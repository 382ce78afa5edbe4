// Asks a server through OpenAI's Node SDK and prints what it heard as one line of JSON.
// node ask.mjs BASE_URL PICTURE_AS_DATA_URL
import OpenAI from "openai";

const [baseURL, picture] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "EMPTY" });
const question = [
  {
    role: "user",
    content: [
      { type: "image_url", image_url: { url: picture } },
      { type: "text", text: "What is shown in this image?" },
    ],
  },
];
const asked = { model: "gpt-4o", temperature: 0, messages: question };
const heard = {};

const whole = await client.chat.completions.create(asked);
heard.whole = whole.choices[0].message.content;
heard.usage = whole.usage;

heard.pieces = [];
const stream = await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  if (chunk.choices.length > 0) heard.pieces.push(chunk.choices[0].delta.content);
  else heard.streamed_usage = chunk.usage;
}

const schema = {
  type: "object",
  properties: { shape: { enum: ["circle", "square"] } },
  required: ["shape"],
  additionalProperties: false,
};
const formed = await client.chat.completions.create({
  ...asked,
  max_tokens: 100,
  response_format: { type: "json_schema", json_schema: { name: "seen", strict: true, schema } },
});
heard.formed = JSON.parse(formed.choices[0].message.content);

const called = client.chat.completions.stream({
  ...asked,
  max_tokens: 200,
  tools: [{ type: "function", function: { name: "look", parameters: schema } }],
  tool_choice: "required",
});
heard.called = (await called.finalChatCompletion()).choices[0].message.tool_calls[0].function;

const response = await client.responses.create({
  model: "gpt-4o",
  temperature: 0,
  input: [
    {
      role: "user",
      content: [
        { type: "input_image", image_url: picture, detail: "auto" },
        { type: "input_text", text: "What is shown in this image?" },
      ],
    },
  ],
});
heard.response = response.output_text;

heard.models = [];
for await (const model of client.models.list()) heard.models.push(model.id);

try {
  await client.chat.completions.create({ ...asked, temperature: 300 });
} catch (error) {
  heard.error = { kind: error.constructor.name, status: error.status, param: error.param };
}

console.log(JSON.stringify(heard));
