#!/bin/sh
# Join the Ray cluster of CLICKLOOP_RAY_ADDRESS as a node that offers nothing, then run the command: a Ray driver needs a
# node in its own container. RAY_AUTH_TOKEN is the cluster's token.
set -eu
ray start --address="$CLICKLOOP_RAY_ADDRESS" --num-cpus=0 --num-gpus=0 --object-store-memory=80000000 --disable-usage-stats
exec "$@"
