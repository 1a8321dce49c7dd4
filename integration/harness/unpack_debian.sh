#!/bin/sh
# unpack_debian.sh PACKAGE FOLDER [all | SUITE]: a Debian package's files, without installing it or changing the system.
# With "all", also those of the packages that it needs and this system does not have. SUITE: another than the system's, such as
# testing; only programs without C libraries of their own run then.
set -eu
package=$1
which=one suite=
case ${3:-} in
  all) which=all ;;
  *) suite=${3:-} ;;
esac
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
private="-o Dir::State=$folder/apt -o Dir::Cache=$folder/apt/cache"
echo "setup: unpacking Debian's $package${suite:+ of $suite}"
mkdir -p apt/lists/partial apt/cache/archives/partial
if [ -n "$suite" ]; then
  # Where the system has package lists, from its mirror.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
  keys=/usr/share/keyrings/debian-archive-keyring.gpg
  echo "deb [signed-by=$keys] ${mirror:-http://deb.debian.org/debian} $suite main" > apt/sources.list
  : > apt/status
  private="$private -o Dir::Etc::SourceList=$folder/apt/sources.list -o Dir::Etc::SourceParts=/dev/null"
  private="$private -o Dir::State::status=$folder/apt/status"
else
  private="$private -o Dir::State::status=/var/lib/dpkg/status"
fi
if [ -n "$suite" ] || ! fetch 2> /dev/null; then
  # shellcheck disable=SC2086 # options
  apt-get --quiet=2 -o APT::Sandbox::User= $private update
  # shellcheck disable=SC2086
  fetch $private
fi
for file in ./*.deb; do dpkg --extract "$file" "$folder"; done
rm -rf ./*.deb apt
