// Byte-level BPE, as a bundle's tokenizer.json describes it. What it does not know is an error.

// White space as Unicode's and the tokenizers library's, which JavaScript's \s is not.
const SPACE = "\\t-\\r\\x85\\p{Z}";
const GPT2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

// A pattern of the tokenizers library as a RegExp: with its white space, and without (?i:…).
export function regExp(pattern) {
  const spelled = pattern.replace(/\(\?i:([^()]*)\)/g, (_, letters) => {
    const both = letters.replace(/\p{L}/gu, (c) => `[${c.toLowerCase()}${c.toUpperCase()}]`);
    return `(?:${both})`;
  });
  let inClass = false;
  const source = spelled.replace(/\\[\s\S]|[[\]]/g, (part) => {
    if (part === "[") inClass = true;
    if (part === "]") inClass = false;
    if (part === "\\s") return inClass ? SPACE : `[${SPACE}]`;
    return part === "\\S" && !inClass ? `[^${SPACE}]` : part;
  });
  return new RegExp(source, "gu");
}

// The character that stands for each byte in the vocabulary: the byte's own if it prints, else one from 256 on.
function byteCharacters() {
  const prints = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(prints(b) ? b : next++));
}
const CHARACTERS = byteCharacters();
const BYTES = new Map(CHARACTERS.map((character, b) => [character, b]));

// The text cut at every match: what matches, and what lies between.
function isolate(text, pattern) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(pattern)) {
    if (match.index > end) parts.push(text.slice(end, match.index));
    if (match[0] !== "") parts.push(match[0]);
    end = match.index + match[0].length;
  }
  if (end < text.length) parts.push(text.slice(end));
  return parts;
}

function splitter(step) {
  if (step.type === "Split" && step.pattern.Regex !== undefined && step.behavior === "Isolated" && !step.invert) {
    return regExp(step.pattern.Regex);
  }
  if (step.type === "Digits") return step.individual_digits ? /\p{N}/gu : /\p{N}+/gu;
  if (step.type === "ByteLevel" && !step.add_prefix_space) return step.use_regex === false ? null : regExp(GPT2);
  throw new Error(`tokenizer.json: the page does not split by ${JSON.stringify(step).slice(0, 80)}`);
}

export class Tokenizer {
  // Of a parsed tokenizer.json. Throws an Error for what is no byte-level BPE.
  constructor(json) {
    const { model, normalizer, decoder, pre_tokenizer: split } = json;
    if (model.type !== "BPE" || model.byte_fallback || decoder?.type !== "ByteLevel" || normalizer) {
      throw new Error("tokenizer.json: the page knows byte-level BPE without a normalizer only");
    }
    this.splitters = (split.type === "Sequence" ? split.pretokenizers : [split]).map(splitter).filter(Boolean);
    this.ids = new Map(Object.entries(model.vocab));
    this.ignoreMerges = model.ignore_merges ?? false;
    this.ranks = new Map(model.merges.map((pair, rank) => [Array.isArray(pair) ? pair.join(" ") : pair, rank]));
    this.words = new Map([...this.ids].map(([word, id]) => [id, word]));
    this.added = new Map(json.added_tokens.map((token) => [token.content, token.id]));
    this.texts = new Map(json.added_tokens.map((token) => [token.id, token.content]));
    const longestFirst = [...this.added.keys()].sort((a, b) => b.length - a.length);
    const escaped = longestFirst.map((text) => text.replace(/[\\^$.*+?()[\]{}|\/]/g, "\\$&"));
    this.control = escaped.length > 0 ? new RegExp(escaped.join("|"), "gu") : null;
  }

  // Ids of a text. `control`: whether it may hold control tokens, which what a user typed may not.
  encode(text, control = false) {
    const parts = control && this.control ? isolate(text, this.control) : [text];
    const isControl = (part) => control && this.added.has(part);
    return parts.flatMap((part) => (isControl(part) ? [this.added.get(part)] : this.#encodePlain(part)));
  }

  // The bytes of a token; of a control token none.
  bytes(id) {
    if (this.texts.has(id)) return new Uint8Array();
    return Uint8Array.from(this.words.get(id), (character) => BYTES.get(character));
  }

  #encodePlain(text) {
    const words = this.splitters.reduce((parts, pattern) => parts.flatMap((p) => isolate(p, pattern)), [text]);
    return words.flatMap((word) => {
      const characters = Array.from(new TextEncoder().encode(word), (b) => CHARACTERS[b]);
      const whole = this.ids.get(characters.join(""));
      if (this.ignoreMerges && whole !== undefined) return [whole];
      return this.#merge(characters).map((part) => this.ids.get(part));
    });
  }

  // The pair of the lowest rank is joined, the first of equals, until none has a rank.
  #merge(parts) {
    for (;;) {
      let best = -1, lowest = Infinity;
      for (let i = 0; i + 1 < parts.length; ++i) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`);
        if (rank !== undefined && rank < lowest) [best, lowest] = [i, rank];
      }
      if (best < 0) return parts;
      parts = [...parts.slice(0, best), parts[best] + parts[best + 1], ...parts.slice(best + 2)];
    }
  }
}
