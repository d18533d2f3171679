#!/bin/bash
# Adds to a folder what the programs in its usr/local/bin need, so that the folder can be the whole file system of an image:
#
#   - the libraries that ldd names, each with its package's copyright, and its package's state where scanners look for it
#   - the CA certificates, as one file, where OpenSSL and libcurl look for it
#   - the names of the user and of the hosts' sources, and Debian's own name
#
# The Dockerfile runs it in an image of Debian that has these packages.
set -euo pipefail

root=$1

die() {
  echo "image-root.sh: $*" >&2
  exit 1
}

# Debian's /lib is a link to /usr/lib. The path of the loader is written into each program.
mkdir -p "$root/usr/lib" "$root/usr/lib64" "$root/etc/ssl/certs" "$root/usr/lib/ssl" "$root/var/lib/dpkg/status.d"
ln -sfn usr/lib "$root/lib"
ln -sfn usr/lib64 "$root/lib64"

# Tells scanners and lawyers of a package.
add_package() {
  dpkg-query --status "$1" >"$root/var/lib/dpkg/status.d/${1%%:*}"
  install -D -m 644 "/usr/share/doc/${1%%:*}/copyright" "$root/usr/share/doc/${1%%:*}/copyright"
}

add_library() {
  local folder name package
  folder=$(realpath "$(dirname "$1")")
  name=$(basename "$1")
  install -D -m 755 "$(realpath "$1")" "$root$folder/$name"
  # The list of a package may have the path below /lib, where the file was before /lib was a link.
  package=$(dpkg-query --search "*/$(basename "$(realpath "$1")")" | head -n 1)
  [[ $package == *:* ]] || die "no package has $1"
  add_package "${package%%: *}"
}

for program in "$root"/usr/local/bin/*; do
  libraries=$(ldd "$program") || die "$program is not a program that loads libraries"
  [[ $libraries != *"not found"* ]] || die "$program lacks libraries: $(grep "not found" <<<"$libraries")"
  # A line is "libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x...)", or "/lib64/ld-linux-x86-64.so.2 (0x...)". The kernel's own
  # library has no path.
  while read -r library; do
    add_library "$library"
  done < <(grep -o '/[^ ]*' <<<"$libraries")
done

install -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
ln -sfn /etc/ssl/certs/ca-certificates.crt "$root/usr/lib/ssl/cert.pem"
add_package ca-certificates

install -m 644 /usr/lib/os-release "$root/usr/lib/os-release"
ln -sfn ../usr/lib/os-release "$root/etc/os-release"
install -m 644 /etc/debian_version "$root/etc/debian_version"
add_package base-files

echo "orders:x:10001:10001:order service:/:/usr/sbin/nologin" >"$root/etc/passwd"
echo "orders:x:10001:" >"$root/etc/group"
# Otherwise the C library asks DNS before /etc/hosts.
printf 'passwd: files\ngroup: files\nhosts: files dns\n' >"$root/etc/nsswitch.conf"
