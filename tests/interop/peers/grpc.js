// @grpc/grpc-js, as the tests command:  node grpc.js HOST:PORT [CERTIFICATE-OF-AUTHORITY]

import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import grpc from '@grpc/grpc-js';
import { obey } from './commands.js';

const [address, authority] = process.argv.slice(2);
const credentials = authority ? grpc.credentials.createSsl(readFileSync(authority)) : grpc.credentials.createInsecure();
const client = new grpc.Client(address, credentials, {
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 1_000,
});
const same = (bytes) => bytes;

/** Responses as they are asked for. The stream's own iterator throws away what was not read when the call ends. */
class Pulled {
  #stream;
  #error;
  #hasEnded = false;

  constructor(stream) {
    this.#stream = stream;
    stream.on('error', (error) => {
      this.#error = error;
    });
    stream.on('end', () => {
      this.#hasEnded = true;
    });
  }

  async next() {
    for (;;) {
      const response = this.#stream.read();
      if (response !== null) {
        return response;
      }
      if (this.#error) {
        throw this.#error;
      }
      if (this.#hasEnded) {
        return undefined;
      }
      // An error rejects it, and is thrown by the next round.
      await Promise.race([once(this.#stream, 'readable'), once(this.#stream, 'end')]).catch(() => {});
    }
  }
}

function begin(method, request, requests) {
  const path = `/tidegate.v1.EventService/${method}`;
  if (method === 'Publish') {
    let call;
    const answered = new Promise((resolve, reject) => {
      const take = (error, answer) => (error ? reject(error) : resolve(answer));
      call = client.makeUnaryRequest(path, same, same, request, take);
    });
    return { next: () => answered, cancel: () => call.cancel() };
  }
  if (method === 'Subscribe') {
    const call = client.makeServerStreamRequest(path, same, same, request);
    const pulled = new Pulled(call);
    return { next: () => pulled.next(), cancel: () => call.cancel() };
  }
  const call = client.makeBidiStreamRequest(path, same, same);
  const pulled = new Pulled(call);
  (async () => {
    for await (const message of requests) {
      call.write(message);
    }
    call.end();
  })();
  return { next: () => pulled.next(), cancel: () => call.cancel() };
}

function ending({ code, details, metadata }) {
  const trailers = Object.keys(metadata?.getMap() ?? {}).map((name) => {
    const [value] = metadata.get(name);
    return [name, name.endsWith('-bin') ? value.toString('base64') : value];
  });
  return { code, message: details, trailers };
}

await obey({ begin, ending });
