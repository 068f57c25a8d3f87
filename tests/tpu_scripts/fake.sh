#!/bin/bash
# Stands for gcloud, kubectl, sbatch and others, under whose names cloud.py installs it:
# records its call, answers as told. $FAKE_CLOUD is a folder with
#
#   calls.jsonl            every call: [program, arguments...]
#   node, request          states, one a line, of which the next description takes the
#                          first (the last one stays); ABSENT is "not there"
#   new_node, new_request  what creation puts there: a line of states each time
#   workers/N              the home of worker N
#   down/N                 how often worker N still does not answer
#   exit/PROGRAM           its exit code
#   fail/GROUP VERB        what gcloud says when it fails

program=${0##*/}
cd "$FAKE_CLOUD" || exit 99

json() { # sets REPLY
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  REPLY="\"${text//$'\x01'/\\u0001}\""
}

line=
for word in "$program" "$@"; do
  json "$word"
  line="$line, $REPLY"
done
printf '[%s]\n' "${line#, }" >>calls.jsonl

take() { # FILE: prints its first line, and drops it unless it is the last
  local lines
  mapfile -t lines <"$1"
  printf '%s\n' "${lines[0]}"
  [ "${#lines[@]}" -eq 1 ] || printf '%s\n' "${lines[@]:1}" >"$1"
}

describe() {
  local state
  case $group.$format in
    'tpu-vm.value(networkEndpoints.len())') set -- workers/* && echo $# && return ;;
    'tpu-vm.value(state)') state=$(take node) ;;
    'queued-resources.value(state.state)') state=$(take request) ;;
    *) exit 98 ;;
  esac
  if [ "$state" = ABSENT ]; then
    echo "ERROR: (gcloud.compute.tpus.$group.describe) NOT_FOUND: Resource 'n' was not found" >&2
    exit 1
  fi
  echo "$state"
}

create() {
  local home
  for home in workers/*; do # a new machine: no processes, no files
    [ ! -e "$home/.normjax/pid" ] || kill -KILL -- "-$(<"$home/.normjax/pid")" 2>/dev/null
    rm -rf "$home" && mkdir "$home"
  done
  take new_node | tr ' ' '\n' >node
  [ "$group" = tpu-vm ] || take new_request | tr ' ' '\n' >request
}

homes() { if [ "$worker" = all ]; then echo workers/*; else echo "workers/$worker"; fi; }

ssh() {
  local home left number code=0
  for home in $(homes); do
    number=${home##*/}
    if [ -e "down/$number" ] && left=$(<"down/$number") && [ "$left" -gt 0 ]; then
      [ "$worker" = all ] || echo $((left - 1)) >"down/$number"
      code=255
      continue
    fi
    # The login shell may be any that is POSIX.
    (cd "$home" && HOME=$PWD FAKE_WORKER=$number exec sh -c "$command" </dev/null) || code=$?
  done
  return "$code"
}

gcloud() {
  local word group=$3 verb=$4 worker='' command='' format='' files=()
  [ "$1 $2" = "compute tpus" ] || exit 97
  for word in "${@:5}"; do
    case $word in
      --worker=*) worker=${word#*=} ;;
      --command=*) command=${word#*=} ;;
      --format=*) format=${word#*=} ;;
      --*) ;;
      *) files+=("$word") ;;
    esac
  done
  if [ -e "fail/$group $verb" ]; then
    cat "fail/$group $verb" >&2
    return 1
  fi
  case $verb in
    describe | create | ssh) "$verb" ;;
    scp) for word in $(homes); do cp "${files[@]:0:${#files[@]}-1}" "$word"; done ;;
    start) echo READY >node ;;
    delete)
      echo ABSENT >node
      [ "$group" = tpu-vm ] || echo ABSENT >request ;;
    *) exit 96 ;;
  esac
}

[ ! -e "exit/$program" ] || exit "$(<"exit/$program")"
case $program in
  gcloud) gcloud "$@" ;;
  hostname) echo "host-$FAKE_WORKER" ;;
  gcsfuse) sleep 3 >/dev/null 2>&1 & ;; # a daemon
  sudo) cd "$OLDPWD" && exec "$@" ;;
  kubectl) [ "$3" != - ] || cat >manifest.yaml ;;
  python3.13) # -c ... asks for its version
    if [ "$1 $2" = "-m venv" ]; then
      mkdir -p "$3/bin" && ln -s "${0%/*}/pip" "$3/bin/pip"
    fi ;;
esac
