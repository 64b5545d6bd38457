// A chat with a bundle: fetches it, opens a session, and answers token by token.
import { fetchBundle } from "./bundle.mjs";
import { ChatFormat } from "./chat.mjs";
import { Session } from "./session.mjs";
import { Tokenizer } from "./tokenizer.mjs";

export class Engine {
  // `progress(done, total)` counts the bytes that have come.
  static async open(address, progress, options) {
    const engine = new Engine();
    const wasm = await fetch(new URL("tinyqmoe.wasm", import.meta.url));
    const module = await WebAssembly.compile(await wasm.arrayBuffer());
    const { manifest, tokenizer, files } = await fetchBundle(address, progress);
    engine.session = await Session.open(module, files, { ...options, verify: true }); // it has just come
    engine.manifest = manifest;
    engine.tokenizer = new Tokenizer(JSON.parse(tokenizer));
    engine.format = new ChatFormat(manifest.chat, new Date());
    engine.ends = new Set(manifest.interface.eos_token_ids);
    return engine;
  }

  encode(pieces) {
    return pieces.flatMap(({ text, control }) => this.tokenizer.encode(text, control));
  }

  // Answers with the most probable tokens. `write` gets the text as it comes; `stopped()` is asked before each token.
  // Returns { tokens, seconds, ending }: ending is "end", "stopped" or "full".
  async answer(question, write, stopped = () => false) {
    const { positions, context } = this.session.state();
    const before = positions === 0 ? this.format.begin() : [this.format.afterAnswer];
    const tokens = this.encode([...before, ...this.format.question(question)]);
    if (positions + tokens.length > context) throw new Error(`the context of ${context} tokens is full: begin anew`);
    if (tokens.length > 1) this.session.feed(tokens.slice(0, -1));
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true }), begin = performance.now();
    let last = tokens.at(-1), n = 0, ending = "full";
    for (let position = positions + tokens.length; position <= context; ++position) {
      last = this.session.step(last);
      ++n;
      ending = this.ends.has(last) ? "end" : stopped() ? "stopped" : "full";
      if (ending !== "full") break;
      write(decoder.decode(this.tokenizer.bytes(last), { stream: true }));
      await new Promise((resolve) => setTimeout(resolve)); // for messages to this worker
    }
    return { tokens: n, seconds: (performance.now() - begin) / 1000, ending };
  }

  forget() {
    this.session.trim(0);
  }
}
