#!/bin/sh
# serve.sh MODEL [ARGUMENT ...]: `vllm serve` with the plugin, unless the arguments name logits processors themselves.
# `serve.sh corevital ...` is the command corevital, such as `corevital doctor`.
set -eu
if [ "${1:-}" = corevital ]; then
  exec "$@"
fi
for argument in "$@"; do
  case $argument in
    --logits-processor-pattern*) ;;
    --logits-processor* | --logits_processor*) exec vllm serve "$@" ;;
  esac
done
exec vllm serve "$@" --logits-processors corevital
