// node web_demo.mjs SITE REQUEST.json: what the modules of web_demo, in the folder SITE, make of a request, as JSON.
//
// The request has a part: tokenize (json, texts), render (date, templates: as in tests/golden/chat.json), or converse
// (address, questions).
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [site, requestPath] = process.argv.slice(2);
const module = (name) => import(pathToFileURL(`${site}/${name}`));
const request = JSON.parse(readFileSync(requestPath, "utf-8"));

// Node fetches no files.
const fetchWeb = globalThis.fetch;
globalThis.fetch = async (address, ...rest) =>
  String(address).startsWith("file:") ? new Response(readFileSync(new URL(address))) : fetchWeb(address, ...rest);

async function tokenize({ json, texts }) {
  const { Tokenizer } = await module("tokenizer.mjs");
  const tokenizer = new Tokenizer(json);
  return texts.map((text) => {
    const ids = tokenizer.encode(text);
    const bytes = Uint8Array.from(ids.flatMap((id) => [...tokenizer.bytes(id)]));
    const decoded = new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
    return { ids, control: tokenizer.encode(text, true), decoded };
  });
}

async function render({ date, templates }) {
  const { ChatFormat } = await module("chat.mjs");
  return templates.map((template) => {
    const format = new ChatFormat(template, new Date(date));
    return template.renderings.map(({ messages }) => format.render(messages).map((piece) => piece.text).join(""));
  });
}

async function converse({ address, questions }) {
  const { Engine } = await module("engine.mjs");
  const heard = [];
  const engine = await Engine.open(address, (done, total) => heard.push([done, total]));
  const answers = [];
  for (const question of questions) {
    let text = "";
    const { ending } = await engine.answer(question, (piece) => (text += piece));
    answers.push({ text, ending, positions: engine.session.state().positions });
  }
  return { heard: heard.at(-1), answers };
}

const parts = { tokenize, render, converse };
try {
  const answer = await parts[request.part](request);
  console.log(JSON.stringify({ answer }));
} catch (error) {
  console.log(JSON.stringify({ error: error.message }));
}
