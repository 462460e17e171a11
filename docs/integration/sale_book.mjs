// The book of sales: a sale is on disk here before its first attempt, and open until its receipt is out. The same lines,
// and the same lock, as utrn_client.book.FileSaleBook; a line that cannot be read costs that line only.
import { spawn } from 'node:child_process';
import {
  closeSync, fchmodSync, fstatSync, fsyncSync, ftruncateSync, openSync, readFileSync, writeSync,
} from 'node:fs';
import { dirname, resolve } from 'node:path';

const FIELDS = ['transaction_id', 'pan', 'amount_pence', 'channel', 'deliver'];
const TEXT_MAX = 200;
const INT32_MAX = 2 ** 31 - 1;

export class BookTrouble extends Error {}

export class SaleBook {
  #open = new Map();
  #untold = new Map();
  #begun = new Map();
  #torn = false;

  // Opens the book for this process alone, and reads what is open in it.
  static async opened(path) {
    let file;
    try {
      file = openSync(path, 'a+', 0o600);
    } catch (error) {
      throw new BookTrouble(`the book ${path} cannot be used: ${error.message}`);
    }
    // One that was there before, made by an older program or by hand, may be open to others: it has card numbers.
    if (fstatSync(file).uid === process.geteuid() && fstatSync(file).mode & 0o077) fchmodSync(file, 0o600);
    const holder = await lock(path);
    // The name of a new file is part of its folder, and must survive as the lines do.
    const folder = openSync(dirname(resolve(path)), 'r');
    fsyncSync(folder);
    closeSync(folder);
    return new SaleBook(path, file, holder);
  }

  constructor(path, file, holder) {
    this.path = path;
    this.file = file;
    this.holder = holder;
    this.damaged = [];
    const data = readFileSync(path);
    this.#torn = data.length > 0 && data.at(-1) !== 0x0a;
    for (const [at, raw] of splitLines(data).entries()) this.#take(at + 1, raw);
  }

  open() {
    return [...this.#open.values()];
  }

  // Final refusals that nobody has been told of: never to be asked again.
  untold() {
    return [...this.#untold.values()];
  }

  begin(sale) {
    this.#write({ begin: sale }, `the sale ${sale.transaction_id} was not begun and nothing was asked: take no money for it`);
    this.#open.set(sale.transaction_id, sale);
  }

  refuse(id, reason, message) {
    const what = `the sale ${id} stays open: the next start asks again; no money back yet`;
    this.#write({ end: id, outcome: reason, message, told: false }, what);
    this.#open.delete(id);
    this.#untold.set(id, { transaction_id: id, reason, message });
  }

  end(id, outcome) {
    this.#write({ end: id, outcome }, `the next start tells the answer of ${id} once more`);
    this.#open.delete(id);
    this.#untold.delete(id);
  }

  close() {
    closeSync(this.file);
    this.holder.stdin.end();
  }

  #take(line, raw) {
    // A file system may leave NULs where it had no time to write what was never said to be on disk.
    const bare = stripped(raw);
    try {
      if (!bare.length && raw.includes(0)) throw new TypeError('nothing but NUL bytes');
      // The decoder takes away a byte-order mark, which an editor puts before what it saves.
      const line = new TextDecoder('utf-8', { fatal: true }).decode(bare);
      if (line) this.#enter(JSON.parse(line, finite));
    } catch (error) {
      this.damaged.push({ line, why: error.message });
    }
  }

  #enter(entry) {
    if (typeof entry !== 'object' || entry === null || Array.isArray(entry)) throw new TypeError('no JSON object');
    if ('begin' in entry) this.#enterBegin(saleOf(entry.begin));
    else if ('end' in entry) this.#enterEnd(text(entry, 'end'), entry);
    else throw new TypeError('neither the begin nor the end of a sale');
  }

