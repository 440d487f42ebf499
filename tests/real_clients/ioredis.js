// ioredis: a job queue, pipelines, MULTI, publish and subscribe, a stream, and a broker that is killed and comes back.
//
// ioredis.js PORT RESTART: RESTART is a command that kills the broker and starts it again on its port and data.
'use strict';
const assert = require('assert');
const { execFileSync } = require('child_process');
const Redis = require('ioredis');

const port = Number(process.argv[2]);
const connect = (more) => new Redis(port, '127.0.0.1', { ...more });

async function lists(client) {
  const binary = Buffer.from([0, 13, 10, 255, 36]);
  assert.strictEqual(await client.rpush('jobs', 'a', binary, ''), 3);
  assert.strictEqual(await client.llen('jobs'), 3);
  assert.deepStrictEqual(await client.lrangeBuffer('jobs', 0, -1), [Buffer.from('a'), binary, Buffer.from('')]);
  assert.strictEqual(await client.lpop('jobs'), 'a');
  assert.deepStrictEqual(await client.lpopBuffer('jobs', 5), [binary, Buffer.from('')]);
  assert.strictEqual(await client.lpop('jobs'), null);
  assert.strictEqual(await client.rpushx('nothing', 'x'), 0);
  assert.strictEqual(await client.lpush('jobs', '1', '2'), 2);
  assert.deepStrictEqual(await client.brpop('jobs', 1), ['jobs', '1']);
  assert.deepStrictEqual(await client.lmpop(2, 'nothing', 'jobs', 'LEFT'), ['jobs', ['2']]);
  assert.strictEqual(await client.blpop('jobs', 0.05), null);
  // Two that wait: who came first is served first, and in the order of what was sent.
  const waiting = [connect(), connect()];
  const first = waiting[0].blpop('later', 0);
  await new Promise((resolve) => setTimeout(resolve, 50));
  const second = waiting[1].blpop('nothing', 'later', 0);
  await new Promise((resolve) => setTimeout(resolve, 50));
  await client.rpush('later', 'one', 'two');
  assert.deepStrictEqual([await first, await second], [['later', 'one'], ['later', 'two']]);
  waiting.forEach((one) => one.disconnect());
  await client.del('jobs', 'later');
}

// Commands of one tick go in one piece with enableAutoPipelining, too.
async function pipelines(client) {
  const pipeline = client.pipeline();
  for (let nth = 0; nth < 1000; nth++) pipeline.rpush('many', String(nth));
  assert.deepStrictEqual(await pipeline.exec(), [...Array(1000).keys()].map((nth) => [null, nth + 1]));
  const popped = await Promise.all([...Array(1000).keys()].map(() => client.lpop('many')));
  assert.deepStrictEqual(popped, [...Array(1000).keys()].map(String));
  const exec = await client.multi().rpush('many', 'a', 'b').lpop('many').llen('many').lpop('many', 3).exec();
  assert.deepStrictEqual(exec, [[null, 2], [null, 'a'], [null, 1], [null, ['b']]]);
  await client.multi({ pipeline: false });
  assert.strictEqual(await client.rpush('many', 'no'), 'QUEUED');
  assert.strictEqual(await client.discard(), 'OK');
  assert.strictEqual(await client.llen('many'), 0);
  const auto = connect({ enableAutoPipelining: true });
  assert.deepStrictEqual(await Promise.all([auto.rpush('auto', '1'), auto.rpush('auto', '2'), auto.llen('auto')]), [1, 2, 2]);
  assert.strictEqual(await client.del('auto'), 1);
  auto.disconnect();
  await assert.rejects(client.set('a', 'b'), /unknown command/);
}

async function topics(client) {
  const subscriber = connect();
  const seen = [];
  subscriber.on('message', (channel, message) => seen.push([channel, message]));
  subscriber.on('pmessage', (pattern, channel, message) => seen.push([pattern, channel, message]));
  assert.strictEqual(await subscriber.subscribe('news.eu', 'news.us'), 2);
  assert.strictEqual(await subscriber.psubscribe('news.*'), 3);
  for (let nth = 0; nth < 100; nth++) assert.strictEqual(await client.publish('news.eu', String(nth)), 1);
  assert.strictEqual(await subscriber.unsubscribe('news.us'), 2);
  assert.strictEqual(await subscriber.ping(), 'PONG');
  assert.deepStrictEqual(seen.filter((one) => one.length === 2), [...Array(100).keys()].map((nth) => ['news.eu', String(nth)]));
  assert.deepStrictEqual(seen.filter((one) => one.length === 3), [...Array(100).keys()].map((nth) => ['news.*', 'news.eu', String(nth)]));
  await subscriber.quit();
}

async function streams(client) {
  const ids = [];
  for (let nth = 0; nth < 5; nth++) ids.push(await client.xadd('events', '*', 'n', nth, 'body', `entry ${nth}`));
  assert.strictEqual(await client.xgroup('CREATE', 'events', 'group', '0'), 'OK');
  await assert.rejects(client.xgroup('CREATE', 'events', 'group', '0'), /BUSYGROUP/);
  const read = async (consumer, count) =>
    (await client.xreadgroup('GROUP', 'group', consumer, 'COUNT', count, 'BLOCK', 1000, 'STREAMS', 'events', '>'))[0][1];
  const [one, two] = [await read('one', 2), await read('two', 10)];
  assert.deepStrictEqual([...one, ...two].map((entry) => entry[0]), ids);
  assert.deepStrictEqual(one[1][1], ['n', '1', 'body', 'entry 1']);
  assert.strictEqual(await client.xack('events', 'group', ids[0], ids[2]), 2);
  assert.strictEqual((await client.xpending('events', 'group'))[0], 3);
  const claimed = await client.xautoclaim('events', 'group', 'two', 0, '0');
  assert.deepStrictEqual(claimed[1].map((entry) => entry[0]), [ids[1], ids[3], ids[4]]);
  assert.strictEqual(await client.xack('events', 'group', ...ids), 3);
  assert.strictEqual(await client.xlen('events'), 5);
  assert.strictEqual(await client.del('events'), 1);
}

// A worker that waits for ever while the broker is killed: the client connects again and asks again by itself.
async function reconnects(client, restart) {
  const worker = connect({ maxRetriesPerRequest: null });
  worker.on('error', () => {});
  const got = [];
  const sent = [...Array(200).keys()].map((nth) => `job ${nth}`);
  const work = (async () => {
    while (got.length < sent.length) {
      const [, job] = await worker.blpop('work', 0);
      // The last one before the kill may come again: it was not settled when the broker went.
      if (got[got.length - 1] !== job) got.push(job);
    }
  })();
  client.on('error', () => {});
  for (const job of sent.slice(0, 100)) await client.rpush('work', job);
  const before = got.length;
  assert.ok(before > 0, 'the worker works');
  execFileSync('sh', ['-c', restart]);
  for (const job of sent.slice(100)) await client.rpush('work', job);
  await work;
  assert.deepStrictEqual(got, sent);
  worker.disconnect();
}

async function main(restart) {
  const client = connect();
  await lists(client);
  await pipelines(client);
  await topics(client);
  await streams(client);
  await reconnects(client, restart);
  assert.strictEqual(await client.quit(), 'OK');
}

main(process.argv[3]).catch((error) => { console.error(error); process.exit(1); });
