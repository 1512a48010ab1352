# What every shell and every Ray process of a cluster's nodes needs; the set-up commands of
# cluster.yaml and clusters/local.yaml have ~/.bashrc read it. What is set already stays.

export PATH="$HOME/bsrnn/.venv/bin:$PATH"

# Nobody gets in without the token of ~/.ray/auth_token, and nothing is reported to anybody.
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0

# glibc gives every thread a heap of its own, which large tensors soon fragment (pipelines/launch.py
# does the same for a Ray of one machine).
export MALLOC_ARENA_MAX="${MALLOC_ARENA_MAX:-2}"
# Huge pages for large tensors (pipelines/cli.py does the same for its own process).
export THP_MEM_ALLOC_ENABLE="${THP_MEM_ALLOC_ENABLE:-1}"

# Where a machine does not find its own name, gloo would listen on 127.0.0.1, which no other node
# reaches: the interface that leads to the other machines is that of the default route.
GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$(awk '$2 == "00000000" { print $1; exit }' /proc/net/route)}"
[ -z "$GLOO_SOCKET_IFNAME" ] || export GLOO_SOCKET_IFNAME

# The MLflow server of the head (mlflow.sh), for whom Ray's token is the token too.
if [ -r "$HOME/.ray/head_ip" ]; then
	heads="http://$(cat "$HOME/.ray/head_ip"):5000"
	export MLFLOW_TRACKING_URI="${MLFLOW_TRACKING_URI:-$heads}"
	# No other server is to see it.
	if [ "$MLFLOW_TRACKING_URI" = "$heads" ] && [ -r "$HOME/.ray/auth_token" ]; then
		MLFLOW_TRACKING_TOKEN="$(cat "$HOME/.ray/auth_token")"
		export MLFLOW_TRACKING_TOKEN
	fi
	unset heads
fi