  #enterBegin(sale) {
    const id = sale.transaction_id;
    const first = this.#begun.get(id) ?? sale;
    if (FIELDS.some((name) => first[name] !== sale[name])) {
      throw new TypeError(`begins ${id} again, with other content: the first one counts`);
    }
    this.#begun.set(id, first);
    this.#open.set(id, this.#open.get(id) ?? sale);
  }

  #enterEnd(id, entry) {
    if (entry.told === false && this.#begun.has(id)) {
      const message = typeof entry.message === 'string' ? entry.message.slice(0, TEXT_MAX) : '';
      this.#untold.set(id, { transaction_id: id, reason: text(entry, 'outcome'), message });
    } else {
      this.#untold.delete(id);
    }
    this.#open.delete(id);
  }

  #write(entry, meaning) {
    const line = Buffer.from(`${this.#torn ? '\n' : ''}${JSON.stringify(entry)}\n`);
    const before = fstatSync(this.file).size;
    try {
      for (let at = 0; at < line.length;) at += writeSync(this.file, line, at);
      fsyncSync(this.file);
      this.#torn = false;
    } catch (error) {
      this.#takeBack(before);
      const why = error.code === 'ENOSPC' || error.code === 'EDQUOT' ? 'the disk is full' : error.message;
      throw new BookTrouble(`the book ${this.path} cannot be written: ${why}; ${meaning}`);
    }
  }

  // Leaves nothing of a line that did not get to disk whole: it might be taken up as if it had.
  #takeBack(size) {
    try {
      ftruncateSync(this.file, size);
    } catch {
      this.#torn = true;
    }
  }
}

// One process at a time: util-linux's flock holds the lock as long as this process holds its standard input, and the
// kernel ends both with it, however it ends.
const IN_USE = 75;

function lock(path) {
  const wanted = ['--timeout', '1', '--conflict-exit-code', `${IN_USE}`, path, '-c', 'echo held; exec cat'];
  const holder = spawn('flock', wanted, { stdio: ['pipe', 'pipe', 'inherit'] });
  return new Promise((done, failed) => {
    const inUse = `the book ${path} is in use by another process: wait until it ends, or give each its own book`;
    holder.once('error', (error) => failed(new BookTrouble(`the book ${path} cannot be locked: ${error.message}`)));
    holder.once('exit', (code, signal) => {
      const otherwise = `the book ${path} cannot be locked: flock ended with ${signal ?? code}; nothing was asked: take no money`;
      failed(new BookTrouble(code === IN_USE ? inUse : otherwise));
    });
    holder.stdout.once('data', () => {
      for (const one of [holder, holder.stdin, holder.stdout]) one.unref();
      done(holder);
    });
  });
}

function saleOf(entry) {
  if (typeof entry !== 'object' || entry === null || Array.isArray(entry)) throw new TypeError('no sale');
  // What a later version wrote beside these is carried along, and not judged.
  const { deliver = true, ...more } = entry;
  if (typeof deliver !== 'boolean') throw new TypeError('deliver: true or false is needed');
  return {
    ...more,
    transaction_id: text(entry, 'transaction_id'),
    pan: text(entry, 'pan'),
    amount_pence: whole(entry, 'amount_pence', 1, Number.MAX_SAFE_INTEGER),
    channel: whole(entry, 'channel', 0, INT32_MAX),
    deliver,
  };
}

function text(entry, name) {
  const value = entry[name];
  if (typeof value === 'string' && /^[ -~]{1,200}$/.test(value)) return value;
  throw new TypeError(`${name}: a text is needed, 1 to 200 printable characters`);
}

function whole(entry, name, least, most) {
  const value = entry[name];
  if (Number.isSafeInteger(value) && value >= least && value <= most) return value;
  throw new TypeError(`${name}: a whole number from ${least} to ${most} is needed`);
}

// For JSON.parse, which reads a number that is too large as Infinity.
function finite(_, value) {
  if (typeof value === 'number' && !Number.isFinite(value)) throw new TypeError('a number that cannot be held');
  return value;
}

function splitLines(data) {
  const lines = [];
  for (let at = 0; at <= data.length;) {
    const end = data.indexOf(0x0a, at) < 0 ? data.length : data.indexOf(0x0a, at);
    lines.push(data.subarray(at, end));
    at = end + 1;
  }
  return lines;
}

function stripped(raw) {
  const empty = new Set([0x00, 0x09, 0x0d, 0x20]);
  let from = 0;
  let to = raw.length;
  while (from < to && empty.has(raw[from])) from += 1;
  while (to > from && empty.has(raw[to - 1])) to -= 1;
  return raw.subarray(from, to);
}
