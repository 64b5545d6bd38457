// The files of a bundle that a session reads, fetched with progress and kept in the pieces they came in.

// Throws an Error that says which file did not come.
async function request(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: HTTP ${response.status}`);
  return response;
}

// Names of the files with the weights: of the package that a session reads (exporter/native/llm/MANIFEST.md).
function weightFiles(manifest) {
  const wanted = manifest.artifacts.find((a) => a.places !== undefined && Object.keys(a.vectors ?? {}).length > 0);
  if (wanted === undefined) throw new Error("the bundle has no .pte: export it with --target android");
  const places = [...Object.values(wanted.places), ...Object.values(wanted.vectors)];
  return [...new Set(places.map((place) => place.file))];
}

const fetchText = async (address) => (await request(address)).text();

// The bundle at an address: its manifest, the text of tokenizer.json, and for Session.open a Map of names to pieces.
// `progress` is told the bytes that are there and those that will be.
export async function fetchBundle(address, progress) {
  const base = address.replace(/\/*$/, "/");
  const text = await fetchText(`${base}manifest.json`);
  const manifest = JSON.parse(text);
  const tokenizer = await fetchText(`${base}tokenizer.json`);
  const names = weightFiles(manifest);
  const size = (name) => manifest.files.find((file) => file.path === name).n_bytes;
  const total = names.reduce((sum, name) => sum + size(name), 0);
  const texts = Object.entries({ "manifest.json": text, "tokenizer.json": tokenizer });
  const files = new Map(texts.map(([name, said]) => [name, [new TextEncoder().encode(said)]]));
  let done = 0;
  for (const name of names) {
    const pieces = [], before = done;
    for await (const piece of readPieces((await request(base + name)).body)) {
      pieces.push(piece);
      done += piece.length;
      progress(done, total);
    }
    const came = done - before;
    if (came !== size(name)) throw new Error(`${name} has ${came} bytes, the manifest says ${size(name)}`);
    files.set(name, pieces);
  }
  return { manifest, tokenizer, files };
}

// Not every browser iterates over a stream by itself.
async function* readPieces(stream) {
  const reader = stream.getReader();
  for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
}
