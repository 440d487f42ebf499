// amqplib: both ends of a queue with confirms, an exchange of topics, a request with its answer.
'use strict';
const assert = require('assert');
const amqp = require('amqplib');

async function main(port) {
  const connection = await amqp.connect(`amqp://guest:guest@127.0.0.1:${port}/`);
  const channel = await connection.createConfirmChannel();
  await channel.assertQueue('jobs', { durable: true, arguments: { 'x-max-priority': 5 } });
  await channel.assertExchange('logs', 'topic', { durable: true });
  const { queue } = await channel.assertQueue('', { exclusive: true });
  await channel.bindQueue(queue, 'logs', 'a.#');
  for (let nth = 0; nth < 1000; nth++) {
    channel.sendToQueue('jobs', Buffer.from(String(nth)), { persistent: true, headers: { nth, deep: { list: [1, 'x', true, null] } } });
    channel.publish('logs', 'a.b', Buffer.from(String(nth)));
  }
  await channel.waitForConfirms();
  await channel.prefetch(10);
  const seen = await new Promise((resolve, reject) => {
    const seen = [];
    channel.consume('jobs', (message) => {
      try {
        assert.strictEqual(message.properties.headers.nth, seen.length);
        assert.deepStrictEqual(message.properties.headers.deep, { list: [1, 'x', true, null] });
      } catch (error) { reject(error); }
      seen.push(message.content.toString());
      channel.ack(message);
      if (seen.length === 1000) resolve(seen);
    }, { consumerTag: 'one' }).catch(reject);
  });
  assert.deepStrictEqual(seen, [...Array(1000).keys()].map(String));
  await channel.cancel('one');
  assert.strictEqual((await channel.checkQueue(queue)).messageCount, 1000);
  assert.strictEqual((await channel.purgeQueue(queue)).messageCount, 1000);
  // A request and its answer.
  const answered = new Promise((resolve) => channel.consume('amq.rabbitmq.reply-to', resolve, { noAck: true }));
  let isCancelled = false;
  await channel.consume('jobs', (message) => {
    if (message === null) { isCancelled = true; return; }
    channel.sendToQueue(message.properties.replyTo, Buffer.from('answer'), { correlationId: message.properties.correlationId });
    channel.ack(message);
  });
  channel.sendToQueue('jobs', Buffer.from('question'), { replyTo: 'amq.rabbitmq.reply-to', correlationId: 'c1' });
  const answer = await answered;
  assert.strictEqual(answer.content.toString() + answer.properties.correlationId, 'answerc1');
  // An error closes its channel and nothing else.
  const other = await connection.createChannel();
  const failed = new Promise((resolve) => other.on('error', resolve));
  await assert.rejects(other.checkQueue('none'), /404/);
  assert.strictEqual((await failed).code, 404);
  // A consumer is told that its queue goes.
  await channel.deleteQueue('jobs');
  await channel.checkExchange('logs');
  assert.ok(isCancelled);
  await connection.close();
}

main(process.argv[2]).catch((error) => { console.error(error); process.exit(1); });
