#!/usr/bin/env bash
# A real `ray up` of deploy/onprem.yaml: laptop, head and worker as three machines on this one.
#
#     tests/support/ray_up.sh [COMMAND...]      (as root)
#
# A command is submitted as a further job; SHARED in it is a folder that every machine reaches.
#
# Each machine has its own process ids, network and Ray folder (Linux namespaces), so that the
# worker's `ray stop` cannot reach the head's processes or any other cluster's, and what is left
# after `ray down` can be counted. Head and worker are reached by sshd alone. Nothing of the user's
# is read or written: keys, token and homes are in a temporary folder, deleted at the end.
#
# Exit code 77: this machine cannot do it; the last line says why. Needs no network outside: in
# place of pip, a stand-in puts ~/cxr on the path of an environment that has Ray already.
set -euo pipefail

HEAD=10.99.0.2 WORKER=10.99.0.3
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
PYTHON=${PYTHON:-$(command -v python)}
# Where ssh looks, whatever HOME says. Each machine has its own folder mounted there.
HOME_FOLDER=$(getent passwd "$(id -u)" | cut -d: -f6)

if [[ ${1:-} != --inside ]]; then
    for tool in sshd ssh rsync unshare nsenter ip; do
        PATH=$PATH:/usr/sbin command -v $tool >/dev/null || { echo "skipped: no $tool"; exit 77; }
    done
    [[ $(id -u) == 0 ]] || { echo "skipped: needs root, for namespaces and sshd"; exit 77; }
    unshare --net --pid --mount --fork true 2>/dev/null || { echo "skipped: no namespaces"; exit 77; }
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK"' EXIT
    # When the script in the namespace ends, however it does, every process in it is killed.
    WORK=$WORK PYTHON=$PYTHON unshare --net --pid --mount --fork --kill-child --mount-proc \
        "$0" --inside "$@"
    exit
fi
shift

# --- in the namespace: this is the laptop ---------------------------------------------------------
PATH=$PATH:/usr/sbin
say() { printf '\n[%3d s] %s\n' "$SECONDS" "$*"; }
ray() { "$PYTHON" -m ray.scripts.scripts "$@"; }
processes() { ps -eo pid,args --no-headers | grep -E 'raylet|gcs_server|ray::|/ray/_private|/ray/dashboard|autoscaler/_private' | grep -v grep; }

