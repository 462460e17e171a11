// Sells top-ups as a PSP does: take up what is open, check, store the id, sell, repeat until there is an answer.
// node sell.mjs --target HOST:PORT --cert FILE --key FILE --ca FILE [--sales FILE] [--two-step] [PAN PENCE | -]
// With - it reads sales from standard input, one {"pan": "...", "pence": "1099"} a line.
import { randomBytes } from 'node:crypto';
import { readFileSync, writeSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { setTimeout as pause } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';
import protobuf from 'protobufjs';
import { parsePence } from './amounts.mjs';
import { BookTrouble, SaleBook } from './sale_book.mjs';

const proto = fileURLToPath(new URL('../../proto', import.meta.url));
const STDOUT = 1;
const CHANNEL_ONLINE = 3;
// Of what is open when a till starts: enough to be done soon, few enough to leave the line to new sales.
const OPEN_AT_ONCE = 16;
const ATTEMPT_MS = 2000;
const GIVE_UP_MS = 60_000;
const PAUSE_MS = 100;
// Money may go back to the consumer on EXIT_REFUSED alone.
const EXIT_REFUSED = 1;
const EXIT_USAGE = 2;
const EXIT_BOOK = 74;
const EXIT_NO_ANSWER = 75;
// What each reason says about the payment: the table that every caller reads.
const table = JSON.parse(readFileSync(`${proto}/outcomes.json`, 'utf8'));

const { values: given, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    target: { type: 'string' },
    cert: { type: 'string' },
    key: { type: 'string' },
    ca: { type: 'string' },
    // The name in the nodes' certificates, where --target has addresses.
    'server-name': { type: 'string' },
    // The book: where open sales are kept; the same lines as utrn_client.book.FileSaleBook.
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
  try {
    const found = details.lookupType('google.rpc.Status').decode(packed).details.find((one) => one.type_url.endsWith(name));
    return found && details.lookupType(name).decode(found.value);
  } catch {
    // Garbled on the way: it says nothing.
    return undefined;
  }
}

function retryDelayMs(error) {
  const delay = detailOf(error, 'google.rpc.RetryInfo')?.retry_delay;
  return delay ? Number(delay.seconds) * 1000 + delay.nanos / 1e6 : 0;
}

// Something between here and the node said "OK": that is no code, and no refusal either.
const noSuchAnswer = () => Object.assign(new Error(), { code: grpc.status.UNKNOWN, details: 'an answer that is not to this sale' });

// A call's error has a number; one of the system, such as EPIPE, a word.
const isOfCall = (error) => typeof error.code === 'number';
const infoOf = (error) => detailOf(error, 'google.rpc.ErrorInfo');
const reasonOf = (error) => infoOf(error)?.reason || grpc.status[error.code];

// What an error says about the payment: NOT_SOLD is final; after ASK_AGAIN and ASK_OPERATOR the sale stays open. The rule
// of utrn_client.verdict: fenced, or in the closed list and in answer to the first attempt of the id.
function judge(error, repeat) {
  const info = infoOf(error);
  if (info?.domain !== table.domain) return 'ASK_AGAIN';
  if (info.metadata.final === 'fenced') return 'NOT_SOLD';
  const says = table.reasons[info.reason]?.says ?? 'ASK_AGAIN';
  if (says === 'NOT_SOLD') return repeat ? 'ASK_AGAIN' : 'NOT_SOLD';
  return says === 'ASK_AGAIN' ? 'ASK_AGAIN' : 'ASK_OPERATOR';
}

// Whether a call that only reads is worth repeating as it is.
const mayBeRepeated = (error) => judge(error, false) === 'ASK_AGAIN';

function openClient() {
  const definition = loader.loadSync('utrn/v1/top_up_service.proto', {
    includeDirs: [proto], keepCase: true, longs: String, enums: String, defaults: true,
  });
  const { TopUpService } = grpc.loadPackageDefinition(definition).utrn.v1;
  const credentials = grpc.credentials.createSsl(
    readFileSync(given.ca), readFileSync(given.key), readFileSync(given.cert),
  );
  const name = given['server-name'];
  // Several nodes are named by their addresses, all of one kind.
  const kind = given.target.startsWith('[') ? 'ipv6' : 'ipv4';
  const target = given.target.includes(',') ? `${kind}:${given.target}` : given.target;
  return new TopUpService(target, credentials, {
    // Round robin; only calls that read are repeated inside gRPC. grpc-js does not know the health check in it.
    'grpc.service_config': readFileSync(`${proto}/service_config.json`, 'utf8'),
    // No policy from DNS: a repeat that this program does not see would look like a first attempt.
    'grpc.service_config_disable_resolution': 1,
    // A connection whose packets vanish looks alive: it is pinged, and given up when it does not answer.
    'grpc.keepalive_time_ms': 10000,
    'grpc.keepalive_timeout_ms': 5000,
    'grpc.keepalive_permit_without_calls': 1,
    // https_proxy in the environment of a till must not carry its sales anywhere.
    'grpc.enable_http_proxy': 0,
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 1000,
    ...(name && { 'grpc.ssl_target_name_override': name, 'grpc.default_authority': name }),
  });
}

// Out of this process before it goes on: a sale ends in the book when its receipt is out, and not before.
function say(answer) {
  const line = Buffer.from(`${JSON.stringify(answer)}\n`);
  for (let at = 0; at < line.length;) at += writeSync(STDOUT, line, at);
}

class Till {
  constructor(client, book) {
    this.client = client;
    this.book = book;
  }

  // Takes up what was open when a till last stopped; returns the exit code.
  async takeUp() {
    let worst = 0;
    for (const refusal of this.book.untold()) worst = Math.max(worst, this.#tellRefused(refusal, { taken_up: true }));
    const open = [...this.book.open()];
    const next = async () => {
      for (let sale = open.shift(); sale; sale = open.shift()) {
        worst = Math.max(worst, await this.#ask(sale, true, { taken_up: true }));
      }
    };
    await Promise.all(Array.from({ length: OPEN_AT_ONCE }, next));
    return worst;
  }

  // Checks, stores, sells, and tells where the delivery stands; returns the exit code.
  async sell(pan, pence) {
    const deliver = !given['two-step'];
    const asked = { pan, amount_pence: pence, channel: CHANNEL_ONLINE };
    const { eligible, objections } = await this.#read('CheckEligibility', { ...asked, deliver });
    if (!eligible) {
      say({ eligible, objections: objections.map(({ reason }) => reason.replace('ERROR_REASON_', '')) });
      return EXIT_REFUSED;
    }
    // The consumer pays here. From now on there is one payment, and one id for it.
    const sale = { transaction_id: makeTransactionId(), ...asked, deliver };
    this.book.begin(sale);
    const code = await this.#ask(sale, false, {});
    if (code !== 0) return code;
    // Sold, whatever becomes of this question.
    const delivery = await this.#read('GetVend', { transaction_id: sale.transaction_id })
      .then(({ vend }) => vend.delivery.state, (error) => `not known: ${reasonOf(error)}`);
    say({ transaction_id: sale.transaction_id, delivery });
    return 0;
  }

  // Asks for the code of a sale in the book until there is a final answer. The sale ends when its receipt is out.
  async #ask(sale, repeat, about) {
    const { transaction_id, pan, amount_pence, channel, deliver } = sale;
    const until = Date.now() + GIVE_UP_MS;
    for (;;) {
      try {
        const reply = await this.#call(deliver ? 'TopUp' : 'IssueUtrn', { transaction_id, pan, amount_pence, channel, repeat });
        if (reply.code?.transaction_id !== transaction_id) throw noSuchAnswer();
        say({ transaction_id, code: reply.code.utrn_printed, replayed: reply.replayed, ...about });
        this.book.end(transaction_id, 'issued');
        return 0;
      } catch (error) {
        if (!isOfCall(error)) throw error;
        const verdict = judge(error, repeat);
        if (verdict === 'NOT_SOLD') {
          this.book.refuse(transaction_id, reasonOf(error), error.details);
          return this.#tellRefused({ transaction_id, reason: reasonOf(error), message: error.details }, about);
        }
        // A repeat may bring the code, or a refusal that is fenced, even to a suspended or departed seller.
        if ((repeat && verdict === 'ASK_OPERATOR') || Date.now() > until) return this.#tellNoAnswer(transaction_id, error, about);
        repeat = true;
        await pause(Math.max(retryDelayMs(error), PAUSE_MS));
      }
    }
  }

  // Not sold, for good: it is in the book before anybody hears of it, so it is never asked again.
  #tellRefused({ transaction_id, reason, message }, about) {
    say({ transaction_id, ...about, refused: `${reason}: ${message}` });
    this.book.end(transaction_id, reason);
    return EXIT_REFUSED;
  }

  #tellNoAnswer(transaction_id, error, about) {
    const next = table.reasons[reasonOf(error)]?.next ?? 'repeat the same id; then ask the operator';
    const text = `${reasonOf(error)}: ${error.details}. ${next}. The sale stays open under its id: no money back yet`;
    say({ transaction_id, ...about, no_answer: text });
    return EXIT_NO_ANSWER;
  }

  async #read(method, request) {
    const until = Date.now() + GIVE_UP_MS;
    for (;;) {
      try {
        return await this.#call(method, request);
      } catch (error) {
        if (!isOfCall(error) || !mayBeRepeated(error) || Date.now() > until) throw error;
        await pause(Math.max(retryDelayMs(error), PAUSE_MS));
      }
    }
  }

  #call(method, request) {
    return new Promise((resolve, reject) => {
      const deadline = Date.now() + ATTEMPT_MS;
      this.client[method](request, { deadline }, (error, reply) => (error ? reject(error) : resolve(reply)));
    });
  }
}

