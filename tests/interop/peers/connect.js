// @connectrpc/connect-node, with the protocol of gRPC, as the tests command:
//
//   node connect.js DESCRIPTORS HOST:PORT [CERTIFICATE-OF-AUTHORITY]

import { readFileSync } from 'node:fs';
import { createFileRegistry, fromBinary, toBinary } from '@bufbuild/protobuf';
import { FileDescriptorSetSchema } from '@bufbuild/protobuf/wkt';
import { ConnectError, createClient } from '@connectrpc/connect';
import { createGrpcTransport } from '@connectrpc/connect-node';
import { obey } from './commands.js';

const [descriptors, address, authority] = process.argv.slice(2);
const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(descriptors)));
const service = registry.getService('tidegate.v1.EventService');
const transport = createGrpcTransport({
  baseUrl: `${authority ? 'https' : 'http'}://${address}`,
  nodeOptions: authority ? { ca: readFileSync(authority) } : {},
});
const client = createClient(service, transport);

async function* decoded(input, requests) {
  for await (const request of requests) {
    yield fromBinary(input, request);
  }
}

function begin(method, request, requests) {
  const { input, output, localName } = service.methods.find(({ name }) => name === method);
  const abort = new AbortController();
  const cancel = () => abort.abort();
  if (method === 'Publish') {
    const answered = client[localName](fromBinary(input, request), { signal: abort.signal });
    // It is asked for later.
    answered.catch(() => {});
    return { next: async () => toBinary(output, await answered), cancel };
  }
  const sent = request ? fromBinary(input, request) : decoded(input, requests);
  const responses = client[localName](sent, { signal: abort.signal })[Symbol.asyncIterator]();
  // A stream begins when it is first asked.
  let first = responses.next();
  first.catch(() => {});
  const next = async () => {
    const { done, value } = await (first ?? responses.next());
    first = undefined;
    return done ? undefined : toBinary(output, value);
  };
  return { next, cancel };
}

function ending(error) {
  const { code, rawMessage: message, metadata } = ConnectError.from(error);
  return { code, message, trailers: [...metadata] };
}

await obey({ begin, ending });
