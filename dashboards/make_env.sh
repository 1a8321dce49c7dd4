#!/bin/sh
# make_env.sh: writes `.env` for docker-compose.otel.yml, with a random value for each secret of `.env.example`. It changes no
# value that `.env` has; it adds what is missing. A line may be as Compose reads it: indented, after `export`, quoted.
set -eu
cd "$(dirname "$0")/.."
umask 077
[ -e .env ] || : > .env
random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; } # 64 hexadecimal digits, as Langfuse's ENCRYPTION_KEY has to be
assigns() { printf '^[[:blank:]]*\\(export[[:blank:]][[:blank:]]*\\)\\{0,1\\}%s[[:blank:]]*=' "$1"; }
# Without its quotes, or without a comment after it.
value() {
  sed -n "s/$(assigns "$1")//p" "$2" | tail -n 1 | tr -d '\r' |
    sed -e "s/^[[:blank:]]*'\([^']*\)'.*/\1/;t" -e 's/^[[:blank:]]*"\([^"]*\)".*/\1/;t' \
      -e 's/[[:blank:]]#.*//' -e 's/^[[:blank:]]*//' -e 's/[[:blank:]]*$//'
}
added=
add() {
  [ -z "$(value "$1" .env.new)" ] || return 0
  # A line without a value would be a second one.
  sed "/$(assigns "$1")[[:blank:]]*[\"']*[[:space:]]*\([[:blank:]]#.*\)\{0,1\}\$/d" .env.new > .env.newer && cat .env.newer > .env.new
  echo "$1=$2" >> .env.new
  added="$added $1"
}
trap 'rm -f .env.new .env.newer' EXIT
cp -p .env .env.new # with its mode
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
  chmod 600 .env.new
  mv .env.new .env
  echo "wrote .env, readable by you alone; Grafana's password for 'admin' is its GRAFANA_ADMIN_PASSWORD"
fi
