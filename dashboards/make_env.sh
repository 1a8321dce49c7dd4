#!/bin/sh
# make_env.sh: writes `.env` for docker-compose.otel.yml, with a random value for each secret of `.env.example`. It changes no
# value that `.env` has; it adds what is missing.
set -eu
cd "$(dirname "$0")/.."
umask 077
touch .env
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; } # 64 hexadecimal digits, as Langfuse's ENCRYPTION_KEY has to be
value() { sed -n "s/^$1=//p" "$2" | tail -n 1; }
added=
add() {
  [ -z "$(value "$1" .env.new)" ] || return 0
  # A line without a value would be a second one.
  sed "/^$1=\$/d" .env.new > .env.newer && mv .env.newer .env.new
  echo "$1=$2" >> .env.new
  added="$added $1"
}
trap 'rm -f .env.new .env.newer' EXIT
cp .env .env.new
[ -z "$(tail -c 1 .env.new)" ] || echo >> .env.new
while IFS='=' read -r name default; do
  case $name in
    '' | '#'*) ;;
    LANGFUSE_PROJECT_SECRET) add "$name" "sk-lf-$(random)" ;;
    *) add "$name" "${default:-$(random)}" ;;
  esac
done < .env.example
# What the Collector sends to Langfuse: Basic authentication with the project's two keys.
secret=$(value LANGFUSE_PROJECT_SECRET .env.new)
add LANGFUSE_BASIC_AUTH "$(printf 'pk-lf-corevital:%s' "$secret" | base64 | tr -d '\n')"
if [ -z "$added" ]; then
  echo ".env has everything; nothing was changed"
elif [ -s .env ]; then
  mv .env.new .env
  echo "added to .env:$added"
else
  mv .env.new .env
  echo "wrote .env, readable by you alone; Grafana's password for 'admin' is its GRAFANA_ADMIN_PASSWORD"
fi
