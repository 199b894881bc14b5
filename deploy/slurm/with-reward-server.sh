#!/usr/bin/env bash
# A reward server beside a training, in one Slurm job: started first, waited for, restarted if it ends, drained at the
# end. Shortly before the time is up the training is told to save, and the job is put back into the queue.
#
#   sbatch --nodes=3 deploy/slurm/with-reward-server.sh python train.py
#   sbatch --nodes=2 --gpus-per-node=8 : --nodes=1 --gpus-per-node=1 deploy/slurm/with-reward-server.sh python train.py
#
# Of several nodes the server has the last, of a heterogeneous job the second component, of one node a share (name its
# GPU in REWARD_SERVER). The training finds the address in JRM_URL and in REWARD_URL_FILE.

#SBATCH --job-name=with-reward-server
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300

set -euo pipefail

: "${REWARD_SERVER:=jrm serve}"                 # the command, without host and port
: "${REWARD_PORT:=$((20000 + SLURM_JOB_ID % 20000))}"
: "${REWARD_URL_FILE:=$PWD/reward-server.$SLURM_JOB_ID.url}"
: "${REWARD_START_TIMEOUT_S:=1800}"
: "${TRAINING_SRUN_FLAGS:=--ntasks-per-node=1}"
: "${TRAINING_SIGNAL:=TERM}"                    # what tells the training to save and end
: "${TRAINING_GRACE_S:=240}"                    # and for how long it is waited for
read -r -a server_command <<<"$REWARD_SERVER"
read -r -a training_flags <<<"$TRAINING_SRUN_FLAGS"

log() { printf '%s with-reward-server: %s\n' "$(date -Is)" "$*" >&2; }

if [[ -n "${SLURM_HET_SIZE:-}" ]]; then
  node=$(scontrol show hostnames "$SLURM_JOB_NODELIST_HET_GROUP_1" | head -n 1)
  server_flags=(--het-group=1 --nodes=1 --ntasks=1)
  training_flags+=(--het-group=0)
else
  node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | tail -n 1)
  server_flags=(--nodes=1 --ntasks=1 "--nodelist=$node")
  if ((SLURM_JOB_NUM_NODES > 1)); then
    training_flags+=("--nodes=$((SLURM_JOB_NUM_NODES - 1))" "--exclude=$node")
  else
    server_flags+=(--overlap)
    training_flags+=(--nodes=1 --overlap)
  fi
fi
address=$(scontrol show node "$node" --oneliner | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
export JRM_URL="http://${address:-$node}:$REWARD_PORT"

# The tasks of a step get the signal. On a SIGTERM to srun itself, Slurm would kill them.
signal_step() {
  local jobs="${SLURM_JOB_ID_HET_GROUP_0:-$SLURM_JOB_ID}${SLURM_JOB_ID_HET_GROUP_1:+,$SLURM_JOB_ID_HET_GROUP_1}" step
  for step in $(squeue --noheader --steps --jobs="$jobs" --format="%i %j" | awk -v name="$1" '$2 == name { print $1 }'); do
    scancel --signal="$2" "$step" 2>/dev/null || true  # it may have ended meanwhile
  done
}

# Waiting is interrupted by every signal that this shell has a trap for.
wait_for() {
  while kill -0 "$1" 2>/dev/null; do wait "$1" || true; done
}

# A server that ends before its time is started again, and the SDK waits for it.
stopping=$(mktemp)
serve() {
  trap "" USR1
  while [[ -e $stopping ]]; do
    srun --job-name=reward-server "${server_flags[@]}" "${server_command[@]}" \
      --host 0.0.0.0 --port "$REWARD_PORT" || log "the server has ended with status $?"
    sleep 2
  done
}

stop_server() {
  rm -f "$stopping" "$REWARD_URL_FILE"
  signal_step reward-server TERM
  wait_for "$server"
}

serve &
server=$!
trap stop_server EXIT

log "waiting for $JRM_URL"
until curl --fail --silent --output /dev/null --max-time 5 "$JRM_URL/health/ready"; do
  if ((SECONDS > REWARD_START_TIMEOUT_S)); then
    log "not ready after $REWARD_START_TIMEOUT_S s"
    exit 1
  fi
  sleep 2
done
printf '%s\n' "$JRM_URL" >"$REWARD_URL_FILE"
log "ready"

time_is_up=""
trap 'time_is_up=1' USR1
srun --job-name=training "${training_flags[@]}" "$@" &
training=$!
status=0
wait "$training" || status=$?
if [[ -n $time_is_up ]]; then
  log "the time is up: the training gets SIG$TRAINING_SIGNAL"
  signal_step training "$TRAINING_SIGNAL"
  (sleep "$TRAINING_GRACE_S" && signal_step training KILL) &
  patience=$!
  wait_for "$training"
  kill "$patience" 2>/dev/null || true
  stop_server
  trap - EXIT
  log "back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
log "the training has ended with status $status"
exit "$status"
