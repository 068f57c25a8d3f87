#!/bin/bash
# What tpu.sh runs on every worker of a TPU VM; it copies this file there.
#
#   worker.sh setup [key=value ...]    code, virtual environment, bucket
#   worker.sh start [--force=SECONDS] WORDS...   a command that outlives the ssh session
#   worker.sh check | status | stop SECONDS | logs LINES FOLLOW PREFIX
#
# Everything lives in ~/normjax (the code, where commands run) and ~/.normjax.
set -euo pipefail

HOST=$(hostname)
STATE=$HOME/.normjax
CODE=$HOME/normjax
LOG=$STATE/$HOST.log
EXIT_ACTIVE=3 EXIT_NOT_SET_UP=4
mkdir -p "$STATE"

say() { printf '%s: %s\n' "$HOST" "$*"; }
fail() { # MESSAGE CODE
  say "$1" >&2
  exit "$2"
}

# A run holds this lock, and hands it to its children: unlike a process id it tells the
# truth after a crash, and while a child that was left behind still holds the chips.
exec 9>"$STATE/lock"
idle() { flock -n 9; }

setup() {
  local extra=tpu repo='' ref='' bucket='' mount='' command='' word
  for word in "$@"; do
    case ${word%%=*} in
      extra) extra=${word#*=} ;;
      repo) repo=${word#*=} ;;
      ref) ref=${word#*=} ;;
      bucket) bucket=${word#*=} ;;
      mount) mount=${word#*=} ;;
      command) command=${word#*=} ;;
      *) fail "setup knows no '$word'" 2 ;;
    esac
  done
  idle || fail "a run is active here: stop it first (tpu.sh stop)" "$EXIT_ACTIVE"
  # 9>&-: what stays in the background, such as gcsfuse, must not keep the lock.
  [ -z "$bucket" ] || mount_bucket "$bucket" "$mount" 9>&-
  if [ -n "$repo" ]; then
    checkout "$repo" "$ref"
  else
    unpack "$HOME/normjax-source.tgz"
  fi
  environment "$extra"
  # shellcheck disable=SC2030  # the path of this command only
  [ -z "$command" ] || (cd "$CODE" && PATH=$STATE/venv/bin:$PATH bash -c "$command" 9>&-)
  touch "$STATE/ready"
  say "set up"
}

mount_bucket() { # BUCKET FOLDER
  if ! mountpoint -q "$2"; then
    if ! command -v gcsfuse >/dev/null; then
      curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg |
        sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
      printf 'deb [signed-by=%s] %s gcsfuse-%s main\n' /usr/share/keyrings/cloud.google.asc \
        https://packages.cloud.google.com/apt "$(lsb_release -c -s)" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
      sudo apt-get update -qq && sudo apt-get install -y -qq gcsfuse
    fi
    sudo mkdir -p "$2" && sudo chown "$(id -u):$(id -g)" "$2"
    # A checkpoint becomes one by renaming its folder.
    gcsfuse --implicit-dirs --rename-dir-limit=1000000 "$1" "$2"
  fi
}

checkout() { # URL REF
  if [ ! -d "$CODE/.git" ]; then
    rm -rf "$CODE" && git clone --quiet "$1" "$CODE"
  fi
  git -C "$CODE" fetch --quiet "$1" "${2:-HEAD}"
  git -C "$CODE" checkout --quiet --detach FETCH_HEAD
}

unpack() { # ARCHIVE: replaces the code, so that deleted files go; keeps runs/
  rm -rf "$CODE.new" && mkdir -p "$CODE.new"
  tar -xzf "$1" -C "$CODE.new"
  [ ! -d "$CODE/runs" ] || mv "$CODE/runs" "$CODE.new/runs"
  rm -rf "$CODE" && mv "$CODE.new" "$CODE"
}

