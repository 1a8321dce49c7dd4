#!/bin/sh
# make_env.sh: writes `.env` for docker-compose.otel.yml, with a random value for each secret of `.env.example`.
set -eu
cd "$(dirname "$0")/.."
if [ -e .env ]; then
  echo ".env exists and was not changed: remove it first to make new secrets" >&2
  exit 1
fi
umask 077
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; } # 64 hexadecimal digits, as Langfuse's ENCRYPTION_KEY has to be
trap 'rm -f .env.new' EXIT
while IFS= read -r line; do
  case $line in
    LANGFUSE_PROJECT_SECRET=)
      secret=sk-lf-$(random)
      echo "$line$secret"
      # What the Collector sends to Langfuse: Basic authentication with the project's two keys.
      echo "LANGFUSE_BASIC_AUTH=$(printf 'pk-lf-corevital:%s' "$secret" | base64 | tr -d '\n')"
      ;;
    *=) echo "$line$(random)" ;;
    *) echo "$line" ;;
  esac
done < .env.example | grep -v '^#' > .env.new
mv .env.new .env
echo "wrote .env, readable by you alone; Grafana's password for 'admin' is its GRAFANA_ADMIN_PASSWORD"
