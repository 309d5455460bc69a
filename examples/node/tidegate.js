// A subscription to Tidegate that survives: it resumes after every interruption, and tells of every gap.
// docs/protocol.md says why each line is as it is.

import { setTimeout as wait } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

const PROTOS = new URL('../../crates/tidegate-proto/proto', import.meta.url);

const { tidegate } = grpc.loadPackageDefinition(
  loadSync('tidegate/v1/event_service.proto', {
    includeDirs: [fileURLToPath(PROTOS)],
    // Names as in the .proto file. By default they are in camel case, and `resume_after` is dropped without a word.
    keepCase: true,
    // Exact. `Number` rounds beyond 2^53, and a position that is rounded is another one.
    longs: String,
    enums: String,
    // `response.response` names what a response holds: undefined for a kind that is newer than the .proto file.
    oneofs: true,
    defaults: true,
  }),
);

// ===== Connections =====

/** A client for HOST:PORT, without TLS. */
export function connect(server) {
  return new tidegate.v1.EventService(server, grpc.credentials.createInsecure(), {
    // Detects within 40 seconds that the server has vanished without closing the connection.
    'grpc.keepalive_time_ms': 30_000,
    'grpc.keepalive_timeout_ms': 10_000,
    // The library waits up to two minutes between connections: the back-off below is enough.
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 1_000,
    // A response that is larger ends its stream, and resuming brings the same one: above 4 MiB, the default, for servers
    // that allow larger events.
    'grpc.max_receive_message_length': 64 * 1024 * 1024,
  });
}

function authorization(token) {
  const metadata = new grpc.Metadata();
  if (token !== undefined) {
    metadata.set('authorization', `Bearer ${token}`);
  }
  return metadata;
}

/** Publishes the events as one batch: all of it is stored, or the error says that none is known to be. */
export function publish(client, events, { token } = {}) {
  const deadline = Date.now() + 10_000;
  return new Promise((resolve, reject) => {
    client.Publish({ events }, authorization(token?.()), { deadline }, (error, answer) =>
      error ? reject(error) : resolve(answer),
    );
  });
}

// ===== Responses as updates =====

/** EPOCH:SEQUENCE, as `tidegate sub` writes it. */
export function showPosition({ epoch, sequence }) {
  return `${BigInt(epoch).toString(16).padStart(16, '0')}:${sequence}`;
}

/** The inverse of `showPosition`. */
export function readPosition(text) {
  const [, epoch, sequence] = /^([0-9a-f]{1,16}):(\d{1,20})$/i.exec(text) ?? [];
  if (sequence === undefined) {
    throw new Error(`a position is EPOCH:SEQUENCE, and not ${text}`);
  }
  return { epoch: BigInt(`0x${epoch}`).toString(), sequence };
}

function milliseconds(duration) {
  return Number(duration.seconds) * 1000 + duration.nanos / 1e6;
}

function time({ seconds, nanos }) {
  const fraction = nanos === 0 ? '' : `.${String(nanos).padStart(9, '0').replace(/0+$/, '')}`;
  return new Date(Number(seconds) * 1000).toISOString().replace('.000Z', `${fraction}Z`);
}

/** What a response tells. A kind that is newer than the .proto file tells nothing. */
function updates({ response: kind, [kind]: content }) {
  switch (kind) {
    case 'subscribed':
      return [
        {
          type: kind,
          client_id: content.client_id,
          position: showPosition(content.position),
          next_index: BigInt(content.next_index),
        },
      ];
    case 'batch':
      return content.events.map((event) => ({
        type: 'event',
        sequence: BigInt(event.sequence),
        topic: event.topic,
        payload: event.payload,
        key: event.key || undefined,
        attributes: Object.keys(event.attributes).length > 0 ? event.attributes : undefined,
        time: event.time ? time(event.time) : undefined,
      }));
    case 'gap':
      return [
        {
          type: kind,
          first_sequence: BigInt(content.first_sequence),
          last_sequence: BigInt(content.last_sequence),
          // 0: unknown, perhaps none.
          count: BigInt(content.count),
          // A newer server may have a reason that is only a number here. It is a loss all the same.
          reason:
            typeof content.reason === 'number'
              ? `unknown_${content.reason}`
              : content.reason.replace('GAP_REASON_', '').toLowerCase(),
        },
      ];
    case 'heartbeat':
      return [{ type: kind, position: content.position ? showPosition(content.position) : undefined }];
    case 'caught_up':
      return [{ type: kind, position: showPosition(content.position) }];
    case 'going_away':
      return [
        {
          type: kind,
          reason: content.reason,
          reconnect_after: content.reconnect_after ? milliseconds(content.reconnect_after) : 0,
        },
      ];
    default:
      return [];
  }
}

