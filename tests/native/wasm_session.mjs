// node wasm_session.mjs MODULE.wasm REQUEST.json: runs sessions of tinyqmoe.wasm and prints their answers as JSON.
//
// The request: bundle (a folder), files (names in it), and runs. A run has options, a budget, calls (arrays of tokens),
// claims (sizes of files that it adds), and whether its calls trap. Answered for each run: the SHA-256 of the logits
// after all calls, one after another, and the state, or an error.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { Session } from "../../exporter/native/wasm/session.mjs";

const [path, requestPath] = process.argv.slice(2);
const module = new WebAssembly.Module(readFileSync(path));
const request = JSON.parse(readFileSync(requestPath, "utf-8"));

// A file in pieces, as it comes over a network.
function pieces(name) {
  const bytes = readFileSync(`${request.bundle}/${name}`), size = 1 << 20;
  return Array.from({ length: Math.ceil(bytes.length / size) }, (_, i) => bytes.subarray(i * size, (i + 1) * size));
}

function trap() {
  throw new WebAssembly.RuntimeError("unreachable");
}

async function run({ options, budget, calls, claims, traps }) {
  const files = new Map(request.files.map((name) => [name, pieces(name)]));
  claims.forEach((length, i) => files.set(`claim ${i}`, [{ length }]));
  const session = await Session.open(module, files, options);
  session.setBudget(budget);
  if (traps) session.exports = { ...session.exports, tinyqmoe_session_feed: trap };
  const sha256 = createHash("sha256");
  for (const tokens of calls) {
    sha256.update(session.feed(tokens));
  }
  const state = session.state();
  session.close();
  return { sha256: sha256.digest("hex"), state };
}

const answers = [];
for (const wanted of request.runs) {
  answers.push(await run(wanted).catch((error) => ({ error: error.message })));
}
console.log(JSON.stringify(answers));
