// A session in tinyqmoe.wasm: include/tinyqmoe/session.h says what each call does.
import { wasiImports } from "./files.mjs";

const OPTIONS_BYTES = 40, STATE_BYTES = 64, ERROR_BYTES = 1000; // of session.h, with pointers of 32 bits
const MOST_FILE_BYTES = 2 ** 31 - 1; // of one object in this memory
export const KV_TYPES = { float16: 1, float32: 2, int8: 3 };
export const ISAS = { auto: 0, scalar: 1, simd128: 6 };

export class Session {
  // An open session. `module` is a WebAssembly.Module, `files` a Map of paths in the bundle to arrays of Uint8Array,
  // which the session takes. With the option `verify` they are first compared with their SHA-256 in manifest.json, and
  // tokenizer.json has to be among them. Throws an Error that says what is wrong with which file.
  static async open(module, files, options = {}) {
    const sizes = Array.from(files, ([name, pieces]) => [name, pieces.reduce((sum, piece) => sum + piece.length, 0)]);
    const large = sizes.filter(([, size]) => size > MOST_FILE_BYTES).map(([name, size]) => `${name} (${size})`);
    if (large.length > 0) throw new Error(`files of more than ${MOST_FILE_BYTES} bytes: ${large.join(", ")}`);
    const session = new Session();
    const times = options.verify ? 2 : 1; // that a file is opened
    const imports = wasiImports(files, () => session.exports.memory, times);
    const instance = await WebAssembly.instantiate(module, { wasi_snapshot_preview1: imports });
    session.exports = instance.exports;
    session.exports._initialize();
    // All that the files will take at once, so that what is missing is known before any is read.
    sizes.map(([, size]) => session.#take(size)).forEach((memory) => session.exports.free(memory));
    session.#open(options);
    return session;
  }

  #open({ context = 0, batchTokens = 0, kvType = 0, isa = 0, verify = false }) {
    const bundle = this.#copy(new TextEncoder().encode("/\0"));
    const options = this.#take(OPTIONS_BYTES), out = this.#take(4), said = this.#take(ERROR_BYTES);
    this.#view().setBigUint64(options, BigInt(OPTIONS_BYTES), true);
    const engine = 0; // the runner
    [bundle, context, 1, batchTokens, kvType, isa, engine, Number(verify)].forEach((value, i) =>
      this.#view().setUint32(options + 8 + 4 * i, value, true),
    );
    const status = this.#call("session_open", options, out, said, BigInt(ERROR_BYTES));
    if (status !== 0) throw new Error(`the bundle does not open: ${this.#text(said)}`);
    this.handle = this.#view().getUint32(out, true);
    [bundle, options, out, said].forEach((memory) => this.exports.free(memory));
    this.vocab = this.state().vocab;
    this.logits = this.#take(4 * this.vocab);
  }

  // Appends tokens; returns the logits after the last of them, Float32Array [vocab].
  feed(tokens) {
    const ids = this.#copy(new Uint8Array(Int32Array.from(tokens).buffer));
    const status = this.#call("session_feed", this.handle, ids, tokens.length, this.logits);
    this.exports.free(ids);
    this.#check(status, `${tokens.length} tokens`);
    return new Float32Array(this.exports.memory.buffer, this.logits, this.vocab).slice();
  }

  // Appends a token; returns the one with the highest logit.
  step(token) {
    const best = this.#take(4);
    const status = this.#call("session_step", this.handle, token, best, 0);
    const found = this.#view().getInt32(best, true);
    this.exports.free(best);
    this.#check(status, `token ${token}`);
    return found;
  }

  // Forgets all positions from `positions` on.
  trim(positions) {
    this.#check(this.exports.tinyqmoe_session_trim(this.handle, positions), `position ${positions}`);
  }

  // Memory that expanded weights may take, in bytes: faster, with the same bits.
  setBudget(bytes) {
    this.exports.tinyqmoe_set_budget(BigInt(bytes));
  }

  // The fields of tinyqmoe_session_state.
  state() {
    const at = this.#take(STATE_BYTES);
    this.#view().setBigUint64(at, BigInt(STATE_BYTES), true);
    this.#check(this.exports.tinyqmoe_session_stats(this.handle, at), "statistics");
    const view = this.#view();
    const word = (i) => view.getUint32(at + 8 + 4 * i, true);
    const long = (i) => Number(view.getBigUint64(at + 24 + 8 * i, true));
    const words = ["positions", "context", "vocab", "threads"].map((name, i) => [name, word(i)]);
    const longs = ["mappedBytes", "kvCacheBytes", "bufferBytes", "fed", "feedNs"].map((name, i) => [name, long(i)]);
    this.exports.free(at);
    return Object.fromEntries([...words, ...longs]);
  }

  close() {
    this.exports.tinyqmoe_session_close(this.handle);
    this.exports.free(this.logits);
    this.handle = 0;
  }

  // A trap leaves the module as it was in the middle of the call.
  #call(name, ...args) {
    try {
      return this.exports[`tinyqmoe_${name}`](...args);
    } catch (error) {
      if (!(error instanceof WebAssembly.RuntimeError)) throw error;
      throw new Error(`the module ended, most likely without memory: open the bundle anew (${error.message})`);
    }
  }

  #view() {
    return new DataView(this.exports.memory.buffer);
  }

  #take(bytes) {
    const memory = this.exports.malloc(bytes);
    if (memory === 0) throw new Error(`no memory for ${bytes} bytes`);
    return memory;
  }

  #copy(bytes) {
    const memory = this.#take(bytes.length);
    new Uint8Array(this.exports.memory.buffer).set(bytes, memory);
    return memory;
  }

  #text(at) {
    const bytes = new Uint8Array(this.exports.memory.buffer);
    return new TextDecoder().decode(bytes.slice(at, bytes.indexOf(0, at)));
  }

  #check(status, what) {
    if (status !== 0) throw new Error(`${what}: ${this.#text(this.exports.tinyqmoe_status_name(status))}`);
  }
}
