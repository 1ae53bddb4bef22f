#!/bin/bash
# Usage: examples/ssh_launch.sh "HOST1 HOST2 ..." PROCESSES_PER_HOST RECIPE --out DIR ...
# The first host is where all meet; every host needs this environment and the same shared folders.
# SSH names the program that reaches a host (default ssh), PORT where they meet.
set -euo pipefail
read -r -a hosts <<<"$1"
processes=$2
shift 2
port=${PORT:-29500}
arguments=$(printf ' %q' "$@")
launched=()
for node in "${!hosts[@]}"; do
    ${SSH:-ssh} "${hosts[$node]}" "cd $(printf '%q' "$PWD") && torchrun --nnodes ${#hosts[@]} --node-rank $node \
--nproc-per-node $processes --master-addr ${hosts[0]} --master-port $port -m ovbridge.cli.main train$arguments" &
    launched+=($!)
done
status=0
for process in "${launched[@]}"; do
    wait "$process" || status=$?
done
exit "$status"
