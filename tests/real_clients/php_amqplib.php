<?php
// php-amqplib: confirms, prefetch, redelivery, gets, tables of every type, and a broker that is killed and comes back.
//
// php_amqplib.php PORT RESTART: RESTART is a command that kills the broker and starts it again on its port and data.

require_once 'PhpAmqpLib/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Exception\AMQPExceptionInterface;
use PhpAmqpLib\Exception\AMQPProtocolChannelException;
use PhpAmqpLib\Exception\AMQPTimeoutException;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPArray;
use PhpAmqpLib\Wire\AMQPTable;

set_error_handler(function ($level, $text, $file, $line) {
    // The library hides warnings of sockets with @ and throws by itself.
    if (error_reporting() & $level) {
        throw new ErrorException($text, 0, $level, $file, $line);
    }
});

function same($what, $wanted, $found)
{
    if ($wanted !== $found) {
        throw new RuntimeException("$what: wanted " . var_export($wanted, true) . ', found ' . var_export($found, true));
    }
}

function connect()
{
    global $argv;
    // What the library does unless told otherwise: AMQPLAIN, no heartbeats, three seconds for a read.
    return new AMQPStreamConnection('127.0.0.1', (int) $argv[1], 'guest', 'guest');
}

function persistent($body, $more = [])
{
    return new AMQPMessage($body, ['delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT] + $more);
}

/** Publishes with confirms, in single publishes and in one batch; returns what was confirmed. */
function publish_with_confirms($channel, $queue, $first, $count)
{
    $acked = [];
    $channel->set_ack_handler(function (AMQPMessage $message) use (&$acked) {
        $acked[] = $message->getBody();
    });
    $channel->set_nack_handler(function (AMQPMessage $message) {
        throw new RuntimeException('refused: ' . $message->getBody());
    });
    $channel->confirm_select();
    $sent = [];
    for ($nth = $first; $nth < $first + $count; $nth++) {
        $sent[] = "message $nth";
        if ($nth % 2) {
            $channel->batch_basic_publish(persistent("message $nth"), '', $queue);
            $channel->publish_batch();
        } else {
            $channel->basic_publish(persistent("message $nth"), '', $queue);
        }
    }
    $channel->wait_for_pending_acks(10);
    sort($acked, SORT_NATURAL);
    same('confirms', $sent, $acked);
    return $sent;
}

function consume($channel, $queue, $count, $each)
{
    $tag = $channel->basic_consume($queue, '', false, false, false, false, $each);
    for ($nth = 0; $nth < $count; $nth++) {
        $channel->wait(null, false, 10);
    }
    $channel->basic_cancel($tag);
}

function work_queue()
{
    $connection = connect();
    $channel = $connection->channel();
    same('declare', ['task_queue', 0, 0], $channel->queue_declare('task_queue', false, true, false, false));
    $sent = publish_with_confirms($channel, 'task_queue', 0, 500);
    same('count', 500, $channel->queue_declare('task_queue', true)[1]);

    // One at a time, in order; every tenth is given back once and comes again at its place, marked.
    $channel->basic_qos(null, 1, null);
    $got = [];
    consume($channel, 'task_queue', 550, function (AMQPMessage $message) use (&$got) {
        $nth = (int) substr($message->getBody(), 8);
        if ($nth % 10 === 0 && !$message->isRedelivered()) {
            $message->nack(true);
            return;
        }
        same('redelivered', $nth % 10 === 0, $message->isRedelivered());
        if ($message->isRedelivered()) {
            same('x-delivery-count', 1, $message->get('application_headers')->getNativeData()['x-delivery-count']);
        }
        $got[] = $message->getBody();
        $message->ack();
    });
    same('what was sent', $sent, $got);
    same('nothing is left', 0, $channel->queue_declare('task_queue', true)[1]);

    // Without a message a wait ends after its time.
    $tag = $channel->basic_consume('task_queue', 'waits', false, true);
    try {
        $channel->wait(null, false, 0.2);
        throw new RuntimeException('nothing is there');
    } catch (AMQPTimeoutException $expected) {
    }
    $channel->basic_cancel('waits', false, false);

    // What a channel holds goes back when it is closed.
    $other = $connection->channel();
    $channel->basic_publish(persistent('held'), '', 'task_queue');
    $channel->wait_for_pending_acks(10);
    $held = $other->basic_get('task_queue');
    same('get', ['held', false, 0], [$held->getBody(), $held->isRedelivered(), $held->getMessageCount()]);
    same('empty', null, $channel->basic_get('task_queue'));
    $other->close();
    $again = $channel->basic_get('task_queue');
    same('again', ['held', true], [$again->getBody(), $again->isRedelivered()]);
    $again->reject(false);
    same('gone', null, $channel->basic_get('task_queue', true));
    $connection->close();
}

function tables()
{
    $connection = connect();
    $channel = $connection->channel();
    $channel->queue_declare('tables', false, false, false, true, true);
    $channel->exchange_declare('by headers', 'headers', false, false, true, false, true);
    $channel->queue_bind('tables', 'by headers', '', true, new AMQPTable(['x-match' => 'all', 'kind' => 'wanted']));
    $headers = new AMQPTable([
        'kind' => 'wanted', 'int' => -7, 'long' => 1 << 40, 'true' => true, 'null' => null, 'double' => 0.5,
        'list' => [1, 'two', [3]], 'deep' => ['of' => ['words' => 'ä']],
    ]);
    $headers->set('when', 1700000000, AMQPTable::T_TIMESTAMP);
    $headers->set('octet', 5, AMQPTable::T_INT_SHORTSHORT);
    $headers->set('short', -5, AMQPTable::T_INT_SHORT);
    $headers->set('decimal', new PhpAmqpLib\Wire\AMQPDecimal(314, 2), AMQPTable::T_DECIMAL);
    $properties = [
        'content_type' => 'text/plain', 'content_encoding' => 'utf-8', 'priority' => 3, 'correlation_id' => 'c',
        'reply_to' => 'r', 'message_id' => 'm', 'timestamp' => 1700000000, 'type' => 't', 'app_id' => 'a',
    ];
    // A body of several frames.
    $body = random_bytes(300000);
    $channel->basic_publish(new AMQPMessage($body, $properties + ['application_headers' => $headers]), 'by headers');
    $channel->basic_publish(new AMQPMessage('other', ['application_headers' => new AMQPTable(['kind' => 'x'])]), 'by headers');
    $message = $channel->basic_get('tables', true);
    same('body', true, $message->getBody() === $body);
    foreach ($properties as $name => $value) {
        same($name, $value, $message->get($name));
    }
    same('headers', serialize($headers->getNativeData()), serialize($message->get('application_headers')->getNativeData()));
    same('the other was not bound', null, $channel->basic_get('tables', true));

    // A publish that reaches nobody comes back.
    $returned = [];
    $channel->set_return_listener(function ($code, $text, $exchange, $key, $message) use (&$returned) {
        $returned = [$code, $text, $exchange, $key, $message->getBody()];
    });
    $channel->basic_publish(new AMQPMessage('back'), '', 'nowhere', true);
    $channel->wait(null, false, 10);
    same('returned', [312, 'NO_ROUTE', '', 'nowhere', 'back'], $returned);

    // Dead letters, with what happened to them.
    $channel->queue_declare('dead', false, true, false, false);
    $channel->queue_declare('dies', false, true, false, false, false, new AMQPTable([
        'x-dead-letter-exchange' => '', 'x-dead-letter-routing-key' => 'dead', 'x-message-ttl' => 60000,
    ]));
    $channel->basic_publish(persistent('rejected'), '', 'dies');
    $channel->basic_get('dies')->reject(false);
    $dead = $channel->basic_get('dead', true);
    $death = $dead->get('application_headers')->getNativeData()['x-death'][0];
    same('x-death', ['dies', 'rejected', 1], [$death['queue'], $death['reason'], $death['count']]);

    // Transactions.
    $channel->tx_select();
    $channel->basic_publish(persistent('rolled back'), '', 'dead');
    $channel->tx_rollback();
    $channel->basic_publish(persistent('committed'), '', 'dead');
    $channel->tx_commit();
    same('tx', 'committed', $channel->basic_get('dead', true)->getBody());
    $channel->tx_commit();

    // An error ends its channel and no other.
    try {
        $connection->channel()->queue_declare('none', true);
        throw new RuntimeException('there is no such queue');
    } catch (AMQPProtocolChannelException $error) {
        same('code', 404, $error->amqp_reply_code);
    }
    same('purge', 0, $channel->queue_purge('dead'));
    $channel->queue_delete('dies');
    $channel->queue_delete('dead', false, false, true);
    $connection->close();
}

/** A worker and a producer that connect again after the broker was killed; what was confirmed comes. */
function reconnect($restart)
{
    $connection = connect();
    $channel = $connection->channel();
    $sent = publish_with_confirms($channel, 'task_queue', 1000, 100);
    $message = $channel->basic_get('task_queue');
    same('first', 'message 1000', $message->getBody());
    exec($restart, $output, $code);
    same('restart', 0, $code);
    try {
        // The unacked message is of a broker that is gone.
        $message->ack();
        $channel->queue_declare('task_queue', true);
        throw new RuntimeException('the connection has ended');
    } catch (AMQPExceptionInterface | ErrorException $expected) {
    }
    $connection->reconnect();
    $channel = $connection->channel();
    $channel->basic_qos(null, 1, null);
    $got = [];
    consume($channel, 'task_queue', 100, function (AMQPMessage $message) use (&$got) {
        $got[] = $message->getBody();
        $message->ack();
    });
    same('after the restart', $sent, $got);
    $connection->close();
}

work_queue();
tables();
reconnect($argv[2]);
