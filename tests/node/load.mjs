// Loads the public contract as a Node caller does, makes a message, and says what it found as one JSON object.
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const [root, ...files] = process.argv.slice(2);
const loaded = protoLoader.loadSync(files, { includeDirs: [root], keepCase: true, longs: String, enums: String, defaults: true });
const contract = grpc.loadPackageDefinition(loaded);
const service = contract.utrn.v1.TopUpService.service;
const request = { transaction_id: "x", pan: "1", amount_pence: "819100", channel: "CHANNEL_APP" };
const wire = service.TopUp.requestSerialize(request);
console.log(
  JSON.stringify({
    methods: Object.keys(service).sort(),
    headEnd: Object.keys(contract.headend.v1.HeadEndService.service).sort(),
    amount: service.TopUp.requestDeserialize(wire).amount_pence,
  }),
);