environment() { # EXTRA: a virtual environment, touched only when its inputs changed
  local wanted
  wanted=$(cd "$CODE" && cat pyproject.toml constraints.txt && echo "$1")
  if [ "$wanted" != "$(cat "$STATE/installed" 2>/dev/null)" ]; then
    [ -x "$STATE/venv/bin/pip" ] || make_venv
    (cd "$CODE" && "$STATE/venv/bin/pip" install --quiet --disable-pip-version-check \
      -c constraints.txt -e ".[$1]") || fail "pip install failed" 1
    printf '%s\n' "$wanted" >"$STATE/installed"
  fi
}

make_venv() {
  local python
  for python in python3.13 python3.12 python3.11 python3; do
    if "$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$python" -m venv "$STATE/venv" && return
    fi
  done
  # TPU VM images have Python 3.10; uv brings its own.
  if [ ! -x "$STATE/uv" ]; then
    curl -fsSL https://astral.sh/uv/install.sh | env UV_INSTALL_DIR="$STATE" UV_NO_MODIFY_PATH=1 sh
  fi
  "$STATE/uv" venv --quiet --python 3.11 --seed --clear "$STATE/venv"
}

check() { # says why a run cannot start here
  [ -e "$STATE/ready" ] || fail "not set up: run tpu.sh setup" "$EXIT_NOT_SET_UP"
  idle || fail "a run is active since $(cat "$STATE/started"); stop it, or launch --force" "$EXIT_ACTIVE"
}

start() {
  case $1 in
    --force=*)
      stop "${1#--force=}"
      shift ;;
  esac
  check
  rm -f "$STATE/exit" "$STATE/pid"
  date -u +%FT%TZ >"$STATE/started"
  {
    printf '\n=== %s %s:' "$(cat "$STATE/started")" "$HOST"
    printf ' %q' "$@"
    printf '\n'
  } >>"$LOG"
  cd "$CODE"
  # A session of its own survives the end of ssh. SIGTERM to its group must reach the
  # program, which saves a checkpoint, and not end the shells that hand on its exit code.
  [ "$1 ${2:-}" != "bash -c" ] || set -- bash -c "trap : TERM INT; $3" "${@:4}"
  # shellcheck disable=SC2016,SC2031  # expanded by the inner shell
  PATH=$STATE/venv/bin:$PATH PYTHONUNBUFFERED=1 NORMJAX_STATE=$STATE setsid nohup bash -c '
    echo $$ >"$NORMJAX_STATE/pid"
    trap : TERM INT
    code=0
    "$@" || code=$?
    echo "=== exit code $code"
    echo "$code" >"$NORMJAX_STATE/exit.new"
    mv "$NORMJAX_STATE/exit.new" "$NORMJAX_STATE/exit"
  ' run "$@" >>"$LOG" 2>&1 </dev/null &
  say "started, log in $LOG"
}

status() { # one line: running | exited CODE | died | none
  if ! idle; then
    say "running since $(cat "$STATE/started")"
  elif [ -e "$STATE/exit" ]; then
    say "exited $(cat "$STATE/exit")"
  elif [ -e "$STATE/started" ]; then
    say "died" # without an exit code: killed, or the machine was restarted
  else
    say "none"
  fi
}

stop() { # SECONDS that the run has to save a checkpoint
  local group
  if ! idle; then
    group=$(cat "$STATE/pid") || fail "starting or being set up just now: try again" 1
    kill -TERM -- "-$group" 2>/dev/null || true
    if ! flock -w "$1" 9; then
      say "still there after $1 s: killed" >&2
      kill -KILL -- "-$group" 2>/dev/null || true
      flock -w 10 9 || fail "the lock is still held" 1
    fi
  fi
  status
}

logs() { # LINES FOLLOW PREFIX
  local follow=()
  [ "$2" = false ] || follow=(-F)
  [ -e "$LOG" ] || fail "no log yet" 1
  if [ "$3" = true ]; then # several workers on one terminal
    tail -n "$1" ${follow[@]+"${follow[@]}"} "$LOG" | sed -u "s/^/$HOST: /"
  else
    tail -n "$1" ${follow[@]+"${follow[@]}"} "$LOG"
  fi
}

case ${1:-} in
  setup | check | start | status | stop | logs) "$@" ;;
  *) fail "unknown verb '${1:-}'" 2 ;;
esac