// ===== Positions =====

/** The position to resume after: everything up to it was handled, or counted by a gap. */
class Cursor {
  // None before the first event of a `replay_last`.
  position;
  clientId;
  #epoch;
  #replays;
  #nextIndex;

  constructor({ resume_after: position, client_id: clientId }) {
    this.position = position;
    this.clientId = clientId;
  }

  /** The request of the next stream. `replay_last` is for a stream without a position: together they are refused. */
  request(first) {
    const replay = this.position ? 0 : first.replay_last;
    this.#replays = Boolean(this.position) || replay > 0;
    return { ...first, client_id: this.clientId, resume_after: this.position, replay_last: replay };
  }

  /** Checks a response that is to be handled: its index must continue what came before. */
  check({ response: kind, [kind]: content }) {
    if (kind === 'subscribed') {
      this.#nextIndex = BigInt(content.next_index);
    } else if (kind === 'batch') {
      this.#count(content.first_index, BigInt(content.events.length));
    } else if (kind === 'gap' && content.count !== '0') {
      this.#count(content.first_index, BigInt(content.count));
    }
  }

  #count(firstIndex, count) {
    if (BigInt(firstIndex) !== this.#nextIndex) {
      throw new Error(`the server broke the protocol: index ${firstIndex} came in place of ${this.#nextIndex}`);
    }
    this.#nextIndex += count;
  }

  /** Moves past a response whose contents have been handled. */
  advance({ response: kind, [kind]: content }) {
    switch (kind) {
      case 'subscribed':
        this.clientId = content.client_id;
        this.#epoch = content.position.epoch;
        // With a replay, everything up to the head is still to come.
        if (!this.#replays) {
          this.position = content.position;
        }
        break;
      case 'batch':
        this.#moveThrough(content.events.at(-1).sequence);
        break;
      case 'gap':
        // Conflated events lie between those that survived, which are still to come.
        if (content.reason !== 'GAP_REASON_CONFLATED') {
          this.#moveThrough(content.last_sequence);
        }
        break;
      case 'caught_up':
        this.#moveTo(content.position);
        break;
      case 'heartbeat':
        this.#moveFurther(content.position);
        break;
      case 'going_away':
        this.#moveFurther(content.resume_after);
        break;
    }
  }

  /** Where nothing is settled yet, or in another epoch, this would lead past events that are still to come. */
  #moveFurther(stated) {
    if (stated && stated.epoch === this.position?.epoch) {
      this.#moveTo(stated);
    }
  }

  #moveThrough(sequence) {
    this.#moveTo({ epoch: this.#epoch, sequence });
  }

  /** A position is never replaced by an older one of the same epoch. */
  #moveTo(stated) {
    const isOlder = this.position?.epoch === stated.epoch && BigInt(stated.sequence) < BigInt(this.position.sequence);
    if (!isOlder) {
      this.position = stated;
    }
  }
}

// ===== Endings =====

const BY_REASON = {
  INVALID_FILTER: 'stop',
  INVALID_TOPIC: 'stop',
  INVALID_CLIENT_ID: 'stop',
  INVALID_LIMITS: 'stop',
  INVALID_POSITION: 'stop',
  INVALID_REQUEST: 'stop',
  TOO_MANY_FILTERS: 'stop',
  FILTERS_TOO_COSTLY: 'stop',
  TOO_MANY_EVENTS: 'stop',
  EVENT_TOO_LARGE: 'stop',
  BATCH_TOO_LARGE: 'stop',
  COMPRESSION_UNSUPPORTED: 'stop',
  MALFORMED_MESSAGE: 'stop',
  TOO_SLOW: 'resume',
  STALLED: 'resume',
  QUOTA_EXCEEDED: 'resume',
  SHUTTING_DOWN: 'resume',
  MAX_CONNECTION_AGE: 'resume',
  EPOCH_CHANGED: 'resume',
  KEYS_UNAVAILABLE: 'resume',
  DEADLINE_EXCEEDED: 'resume',
  INTERNAL: 'resume',
  CREDENTIALS_MISSING: 'renew',
  CREDENTIALS_INVALID: 'renew',
  CREDENTIALS_EXPIRED: 'renew',
  CREDENTIALS_REVOKED: 'renew',
  POSITION_AHEAD: 'begin anew',
  CLIENT_ID_TAKEN: 'stop',
  TAKEN_OVER: 'stop',
  DISCONNECTED: 'stop',
  NOT_ALLOWED: 'stop',
};

