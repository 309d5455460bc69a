// A handler that fails at the first event. The program goes on, until its standard input ends.
import { connect, subscribe } from './tidegate.js';

try {
  await subscribe(connect(process.argv[2]), { filters: ['a.b'] }, ({ type }) => {
    if (type === 'event') {
      throw new Error('the handler failed');
    }
  });
} catch ({ message }) {
  console.log(JSON.stringify({ type: 'failed', message }));
}
process.stdin.resume();
