#!/bin/sh
# make_secrets.sh HOST...: makes what remote.yaml needs, in dashboards/collector/secrets/: a self-signed certificate for these names or
# addresses of the Collector's host (tls.crt, tls.key), and a random token. With a certificate of your own, put it there instead.
set -eu
if [ $# -eq 0 ]; then
  echo "usage: make_secrets.sh HOST...: name the Collector's host as the servers do, such as collector.example.com or 10.0.0.5" >&2
  exit 2
fi
cd "$(dirname "$0")"
if [ -e secrets/tls.key ] || [ -e secrets/token ]; then
  echo "dashboards/collector/secrets/ exists and was not changed: remove it first to make new secrets" >&2
  exit 1
fi
host=$1
names=
for name in "$@"; do
  case $name in
    *[!0-9.]* ) kind=DNS ;;
    * ) kind=IP ;;
  esac
  case $name in *:*) kind=IP ;; esac # IPv6
  names=${names:+$names,}$kind:$name
done
umask 077
mkdir -p secrets
trap 'rm -f secrets/*.new' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 825 -subj "/CN=$host" -addext "subjectAltName=$names" \
  -addext "basicConstraints=critical,CA:TRUE" -keyout secrets/tls.key.new -out secrets/tls.crt.new 2> secrets/openssl.new || {
  cat secrets/openssl.new >&2
  exit 1
}
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > secrets/token.new
for file in tls.key tls.crt token; do mv "secrets/$file.new" "secrets/$file"; done
cat << END
Wrote dashboards/collector/secrets/. Copy tls.crt to each server with vLLM, and start it with:
  OTEL_EXPORTER_OTLP_ENDPOINT=https://$host:5317
  OTEL_EXPORTER_OTLP_CERTIFICATE=/etc/corevital/tls.crt
  OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20TOKEN"   # TOKEN: what the file 'token' holds
END