# Python and the code stay where they are, should that be below the home folder.
KEPT=$("$PYTHON" -c 'import sys; print(*{sys.prefix, sys.base_prefix, sys.argv[1]})' "$ROOT")
enter() { # name: mount that machine's folders for this process and its children
    local home=$WORK/$1 folder
    mount --bind "$home/ray" /tmp/ray
    for folder in $KEPT; do
        if [[ $folder == "$HOME_FOLDER"/* ]]; then
            mkdir -p "$home${folder#"$HOME_FOLDER"}"
            mount --bind "$folder" "$home${folder#"$HOME_FOLDER"}"
        fi
    done
    mount --rbind "$home" "$HOME_FOLDER"
}

mkdir -p /tmp/ray "$WORK"/{laptop,head,worker}/{.ray,ray} /run/sshd
enter laptop
ip link set lo up
ip link add lan type bridge && ip addr add 10.99.0.1/24 dev lan && ip link set lan up

ssh-keygen -q -t ed25519 -N '' -f "$WORK/key"
ssh-keygen -q -t ed25519 -N '' -f "$WORK/hostkey"

machine() { # name, address: a machine with sshd and an environment that has Ray
    local home=$WORK/$1
    "$PYTHON" -m venv --without-pip "$home/cxr-venv"
    "$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
        >"$(echo "$home"/cxr-venv/lib/python*/site-packages)/base.pth"
    printf '#!/bin/sh\necho "$HOME/cxr" > "$(echo ~/cxr-venv/lib/python*/site-packages)/cxr.pth"\n' \
        >"$home/cxr-venv/bin/pip"
    printf '#!/bin/sh\nexec ~/cxr-venv/bin/python -m ray.scripts.scripts "$@"\n' >"$home/cxr-venv/bin/ray"
    chmod +x "$home"/cxr-venv/bin/{pip,ray}
    touch "$home/.bashrc"
    cat >"$WORK/$1.sshd" <<END
HostKey $WORK/hostkey
AuthorizedKeysFile $WORK/key.pub
PasswordAuthentication no
StrictModes no
PidFile none
END
    unshare --net --pid --mount --fork --kill-child --mount-proc bash -c "
        WORK='$WORK' KEPT='$KEPT' HOME_FOLDER='$HOME_FOLDER'; $(declare -f enter); enter $1
        ip link set lo up
        until ip link show eth0 >/dev/null 2>&1; do sleep 0.1; done
        ip addr add $2/24 dev eth0 && ip link set eth0 up
        exec $(command -v sshd) -D -e -f $WORK/$1.sshd" 2>"$WORK/$1.log" &
    local pid
    until pid=$(pgrep -P $!); do sleep 0.1; done
    ip link add "$1" type veth peer name eth0 netns "$pid"
    ip link set "$1" master lan up
    declare -g "${1}_pid=$pid"
}
machine head $HEAD
machine worker $WORKER
export HOME=$HOME_FOLDER TMPDIR=$WORK/laptop RAY_USAGE_STATS_ENABLED=0
unset RAY_UP_enable_autoscaler_v2 RAY_ADDRESS RAY_AUTH_TOKEN RAY_AUTH_TOKEN_PATH RAY_AUTH_MODE
cd "$ROOT"
for ip in $HEAD $WORKER; do
    until ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
        -i "$WORK/key" "$(id -un)@$ip" true 2>/dev/null; do sleep 0.2; done
done
sed -e "s|HEAD_ADDRESS|$HEAD|; s|WORKER_ADDRESS|$WORKER|; s|SSH_USER|$(id -un)|; s|SSH_KEY|$WORK/key|" \
    deploy/onprem.yaml >"$WORK/onprem.yaml"

say "ray get-auth-token --generate"
ray get-auth-token --generate >/dev/null
chmod 600 ~/.ray/auth_token

say "ray up -y deploy/onprem.yaml"
ray up -y "$WORK/onprem.yaml"

say "ray dashboard deploy/onprem.yaml: the tunnel to the head"
export RAY_AUTH_MODE=token
ray dashboard "$WORK/onprem.yaml" >"$WORK/tunnel.log" 2>&1 &
until (exec 3<>/dev/tcp/127.0.0.1/8265) 2>/dev/null; do sleep 0.2; done
submit() { ray job submit --address http://127.0.0.1:8265 "$@"; }

say "a job that waits for the worker"
submit -- python -c '
import ray, time
ray.init(logging_level="ERROR")
start = time.monotonic()
while len(nodes := [n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]]) < 2 and time.monotonic() < start + 120: time.sleep(0.5)
print("nodes:", *sorted(nodes))
assert len(nodes) == 2'

say "a job that fails"
code=0; submit -- python -c 'raise SystemExit(3)' || code=$?
echo "exit code of ray job submit: $code"
[[ $code != 0 ]]

say "without the token"
code=0; RAY_AUTH_MODE=disabled submit -- python -c 1 >"$WORK/refused" 2>&1 || code=$?
tail -n 3 "$WORK/refused"; echo "exit code: $code"
[[ $code != 0 ]] && grep -q 'Missing authentication token' "$WORK/refused"
say "with another token"
code=0; RAY_AUTH_TOKEN=$(printf '0%.0s' {1..64}) submit -- python -c 1 >"$WORK/refused" 2>&1 || code=$?
tail -n 3 "$WORK/refused"; echo "exit code: $code"
[[ $code != 0 ]] && grep -q 'Invalid authentication token' "$WORK/refused"

say "what listens on the head, on the worker"
for pid in $head_pid $worker_pid; do
    nsenter -t "$pid" -n -p -m ss -ltnpH | awk '{split($6, a, "\""); print $4, a[2]}' | sort -u
    echo
done

say "at every door of the head, from another machine, without the token"
code=0; (exec 3<>/dev/tcp/$HEAD/8265) 2>/dev/null || code=$?
[[ $code != 0 ]] && echo "8265 jobs: does not answer at $HEAD"
mkdir "$WORK/nobody"
cat >"$WORK/doors.py" <<'END'
import logging, sys, urllib.error, urllib.request

import ray
from ray._raylet import GcsClient

head = sys.argv[1]
logging.disable(logging.CRITICAL)


def agent():
    from ray._private.authentication.http_token_authentication import (
        get_auth_headers_if_auth_enabled,
    )

    url = f"http://{head}:52365/api/job_agent/jobs/none/logs"
    request = urllib.request.Request(url, headers=get_auth_headers_if_auth_enabled({}))
    try:
        urllib.request.urlopen(request)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise


def state():
    return len(GcsClient(address=f"{head}:6379").get_all_node_info(timeout=10))


def client():
    return ray.util.connect(f"{head}:10001", connection_retries=0)["num_clients"]


for name, door in (("52365 agent", agent), ("6379 state", state), ("10001 client", client)):
    try:
        door()
        print(f"{name}: let in")
    except Exception as error:
        print(f"{name}: refused, {type(error).__name__}: {str(error).splitlines()[0][:100]}")
END
knock() { nsenter -t "$worker_pid" -n timeout 90 "$PYTHON" "$WORK/doors.py" $HEAD 2>/dev/null; }
HOME=$WORK/nobody RAY_AUTH_MODE=disabled knock | tee "$WORK/without"
[[ $(grep -c 'refused' "$WORK/without") == 3 ]]
say "the same with the token"
knock | tee "$WORK/with"
[[ $(grep -c 'let in' "$WORK/with") == 3 ]]

if (($#)); then
    say "$*"
    mkdir "$WORK/shared"
    submit --working-dir . -- "${@//SHARED/$WORK\/shared}"
fi

say "ray down -y deploy/onprem.yaml"
echo "processes before: $(processes | wc -l)"
ray down -y "$WORK/onprem.yaml"
say "down; processes of Ray that are left: $(processes | wc -l)"
say "ray stop on the worker"
ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR \
    -i "$WORK/key" "$(id -un)@$WORKER" '~/cxr-venv/bin/ray stop'
for _ in $(seq 30); do processes >/dev/null || break; sleep 1; done
say "processes of Ray that are left: $(processes | wc -l)"
! processes
