// The engine off the page's thread. Messages to it: open, ask, stop, forget.
// Messages from it: progress, ready, text, done, error.
import { Engine } from "./engine.mjs";

let engine, stopped = false;
const post = (type, message) => self.postMessage({ type, ...message });

const calls = {
  async open({ address }) {
    engine = await Engine.open(address, (done, total) => post("progress", { done, total }));
    post("ready", { model: engine.manifest.model.name, state: engine.session.state() });
  },
  async ask({ question }) {
    stopped = false;
    const result = await engine.answer(question, (text) => post("text", { text }), () => stopped);
    post("done", { result });
  },
  stop() {
    stopped = true;
  },
  forget() {
    engine.forget();
  },
};

self.onmessage = async ({ data }) => {
  try {
    await calls[data.type](data);
  } catch (error) {
    post("error", { message: error.message });
  }
};
