#!/bin/sh
# unpack_debian.sh PACKAGE FOLDER: a Debian package's files, without installing it or changing the system.
set -eu
package=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)
cd "$folder"
rm -f "$package"_*.deb
fetch() { apt-get --quiet=2 -o APT::Sandbox::User= "$@" download "$package"; }
private="-o Dir::State=$folder/apt -o Dir::Cache=$folder/apt/cache"
echo "setup: unpacking Debian's $package"
if ! fetch 2> /dev/null; then
  mkdir -p apt/lists/partial apt/cache/archives/partial
  # shellcheck disable=SC2086 # two options each
  apt-get --quiet=2 -o APT::Sandbox::User= $private update
  # shellcheck disable=SC2086
  fetch $private
fi
dpkg --extract "$package"_*.deb "$folder"
rm -rf "$package"_*.deb apt
