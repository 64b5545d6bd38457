// The text of a conversation by the strings of a bundle's manifest.chat (docs/chat.md).

const two = (n) => String(n).padStart(2, "0");
const named = (date, options) => date.toLocaleDateString("en-US", options);
const FORMS = {
  d: (date) => two(date.getDate()),
  m: (date) => two(date.getMonth() + 1),
  Y: (date) => String(date.getFullYear()),
  b: (date) => named(date, { month: "short" }),
  B: (date) => named(date, { month: "long" }),
  a: (date) => named(date, { weekday: "short" }),
  A: (date) => named(date, { weekday: "long" }),
};

function strftime(form, date) {
  return form.replace(/%(.)/g, (whole, letter) => {
    if (!(letter in FORMS)) throw new Error(`manifest.chat: the page does not know the date's ${whole}`);
    return FORMS[letter](date);
  });
}

export class ChatFormat {
  // `chat` of the manifest, and the date of today.
  constructor(chat, date) {
    if (chat.strings.generation === undefined) throw new Error(`this model does not chat: ${chat.problem}`);
    const dated = ([name, text]) => [name, text.replace(/\{\{strftime:(.*?)\}\}/gs, (_, form) => strftime(form, date))];
    this.strings = Object.fromEntries(Object.entries(chat.strings).map(dated));
    this.trims = new Set(chat.trims);
  }

  // What precedes the first question, with the system prompt, if there is one.
  begin(system) {
    if (system === undefined) return [this.#string("without_system")];
    return [this.#string("system_open"), this.#said("system", system), this.#string("system_close")];
  }

  // A question, ready for its answer.
  question(text) {
    return [this.#said("user", text), this.#string("generation")];
  }

  // What stands between an answer and the next question.
  get afterAnswer() {
    return this.#string("assistant_to_user");
  }

  // All of a conversation, ready for the answer: pieces { text, control }. `messages` end with a user's.
  render(messages) {
    const [first, ...rest] = messages;
    const system = first.role === "system" ? first.content : undefined;
    const turns = system === undefined ? messages : rest;
    const pieces = this.begin(system);
    turns.slice(0, -1).forEach(({ role, content }) => {
      const after = role === "user" ? this.#string("user_to_assistant") : this.afterAnswer;
      pieces.push(this.#said(role, content), after);
    });
    return [...pieces, ...this.question(turns.at(-1).content)];
  }

  // Only a string of the format may hold control tokens.
  #string(name) {
    if (this.strings[name] === undefined) throw new Error(`manifest.chat has no ${name}`);
    return { text: this.strings[name], control: true };
  }

  #said(role, content) {
    return { text: this.trims.has(role) ? content.trim() : content, control: false };
  }
}
