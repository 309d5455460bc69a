// Leaves the loop over a stream after its first response, and cancels the call when standard input ends.
import { connect } from './tidegate.js';

const call = connect(process.argv[2]).Subscribe({ filters: ['a.b'] });
call.on('error', () => {});
for await (const _ of call) {
  break;
}
console.log(JSON.stringify({ type: 'left' }));
process.stdin.resume();
process.stdin.on('end', () => call.cancel());
