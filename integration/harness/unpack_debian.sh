#!/bin/sh
# unpack_debian.sh PACKAGE FOLDER [SUITE]: a Debian package's files, without installing it or changing the system. SUITE: another
# than the system's, such as testing; only programs without C libraries of their own run then.
set -eu
package=$1
suite=${3:-}
mkdir -p "$2"
folder=$(cd "$2" && pwd)
cd "$folder"
rm -f "$package"_*.deb
fetch() { apt-get --quiet=2 -o APT::Sandbox::User= "$@" download "$package"; }
private="-o Dir::State=$folder/apt -o Dir::Cache=$folder/apt/cache"
echo "setup: unpacking Debian's $package${suite:+ of $suite}"
if [ -n "$suite" ]; then
  # Where the system has package lists, from its mirror.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
  mkdir -p apt/lists/partial apt/cache/archives/partial
  keys=/usr/share/keyrings/debian-archive-keyring.gpg
  echo "deb [signed-by=$keys] ${mirror:-http://deb.debian.org/debian} $suite main" > apt/sources.list
  : > apt/status
  private="$private -o Dir::Etc::SourceList=$folder/apt/sources.list -o Dir::Etc::SourceParts=/dev/null"
  private="$private -o Dir::State::status=$folder/apt/status"
  # shellcheck disable=SC2086 # options
  apt-get --quiet=2 -o APT::Sandbox::User= $private update
  # shellcheck disable=SC2086
  fetch $private
elif ! fetch 2> /dev/null; then
  mkdir -p apt/lists/partial apt/cache/archives/partial
  # shellcheck disable=SC2086 # two options each
  apt-get --quiet=2 -o APT::Sandbox::User= $private update
  # shellcheck disable=SC2086
  fetch $private
fi
dpkg --extract "$package"_*.deb "$folder"
rm -rf "$package"_*.deb apt
