#!/usr/bin/env bash
# Makes a base image like `debian:bookworm-slim` on a machine that cannot pull one from a registry: a minimal Debian tree by
# debootstrap, trimmed as Debian's own slim images are, then imported into the Docker Engine. Nothing else on the machine
# changes; the tree is made in a temporary directory and removed at the end.
set -euo pipefail
shopt -s nullglob inherit_errexit

readonly SUITE=bookworm
tag="caisson-base:$SUITE"
mirror=""
tree=""
work=""

usage() {
  cat <<USAGE
usage: make-base.sh [--tag NAME:TAG] [--mirror URL] [--tree DIR]

  --tag NAME:TAG  what the image is called (default: $tag)
  --mirror URL    the Debian mirror (default: the first one in this machine's apt sources)
  --tree DIR      imports this tree, made by debootstrap before, and leaves it as it is

Needs root (debootstrap makes device files and runs chroot), debootstrap unless --tree is given, the docker client, and an
engine that answers (DOCKER_HOST is honoured). About 250 MB of disk under \${TMPDIR:-/tmp} while it runs.
USAGE
}

fail() {
  printf 'make-base: %s\n' "$*" >&2
  exit 1
}

say() { printf 'make-base: %s\n' "$*"; }

cleanup() {
  # --one-file-system: were a mount of debootstrap's left in the tree, the machine's own /proc must not be entered.
  if [[ -n $work ]]; then rm -rf --one-file-system -- "$work"; fi
}

parse_arguments() {
  while (($# > 0)); do
    case $1 in
      --tag | --mirror | --tree)
        (($# >= 2)) || fail "$1 needs a value"
        case $1 in
          --tag) tag=$2 ;;
          --mirror) mirror=$2 ;;
          --tree) tree=$2 ;;
        esac
        shift 2
        ;;
      -h | --help)
        usage
        exit 0
        ;;
      *)
        usage >&2
        fail "unknown argument: $1"
        ;;
    esac
  done
}

# Prints "URI SUITE COMPONENT…" for each enabled binary entry of apt's sources, in both formats (one-line and deb822).
apt_sources() {
  local list_files=(/etc/apt/sources.list /etc/apt/sources.list.d/*.list) deb822_files=(/etc/apt/sources.list.d/*.sources)
  [[ -e ${list_files[0]} ]] || list_files=("${list_files[@]:1}")
  if ((${#list_files[@]} > 0)); then
    sed -nE 's/^deb[[:space:]]+(\[[^]]*\][[:space:]]*)?([^[:space:]]+)[[:space:]]+([^[:space:]]+)[[:space:]]+(.*)/\2 \3 \4/p' \
      "${list_files[@]}"
  fi
  if ((${#deb822_files[@]} > 0)); then
    # An empty line ends a stanza; the END block flushes the last one of the last file.
    awk '
      function flush(   i, j, uris, suites) {
        if (types ~ /(^| )deb( |$)/ && enabled != "no")
          for (i = 1; i <= split(uri, uris, " "); i++)
            for (j = 1; j <= split(suite, suites, " "); j++) print uris[i], suites[j], components
        types = uri = suite = components = enabled = ""
      }
      FNR == 1 || /^[[:space:]]*$/ { flush() }
      /^Types:/   { sub(/^[^:]*:[[:space:]]*/, ""); types = $0 }
      /^URIs:/    { sub(/^[^:]*:[[:space:]]*/, ""); uri = $0 }
      /^Suites:/  { sub(/^[^:]*:[[:space:]]*/, ""); suite = $0 }
      /^Components:/ { sub(/^[^:]*:[[:space:]]*/, ""); components = $0 }
      /^Enabled:/ { sub(/^[^:]*:[[:space:]]*/, ""); enabled = tolower($0) }
      END { flush() }
    ' "${deb822_files[@]}"
  fi
}

