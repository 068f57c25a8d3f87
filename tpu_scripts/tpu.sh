#!/usr/bin/env bash
# Cloud TPU VMs, from the request to the end of training: docs/launch.md.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VERBS='run create setup launch status logs stop resume ssh delete help'

usage() {
  cat <<'END'
tpu_scripts/tpu.sh VERB [--conf=FILE] [--dry_run] [--KEY=VALUE ...] [-- COMMAND ARG ...]

  create   request the TPU VM and wait for it; a preempted one is deleted first
  setup    code, virtual environment and bucket on all workers
  launch   start the command on all workers, detached        (--force: stop the old run)
  status   state of the machine and of the run on each worker
  logs     the log of a worker                        (--worker=N|all --lines=N --follow)
  stop     SIGTERM to the run on all workers: it saves a checkpoint
  resume   create, setup and launch, as far as needed
  run      resume, watch, and again after each preemption, until the command is done
  ssh      a shell on a worker, or a command on all of them       (--worker=N -- COMMAND)
  delete   the machine and its request

Settings come from launch.conf (see tpu_scripts/example.conf), the environment
(NORMJAX_LAUNCH_ZONE=...) and flags (--zone=...). Exit codes: 0 done, 1 failed,
2 wrong input, 75 not ready in time: the same command again goes on.
END
}

validate() {
  need name zone
  check name '[a-z]([a-z0-9-]*[a-z0-9])?' "no name of a TPU: letters a-z, digits and -"
  check zone '[a-z]+-[a-z]+[0-9]+-(ai[0-9]+)?[a-z]' "no zone, such as us-central2-b or us-south1-ai1b"
  check worker 'all|[0-9]+' "neither a number nor all"
  check accelerator '(tpu[0-9]+[a-z]*|v[0-9]+[a-z]*)-[0-9]+' "no accelerator type, such as v4-8 or v5litepod-16"
  case $conf_accelerator in
    # So says its documentation today; gcloud has the last word.
    tpu*) note "$conf_accelerator: Cloud TPU's own interface ends with v6e; if it refuses this one, GKE has it: gke.sh" ;;
    v5e-*) wrong "accelerator '$conf_accelerator': gcloud calls it v5litepod-${conf_accelerator#*-}" ;;
  esac
  [ "$conf_spot" = false ] || [ "$conf_reserved" = false ] ||
    wrong "spot and reserved exclude each other"
  PLACE=("--zone=$conf_zone")
  [ -z "$conf_project" ] || PLACE+=("--project=$conf_project")
  read -ra CREATE_ARGS <<<"$conf_create_args"
  read -ra SSH_ARGS <<<"$conf_ssh_args"
}

tpus() { run gcloud compute tpus "$@"; }

# Sets REPLY to one field, or to nothing if there is no such thing. Any other failure
# (no permission, no network) ends the script: it says nothing about the machine.
field() { # KIND FIELD WITH_DRY_RUN
  local errors
  local command=(gcloud compute tpus "$1" describe "$conf_name" "${PLACE[@]}" "--format=value($2)")
  if dry; then
    quoted "${command[@]}"
    printf '%s\n' "$REPLY"
    REPLY=$3
  else
    errors=$(mktemp)
    REPLY=$("${command[@]}" 2>"$errors") || {
      REPLY=''
      if ! grep -qE 'NOT_FOUND|was not found' "$errors"; then
        cat "$errors" >&2
        rm -f "$errors"
        die "gcloud cannot tell the state of $conf_name"
      fi
    }
    rm -f "$errors"
  fi
}
node() { field tpu-vm state "$1"; }
request() { field queued-resources state.state "$1"; }

# One turn of waiting; gives up when wait_timeout is over.
pause() { # WHAT STATE
  [ "$2" = "$LAST_STATE" ] || note "$1 $conf_name is $2: waiting"
  LAST_STATE=$2
  [ $((SECONDS - SINCE)) -lt "$conf_wait_timeout" ] ||
    die "$1 $conf_name is still $2 after $conf_wait_timeout s: the same command again goes on waiting" "$EXIT_TRY_AGAIN"
  sleep "$conf_poll_interval"
}

capacity() { # sets REPLY to flags
  FLAGS=()
  [ "$conf_spot" = false ] || FLAGS+=(--spot)
  [ "$conf_reserved" = false ] || FLAGS+=(--reserved)
  FLAGS+=(${CREATE_ARGS[@]+"${CREATE_ARGS[@]}"})
}

