#!/bin/sh
# build.sh FOLDER: builds the core OpenTelemetry Collector into FOLDER/otelcol, from the Go library and the Go of Debian sid.
# Nothing is installed and no file of the system changes. It fetches 0.3 GB and needs 4 GB of disk while it runs.
set -eu
for tool in apt-get dpkg; do
  command -v "$tool" > /dev/null || { echo "build.sh: no $tool: the Collector is built from Debian's packages only" >&2; exit 1; }
done
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
work=$folder/build
rm -rf "$work" # what an interrupted build left
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
echo "deb ${mirror:-http://deb.debian.org/debian} sid main" > "$work/sources.list"
apt() {
  apt-get -qq -o APT::Sandbox::User= -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State="$work" -o Dir::State::status=/dev/null -o Dir::Cache="$work/cache" "$@"
}
apt update
apt install --yes --download-only --no-install-recommends golang-opentelemetry-collector-dev golang-go
for package in "$work"/cache/archives/golang-*.deb; do dpkg --extract "$package" "$work/root"; done
rm -rf "$work/cache"
goroot=$(ls -d "$work"/root/usr/lib/go-[0-9]*)
mkdir "$work/source"
cp "$here/main.go" "$work/source"
cd "$work/source"
# bin, pkg and src of Debian's Go are links to a folder of its other package.
GO111MODULE=off GOPATH=$work/root/usr/share/gocode GOROOT=$goroot GOCACHE=$work/gocache CGO_ENABLED=0 GOTOOLCHAIN=local \
  "$goroot/bin/go" build -o "$folder/otelcol.new" .
mv "$folder/otelcol.new" "$folder/otelcol"
cd "$folder"
rm -rf "$work"
