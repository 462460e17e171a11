// A till in Node: the policy of proto/service_config.json over all nodes, one id per sale, repeats under the same id.
// node sell.mjs PROTO_ROOT SERVICE_CONFIG NODES CERT KEY CA SALES < PANs and ids as JSON lines > answers as JSON lines
import fs from "node:fs";
import readline from "node:readline";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [root, config, nodes, cert, key, ca] = process.argv.slice(2);
const loaded = protoLoader.loadSync("utrn/v1/top_up_service.proto", { includeDirs: [root], keepCase: true, longs: String, enums: String });
const { TopUpService } = grpc.loadPackageDefinition(loaded).utrn.v1;
const credentials = grpc.credentials.createSsl(fs.readFileSync(ca), fs.readFileSync(key), fs.readFileSync(cert));
const client = new TopUpService(`ipv4:${nodes}`, credentials, {
  "grpc.service_config": fs.readFileSync(config, "utf8"),
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 1000,
  "grpc.ssl_target_name_override": "localhost",
  "grpc.default_authority": "localhost",
});
const REPEATABLE = new Set([grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED, grpc.status.RESOURCE_EXHAUSTED]);

function once(request) {
  return new Promise((resolve, reject) => {
    client.TopUp(request, { deadline: Date.now() + 2000 }, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

async function sell(request) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      const reply = await once(request);
      return { id: request.transaction_id, utrn: reply.code.utrn, attempts: attempt };
    } catch (error) {
      if (!REPEATABLE.has(error.code) || attempt > 60) return { id: request.transaction_id, error: error.message };
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  }
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await sell(JSON.parse(line))));
}
client.close();
