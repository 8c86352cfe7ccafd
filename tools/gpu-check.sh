#!/usr/bin/env bash
# Every check that needs a GPU, on a machine that holds only the binary, the libraries of Python's torch 2.11 and an NVIDIA driver.
#
#     LD_LIBRARY_PATH=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__) + "/lib")') tools/gpu-check.sh
#
# It is run in a checkout, of which it reads tests/oracle, recipes and tools/rivals, and needs python3 without any package. It prints a
# table last, ends inside nine minutes, and exits with 1 if a check failed or there was no time left for it. What a machine lacks (the demo
# model, compute-sanitizer, a python3 with pyreft, NCCL on a CPU) is skipped and said so. What it does not check: derivatives and interchange
# interventions have oracles that only the tests read, which run on a CPU; here ten steps of training stand for the derivatives.
#
#     REFT    the binary                                  [target/debug/reft]
#     DEVICE  cuda:0, or cpu to try the script itself     [cuda:0]
#     MODEL   the demo model, a directory or a GGUF file  [models/SmolLM2-135M-Instruct]; without it two checks are left out
#     SIZE    the config.json of the timed shape          [recipes/sizes/llama-3-8b.json; on a CPU the tiny model's]
#     BUDGET  seconds for everything                      [510]
#     JOBS    small runs that share the device            [4]
#     CHECKS  the checks to run, of those listed last     [all]
#     PYTHON  the Python that is asked for pyreft         [python3]
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 2

REFT=${REFT:-target/debug/reft}
DEVICE=${DEVICE:-cuda:0}
MODEL=${MODEL:-models/SmolLM2-135M-Instruct}
BUDGET=${BUDGET:-510}
JOBS=${JOBS:-4}
PYTHON=${PYTHON:-python3}
case $DEVICE in
cpu) SIZE=${SIZE:-tests/oracle/tiny_llama/config.json} ;;
*) SIZE=${SIZE:-recipes/sizes/llama-3-8b.json} ;;
esac
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
ORACLE=tests/oracle
NAMES=() RESULTS=() NOTES=()
FAILED=0

# report NAME pass|fail|skip|told NOTE
report() {
    NAMES+=("$1") RESULTS+=("$2") NOTES+=("$3")
    [ "$2" = fail ] && FAILED=1
    printf '%s: %s: %s\n' "$2" "$1" "$3" >&2
}

# seconds that are left
left() { echo $((BUDGET - SECONDS)); }

# timed SECONDS COMMAND...: at most so long, and no longer than the budget; output and errors go to $WORK/out and $WORK/err, the status
# to RC
RC=0
timed() {
    local limit=$1 rest
    shift
    RC=125
    rest=$(left)
    [ "$rest" -le 5 ] && return $RC
    [ "$limit" -gt "$rest" ] && limit=$rest
    RC=0
    timeout "$limit" "$@" >"$WORK/out" 2>"$WORK/err" || RC=$?
    return $RC
}

# start NAME COMMAND...: in the background, beside at most JOBS - 1 others; errors go to $WORK/NAME.err and the status to $WORK/NAME.rc
start() {
    local name=$1 rest
    shift
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do wait -n; done
    rest=$(left)
    if [ "$rest" -le 5 ]; then
        echo 125 >"$WORK/$name.rc"
        return
    fi
    (
        timeout $((rest < 90 ? rest : 90)) "$@" >"$WORK/$name.out" 2>"$WORK/$name.err"
        echo $? >"$WORK/$name.rc"
    ) &
}

# why RC [FILE]: what to say of a command that failed
why() {
    case $1 in
    124) echo "it took too long" ;;
    125) echo "there was no time left" ;;
    *) grep -v '^$' "${2:-$WORK/err}" | tail -n 3 | tr '\n' ' ' | cut -c1-200 ;;
    esac
}

# difference FILE TENSOR OTHER TENSOR MASK_FILE: the largest difference of two tensors in f32, where the attention mask is 1; columns of
# the other that stand before all tokens are virtual tokens
difference() {
    python3 - "$@" <<'PYTHON'
import json, struct, sys

def tensor(path, name):
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    entry = json.loads(data[8:8 + size])[name]
    start, end = entry["data_offsets"]
    letter = {"F32": "f", "I64": "q"}[entry["dtype"]]
    raw = data[8 + size + start:8 + size + end]
    return entry["shape"], struct.unpack(f"<{len(raw) // struct.calcsize(letter)}{letter}", raw)

((rows, t, width), found), (other, expected) = tensor(*sys.argv[1:3]), tensor(*sys.argv[3:5])
virtual = other[1] - t
assert other == [rows, t + virtual, width] and virtual >= 0, f"shapes {[rows, t, width]} and {other}"
mask = tensor(sys.argv[5], "attention_mask")[1]
places = [(row * t + i, row * (t + virtual) + virtual + i) for row in range(rows) for i in range(t)]
seen = [pair for a, b in places if mask[a]
        for pair in zip(found[a * width:(a + 1) * width], expected[b * width:(b + 1) * width])]
worst = max(abs(a - b) if a == a else float("inf") for a, b in seen)
print(f"{worst:.2e}")
PYTHON
}

