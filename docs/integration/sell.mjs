// Sells one top-up as a PSP does: take up what is open, check, store the id, sell, repeat until there is an answer.
// node sell.mjs --target HOST:PORT --cert FILE --key FILE --ca FILE [--sales FILE] [--two-step] [PAN PENCE]
import { randomBytes } from 'node:crypto';
import { closeSync, existsSync, fsyncSync, openSync, readFileSync, writeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { setTimeout as pause } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';
import protobuf from 'protobufjs';

const proto = fileURLToPath(new URL('../../proto', import.meta.url));
const CHANNEL_ONLINE = 3;
const ATTEMPT_MS = 2000;
const GIVE_UP_MS = 60_000;
const PAUSE_MS = 100;
const EXIT_REFUSED = 1;
const EXIT_NO_ANSWER = 75;
// What may be repeated under the same id; everything else is final (docs/errors.md).
const { UNAVAILABLE, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, CANCELLED } = grpc.status;
const REPEATABLE = new Set([UNAVAILABLE, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, CANCELLED]);

const { values: given, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    target: { type: 'string' },
    cert: { type: 'string' },
    key: { type: 'string' },
    ca: { type: 'string' },
    // The name in the nodes' certificates, where --target has addresses.
    'server-name': { type: 'string' },
    // Where open sales are kept; the same lines as utrn_client.ids.FileSaleBook.
    sales: { type: 'string', default: 'sales.jsonl' },
    'two-step': { type: 'boolean', default: false },
  },
});

// UUIDv7: 48 bits of milliseconds, version, chance, variant, chance.
function makeTransactionId() {
  const bytes = randomBytes(16);
  bytes.writeUIntBE(Date.now(), 0, 6);
  bytes[6] = 0x70 | (bytes[6] & 0x0f);
  bytes[8] = 0x80 | (bytes[8] & 0x3f);
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

// A sale is on disk here before its first attempt, and open until its final answer.
class SaleBook {
  constructor(path) {
    this.open = new Map();
    const text = existsSync(path) ? readFileSync(path, 'utf8') : '';
    for (const line of text.split('\n').filter(Boolean)) this.#take(line);
    this.file = openSync(path, 'a');
    // A till that died in the middle of a line: its sale never began, and the next line is a line of its own.
    if (text && !text.endsWith('\n')) writeSync(this.file, '\n');
  }

  begin(sale) {
    this.#write({ begin: sale });
    this.open.set(sale.transaction_id, sale);
  }

  end(id, outcome) {
    this.#write({ end: id, outcome });
    this.open.delete(id);
  }

  close() {
    closeSync(this.file);
  }

  #take(line) {
    try {
      const entry = JSON.parse(line);
      if (entry.begin) this.open.set(entry.begin.transaction_id, entry.begin);
      else this.open.delete(entry.end);
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
    }
  }

  #write(entry) {
    writeSync(this.file, `${JSON.stringify(entry)}\n`);
    fsyncSync(this.file);
  }
}

// What a refusal says beside its text: google.rpc.Status with ErrorInfo and RetryInfo, in a trailer.
const details = protobuf.parse(`syntax = "proto3"; package google.rpc;
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }`, { keepCase: true }).root;

function detailOf(error, name) {
  const [packed] = error.metadata?.get('grpc-status-details-bin') ?? [];
  if (!packed) return undefined;
  const found = details.lookupType('google.rpc.Status').decode(packed).details.find((one) => one.type_url.endsWith(name));
  return found && details.lookupType(name).decode(found.value);
}

function retryDelayMs(error) {
  const delay = detailOf(error, 'google.rpc.RetryInfo')?.retry_delay;
  return delay ? Number(delay.seconds) * 1000 + delay.nanos / 1e6 : 0;
}

const reasonOf = (error) => detailOf(error, 'google.rpc.ErrorInfo')?.reason ?? grpc.status[error.code];

function openClient() {
  const definition = loader.loadSync('utrn/v1/top_up_service.proto', {
    includeDirs: [proto], keepCase: true, longs: String, enums: String, defaults: true,
  });
  const { TopUpService } = grpc.loadPackageDefinition(definition).utrn.v1;
  const credentials = grpc.credentials.createSsl(
    readFileSync(given.ca), readFileSync(given.key), readFileSync(given.cert),
  );
  const name = given['server-name'];
  const target = given.target.includes(',') ? `ipv4:${given.target}` : given.target;
  return new TopUpService(target, credentials, {
    // Round robin, and repeats of UNAVAILABLE inside gRPC. grpc-js does not know the health check in it.
    'grpc.service_config': readFileSync(`${proto}/service_config.json`, 'utf8'),
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 1000,
    ...(name && { 'grpc.ssl_target_name_override': name, 'grpc.default_authority': name }),
  });
}

const client = openClient();
const book = new SaleBook(given.sales);
const say = (answer) => console.log(JSON.stringify(answer));

function call(method, request) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + ATTEMPT_MS;
    client[method](request, { deadline }, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

// Answers; asks again where the service says that nothing, or nobody knows what, was done.
async function repeated(method, request) {
  const until = Date.now() + GIVE_UP_MS;
  for (;;) {
    try {
      return await call(method, request);
    } catch (error) {
      if (!REPEATABLE.has(error.code) || Date.now() > until) throw error;
      await pause(Math.max(retryDelayMs(error), PAUSE_MS));
    }
  }
}

// Says why there is no answer: refused for good, or none yet, and then the same id is asked again by the next run.
function sayTrouble(about, error) {
  const unsure = REPEATABLE.has(error.code);
  say({ ...about, [unsure ? 'no_answer' : 'refused']: `${reasonOf(error)}: ${error.details}` });
  process.exitCode = Math.max(process.exitCode ?? 0, unsure ? EXIT_NO_ANSWER : EXIT_REFUSED);
}

// Asks for the code of a sale in the book; returns whether there is one. The sale ends when its receipt is out.
async function ask(sale, about) {
  const { transaction_id, deliver, ...request } = sale;
  try {
    const reply = await repeated(deliver ? 'TopUp' : 'IssueUtrn', { transaction_id, ...request });
    say({ transaction_id, code: reply.code.utrn_printed, replayed: reply.replayed, ...about });
    book.end(transaction_id, 'issued');
    return true;
  } catch (error) {
    sayTrouble({ transaction_id, ...about }, error);
    if (!REPEATABLE.has(error.code)) book.end(transaction_id, reasonOf(error));
    return false;
  }
}

async function sell(pan, pence) {
  const deliver = !given['two-step'];
  const asked = { pan, amount_pence: pence, channel: CHANNEL_ONLINE };
  const { eligible, objections } = await repeated('CheckEligibility', { ...asked, deliver });
  if (!eligible) {
    say({ eligible, objections: objections.map(({ reason }) => reason.replace('ERROR_REASON_', '')) });
    process.exitCode = EXIT_REFUSED;
    return;
  }
  // The consumer pays here. From now on there is one payment, and one id for it.
  const sale = { transaction_id: makeTransactionId(), ...asked, deliver };
  book.begin(sale);
  if (!(await ask(sale, {}))) return;
  const { vend } = await repeated('GetVend', { transaction_id: sale.transaction_id });
  say({ transaction_id: sale.transaction_id, delivery: vend.delivery.state });
}

const [pan, pence] = positionals;
try {
  for (const sale of [...book.open.values()]) await ask(sale, { taken_up: true });
  if (pan) await sell(pan, Number(pence));
} catch (error) {
  if (error.code === undefined) throw error;
  sayTrouble({}, error);
} finally {
  book.close();
  client.close();
}
