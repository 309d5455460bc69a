// Publishes one batch of events to a Tidegate server.
//
//   node publish.js [--server HOST:PORT] [--token-file FILE] [--key KEY] TOPIC PAYLOAD...

import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { connect, publish } from './tidegate.js';

const { values: options, positionals } = parseArgs({
  options: {
    server: { type: 'string', default: '127.0.0.1:50051' },
    'token-file': { type: 'string' },
    key: { type: 'string', default: '' },
  },
  allowPositionals: true,
});
const [topic, ...payloads] = positionals;
const file = options['token-file'];
const token = file && (() => readFileSync(file, 'utf8').trim());

const client = connect(options.server);
const events = payloads.map((payload) => ({ topic, payload: Buffer.from(payload), key: options.key }));
const answer = await publish(client, events, { token });
console.log(
  `published ${answer.count} as sequences ${answer.first_sequence} to ${answer.last_sequence}, ` +
    `${answer.matched} deliveries to come`,
);
client.close();