# at_most NUMBER LIMIT
at_most() { python3 -c 'import sys; sys.exit(not float(sys.argv[1]) <= float(sys.argv[2]))' "$1" "$2"; }

# input IO OUTPUT: the rows of an oracle batch as reft logits takes them; prompts of 9, 8 and 6 tokens for the common batch
input() {
    python3 - "$@" <<'PYTHON'
import json, struct, sys

data = open(sys.argv[1], "rb").read()
size = struct.unpack("<Q", data[:8])[0]
header = json.loads(data[8:8 + size])

def rows(name):
    entry = header[name]
    start, end = entry["data_offsets"]
    raw = data[8 + size + start:8 + size + end]
    values, width = struct.unpack(f"<{len(raw) // 8}q", raw), entry["shape"][1]
    return [values[i:i + width] for i in range(0, len(values), width)]

ids = [[t for t, m in zip(row, mask) if m] for row, mask in zip(rows("input_ids"), rows("attention_mask"))]
lengths = [9, 8, 6] if sys.argv[1].endswith("tiny_io.safetensors") else [len(row) for row in ids]
json.dump({"input_ids": ids, "prompt_lengths": lengths}, open(sys.argv[2], "w"))
with open(sys.argv[2] + "l", "w") as lines:
    for row, length in zip(ids, lengths):
        lines.write(json.dumps({"input_ids": row, "prompt_length": min(length, len(row) - 1)}) + "\n")
PYTHON
}

# losses FILE: what metrics.jsonl has of every step
losses() { python3 -c 'import json, sys; print(*[json.loads(l)["loss"] for l in open(sys.argv[1]) if "grad_norm" in l])' "$1"; }

# apart NAME OTHER: how far the losses of ten steps of two runs are apart; inf if they are not ten
apart() {
    # shellcheck disable=SC2046
    python3 -c 'import sys; v = list(map(float, sys.argv[1:])); n = len(v) // 2; print(f"{max(abs(a - b) for a, b in zip(v[:n], v[n:])):.2e}" if n == 10 else "inf")' \
        $(losses "$WORK/run-$1/metrics.jsonl") $(losses "$WORK/run-$2/metrics.jsonl")
}

check_devices() {
    if ! timed 120 "$REFT" devices --json; then
        report "reft devices" fail "$(why $RC)"
        return
    fi
    local usable
    usable=$(python3 -c 'import json, sys; c = json.load(open(sys.argv[1]))["cuda"]; print(c["usable"], c["obstacle"] or "; ".join(d["name"] for d in c["devices"]))' "$WORK/out")
    case $usable in
    True*) report "reft devices" pass "${usable#True }" ;;
    *) if [ "$DEVICE" = cpu ]; then report "reft devices" told "${usable#False }"; else report "reft devices" fail "${usable#False }"; fi ;;
    esac
    timed 60 "$REFT" logits --model $ORACLE/tiny_llama --input "$WORK/tiny.json" --output "$WORK/never" --device cuda:99
    if [ $? -eq 1 ] && grep -q '^error: device cuda:99 is not there' "$WORK/err"; then
        report "unknown index" pass "$(why 1)"
    else
        report "unknown index" fail "$(why 1)"
    fi
}

# oracle NAME MODEL INPUT [ADAPTER]: starts a forward in f32
oracle() {
    start "$1" "$REFT" logits --model "$2" --input "$3" --output "$WORK/$1.logits" --device "$DEVICE" --kind f32 ${4+--adapter "$4"}
}