const BY_CODE = {
  [grpc.status.UNAVAILABLE]: 'resume',
  [grpc.status.INTERNAL]: 'resume',
  [grpc.status.UNKNOWN]: 'resume',
  [grpc.status.CANCELLED]: 'resume',
  [grpc.status.DEADLINE_EXCEEDED]: 'resume',
  [grpc.status.RESOURCE_EXHAUSTED]: 'resume',
  [grpc.status.UNAUTHENTICATED]: 'renew',
  [grpc.status.OUT_OF_RANGE]: 'begin anew',
};

function trailer(ending, name) {
  return ending.metadata?.get(name)[0];
}

/** The delay that the server asks for, in milliseconds. One that cannot be read is as none. */
function delay(ending) {
  const text = trailer(ending, 'tidegate-retry-after-ms') ?? '';
  return /^\d+$/.test(text) ? Number(text) : 0;
}

/** What to do after an ending: by its reason, or by its code if there is no reason, or one that this table has not. */
function nextStep(ending) {
  const code = nameOf(ending) === 'UNKNOWN' ? grpc.status.UNKNOWN : ending.code;
  return BY_REASON[trailer(ending, 'tidegate-reason')] ?? BY_CODE[code] ?? 'stop';
}

/** A code that does not exist is `UNKNOWN`. */
function nameOf(ending) {
  return grpc.status[ending.code] ?? 'UNKNOWN';
}

// ===== The subscription =====

// The library hands over whole responses and not their bytes, so a large event over a slow link looks like silence.
const LARGEST_EVENT_MS = 5_000;

/** The silence in milliseconds after which a stream is dead: three heartbeats, and the time of a large event. */
function silenceOf({ heartbeat_interval: interval }) {
  return 3 * (interval ? milliseconds({ nanos: 0, ...interval }) : 15_000) + LARGEST_EVENT_MS;
}

/** The next response, or what ended the stream. */
async function receive(call, responses, silence) {
  const alarm = setTimeout(() => call.cancel(), silence);
  try {
    const { value, done } = await responses.next();
    // No Tidegate server ends a stream with OK: something between does.
    const ending = { code: grpc.status.UNAVAILABLE, details: 'the stream ended without a reason' };
    return done ? { ending } : { response: value };
  } catch (ending) {
    return { ending };
  } finally {
    clearTimeout(alarm);
  }
}

/** Reads one stream to its end, and says how it ended. */
async function readStream(client, request, metadata, cursor, handle) {
  const ended = { ending: undefined, began: false, moved: false, wait: 0 };
  const call = client.Subscribe(request, metadata);
  try {
    // One response at a time, and the next only when this one was handled. A listener for `data` that is asynchronous
    // would be called for the next response before it has handled this one.
    const responses = call[Symbol.asyncIterator]();
    for (;;) {
      const { response, ending } = await receive(call, responses, silenceOf(request));
      if (ending) {
        return { ...ended, ending, wait: Math.max(ended.wait, delay(ending)) };
      }
      cursor.check(response);
      for (const update of updates(response)) {
        await handle(update);
        ended.began ||= update.type === 'subscribed';
        ended.moved ||= ['event', 'gap', 'heartbeat'].includes(update.type);
        ended.wait = update.reconnect_after ?? ended.wait;
      }
      // Handled first, then remembered: if handling fails, its events come again.
      cursor.advance(response);
    }
  } finally {
    // If `handle` has thrown, nobody reads the stream any more, and only this ends it: leaving the loop does not.
    call.cancel();
  }
}

/**
 * Calls `handle` with every update, one at a time and in order, through interruptions and restarts. Returns the error of
 * the ending after which the server says to stop. `token` is a function that returns the bearer token.
 */
export async function subscribe(client, first, handle, { token } = {}) {
  if (first.resume_after && first.replay_last > 0) {
    throw new Error('either a position or the newest events: not both');
  }
  const cursor = new Cursor(first);
  for (let failures = 0; ; failures += 1) {
    const ended = await readStream(client, cursor.request(first), authorization(token?.()), cursor, handle);
    const { ending, began, moved } = ended;
    if (moved) {
      failures = 0;
    }
    const step = nextStep(ending);
    const goesOn =
      step === 'resume' ||
      // The server has lost events that it once sent, and the state that was made of them may be wrong.
      (step === 'begin anew' && cursor.position) ||
      // One stream with a new token: if that is refused too, it has not begun.
      (step === 'renew' && token && began);
    if (!goesOn) {
      return ending;
    }
    if (step === 'begin anew') {
      cursor.position = undefined;
    }
    // Full jitter, so that many clients do not come back at the same moment.
    const pause = Math.min(ended.wait, 3_600_000) + Math.random() * Math.min(30_000, 250 * 2 ** Math.min(failures, 10));
    await handle({
      type: 'reconnecting',
      code: nameOf(ending),
      message: ending.details,
      retry_in: pause,
    });
    await wait(pause);
  }
}
