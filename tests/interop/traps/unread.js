// Handles each response slowly, and says how many there were before the stream ended.
import { setTimeout as wait } from 'node:timers/promises';
import { connect } from './tidegate.js';

const call = connect(process.argv[2]).Subscribe({ filters: ['a.b'] });
let count = 0;
try {
  for await (const _ of call) {
    count += 1;
    await wait(20);
  }
} catch ({ code }) {
  console.log(JSON.stringify({ type: 'ended', count, code }));
}
process.exit();
