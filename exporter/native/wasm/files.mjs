// The part of WASI that tinyqmoe.wasm calls, over files in memory that are read from front to back.

const BAD_FILE = 8, NO_ENTRY = 44, NOT_SUPPORTED = 58; // of WASI's errno
const DIRECTORY = 3, REGULAR = 4; // of its filetype
const ROOT = 3; // the descriptor of "/"

// A file as the pieces it came in, which is an array of its own. A piece is let go when it was read.
class OpenFile {
  constructor(pieces) {
    this.size = pieces.reduce((sum, piece) => sum + piece.length, 0);
    this.pieces = pieces;
    this.offset = 0; // in the first piece
  }

  // Fills `to` as far as there are bytes; returns how many.
  read(to) {
    let done = 0;
    while (done < to.length && this.pieces.length > 0) {
      const part = this.pieces[0].subarray(this.offset, this.offset + to.length - done);
      to.set(part, done);
      done += part.length;
      this.offset += part.length;
      if (this.offset < this.pieces[0].length) continue;
      this.pieces.shift();
      this.offset = 0;
    }
    return done;
  }
}

// The imports of the module. `files` maps paths to arrays of Uint8Array, and loses what is opened for the last of `times`,
// so that memory holds a model once; `memory` returns the module's memory, which moves when it grows.
export function wasiImports(files, memory, times) {
  const open = new Map(), opened = new Map();
  const view = () => new DataView(memory().buffer);
  const bytes = (at, n) => new Uint8Array(memory().buffer, at, n);
  // The vectors of a read or write, one after the other.
  const word = (at) => view().getUint32(at, true);
  const buffers = (at, n) => Array.from({ length: n }, (_, i) => bytes(word(at + 8 * i), word(at + 8 * i + 4)));

  return {
    clock_time_get(clock, precision, out) {
      view().setBigUint64(out, BigInt(Math.round(performance.now() * 1e6)), true);
      return 0;
    },
    fd_prestat_get(fd, out) {
      if (fd !== ROOT) return BAD_FILE;
      view().setUint32(out, 0, true); // a folder
      view().setUint32(out + 4, 1, true); // of a name of one byte
      return 0;
    },
    fd_prestat_dir_name(fd, out) {
      bytes(out, 1)[0] = "/".charCodeAt(0);
      return 0;
    },
    fd_fdstat_get(fd, out) {
      bytes(out, 24).fill(0);
      view().setUint8(out, fd === ROOT ? DIRECTORY : REGULAR);
      view().setBigUint64(out + 8, ~0n, true); // rights
      view().setBigUint64(out + 16, ~0n, true);
      return 0;
    },
    path_open(folder, lookup, path, pathBytes, flags, rights, inherited, fileFlags, out) {
      const name = new TextDecoder().decode(bytes(path, pathBytes).slice());
      const pieces = files.get(name);
      if (pieces === undefined) return NO_ENTRY;
      const before = opened.get(name) ?? 0;
      opened.set(name, before + 1);
      if (before + 1 >= times) files.delete(name);
      const fd = ROOT + 1 + open.size;
      open.set(fd, new OpenFile([...pieces]));
      view().setUint32(out, fd, true);
      return 0;
    },
    fd_filestat_get(fd, out) {
      if (!open.has(fd)) return BAD_FILE;
      bytes(out, 64).fill(0);
      view().setUint8(out + 16, REGULAR);
      view().setBigUint64(out + 32, BigInt(open.get(fd).size), true);
      return 0;
    },
    fd_read(fd, vectors, n, out) {
      if (!open.has(fd)) return BAD_FILE;
      const done = buffers(vectors, n).reduce((sum, to) => sum + open.get(fd).read(to), 0);
      view().setUint32(out, done, true);
      return 0;
    },
    fd_write(fd, vectors, n, out) {
      const parts = buffers(vectors, n); // what the C library says before it gives up
      console.error(parts.map((part) => new TextDecoder().decode(part.slice())).join(""));
      view().setUint32(out, parts.reduce((sum, part) => sum + part.length, 0), true);
      return 0;
    },
    fd_close: (fd) => (open.has(fd) ? 0 : BAD_FILE), // its descriptor is not used again
    fd_seek: () => NOT_SUPPORTED,
    proc_exit(status) {
      throw new Error(`tinyqmoe.wasm ended with status ${status}`);
    },
  };
}
