// Sells one top-up as a PSP does: check, sell, repeat until there is an answer, look where the delivery stands.
// node sell.mjs TARGET CERT KEY CA PAN PENCE [PROTO_FOLDER]
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import { promisify } from 'node:util';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const [target, cert, key, ca, pan, pence, folder = 'proto'] = process.argv.slice(2);
const repeatMs = 30_000;

// UUIDv7: 48 bits of milliseconds, version, chance, variant, chance. A till stores it with the sale before it calls.
function transactionId() {
  const bytes = randomBytes(16);
  bytes.writeUIntBE(Date.now(), 0, 6);
  bytes[6] = 0x70 | (bytes[6] & 0x0f);
  bytes[8] = 0x80 | (bytes[8] & 0x3f);
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}

const definition = loader.loadSync('utrn/v1/top_up_service.proto', {
  includeDirs: [folder], keepCase: true, longs: String, enums: String, defaults: true,
});
const { TopUpService } = grpc.loadPackageDefinition(definition).utrn.v1;
const credentials = grpc.credentials.createSsl(readFileSync(ca), readFileSync(key), readFileSync(cert));
const client = new TopUpService(target, credentials, { 'grpc.ssl_target_name_override': 'localhost' });
const call = (method, request) =>
  promisify((message, options, done) => client[method](message, options, done))(request, { deadline: Date.now() + 2000 });

async function repeated(request) {
  const until = Date.now() + repeatMs;
  for (;;) {
    try {
      return await call('TopUp', request);
    } catch (error) {
      const unsure = [grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED].includes(error.code);
      if (!unsure || Date.now() > until) throw error;
      await pause(200);
    }
  }
}

const sale = { pan, amount_pence: pence, channel: 'CHANNEL_ONLINE' };
const eligibility = await call('CheckEligibility', { ...sale, deliver: true });
if (!eligibility.eligible) {
  console.log(JSON.stringify({ eligible: false, because: eligibility.objections.map((one) => one.message) }));
} else {
  // The consumer pays here.
  const id = transactionId();
  const { code } = await repeated({ ...sale, transaction_id: id });
  const { vend } = await call('GetVend', { transaction_id: id });
  console.log(JSON.stringify({ eligible: true, code: code.utrn_printed, transaction_id: id, delivery: vend.delivery.state }));
}
client.close();
