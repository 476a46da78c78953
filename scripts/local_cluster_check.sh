#!/usr/bin/env bash
# Go the whole way of docs/cluster.md on one machine, with configs/cluster-local.yaml and ssh as between real ones:
# ray up, a search that is refused since a node lacks the models, one that runs on both nodes, fetch the run folder, ray down.
#
#     sudo PYTHON=/path/to/venv/bin/python scripts/local_cluster_check.sh
#
# Needs root, Debian's openssh-server, rsync and iproute2, and a Python environment with kinray and ray[default]. Three network
# namespaces (a laptop, a head, a worker) on a bridge of their own play the machines. Each has its own processes, so that `ray stop`
# reaches no other Ray, its own /root, /tmp and /dev/shm, and /mnt in common as a shared file system. Takes some minutes (the demo's
# models are trained) and leaves nothing behind. On a machine with much else to do `ray up` may fail: Ray gives a node 30 s to start.
set -euo pipefail

[[ $(id -u) == 0 ]] || { echo "This needs root, for namespaces and sshd." >&2; exit 2; }
for tool in sshd rsync ip nsenter; do
    command -v $tool > /dev/null || { echo "$tool is missing: apt-get install openssh-server rsync iproute2" >&2; exit 2; }
done
export PATH=$(dirname "${PYTHON:-$(command -v python)}"):$PATH
python -c 'import kinray, ray, aiohttp_cors' || { echo "Install kinray and ray[default] first." >&2; exit 2; }
environment=$(python -c 'import sys; print(sys.prefix)')         # both may lie in /root or /tmp, which each host has for itself
interpreter=$(python -c 'import sys; print(sys.base_prefix)')
checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d /var/tmp/kinray-hosts.XXXXXX)
declare -A inside                                       # the first process of each host

clean_up() {
    for name in "${!inside[@]}"; do kill -9 "${inside[$name]}" || true; done
    wait
    for name in laptop head worker; do ip netns delete "kinray-$name" 2> /dev/null || true; done
    rm -rf "$work"
}
trap 'clean_up 2> /dev/null' EXIT

start_host() {                                          # NAME ADDRESS
    local name=$1 address=$2
    ip netns add "kinray-$name"
    ip -n "kinray-$name" link set lo up
    if [[ $name == laptop ]]; then
        ip -n kinray-laptop link add bridge type bridge
        ip -n kinray-laptop addr add "$address/24" dev bridge
        ip -n kinray-laptop link set bridge up
    else
        ip link add eth0 netns "kinray-$name" type veth peer name "to-$name" netns kinray-laptop
        ip -n kinray-laptop link set "to-$name" master bridge up
        ip -n "kinray-$name" addr add "$address/24" dev eth0
        ip -n "kinray-$name" link set eth0 up
        ip -n "kinray-$name" route add default via 10.77.0.1   # Ray finds its address by it; it leads nowhere
    fi
    mkdir -p "$work/$name/root/.ssh" "$work/$name/tmp"
    cp "$work/key" "$work/key.pub" "$work/$name/root/.ssh/"
    cp "$work/key.pub" "$work/$name/root/.ssh/authorized_keys"
    ip netns exec "kinray-$name" unshare --mount --pid --uts --fork bash -euc "
        hostname $name
        mount --make-rprivate /
        for place in $interpreter $environment; do
            mkdir -p $work/$name\$place
            mount --bind \$place $work/$name\$place
        done
        mount --rbind $work/$name/root /root
        mount --rbind $work/$name/tmp /tmp
        mount --bind $work/shared /mnt
        mount -t tmpfs tmpfs /dev/shm
        mount -t proc proc /proc
        mkdir -p /run/sshd
        exec /usr/sbin/sshd -D -f $work/sshd_config" 2> "$work/$name/log" &
    until inside[$name]=$(pgrep -P $!); do sleep 0.1; done
}

on_laptop() { nsenter --target "${inside[laptop]}" --mount --net --pid --uts env HOME=/root "$@"; }

step() {                                                # NAME COMMAND...
    local name=$1 begin=$SECONDS
    shift
    "$@" > "$work/log" 2>&1 || { cat "$work/log"; echo "FAILED: $name" >&2; exit 1; }
    echo "$name: $((SECONDS - begin)) s"
}

