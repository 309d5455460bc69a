// Subscribes anew with the position of `subscribed`, under each set of options, and other names of its field.
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

const [, , server, optionsText, positionName, resumeName] = process.argv;
const { longs, ...options } = JSON.parse(optionsText);
const definition = loadSync('tidegate/v1/event_service.proto', {
  includeDirs: [fileURLToPath(new URL('../../crates/tidegate-proto/proto', import.meta.url))],
  longs: { Number, String }[longs],
  ...options,
});
const { tidegate } = grpc.loadPackageDefinition(definition);
const client = new tidegate.v1.EventService(server, grpc.credentials.createInsecure());

function firstOf(call) {
  return new Promise((resolve) => {
    call.on('error', () => {});
    call.once('data', (response) => {
      call.cancel();
      resolve(response);
    });
  });
}

const { subscribed } = await firstOf(client.Subscribe({ filters: ['a.b'] }));
await firstOf(client.Subscribe({ filters: ['a.b'], [resumeName]: subscribed[positionName] }));
client.close();
