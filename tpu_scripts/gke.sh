#!/usr/bin/env bash
# A run on Google Kubernetes Engine, on TPUs or GPUs, as a JobSet: docs/launch.md.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VERBS='render launch status logs delete help'

usage() {
  cat <<'END'
tpu_scripts/gke.sh VERB [--conf=FILE] [--dry_run] [--KEY=VALUE ...] [-- COMMAND ARG ...]

  render   print the filled manifest
  launch   submit it; a preempted or failed set starts again as a whole
  status   the set and its pods
  logs     the log of a worker                            (--worker=N --lines=N --follow)
  delete   the set and its pods; delete and launch again to resume with changed settings

Settings as for tpu.sh: name, command, bucket, mount, spot, image and gke_*.
END
}

json() { # sets REPLY to $1 as a JSON string, which is YAML too
  local LC_ALL=C rest=$1 char code out=''
  while [ -n "$rest" ]; do
    char=${rest:0:1}
    rest=${rest:1}
    case $char in
      '"' | \\) char=\\$char ;;
      [[:cntrl:]])
        printf -v code %d "'$char"
        printf -v char '\\u%04x' "$code" ;;
    esac
    out=$out$char
  done
  REPLY="\"$out\""
}

json_list() { # sets REPLY
  local word out=''
  for word in "$@"; do
    json "$word"
    out="$out, $REPLY"
  done
  REPLY="[${out#, }]"
}

# Kubernetes expands $(NAME) in a command, and makes one $ of two.
unexpanded() { # sets REPLY
  local rest=$1 dollar='$'
  REPLY=''
  while [[ $rest == *"$dollar"* ]]; do
    REPLY=$REPLY${rest%%"$dollar"*}$dollar$dollar
    rest=${rest#*"$dollar"}
  done
  REPLY=$REPLY$rest
}

hosts() { # sets REPLY to the nodes of a slice
  local product=1 side sides
  REPLY=$conf_gke_hosts
  if [ -z "$REPLY" ] && [ "$kind" = tpu ]; then
    IFS=x read -ra sides <<<"$conf_gke_topology"
    for side in "${sides[@]}"; do product=$((product * side)); done
    [ $((product % conf_gke_chips)) -eq 0 ] ||
      wrong "gke_topology $conf_gke_topology has $product chips, not a multiple of gke_chips=$conf_gke_chips"
    REPLY=$((product / conf_gke_chips))
  fi
  REPLY=${REPLY:-1}
}

validate() {
  need name image gke_accelerator gke_chips
  check name '[a-z]([a-z0-9-]*[a-z0-9])?' "no name for Kubernetes: letters a-z, digits and -"
  [ "$conf_gke_chips" -gt 0 ] || wrong "gke_chips must be positive"
  case $conf_gke_accelerator in
    tpu*)
      kind=tpu
      need gke_topology
      check gke_topology '[0-9]+(x[0-9]+)+' "no topology, such as 4x4 or 2x2x4" ;;
    *)
      kind=gpu
      [ "$conf_gke_slices" = 1 ] || wrong "gke_slices is for TPUs: for GPUs set gke_hosts" ;;
  esac
  hosts
  HOSTS=$REPLY
}

# Sets REPLY to what stands for @KEY@.
filling() {
  local word words=()
  case $1 in
    name) json "$conf_name" ;;
    namespace) json "$conf_gke_namespace" ;;
    max_restarts) REPLY=$conf_gke_max_restarts ;;
    slices) REPLY=$conf_gke_slices ;;
    hosts) REPLY=$HOSTS ;;
    with_bucket) if [ -n "$conf_bucket" ]; then REPLY='"true"'; else REPLY='"false"'; fi ;;
    service_account) json "$conf_gke_service_account" ;;
    grace) REPLY=$conf_stop_timeout ;;
    accelerator) json "$conf_gke_accelerator" ;;
    topology) json "$conf_gke_topology" ;;
    image) json "$conf_image" ;;
    command)
      for word in "${COMMAND[@]}"; do
        unexpanded "$word"
        words+=("$REPLY")
      done
      json_list "${words[@]}" ;;
    coordinator) json "$conf_name-workers-0-0.$conf_name:1234" ;;
    processes) REPLY="\"$HOSTS\"" ;;
    chips) REPLY=$conf_gke_chips ;;
    mount) json "$conf_mount" ;;
    bucket) json "$conf_bucket" ;;
    *) die "jobset.yaml has an unknown @$1@" ;;
  esac
}

holds() {
  case $1 in
    tpu | gpu) [ "$kind" = "$1" ] ;;
    bucket) [ -n "$conf_bucket" ] ;;
    spot) [ "$conf_spot" = true ] ;;
    *) die "jobset.yaml has an unknown #if $1" ;;
  esac
}

manifest() {
  local line
  while IFS= read -r line; do
    case $line in
      '# '*) continue ;; # about the template
      *'  #if '*)
        holds "${line##*'  #if '}" || continue
        line=${line%'  #if '*} ;;
    esac
    if [[ $line =~ ^(.*)@([a-z_]+)@$ ]]; then
      line=${BASH_REMATCH[1]}
      filling "${BASH_REMATCH[2]}"
      line=$line$REPLY
    fi
    printf '%s\n' "$line"
  done <"$ROOT/tpu_scripts/jobset.yaml"
}

launch() {
  local text
  command_words
  has_bucket || note "warning: no bucket is set, so checkpoints end with their pod"
  has_bucket || [ "$HOSTS" -le 1 ] ||
    note "warning: no bucket is set: train.py refuses a workdir that not all $HOSTS pods of a slice see"
  text=$(manifest)
  if dry; then
    # No line of the manifest is END: its strings have no line breaks.
    printf "kubectl apply -f - <<'END'\n%s\nEND\n" "$text"
  else
    kubectl apply -f - <<<"$text"
  fi
}

status() {
  run kubectl get jobset "$conf_name" "${SPACE[@]}" && run kubectl get pods "${SPACE[@]}" "${PODS[@]}"
}

logs() {
  local flags=("--tail=$conf_lines")
  [ "$conf_follow" = false ] || flags+=(--follow)
  case $conf_worker in
    all) flags+=(--prefix --max-log-requests=1000) ;;
    *) PODS[0]="${PODS[0]},batch.kubernetes.io/job-completion-index=${conf_worker:-0}" ;;
  esac
  run kubectl logs "${SPACE[@]}" "${PODS[@]}" "${flags[@]}"
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
need name
check worker 'all|[0-9]+' "neither a number nor all"
SPACE=("--namespace=$conf_gke_namespace")
PODS=("--selector=jobset.sigs.k8s.io/jobset-name=$conf_name")
case $verb in
  render)
    validate
    command_words
    manifest ;;
  launch)
    validate
    launch ;;
  delete) run kubectl delete jobset "$conf_name" "${SPACE[@]}" --ignore-not-found ;;
  *) "$verb" ;;
esac
