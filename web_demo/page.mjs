// The page: what is typed goes to the worker, what comes from it is shown.
const element = (id) => document.getElementById(id);
const worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
const megabytes = (bytes) => (bytes / 1e6).toFixed(1);

function say(text) {
  element("status").textContent = text;
}

function paragraph(kind, text) {
  const p = document.createElement("p");
  p.className = kind;
  p.textContent = text;
  element("talk").append(p);
  return p;
}

function answering(now) {
  element("stop").hidden = !now;
  element("send").disabled = element("forget").disabled = now;
}

const shown = {
  progress({ done, total }) {
    Object.assign(element("progress"), { value: done, max: total });
    say(`${megabytes(done)} of ${megabytes(total)} MB`);
  },
  ready({ model, state }) {
    element("progress").hidden = true;
    element("ask").hidden = false;
    element("question").focus();
    say(`${model}: ready, with a context of ${state.context} tokens`);
  },
  text({ text }) {
    element("talk").lastElementChild.textContent += text;
  },
  done({ result }) {
    answering(false);
    const full = result.ending === "full" ? "; the context is full" : "";
    say(`${result.tokens} tokens, ${(result.tokens / result.seconds).toFixed(1)} a second${full}`);
  },
  error({ message }) {
    answering(false);
    element("open").hidden = !element("ask").hidden;
    say(message);
  },
};
worker.onmessage = ({ data }) => shown[data.type](data);
worker.onerror = (event) => shown.error({ message: event.message });

element("open").onsubmit = (event) => {
  event.preventDefault();
  element("open").hidden = true;
  element("progress").hidden = false;
  worker.postMessage({ type: "open", address: new URL(element("address").value, location.href).href });
};
element("ask").onsubmit = (event) => {
  event.preventDefault();
  const question = element("question").value;
  paragraph("user", question);
  paragraph("assistant", "");
  element("question").value = "";
  answering(true);
  worker.postMessage({ type: "ask", question });
};
element("stop").onclick = () => worker.postMessage({ type: "stop" });
element("forget").onclick = () => {
  element("talk").replaceChildren();
  worker.postMessage({ type: "forget" });
  say("");
};
