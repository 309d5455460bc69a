// Listens for `data` with a function that takes a while, and says when each of its calls begins and ends.
import { setTimeout as wait } from 'node:timers/promises';
import { connect } from './tidegate.js';

const call = connect(process.argv[2]).Subscribe({ filters: ['a.b'] });
call.on('error', () => {});
call.on('data', async ({ response }) => {
  console.log(JSON.stringify({ type: 'begins', response }));
  await wait(200);
  console.log(JSON.stringify({ type: 'ends', response }));
});
