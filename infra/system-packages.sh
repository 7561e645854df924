#!/usr/bin/env bash
# Install what the tests need besides Python (infra/apt-packages.txt): as root or with passwordless sudo, else say how.
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t packages < infra/apt-packages.txt
command -v dpkg-query > /dev/null || exit 0
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${db:Status-Status}' "$package" 2> /dev/null | grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ]; then
    as_root=()
elif sudo -n true 2> /dev/null; then
    as_root=(sudo -n)
else
    echo "Some tests need: sudo apt-get install ${missing[*]}   (they are skipped without)" >&2
    exit 0
fi
echo "Installing ${missing[*]} ..."
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