# Others than Debian also name a suite after its release, so a mirror is told by what only Debian has: a main component and,
# beside the suite, its updates; else by its path. On a machine of another release, any suite of it will do: a mirror has all.
find_mirror() {
  local found
  found=$(apt_sources | awk -v suite="$SUITE" '
    !/ main( |$)/ { next }
    !seen[$1]++ { order[++count] = $1 }
    $2 == suite { carries[$1] = 1 }
    $2 == suite "-updates" { updates[$1] = 1 }
    $1 ~ /\/debian\/?$/ { named[$1] = 1 }
    END {
      for (i = 1; i <= count; i++) {
        uri = order[i]
        score = carries[uri] && updates[uri] ? 2 : named[uri]
        if (score > best) { best = score; mirror = uri }
      }
      if (best > 0) print mirror
    }')
  [[ -n $found ]] || fail "no Debian mirror in this machine's apt sources; name one with --mirror"
  printf '%s\n' "$found"
}

# The tree gets the same mirror, and of the machine's entries those for updates and security of $SUITE.
write_apt_sources() {
  local to=$1
  {
    printf 'deb %s %s main\n' "$mirror" "$SUITE"
    apt_sources | awk -v suite="$SUITE" '
      $2 == suite "-updates" || $2 == suite "-security" { line = "deb " $1 " " $2 " main"; if (!seen[line]++) print line }'
  } >"$to/etc/apt/sources.list"
}

# What Debian's slim images do: no documentation (licences stay), no translations, no package caches; now and in later installs.
trim() {
  local to=$1
  cat >"$to/etc/dpkg/dpkg.cfg.d/slim" <<'CONF'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/groff/*
path-exclude /usr/share/lintian/*
path-exclude /usr/share/linda/*
path-exclude /usr/share/locale/*
CONF
  printf 'Acquire::Languages "none";\n' >"$to/etc/apt/apt.conf.d/no-languages"
  printf 'APT::Keep-Downloaded-Packages "false";\nDir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n' \
    >"$to/etc/apt/apt.conf.d/no-cache"
  find "$to/usr/share/doc" -mindepth 1 ! -type d ! -name copyright -delete
  find "$to/usr/share/doc" -mindepth 1 -type d -empty -delete
  local directory
  for directory in man info groff lintian linda locale; do
    rm -rf -- "${to:?}/usr/share/$directory"
    mkdir -p "$to/usr/share/$directory"
  done
  rm -rf -- "$to"/var/lib/apt/lists/* "$to"/var/cache/apt/* "$to"/var/log/*.log "$to"/var/log/apt
  # A machine's own facts do not belong in an image; the engine brings its own.
  rm -f -- "$to/etc/hostname" "$to/etc/resolv.conf" "$to/var/lib/dbus/machine-id"
  : >"$to/etc/machine-id"
}

main() {
  parse_arguments "$@"
  ((EUID == 0)) || fail "run it as root: debootstrap makes device files and runs chroot"
  command -v docker >/dev/null || fail "the docker client is missing; install it first (Debian: docker.io)"
  docker version --format '{{.Server.Version}}' >/dev/null || fail "no Docker Engine answers; start it, or set DOCKER_HOST"
  if [[ -n $tree ]]; then
    [[ -x $tree/usr/bin/dpkg && -d $tree/etc/apt ]] || fail "$tree is no Debian tree"
  else
    command -v debootstrap >/dev/null || fail "debootstrap is missing; install it first (Debian: debootstrap)"
  fi
  [[ -n $mirror ]] || mirror=$(find_mirror)

  work=$(mktemp -d "${TMPDIR:-/tmp}/caisson-base.XXXXXXXX")
  trap cleanup EXIT
  chmod 755 "$work" # it becomes the image's root directory: everyone must be able to enter it
  if [[ -n $tree ]]; then
    say "copying the tree $tree"
    tar --numeric-owner -C "$tree" -c --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' . | tar --numeric-owner -C "$work" -xp
  else
    say "making a minimal Debian $SUITE tree from $mirror in $work (about a minute)"
    debootstrap --variant=minbase "$SUITE" "$work" "$mirror" >"$work.log" 2>&1 || {
      tail -n 20 "$work.log" >&2
      fail "debootstrap failed; its log is $work.log"
    }
    rm -f -- "$work.log"
  fi
  write_apt_sources "$work"
  trim "$work"
  say "importing it as $tag"
  tar --numeric-owner --sort=name -C "$work" -c --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' . |
    docker import --change 'CMD ["bash"]' --message "Debian $SUITE minbase, trimmed" - "$tag" >/dev/null
  say "made $tag ($(docker image inspect --format '{{.Size}}' "$tag" | awk '{ printf "%.0f MB", $1 / 1e6 }'))"
}

main "$@"
