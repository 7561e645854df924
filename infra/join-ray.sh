#!/bin/sh
# Join the Ray cluster of CLICKLOOP_RAY_ADDRESS as a node that offers nothing, then run the command: a Ray driver needs a
# node in its own container. RAY_AUTH_TOKEN is the cluster's token. A node ends when the cluster's head is lost, and the
# command does not: the node is started again beside it, as soon as there is a head.
set -eu
join() {
    ray start --address="$CLICKLOOP_RAY_ADDRESS" --num-cpus=0 --num-gpus=0 --object-store-memory=80000000 --disable-usage-stats
}
join
(while sleep 2; do grep -qs '(raylet) [^ZX]' /proc/[0-9]*/stat || join || true; done) &
exec "$@"
