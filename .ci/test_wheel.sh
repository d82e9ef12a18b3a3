#!/usr/bin/env bash
# Uses a wheel as a new user would: a new environment without a clone, every interface once, and nothing left behind.
# Usage: test_wheel.sh WHEEL. PYTHON names the interpreter.
set -euo pipefail
wheel=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
home=$(mktemp -d)
server=
finish() {
  [ -z "$server" ] || kill "$server" 2> /dev/null || true
  rm -rf "$home"
}
trap finish EXIT
cd "$home"
export OURO_EDGE_CACHE=$home/cache ORT_DISABLE_TELEMETRY=1 HF_HUB_OFFLINE=1
question="Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?"

"${PYTHON:-python3}" -m venv env
bin=$home/env/bin
[ -d "$bin" ] || bin=$home/env/Scripts
"$bin/python" -m pip freeze --all | sort > before.txt
"$bin/python" -m pip install --quiet "$wheel[serve]"

expect() {  # expect WORD OUTPUT
  case $2 in *"$1"*) echo "ok: $1" ;; *) echo "expected $1, got: $2" >&2; exit 1 ;; esac
}
expect ouro-edge, "$("$bin/ouro-edge" --version)"
expect Cleo "$("$bin/ouro-edge" run -p "$question")"
expect Cleo "$(echo "$question" | "$bin/ouro-edge" chat)"
expect Cleo "$("$bin/python" -c "
import ouro_edge
with ouro_edge.load() as model:
    print([event.text for event in model.chat([{'role': 'user', 'content': '$question'}])][-1])
")"

port=$("$bin/python" -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])")
"$bin/ouro-edge" serve --port "$port" 2> server.log &
server=$!
reply=$("$bin/python" - "$port" "$question" <<'EOF'
import json, sys, time, urllib.error, urllib.request

url, question = f"http://127.0.0.1:{sys.argv[1]}/v1/chat/completions", sys.argv[2]
body = json.dumps({"messages": [{"role": "user", "content": question}]}).encode()
for attempt in range(120):
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        print(json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["message"]["content"])
        break
    except urllib.error.URLError:
        time.sleep(0.5)
EOF
)
expect Cleo "$reply"
kill "$server"
wait "$server" || true
server=

# Uninstalling removes every file that installing has made.
"$bin/python" -m pip uninstall --quiet --yes ouro-edge
site=$("$bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
left=$(find "$site" "$bin" -iname 'ouro*edge*' | head)
[ -z "$left" ] || { echo "left behind: $left" >&2; exit 1; }
echo "ok: nothing left behind"
