// Prints the events of a Tidegate server, one JSON object a line, as `tidegate sub --output json` does.
//
//   node subscribe.js [--server HOST:PORT] [--token-file FILE] [--client-id ID] [--heartbeat SECONDS]
//                     [--resume EPOCH:SEQUENCE | --replay N] FILTER...

import { isUtf8 } from 'node:buffer';
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { connect, readPosition, subscribe } from './tidegate.js';

const { values: options, positionals: filters } = parseArgs({
  options: {
    server: { type: 'string', default: '127.0.0.1:50051' },
    'token-file': { type: 'string' },
    'client-id': { type: 'string', default: '' },
    heartbeat: { type: 'string' },
    resume: { type: 'string' },
    replay: { type: 'string', default: '0' },
    // The one form that there is.
    output: { type: 'string', default: 'json' },
  },
  allowPositionals: true,
});

/** Anything else than a number would be sent as 0, and a larger one as what is left of it. */
function number(text, largest) {
  if (!/^\d+$/.test(text) || Number(text) > largest) {
    throw new Error(`a number up to ${largest} is wanted, and not ${text}`);
  }
  return Number(text);
}

function payload(bytes) {
  return isUtf8(bytes) ? { payload: bytes.toString() } : { payload_base64: bytes.toString('base64') };
}

function seconds(milliseconds) {
  return milliseconds === undefined ? undefined : `${milliseconds / 1000}s`;
}

/** `JSON.stringify` refuses a `BigInt`, and a number of JavaScript would be rounded. */
function stringify(object) {
  const members = Object.entries(object).filter(([, value]) => value !== undefined);
  const text = (value) => (typeof value === 'bigint' ? value.toString() : JSON.stringify(value));
  return `{${members.map(([name, value]) => `${JSON.stringify(name)}:${text(value)}`).join(',')}}`;
}

function print({ payload: bytes, reconnect_after, retry_in, ...update }) {
  const object = {
    ...update,
    ...(bytes && payload(bytes)),
    reconnect_after: seconds(reconnect_after),
    retry_in: seconds(retry_in),
  };
  // Waits where the reader of the output is slow, so that the server learns of it.
  return new Promise((resolve, reject) => {
    process.stdout.write(`${stringify(object)}\n`, (error) => (error ? reject(error) : resolve()));
  });
}

process.stdout.on('error', (error) => {
  // The reader of the output has gone, as `head` does.
  if (error.code === 'EPIPE') {
    process.exit(0);
  }
  throw error;
});

const file = options['token-file'];
const request = {
  filters,
  client_id: options['client-id'],
  heartbeat_interval: options.heartbeat && { seconds: number(options.heartbeat.replace(/s$/, ''), 3600) },
  resume_after: options.resume && readPosition(options.resume),
  replay_last: number(options.replay, 2 ** 32 - 1),
};
// Read for each call, since another program may write a renewed token to the file.
const token = file && (() => readFileSync(file, 'utf8').trim());
const ending = await subscribe(connect(options.server), request, print, { token });
console.error(ending.message ?? ending.details);
process.exit(1);