// Trouble with one of many sales is told, and the next one is gone on with.
async function sellMany(till) {
  let worst = 0;
  for await (const line of createInterface({ input: process.stdin })) {
    worst = Math.max(worst, await guarded(() => {
      const { pan, pence } = saleAsked(line);
      return till.sell(pan, parsePence(pence));
    }));
  }
  return worst;
}

function saleAsked(line) {
  let asked;
  try {
    asked = JSON.parse(line);
  } catch {
    asked = undefined;
  }
  if (typeof asked?.pan === 'string' && typeof asked.pence === 'string') return asked;
  throw new RangeError(`${JSON.stringify(line)}: {"pan": "...", "pence": "1099"} is needed`);
}

async function guarded(act) {
  try {
    return await act();
  } catch (error) {
    if (error instanceof BookTrouble) {
      say({ book: error.message });
      return EXIT_BOOK;
    }
    if (error instanceof RangeError) {
      console.error(error.message);
      return EXIT_USAGE;
    }
    if (!isOfCall(error)) throw error;
    // Of the question before the sale: there is no sale yet.
    const text = `${reasonOf(error)}: ${error.details}. No sale was begun: take no money`;
    say({ [mayBeRepeated(error) ? 'no_answer' : 'refused']: text });
    return mayBeRepeated(error) ? EXIT_NO_ANSWER : EXIT_REFUSED;
  }
}

async function main() {
  const [pan, amount] = positionals;
  const pence = pan === undefined || pan === '-' ? undefined : parsePence(amount);
  const book = await SaleBook.opened(given.sales);
  const client = openClient();
  try {
    for (const { line, why } of book.damaged) {
      console.error(`${given.sales}, line ${line} is set aside: ${why}; look whether it was a sale`);
    }
    const till = new Till(client, book);
    // Beside the new sale: who stands at the counter does not wait for those of before.
    const takenUp = till.takeUp();
    takenUp.catch(() => {}); // It is awaited below, whatever becomes of the new sale.
    try {
      if (pan === undefined) return await takenUp;
      return pan === '-' ? await sellMany(till) : await till.sell(pan, pence);
    } finally {
      await takenUp;
    }
  } finally {
    client.close();
    book.close();
  }
}

// Whatever else goes wrong is no refusal, and Node would end with 1.
process.exitCode = await guarded(main).catch((error) => {
  console.error(error);
  return EXIT_NO_ANSWER;
});
