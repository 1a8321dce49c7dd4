#!/bin/sh
# unpack_debian.sh PACKAGE FOLDER [all]: a Debian package's files, without installing it or changing the system.
# With "all", also those of the packages that it needs and this system does not have.
set -eu
package=$1 which=${3:-one}
mkdir -p "$2"
folder=$(cd "$2" && pwd)
cd "$folder"
rm -f "$package"_*.deb
fetch() {
  packages=$package
  if [ "$which" = all ]; then
    packages=$(apt-get --quiet=2 "$@" install --no-install-recommends --simulate "$package" | awk '/^Inst /{print $2}')
    test -n "$packages"
  fi
  # shellcheck disable=SC2086 # several packages
  apt-get --quiet=2 -o APT::Sandbox::User= "$@" download $packages
}
private="-o Dir::State=$folder/apt -o Dir::Cache=$folder/apt/cache -o Dir::State::status=/var/lib/dpkg/status"
echo "setup: unpacking Debian's $package"
if ! fetch 2> /dev/null; then
  mkdir -p apt/lists/partial apt/cache/archives/partial
  # shellcheck disable=SC2086 # two options each
  apt-get --quiet=2 -o APT::Sandbox::User= $private update
  # shellcheck disable=SC2086
  fetch $private
fi
for file in ./*.deb; do dpkg --extract "$file" "$folder"; done
rm -rf ./*.deb apt