within() {                                              # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@"; do ((SECONDS < end)) || return 1; sleep 1; done
}

mkdir -p "$work/shared"
rsync -a --exclude .git --exclude runs --exclude __pycache__ "$checkout/" "$work/checkout"
ssh-keygen -q -t ed25519 -N '' -f "$work/key"
ssh-keygen -q -t ed25519 -N '' -f "$work/host_key"
printf '%s\n' "HostKey $work/host_key" "PidFile none" "UsePAM no" "StrictModes no" "PermitRootLogin yes" > "$work/sshd_config"
start_host laptop 10.77.0.1
start_host head 10.77.0.2
start_host worker 10.77.0.3

python - "$checkout/configs/cluster-local.yaml" "$work/laptop/root/cluster.yaml" "$environment" "$work/checkout" << 'PYTHON'
import sys
from pathlib import Path
import yaml

config = yaml.safe_load(Path(sys.argv[1]).read_text())
config["provider"] |= {"head_ip": "10.77.0.2", "worker_ips": ["10.77.0.3"]}
config |= {"min_workers": 1, "max_workers": 1, "auth": {"ssh_user": "root", "ssh_private_key": "/root/.ssh/key"}}
# Instead of half an hour of downloads, the nodes use this environment with the checkout that was copied to them.
config["file_mounts"] = {"~/kinray": sys.argv[4]}
config["setup_commands"] = [
    f"ln -sfn {sys.argv[3]} ~/kinray-venv",
    "echo 'export PYTHONPATH=$HOME/kinray PATH=$HOME/kinray-venv/bin:$PATH' > ~/.bashrc",
]
Path(sys.argv[2]).write_text(yaml.safe_dump(config))
PYTHON

launcher() { on_laptop env RAY_UP_enable_autoscaler_v2=0 RAY_USAGE_STATS_ENABLED=0 ray "$@"; }
evolve="cd kinray && export PYTHONPATH=\$PWD && ~/kinray-venv/bin/python -m kinray.evolve --set cluster.address=auto \
    --set cluster.evaluators=2 --set search.max_children=4"

step "ray up, head" launcher up -y /root/cluster.yaml
both_nodes() { launcher exec /root/cluster.yaml '~/kinray-venv/bin/ray status' | grep ' 2 local.cluster.node'; }
step "worker joined" within 300 both_nodes

refused() { ! launcher exec /root/cluster.yaml "$evolve --output /mnt/runs/refused"; }
step "a search whose models only the head has is refused" refused
grep -q 'Node 10.77.0.3 has no folder /root/.cache/kinray' "$work/log" || { cat "$work/log"; exit 1; }
[[ ! -e $work/shared/runs/refused ]] || { echo "a refused search has written a run folder" >&2; exit 1; }

on_laptop bash -c "sleep infinity | ray dashboard /root/cluster.yaml" > "$work/tunnel" 2>&1 &   # it lasts as long as its input
step "tunnel to the job server" within 60 on_laptop curl -sf http://127.0.0.1:8265/api/version
step "share the demo's models" launcher exec /root/cluster.yaml 'cp -r ~/.cache/kinray /mnt/cache'
step "ray job submit, the demo's search" launcher job submit --address http://127.0.0.1:8265 -- \
    bash -c "export KINRAY_CACHE=/mnt/cache && $evolve --output /mnt/runs/demo"
grep -a "Best model" "$work/log"
step "fetch the run folder" launcher rsync-down /root/cluster.yaml /mnt/runs/demo/ /root/demo/
on_laptop python - << 'PYTHON'
from pathlib import Path
import pyarrow.parquet as pq

rows = pq.read_table("/root/demo/children").to_pylist()
where = {row["node"] for row in rows}
assert len(rows) == 7 and {row["status"] for row in rows} == {"scored"}, rows
assert where == {"head", "worker"}, where
assert Path("/root/demo/best/model.safetensors").is_file(), "the weights of the best model were not fetched"
print(f"{len(rows)} models scored on {', '.join(sorted(where))}; best {max(row['score'] for row in rows):.3f}")
PYTHON
step "ray down" launcher down -y /root/cluster.yaml
if nsenter --target "${inside[head]}" --pid --mount pgrep -f raylet > /dev/null; then echo "Ray still runs on the head" >&2; exit 1; fi
echo "all went well"
