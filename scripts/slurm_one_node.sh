#!/usr/bin/env bash
# A Slurm cluster of one node, this machine, from Debian's packages (slurm-wlm, munge): to test the Slurm profile for real.
# Needs root. An existing /etc/slurm/slurm.conf is left alone. `scripts/slurm_one_node.sh stop` stops the cluster.
#
#   GPUS=2 scripts/slurm_one_node.sh     with two fake GPUs, which Slurm counts and assigns like real ones
set -euo pipefail

conf=/etc/slurm
state=/var/lib/iapo-bench-slurm

stop() {
    for daemon in slurmd slurmctld munged; do
        [ -f "$state/$daemon.pid" ] || continue
        pid=$(cat "$state/$daemon.pid")
        # The file can outlive its process, whose id another process may have by now.
        if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$daemon" ]; then
            kill "$pid" 2>/dev/null || true
            while kill -0 "$pid" 2>/dev/null; do sleep 0.2; done
        fi
        rm -f "$state/$daemon.pid"
    done
}

if [ "${1:-start}" = stop ]; then
    stop
    if grep -qs '^# iapo-bench' "$conf/slurm.conf"; then rm -f "$conf/slurm.conf" "$conf/gres.conf"; fi
    exit
fi
[ "$(id -u)" = 0 ] || { echo "this needs root" >&2; exit 2; }
if [ -f "$conf/slurm.conf" ] && ! grep -q '^# iapo-bench' "$conf/slurm.conf"; then
    echo "$conf/slurm.conf exists: this machine has a Slurm of its own" >&2
    exit 2
fi
if ! { command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null; then
    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q slurm-wlm munge
fi
stop
mkdir -p "$conf" "$state/ctld" "$state/d" /run/munge
host=$(hostname -s)
cores=$(env -u OMP_NUM_THREADS nproc) # which it would obey
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.95)}' /proc/meminfo)
gpus=${GPUS:-0}
gres=""
if [ "$gpus" -gt 0 ]; then
    gres="Gres=gpu:$gpus"
    : >"$conf/gres.conf"
    for i in $(seq 0 $((gpus - 1))); do
        [ -c "$state/gpu$i" ] || { rm -f "$state/gpu$i"; mknod "$state/gpu$i" c 1 3; } # a null device of its own
        echo "NodeName=$host Name=gpu File=$state/gpu$i Flags=nvidia_gpu_env" >>"$conf/gres.conf"
    done
fi
cat >"$conf/slurm.conf" <<CONF
# iapo-bench: one node
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2
DefMemPerCPU=2000
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
MpiDefault=none
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
${gres:+GresTypes=gpu}
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory $gres State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
[ -f /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
chown munge: /etc/munge/munge.key /run/munge
chmod 400 /etc/munge/munge.key
chmod 755 /run/munge
if ! pgrep -x munged >/dev/null; then # a munged that runs already is not ours to stop
    su -s /bin/sh munge -c "/usr/sbin/munged"
    cp /run/munge/munged.pid "$state/munged.pid"
fi
slurmctld
slurmd
for _ in $(seq 30); do
    if sinfo -h -o %T 2>/dev/null | grep -q idle; then sinfo; exit 0; fi
    sleep 1
done
echo "no idle node after 30 s; see $state/*.log" >&2
tail -n 5 "$state"/*.log >&2
exit 1