version() { # sets REPLY to the runtime for the accelerator
  case $conf_accelerator in
    v5litepod-*) REPLY=v2-alpha-tpuv5-lite ;;
    v5p-*) REPLY=v2-alpha-tpuv5 ;;
    v6e-*) REPLY=v2-alpha-tpuv6e ;;
    *) REPLY=tpu-ubuntu2204-base ;;
  esac
  REPLY=${conf_version:-$REPLY}
}

create() {
  need accelerator
  SINCE=$SECONDS LAST_STATE='' REQUESTED=false
  if [ "$conf_queued" = true ]; then
    create_queued
  else
    create_node
  fi
}

create_node() {
  while :; do
    node ''
    case $REPLY in
      READY) note "TPU VM $conf_name is READY" && return ;;
      '') request_node ;;
      PREEMPTED | TERMINATED) delete_node ;; # holds its quota and its name until then
      STOPPED) tpus tpu-vm start "$conf_name" "${PLACE[@]}" ;;
      HIDDEN | HIDING) die "TPU VM $conf_name is $REPLY" ;;
      *) pause "TPU VM" "$REPLY" ;;
    esac
    ! dry || return 0
  done
}

request_node() {
  [ "$REQUESTED" = false ] || die "TPU VM $conf_name was created and is gone"
  REQUESTED=true
  capacity
  version
  tpus tpu-vm create "$conf_name" "${PLACE[@]}" "--accelerator-type=$conf_accelerator" \
    "--version=$REPLY" ${FLAGS[@]+"${FLAGS[@]}"} ||
    die "the TPU VM could not be created; where capacity is short, --queued waits for it"
}

create_queued() {
  local state
  while :; do
    request ''
    state=$REPLY
    case $state in
      '' | ACTIVE)
        node ''
        case $REPLY in
          READY) note "TPU VM $conf_name is READY" && return ;;
          '' | PREEMPTED | TERMINATED)
            if [ -n "$state" ]; then
              delete_request # a request is filled once only
            else
              [ -z "$REPLY" ] || delete_node
              request_queued
            fi ;;
          *) pause "TPU VM" "$REPLY" ;;
        esac ;;
      FAILED | SUSPENDED)
        [ "$state$REQUESTED" != FAILEDtrue ] ||
          die "the request failed: gcloud compute tpus queued-resources describe $conf_name ${PLACE[*]}"
        delete_request ;;
      *) pause "request" "$state" ;;
    esac
    ! dry || return 0
  done
}

request_queued() {
  REQUESTED=true
  capacity
  [ -z "$conf_queue_valid" ] || FLAGS+=("--valid-until-duration=$conf_queue_valid")
  version
  tpus queued-resources create "$conf_name" "--node-id=$conf_name" "${PLACE[@]}" \
    "--accelerator-type=$conf_accelerator" "--runtime-version=$REPLY" ${FLAGS[@]+"${FLAGS[@]}"} ||
    die "the request was refused"
}

delete_node() {
  tpus tpu-vm delete "$conf_name" "${PLACE[@]}" --quiet || gone node
}
delete_request() { # with its machine
  tpus queued-resources delete "$conf_name" "${PLACE[@]}" --force --quiet || gone request
}
gone() { # what somebody else deleted meanwhile is deleted too
  "$1" ''
  [ -z "$REPLY" ] || die "$conf_name could not be deleted"
}

delete() {
  local found=false
  # With --dry_run: as if what the settings create were there.
  if [ "$conf_queued" = true ]; then request ACTIVE; else request ''; fi
  if [ -n "$REPLY" ]; then
    found=true
    delete_request
  fi
  if [ "$found" = true ]; then node ''; else node READY; fi
  case $REPLY in
    '' | DELETING) ;;
    *)
      found=true
      delete_node ;;
  esac
  [ "$found" = true ] || dry || note "nothing to delete: there is no $conf_name in $conf_zone"
}

on() { # WORKERS COMMAND
  tpus tpu-vm ssh "$conf_name" "${PLACE[@]}" "--worker=$1" ${SSH_ARGS[@]+"${SSH_ARGS[@]}"} "--command=$2"
}
remote() { # WORKERS WORDS...: worker.sh there
  local workers=$1
  shift
  quoted bash normjax-worker.sh "$@"
  on "$workers" "$REPLY"
}