# judge NAME ORACLE_FILE TENSOR MASK_FILE: holds its logits to the reference
WORST=0
CASES=0
judge() {
    local found rc
    rc=$(cat "$WORK/$1.rc")
    if [ "$rc" -ne 0 ]; then
        report "oracle: $1" fail "$(why "$rc" "$WORK/$1.err")"
        return
    fi
    if ! found=$(difference "$WORK/$1.logits" logits "$2" "$3" "$4" 2>"$WORK/err"); then
        report "oracle: $1" fail "$(why 1)"
        return
    fi
    CASES=$((CASES + 1))
    WORST=$(python3 -c 'import sys; print(max(sys.argv[1:], key=float))' "$WORST" "$found")
    at_most "$found" 1e-4 || report "oracle: $1" fail "off by $found, allowed 1e-4"
}

check_oracles() {
    local before=$FAILED tiny=$ORACLE/tiny_llama io=$ORACLE/tiny_io.safetensors dir name
    local families=() saved=(loreft direft noreft consreft lobireft nodireft)
    local baselines=(peft/lora_qv peft/lora_all peft/prefix peft/prompt peft_more/dora peft_more/ia3 peft_more/lora_pattern
        peft_more/prefix_projection peft_more/rslora)
    local biased=$ORACLE/families/llama_biases of_biased=(dora_bias ia3_bias)
    FAILED=0
    for name in "${saved[@]}"; do
        start "import-$name" "$REFT" import --from pyreft $ORACLE/reft_saved/$name --positions f2+l2 --share-weights --model $tiny --output "$WORK/$name"
    done
    oracle tiny_llama $tiny "$WORK/tiny.json"
    for dir in $ORACLE/families/*/; do
        name=$(basename "$dir")
        # stored in bf16, computed by the reference in bf16 too: another check's business
        [ "$name" = llama_bf16 ] && continue
        families+=("$name")
        input "$dir/io.safetensors" "$WORK/$name.json"
        oracle "$name" "$dir" "$WORK/$name.json"
    done
    for name in "${baselines[@]}"; do oracle "$(basename "$name")" $tiny "$WORK/tiny.json" "$ORACLE/$name"; done
    for name in "${of_biased[@]}"; do oracle "$name" "$biased" "$WORK/llama_biases.json" "$ORACLE/peft_more/$name"; done
    wait
    for name in "${saved[@]}"; do oracle "saved-$name" $tiny "$WORK/tiny.json" "$WORK/$name"; done
    wait
    judge tiny_llama $io base_logits $io
    for name in "${families[@]}"; do judge "$name" "$ORACLE/families/$name/io.safetensors" logits "$ORACLE/families/$name/io.safetensors"; done
    for name in "${baselines[@]}"; do judge "$(basename "$name")" "$ORACLE/$name.safetensors" logits $io; done
    for name in "${of_biased[@]}"; do judge "$name" "$ORACLE/peft_more/$name.safetensors" logits "$biased/io.safetensors"; done
    for name in "${saved[@]}"; do judge "saved-$name" "$ORACLE/reft_saved/$name.logits.safetensors" logits_before_save $io; done
    [ $FAILED -eq 0 ] && report "oracle logits, f32" pass "$CASES cases, off by $WORST at most"
    [ $before -eq 1 ] && FAILED=1
}

# Losses of ten steps are those of the CPU, whose whole trajectories the tests hold to the reference.
check_trajectories() {
    local method side device rc worst=0 found
    local methods=(loreft direft direft-orth noreft consreft lobireft lora dora prefix prompt ia3 red series-adapter parallel-adapter)
    for method in "${methods[@]}"; do
        for side in cpu there; do
            device=cpu
            [ $side = there ] && device=$DEVICE
            start "$method-$side" "$REFT" train --model $ORACLE/tiny_llama --data "$WORK/tiny.jsonl" --output "$WORK/run-$method-$side" \
                --method "$method" --max-steps 10 --batch-size 3 --lr 5e-3 --device "$device" --threads 1
        done
    done
    # frozen work that is read from a file and sent ahead of its turn, and none
    set -- --data "$WORK/tiny.jsonl" --layers "1;2" --positions l1 --max-steps 10 --batch-size 2 --lr 5e-3 --threads 1
    start kept-cpu "$REFT" train --model $ORACLE/tiny_llama "$@" --output "$WORK/run-kept-cpu" --device cpu --no-reuse
    start kept-there "$REFT" train --model $ORACLE/tiny_llama "$@" --output "$WORK/run-kept-there" --device "$DEVICE" \
        --reuse-memory 0B --reuse-dir "$WORK/spilled"
    wait
    for method in "${methods[@]}" kept; do
        for side in cpu there; do
            rc=$(cat "$WORK/$method-$side.rc")
            if [ "$rc" -ne 0 ]; then
                report "10 steps of $method" fail "$(why "$rc" "$WORK/$method-$side.err")"
                return
            fi
        done
        found=$(apart "$method-cpu" "$method-there")
        worst=$(python3 -c 'import sys; print(max(sys.argv[1:], key=float))' "$worst" "$found")
    done
    if at_most "$worst" 1e-4; then
        report "10 steps as on the CPU" pass "${#methods[@]} methods, and frozen work kept in a file; losses off by $worst at most"
    else
        report "10 steps as on the CPU" fail "losses are off by $worst, allowed 1e-4"
    fi
}

# A model in parts, on one device twice and on the device and the CPU: losses of ten steps and greedy replies are those of one device
check_split() {
    local method side worst=0 found rc place input="$WORK/tiny.jsonl"
    local methods=(loreft lora prefix full) parts="$DEVICE,$DEVICE" beside="$DEVICE,cpu"
    split() {
        start "$1" "$REFT" train --model $ORACLE/tiny_llama --data "$input" --output "$WORK/run-$1" --max-steps 10 --batch-size 3 --lr 5e-3 \
            --threads 1 "${@:2}"
    }
    for method in "${methods[@]}"; do
        split "one-$method" --method "$method" --device "$DEVICE"
        split "parts-$method" --method "$method" --device "$parts"
        split "beside-$method" --method "$method" --device "$beside"
    done
    split blocks-loreft --device "$beside" --checkpoint-activations
    split swapped-loreft --device "cpu,$DEVICE,cpu" --no-reuse
    wait
    for method in "${methods[@]}"; do
        for side in one parts beside blocks swapped; do
            [ -e "$WORK/$side-$method.rc" ] || continue
            rc=$(cat "$WORK/$side-$method.rc")
            if [ "$rc" -ne 0 ]; then
                report "10 steps in parts" fail "$side, $method: $(why "$rc" "$WORK/$side-$method.err")"
                return
            fi
            found=$(apart "one-$method" "$side-$method")
            worst=$(python3 -c 'import sys; print(max(sys.argv[1:], key=float))' "$worst" "$found")
        done
    done
    if at_most "$worst" 1e-4; then
        report "10 steps in parts" pass "${#methods[@]} methods on $parts and $beside; losses off by $worst at most"
    else
        report "10 steps in parts" fail "losses are off by $worst, allowed 1e-4"
    fi
    for place in "$DEVICE" "$parts" "$beside"; do
        start "replies-$place" "$REFT" generate --model $ORACLE/tiny_llama --adapter "$WORK/run-one-lora" --input "$input" --kind f32 \
            --max-new-tokens 24 --json --device "$place"
    done
    wait
    for place in "$parts" "$beside"; do
        if ! python3 -c 'import json, sys; a, b = ([r["ids"] for r in json.load(open(f))["rows"]] for f in sys.argv[1:]); sys.exit(a != b or not a)' \
            "$WORK/replies-$DEVICE.out" "$WORK/replies-$place.out" 2>"$WORK/err"; then
            report "greedy replies in parts" fail "$place: $(why "$(cat "$WORK/replies-$place.rc")" "$WORK/replies-$place.err")"
            return
        fi
    done
    report "greedy replies in parts" pass "$(wc -l <"$input") rows on $parts and $beside, tokens alike"
}

# One process that sums with itself by NCCL has the losses of one that does not
check_nccl() {
    if [ "$DEVICE" = cpu ]; then
        report "NCCL with one process" skip "it sums on a GPU"
        return
    fi
    local side rc found
    for side in alone nccl; do
        set --
        [ $side = nccl ] && set -- --processes 1 --reduce nccl
        start $side "$REFT" train --model $ORACLE/tiny_llama --data "$WORK/tiny.jsonl" --output "$WORK/run-$side" --max-steps 10 --batch-size 3 \
            --lr 5e-3 --threads 1 --device "$DEVICE" "$@"
        wait
        rc=$(cat "$WORK/$side.rc")
        if [ "$rc" -ne 0 ]; then
            report "NCCL with one process" fail "$(why "$rc" "$WORK/$side.err")"
            return
        fi
    done
    found=$(apart alone nccl)
    if ! grep -q 'summed by NCCL' "$WORK/nccl.err"; then
        report "NCCL with one process" fail "it was not called: $(why 1 "$WORK/nccl.err")"
    elif at_most "$found" 1e-5; then
        report "NCCL with one process" pass "losses of 10 steps off by $found"
    else
        report "NCCL with one process" fail "losses are off by $found, allowed 1e-5"
    fi
}

# Logits with packed weights are those of the CPU, which multiplies them as they are where rows are few
check_packed() {
    local form side device found worst=0 cases=0 io=$ORACLE/tiny_io.safetensors
    local forms=(int8 int4)
    for form in "${forms[@]}"; do
        for side in cpu there; do
            device=cpu
            [ $side = there ] && device=$DEVICE
            start "packed-$form-$side" "$REFT" logits --model $ORACLE/tiny_llama --input "$WORK/tiny.json" --output "$WORK/packed-$form-$side.logits" \
                --kind f32 --weights "$form" --device "$device"
        done
    done
    wait
    for form in "${forms[@]}"; do
        for side in cpu there; do
            if [ "$(cat "$WORK/packed-$form-$side.rc")" -ne 0 ]; then
                report "packed weights as on the CPU" fail "$form: $(why 1 "$WORK/packed-$form-$side.err")"
                return
            fi
        done
        if ! found=$(difference "$WORK/packed-$form-there.logits" logits "$WORK/packed-$form-cpu.logits" logits $io 2>"$WORK/err"); then
            report "packed weights as on the CPU" fail "$(why 1)"
            return
        fi
        cases=$((cases + 1))
        worst=$(python3 -c 'import sys; print(max(sys.argv[1:], key=float))' "$worst" "$found")
    done
    if at_most "$worst" 1e-4; then
        report "packed weights as on the CPU" pass "$cases forms, logits off by $worst at most"
    else
        report "packed weights as on the CPU" fail "logits are off by $worst, allowed 1e-4"
    fi
}

# bf16, f16 and int8 reach the loss of f32 within 5 %, without NaN
check_kinds() {
    if [ ! -e "$MODEL" ]; then
        report "demo in bf16, f16, int8" skip "there is no $MODEL"
        return
    fi
    local kind last=() steps=60
    [ "$DEVICE" = cpu ] && steps=2
    for kind in "f32 dense" "bf16 dense" "f16 dense" "bf16 int8"; do
        # shellcheck disable=SC2086
        set -- $kind
        if ! timed 120 "$REFT" train --config recipes/emoji.toml --model "$MODEL" --data examples/emoji.jsonl --output "$WORK/demo-$1-$2" \
            --max-steps $steps --kind "$1" --weights "$2" --device "$DEVICE"; then
            report "demo in $kind" fail "$(why $RC)"
            return
        fi
        # libtorch's own remarks, which begin [W for a warning
        if grep -q '^\[[WE]' "$WORK/err"; then
            report "demo in $kind" fail "$(grep -c '^\[[WE]' "$WORK/err") lines of libtorch's on stderr: $(grep -m 1 '^\[[WE]' "$WORK/err" | cut -c1-120)"
            return
        fi
        last+=("$(losses "$WORK/demo-$1-$2/metrics.jsonl" | python3 -c 'v = list(map(float, input().split())); assert all(x == x for x in v); print(f"{sum(v[-5:]) / len(v[-5:]):.4f}")')")
    done
    # of a loss below 1, 5 % is less than one step changes it: 0.05 is allowed of any
    if python3 -c 'import sys; a, *rest = map(float, sys.argv[1:]); sys.exit(not all(x == x and abs(x - a) <= max(0.05 * a, 0.05) for x in rest))' "${last[@]}"; then
        report "demo in bf16, f16, int8" pass "mean of the last losses: f32 ${last[0]}, bf16 ${last[1]}, f16 ${last[2]}, bf16 on int8 ${last[3]}"
    else
        report "demo in bf16, f16, int8" fail "mean of the last losses: f32 ${last[0]}, bf16 ${last[1]}, f16 ${last[2]}, bf16 on int8 ${last[3]}"
    fi
}

# Greedy replies of the model with a trained adapter are those of the CPU
check_replies() {
    if [ ! -e "$WORK/demo-f32-dense" ]; then
        report "greedy replies as on the CPU" skip "there is no adapter of the demo model"
        return
    fi
    local side device
    printf 'Name a fruit.\nWhat is the capital of France?\nI feel tired today.\n' >"$WORK/prompts.txt"
    for side in cpu there; do
        device=cpu
        [ $side = there ] && device=$DEVICE
        if ! timed 90 "$REFT" generate --model "$MODEL" --adapter "$WORK/demo-f32-dense" --input "$WORK/prompts.txt" --kind f32 --max-new-tokens 24 \
            --json --device "$device"; then
            report "greedy replies as on the CPU" fail "$device: $(why $RC)"
            return
        fi
        cp "$WORK/out" "$WORK/replies-$side"
    done
    if python3 -c 'import json, sys; a, b = ([(r["text"], r["ids"]) for r in json.load(open(f))["rows"]] for f in sys.argv[1:]); sys.exit(a != b or not a)' \
        "$WORK/replies-cpu" "$WORK/replies-there" 2>"$WORK/err"; then
        report "greedy replies as on the CPU" pass "$(wc -l <"$WORK/prompts.txt") prompts, tokens alike"
    else
        report "greedy replies as on the CPU" fail "$(why 1) $(diff "$WORK/replies-cpu" "$WORK/replies-there" | head -n 4 | tr '\n' ' ')"
    fi
}

# Replies of a server, eight at once and half of them with the trained adapter, are those of a server on the CPU
check_served() {
    if [ ! -e "$WORK/demo-f32-dense" ]; then
        report "served replies as on the CPU" skip "there is no adapter of the demo model"
        return
    fi
    local side device
    for side in cpu there; do
        device=cpu
        [ $side = there ] && device=$DEVICE
        if ! timed 120 python3 - "$REFT" "$MODEL" "$WORK/demo-f32-dense" "$device" <<'PYTHON'
import json, re, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.request import Request, urlopen

reft, model, adapter, device = sys.argv[1:]
arguments = ["--model", model, "--name", "base", "--adapter", f"edited={adapter}", "--device", device, "--kind", "f32", "--port", "0"]
server = subprocess.Popen([reft, "serve", *arguments], stderr=subprocess.PIPE, text=True)
try:
    log, address = "", None
    while address is None:
        line = server.stderr.readline()
        log += line
        assert line, f"no address: {log}"
        address = re.search(r"http://127\.0\.0\.1:\d+", line)

    def is_ready():
        try:
            return urlopen(address[0] + "/health", timeout=10).status == 200
        except HTTPError:
            return False

    while not is_ready():
        time.sleep(0.1)

    def reply(asked):
        name, prompt = asked
        body = json.dumps({"model": name, "prompt": prompt, "max_tokens": 24, "temperature": 0}).encode()
        with urlopen(Request(address[0] + "/v1/completions", body, {"content-type": "application/json"}), timeout=100) as answer:
            return [*asked, json.load(answer)["choices"][0]["text"]]

    prompts = ["Name a fruit.", "What is the capital of France?", "I feel tired today.", "A story begins with a king who"]
    with ThreadPoolExecutor(8) as clients:
        print(json.dumps(list(clients.map(reply, [(name, prompt) for name in ("base", "edited") for prompt in prompts]))))
finally:
    server.terminate()
    server.communicate(timeout=40)
sys.exit(server.returncode)
PYTHON
        then
            report "served replies as on the CPU" fail "$device: $(why $RC)"
            return
        fi
        cp "$WORK/out" "$WORK/served-$side"
    done
    if [ -s "$WORK/served-cpu" ] && cmp -s "$WORK/served-cpu" "$WORK/served-there"; then
        report "served replies as on the CPU" pass "8 at once, two models, texts alike"
    else
        report "served replies as on the CPU" fail "$(diff "$WORK/served-cpu" "$WORK/served-there" | cut -c1-200 | tr '\n' ' ')"
    fi
}

# A search of one layer finds the accuracies that it finds on the CPU
check_search() {
    if [ ! -e "$MODEL" ]; then
        report "alignment search as on the CPU" skip "there is no $MODEL"
        return
    fi
    local side device
    for side in cpu there; do
        device=cpu
        [ $side = there ] && device=$DEVICE
        if ! timed 90 "$REFT" das --task recipes/das/pronoun.toml --model "$MODEL" --output "$WORK/das-$side" --layers "5;20" --positions person,last \
            --rank 1 --no-untrained-model --kind f32 --device "$device"; then
            report "alignment search as on the CPU" fail "$device: $(why $RC)"
            return
        fi
    done
    # of 96 counterfactuals two may fall on the other side by rounding
    local told
    if told=$(python3 - "$WORK/das-cpu/das.json" "$WORK/das-there/das.json" 2>"$WORK/err" <<'PYTHON'
import json, sys

def accuracies(value, path=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from accuracies(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from accuracies(inner, f"{path}/{i}")
    elif path.endswith("/iia"):
        yield path, value

cpu, there = (dict(accuracies(json.load(open(path)))) for path in sys.argv[1:])
assert cpu and cpu.keys() == there.keys(), f"{len(cpu)} and {len(there)} accuracies"
worst = max(abs(cpu[path] - there[path]) for path in cpu)
assert worst <= 2.5 / 96, f"accuracies are off by {worst:.3f}"
print(f"{len(cpu)} accuracies, off by {worst:.3f} at most")
PYTHON
    ); then
        report "alignment search as on the CPU" pass "$told"
    else
        report "alignment search as on the CPU" fail "$(why 1)"
    fi
}

check_sanitizer() {
    if [ "$DEVICE" = cpu ] || ! command -v compute-sanitizer >/dev/null; then
        report "compute-sanitizer" skip "it is not installed, or there is no GPU"
        return
    fi
    timed 100 compute-sanitizer --error-exitcode 9 "$REFT" train --model $ORACLE/tiny_llama --data "$WORK/tiny.jsonl" --output "$WORK/sanitized" \
        --max-steps 1 --batch-size 3 --device "$DEVICE"
    local rc=$?
    if [ $rc -eq 0 ]; then report "compute-sanitizer" pass "silent"; else report "compute-sanitizer" fail "$(why $rc)"; fi
}

# bench_case NAME LARGEST_RATIO LARGEST_GB FLAGS...: time and memory of a step beside the frozen floor's; - judges nothing. The report
# is kept in $WORK/step.json
bench_case() {
    local name=$1 ratio=$2 memory=$3 told rc
    shift 3
    # a GPU raises its clock in the first steps
    local prompt=248 steps=20
    [ "$DEVICE" = cpu ] && prompt=48 steps=4
    timed 110 "$REFT" bench --model-config "$SIZE" --random-weights --kind bf16 --methods floor,loreft --batch-size 4 --prompt-length $prompt \
        --response-length 8 --rank 8 --share-weights --steps $steps --rounds 1 --no-reuse --device "$DEVICE" --json "$@"
    rc=$RC
    if [ $rc -ne 0 ]; then
        report "$name" fail "$(why $rc)"
        return
    fi
    cp "$WORK/out" "$WORK/step.json"
    told=$(python3 - "$WORK/step.json" "$ratio" "$memory" <<'PYTHON'
import json, sys

report = json.load(open(sys.argv[1]))
floor, row = report["rows"]
ratio = row["step_seconds_median"] / floor["step_seconds_median"]
memory = row["device_memory_mb"] or row["peak_memory_mb"]
ok = all(limit == "-" or found <= float(limit) for found, limit in ((ratio, sys.argv[2]), (memory / 1e3, sys.argv[3])))
limits = ", ".join(f"allowed {limit}{unit}" for limit, unit in zip(sys.argv[2:], (" × floor", " GB")) if limit != "-")
print("pass" if ok else "fail", f"{row['step_seconds_median'] * 1e3:.1f} ms a step, {ratio:.3f} × floor, {memory / 1e3:.2f} GB, weights {report['weights_mb'] / 1e3:.2f} GB" + (f" ({limits})" if limits else ""))
PYTHON
    )
    report "$name" "${told%% *}" "${told#* }"
}

# map_case NAME LARGEST_SHARE: what the orthonormal map takes of the step that was timed last
map_case() {
    local told
    if ! told=$(python3 - "$WORK/step.json" "$2" 2>"$WORK/err" <<'PYTHON'
import json, sys

row = json.load(open(sys.argv[1]))["rows"][1]
share = row["map_seconds_median"] / row["step_seconds_median"]
ok = sys.argv[2] == "-" or share < float(sys.argv[2])
print("pass" if ok else "fail", f"{row['map_seconds_median'] * 1e3:.2f} ms, {share:.2%} of the step" + ("" if sys.argv[2] == "-" else f" (allowed {float(sys.argv[2]):.0%})"))
PYTHON
    ); then
        report "$1" fail "no step was timed"
        return
    fi
    report "$1" "${told%% *}" "${told#* }"
}

# a step of pyreft's at the shape and positions of $WORK/ours.json
check_rival() {
    local name case told rc
    name="$(basename "$SIZE" .json), f7+l7, pyreft"
    if [ ! -e "$WORK/ours.json" ] || ! "$PYTHON" -c 'import pyreft' >/dev/null 2>&1; then
        report "$name" skip "$PYTHON has no pyreft, or there is no step of ours to compare with"
        return
    fi
    case=$(python3 - "$WORK/ours.json" <<'PYTHON'
import json, sys

report = json.load(open(sys.argv[1]))
shape = {name: report[name] for name in ("kind", "batch_size", "prompt_length", "response_length")}
print(json.dumps({"method": "loreft", "layers": None, "rank": 8, "first": 7, "last": 7, "steps": 4, "new_tokens": 0, **shape}))
PYTHON
    )
    timed 110 "$PYTHON" tools/rivals/measure.py "$case" "$SIZE" 2 "$DEVICE"
    rc=$?
    if [ $rc -eq 124 ] || [ $rc -eq 125 ]; then
        report "$name" skip "$(why $rc)"
        return
    elif [ $rc -ne 0 ]; then
        report "$name" fail "$(why $rc)"
        return
    fi
    if ! told=$(python3 - "$WORK/ours.json" "$WORK/out" 2>"$WORK/err" <<'PYTHON'
import json, statistics, sys

ours = json.load(open(sys.argv[1]))["rows"][1]
theirs = json.loads(open(sys.argv[2]).read().splitlines()[-1])  # packages greet on stdout
seconds = statistics.median(theirs["step_seconds"])
memory = theirs["device_memory_mb"] or theirs["peak_memory_mb"]
print(f"{seconds * 1e3:.1f} ms a step, {memory / 1e3:.2f} GB; {seconds / ours['step_seconds_median']:.2f} × ours")
PYTHON
    ); then
        report "$name" fail "$(why 1)"
        return
    fi
    report "$name" told "$told"
}

check_steps() {
    local shape ratio=1.05 map=0.01 bf16=- checkpointed=20 int8=- int4=9
    shape=$(basename "$SIZE" .json)
    # on a CPU a step is too short to be judged, and memory is the program's own
    [ "$DEVICE" = cpu ] && ratio=- map=- checkpointed=- int4=-
    bench_case "$shape, f7+l7" $ratio $bf16 --positions f7+l7
    map_case "$shape, the map" $map
    [ -e "$WORK/step.json" ] && cp "$WORK/step.json" "$WORK/ours.json"
    bench_case "$shape, f7+l7, checkpointing" $ratio $checkpointed --positions f7+l7 --checkpoint-activations
    bench_case "$shape, l1" $ratio $bf16 --positions l1
    bench_case "$shape, f7+l7, int4" $ratio $int4 --positions f7+l7 --weights int4
    bench_case "$shape, f7+l7, int8" $ratio $int8 --positions f7+l7 --weights int8
}

# How long a token of one reply takes; judged by nobody
check_tokens() {
    local form told prompt=128
    [ "$DEVICE" = cpu ] && prompt=24
    for form in dense int8 int4; do
        if ! timed 60 "$REFT" bench --model-config "$SIZE" --random-weights --kind bf16 --weights $form --methods floor --batch-size 1 \
            --prompt-length $prompt --response-length 8 --steps 1 --rounds 1 --generate 32 --device "$DEVICE" --json; then
            report "$(basename "$SIZE" .json), a token, $form" fail "$(why $RC)"
            return
        fi
        told=$(python3 -c 'import json, sys; print("{:.2f} ms".format(1e3 * json.load(open(sys.argv[1]))["rows"][0]["generation"]["decode_seconds_per_token_median"]))' "$WORK/out")
        report "$(basename "$SIZE" .json), a token, $form" told "$told"
    done
}

check_memory_message() {
    if [ "$DEVICE" = cpu ]; then
        report "out of memory" skip "a GPU's memory is to run out"
        return
    fi
    timed 90 "$REFT" bench --model-config recipes/sizes/llama-3.2-1b.json --random-weights --kind f32 --methods floor --batch-size 512 \
        --prompt-length 4000 --response-length 8 --steps 1 --rounds 1 --device "$DEVICE"
    if [ $? -eq 1 ] && grep -q 'out of memory' "$WORK/err" && grep -q 'try: --checkpoint-activations' "$WORK/err"; then
        report "out of memory" pass "$(grep -o 'out of memory[^:]*' "$WORK/err" | head -n 1 | cut -c1-100)"
    else
        report "out of memory" fail "$(why 1)"
    fi
}

input $ORACLE/tiny_io.safetensors "$WORK/tiny.json" || exit 2
for check in ${CHECKS:-devices oracles trajectories split nccl packed kinds replies served search steps tokens memory_message sanitizer rival}; do "check_$check"; done

printf '\n%-34s %-5s %s\n' check result what
for i in "${!NAMES[@]}"; do
    printf '%-34s %-5s %s\n' "${NAMES[$i]}" "${RESULTS[$i]}" "${NOTES[$i]}"
done
printf '%s, %s, %d s\n' "$("$REFT" --version)" "$DEVICE" $SECONDS
exit $FAILED
