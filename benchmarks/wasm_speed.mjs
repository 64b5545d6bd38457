// node wasm_speed.mjs FOLDER BUNDLE PROMPT STEPS: for each line of input, whether weights are expanded, prints the
// seconds of processor time of the prompt and of the steps, and the SHA-256 of all logits.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [folder, bundle, prompt, steps] = process.argv.slice(2);
const { Session } = await import(pathToFileURL(`${folder}/session.mjs`));
const module = new WebAssembly.Module(readFileSync(`${folder}/tinyqmoe.wasm`));
const files = ["manifest.json", "model.pte"].map((name) => [name, [readFileSync(`${bundle}/${name}`)]]);
const session = await Session.open(module, new Map(files));
const seconds = () => Object.values(process.cpuUsage()).reduce((sum, us) => sum + us) / 1e6;

for await (const line of createInterface({ input: process.stdin })) {
  session.setBudget(JSON.parse(line) ? 2 ** 40 : 0);
  session.trim(0);
  const sha256 = createHash("sha256"), start = seconds();
  sha256.update(session.feed(JSON.parse(prompt)));
  const middle = seconds();
  for (let token = 0; token < Number(steps); ++token) sha256.update(session.feed([token]));
  console.log(JSON.stringify([middle - start, seconds() - middle, sha256.digest("hex")]));
}
