#!/usr/bin/env bash
# A run on a SLURM cluster with GPUs: docs/launch.md.
set -euo pipefail
# shellcheck source=tpu_scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VERBS='launch status logs delete help'

usage() {
  cat <<'END'
tpu_scripts/slurm.sh VERB [--conf=FILE] [--dry_run] [--KEY=VALUE ...] [-- COMMAND ARG ...]

  launch   submit the command; before its time is over it saves and is queued again
  status   the jobs of this name
  logs     the end of the log                                   (--lines=N --follow)
  delete   cancel the jobs of this name

Settings as for tpu.sh: name, command and slurm_*. Run it from the root of the checkout,
on a file system that all nodes see and that holds .venv (make train makes one; for GPUs:
.venv/bin/pip install -c constraints.txt -e '.[cuda]').
END
}

launch() {
  local flags=("--job-name=$conf_name" "--chdir=$ROOT" "--output=$LOG"
    "--nodes=$conf_slurm_nodes" "--gpus-per-node=$conf_slurm_gpus"
    "--time=$conf_slurm_time" "--signal=B:USR1@$conf_slurm_warn")
  local more
  command_words
  [ -z "$conf_slurm_partition" ] || flags+=("--partition=$conf_slurm_partition")
  [ -z "$conf_slurm_account" ] || flags+=("--account=$conf_slurm_account")
  read -ra more <<<"$conf_slurm_args"
  dry || mkdir -p "${LOG%/*}"
  run sbatch "${flags[@]}" ${more[@]+"${more[@]}"} "$ROOT/tpu_scripts/train.sbatch" "${COMMAND[@]}"
}

logs() {
  local follow=()
  [ "$conf_follow" = false ] || follow=(-F)
  run tail -n "$conf_lines" ${follow[@]+"${follow[@]}"} "$LOG"
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
check name '[A-Za-z0-9_.-]+' "no job name: letters, digits, _ . -"
LOG=$ROOT/runs/slurm/$conf_name.log
case $verb in
  status) run squeue --me "--name=$conf_name" ;;
  delete) run scancel --me "--name=$conf_name" ;;
  *) "$verb" ;;
esac