# A collective hangs until all hosts are there, so it is better to know who is missing.
wait_for_workers() {
  local count worker missing pids reached since=$SECONDS
  node READY
  case $REPLY in
    READY) ;;
    '') wrong "there is no TPU VM $conf_name in $conf_zone: tpu.sh create" ;;
    *) die "TPU VM $conf_name is $REPLY: tpu.sh resume" ;;
  esac
  ! on all true || return 0
  field tpu-vm 'networkEndpoints.len()' 1
  count=$REPLY
  while :; do
    missing=''
    pids=()
    for ((worker = 0; worker < count; worker++)); do
      on "$worker" true >/dev/null 2>&1 &
      pids+=($!)
    done
    reached=0
    for ((worker = 0; worker < count; worker++)); do
      if wait "${pids[worker]}"; then reached=$((reached + 1)); else missing="$missing $worker"; fi
    done
    [ -n "$missing" ] || return 0
    note "waiting for worker$missing ($reached of $count answer)"
    if [ $((SECONDS - since)) -ge "$conf_ready_timeout" ]; then
      note "hint: is the key in the agent (ssh-add ~/.ssh/google_compute_engine), port 22 open?"
      note "hint: tpu.sh status shows the machine; delete and create replaces a broken worker"
      die "worker$missing did not answer within $conf_ready_timeout s" "$EXIT_TRY_AGAIN"
    fi
    sleep "$conf_poll_interval"
  done
}

archive() { # FILE: the checkout as it stands, with changes and new files, without ignored ones
  git -C "$ROOT" rev-parse --git-dir >/dev/null 2>&1 ||
    wrong "$ROOT is no git checkout: set repo=URL, from which the workers clone"
  # shellcheck disable=SC2094  # the archive lies in an ignored folder
  (
    cd "$ROOT"
    git ls-files -z --cached --others --exclude-standard |
      while IFS= read -r -d '' file; do
        if [ -e "$file" ] || [ -L "$file" ]; then printf '%s\0' "$file"; fi
      done | COPYFILE_DISABLE=1 tar --null -T - -czf "$1"
  )
}

setup() {
  local folder=$ROOT/build/launch/$conf_name
  local words=("extra=$conf_extra") files=("$folder/normjax-worker.sh")
  wait_for_workers
  if [ -n "$conf_repo" ]; then
    words+=("repo=$conf_repo" "ref=$conf_ref")
  else
    files+=("$folder/normjax-source.tgz")
  fi
  [ -z "$conf_bucket" ] || words+=("bucket=$conf_bucket" "mount=$conf_mount")
  [ -z "$conf_setup_command" ] || words+=("command=$conf_setup_command")
  if ! dry; then
    if ! mkdir -p "$folder" || ! cp "$ROOT/tpu_scripts/worker.sh" "${files[0]}"; then
      die "cannot write $folder"
    fi
    [ -n "$conf_repo" ] || archive "${files[1]}" || die "cannot pack $ROOT"
  fi
  ! dry || printf '# first packs %s into %s\n' "$ROOT" "$folder"
  tpus tpu-vm scp "${files[@]}" "$conf_name:" "${PLACE[@]}" --worker=all \
    ${SSH_ARGS[@]+"${SSH_ARGS[@]}"} || die "copying to the workers failed"
  remote all setup "${words[@]}" || die "setup failed; the lines above say on which worker"
}

launch() {
  local code=0 force=()
  command_words
  wait_for_workers
  if ! has_bucket; then
    [ "$conf_spot" = false ] ||
      note "warning: no bucket is set, so checkpoints are lost when this spot machine is preempted"
    field tpu-vm 'networkEndpoints.len()' 1
    [ "$REPLY" -le 1 ] ||
      note "warning: no bucket is set: train.py refuses a workdir that not all $REPLY workers see"
  fi
  # All workers are asked before the first one starts: half a run would only hang.
  if [ "$conf_force" = true ]; then
    force=("--force=$conf_stop_timeout")
  else
    remote all check || code=$?
    case $code in
      0) ;;
      3) die "a run is active: tpu.sh stop, or launch --force" ;;
      4 | 127) die "not set up: tpu.sh setup" ;;
      *) die "the workers could not be checked" ;;
    esac
  fi
  remote all start ${force[@]+"${force[@]}"} "${COMMAND[@]}" ||
    die "not every worker started: see tpu.sh status, then tpu.sh stop"
}

# shellcheck disable=SC2016  # expanded by the worker
STATUS='if [ -e normjax-worker.sh ]; then bash normjax-worker.sh status; else echo "$(hostname): none"; fi'

status() {
  node READY
  printf '%s: %s\n' "$conf_name" "${REPLY:-absent}"
  [ "$REPLY" != READY ] || on all "$STATUS"
}

