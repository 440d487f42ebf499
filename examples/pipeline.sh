#!/bin/sh
# A pipeline of shell stages with nothing but nc: lines go into one queue, a worker takes them one by one,
# publishes what it made to the next queue and acks; the last stage prints. A worker that dies loses nothing.
#
# `hold=1` keeps a lease when nc's connection ends. `nc -N` ends its side after its input, as the nc of
# OpenBSD and Debian does; set NC for another one.
set -eu
addr=${RINGMQ_ADDR:-127.0.0.1:7766}
ringmq() { ${NC:-nc -N} "${addr%:*}" "${addr##*:}"; }

# First stage: one batch of lines.
printf '%s\n' 'MPUB words *4' one two three four | ringmq >&2

# Second stage: takes, works, hands on, and settles when that is confirmed.
while :; do
    reply=$(echo 'PULL words hold=1 lease=30s' | ringmq)
    [ "$reply" != "END 0" ] || break
    # MSG words <n>.<id>.<n> $<bytes>, then the body, then END 1.
    handle=$(echo "$reply" | awk 'NR == 1 { print $3 }')
    id=$(echo "$handle" | cut -d. -f2)
    word=$(echo "$reply" | sed -n 2p | tr '[:lower:]' '[:upper:]')
    # once= makes a second try of the same word harmless.
    echo "PUB loud once=$id :$word" | ringmq | grep -q '^OK ' && echo "ACK $handle" | ringmq >&2
done

# Last stage: prints the bodies, every second line.
echo 'PULL loud 100 ack=auto' | ringmq | sed '/^END /d' | sed -n 'n;p'
