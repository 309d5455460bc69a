// Makes calls with a library as the tests command: a JSON object a line on standard input, and one for each answer on
// standard output. Messages are in base64.
//
//   {"do": "begin", "call": ID, "method": NAME, "request": MESSAGE}    a call, with its request if there is only one
//   {"do": "send", "call": ID, "request": MESSAGE}                     one more request, of a method with many
//   {"do": "end", "call": ID}                                          no more requests
//   {"do": "next", "call": ID}                                         asks for the next response
//   {"do": "cancel", "call": ID}

import { createInterface } from 'node:readline';

/** The requests of a call, as they are sent. */
class Requests {
  #waiting = [];
  #wake = () => {};

  /** `undefined` ends them. */
  push(request) {
    this.#waiting.push(request);
    this.#wake();
  }

  async *[Symbol.asyncIterator]() {
    for (;;) {
      while (this.#waiting.length === 0) {
        await new Promise((resolve) => {
          this.#wake = resolve;
        });
      }
      const request = this.#waiting.shift();
      if (request === undefined) {
        return;
      }
      yield request;
    }
  }
}

function print(answer) {
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}

async function answer(id, call, ending) {
  try {
    const response = await call.next();
    const content = response && { response: Buffer.from(response).toString('base64') };
    print({ call: id, ...(content ?? { code: 0 }) });
  } catch (error) {
    print({ call: id, ...ending(error) });
  }
}

/**
 * Runs until standard input ends. `begin(method, request, requests)` begins a call, with one request or with many, and
 * returns its `next`, which is undefined at the end or throws, and its `cancel`. `ending(error)` has what it threw:
 * `code`, `message`, and `trailers`, of which those in base64 have names that end with `-bin`.
 */
export async function obey({ begin, ending }) {
  const calls = new Map();
  for await (const line of createInterface({ input: process.stdin })) {
    const { do: act, call: id, method, request: text } = JSON.parse(line);
    const request = text === undefined ? undefined : Buffer.from(text, 'base64');
    if (act === 'begin') {
      const requests = new Requests();
      calls.set(id, { requests, answered: Promise.resolve(), ...begin(method, request, requests) });
    }
    const call = calls.get(id);
    if (act === 'send' || act === 'end') {
      call.requests.push(request);
    } else if (act === 'next') {
      call.answered = call.answered.then(() => answer(id, call, ending));
    } else if (act === 'cancel') {
      call.cancel();
    }
  }
  process.exit();
}