logs() {
  local worker=${conf_worker:-0} prefix=false
  [ "$worker" != all ] || prefix=true
  remote "$worker" logs "$conf_lines" "$conf_follow" "$prefix"
}

shell() {
  if [ "${#ARGS[@]}" -gt 0 ]; then
    quoted "${ARGS[@]}"
    on "${conf_worker:-all}" "$REPLY"
  else
    tpus tpu-vm ssh "$conf_name" "${PLACE[@]}" "--worker=${conf_worker:-0}" ${SSH_ARGS[@]+"${SSH_ARGS[@]}"}
  fi
}

# Sets RUN to one word for all workers: running, done, stopped (75, and 143 before the
# first step), wrong (2), failed,
# partly (some of them run) or none.
run_state() {
  local lines running
  lines=$(on all "$STATUS" 2>/dev/null) || { RUN=unreachable && return; }
  running=$(grep -c ': running' <<<"$lines" || true)
  if [ "$running" -gt 0 ]; then
    RUN=running
    [ "$running" -eq "$(grep -c ': ' <<<"$lines")" ] || RUN=partly
  elif ! grep -qE ': (exited|died)' <<<"$lines"; then
    RUN=none
  elif ! grep -qvE ': exited 0$' <<<"$lines"; then
    RUN="done"
  elif grep -qE ': exited 2$' <<<"$lines"; then
    RUN=wrong
  elif grep -qE ': exited (75|143)$' <<<"$lines" && ! grep -qE ': exited 1$' <<<"$lines"; then
    RUN=stopped
  else
    RUN=failed
  fi
}

resume() {
  command_words
  create
  wait_for_workers
  RUN=none
  dry || run_state
  case $RUN in
    running) note "the run is active on all workers" && return ;;
    "done") note "the run has finished: nothing to resume" && return ;;
    partly) remote all stop "$conf_stop_timeout" || true ;; # the others wait for the dead
  esac
  setup
  launch
}

watch() { # returns 0: done, 75: start again; exits if starting again is no use
  local state again=0
  while :; do
    node READY
    state=$REPLY
    if [ "$state" != READY ]; then
      note "TPU VM $conf_name is ${state:-gone}"
      return "$EXIT_TRY_AGAIN"
    fi
    run_state
    case $RUN in
      "done") return 0 ;;
      stopped | none) return "$EXIT_TRY_AGAIN" ;;
      wrong) wrong "the command refused its input: tpu.sh logs" ;;
      failed | partly | unreachable)
        # The first sign of a preemption is a failing run: look once more.
        again=$((again + 1))
        [ "$again" -lt 3 ] || return 1 ;;
      *) again=0 ;;
    esac
    sleep "$conf_poll_interval"
  done
}

preempted() {
  node READY
  case $REPLY in
    PREEMPTED | TERMINATED) ;;
    '')
      request ''
      case $REPLY in SUSPENDING | SUSPENDED) ;; *) return 1 ;; esac ;;
    *) return 1 ;;
  esac
}

run_until_done() {
  local code failures=0
  while :; do
    code=0
    (resume) || code=$?
    ! dry || return "$code"
    if [ "$code" -eq 0 ]; then
      watch || code=$?
      [ "$code" -ne 0 ] || { note "done; tpu.sh delete ends the bill" && return; }
    elif preempted; then
      code=$EXIT_TRY_AGAIN
    elif [ "$code" -ne 1 ]; then
      return "$code"
    fi
    if [ "$code" -ne "$EXIT_TRY_AGAIN" ]; then
      failures=$((failures + 1))
      [ "$failures" -le "$conf_max_restarts" ] ||
        die "the run failed (more than max_restarts=$conf_max_restarts times): tpu.sh logs" "$code"
      note "failure $failures of $conf_max_restarts allowed"
    fi
    note "starting again"
  done
}

parse "$@"
verb=${WORDS[0]:-help}
# shellcheck disable=SC2086  # a list of words
case " $VERBS " in *" $verb "*) ;; *) unknown verb "$verb" $VERBS ;; esac
if [ "$verb" = help ]; then
  usage
  exit
fi
[ "${#WORDS[@]}" -eq 1 ] || wrong "unexpected word '${WORDS[1]}': what to run stands after --"
validate
case $verb in
  run) run_until_done ;;
  stop) remote all stop "$conf_stop_timeout" ;;
  ssh) shell ;;
  *) "$verb" ;;
esac
