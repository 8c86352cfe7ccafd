#!/usr/bin/env bash
# Every check that needs a GPU, on a machine that holds only the binary, the libraries of Python's torch 2.11 and an NVIDIA driver.
#
#     LD_LIBRARY_PATH=$(python3 -c 'import os, torch; print(os.path.dirname(torch.__file__) + "/lib")') tools/gpu-check.sh
#
# It is run in a checkout, of which it reads tests/oracle and recipes, and needs python3 without any package. It prints a table last, ends
# inside nine minutes, and exits with 1 if a check failed or there was no time left for it. What a machine lacks (the demo model,
# compute-sanitizer) is skipped and said so.
#
#     REFT    the binary                                  [target/debug/reft]
#     DEVICE  cuda:0, or cpu to try the script itself     [cuda:0]
#     MODEL   the demo model, a directory or a GGUF file  [models/SmolLM2-135M-Instruct]; without it two checks are left out
#     SIZE    the config.json of the timed shape          [recipes/sizes/llama-3-8b.json; on a CPU the tiny model's]
#     BUDGET  seconds for everything                      [510]
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 2

REFT=${REFT:-target/debug/reft}
DEVICE=${DEVICE:-cuda:0}
MODEL=${MODEL:-models/SmolLM2-135M-Instruct}
BUDGET=${BUDGET:-510}
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

# timed SECONDS COMMAND...: at most so long, and no longer than the budget; output and errors go to $WORK/out and $WORK/err
timed() {
    local limit=$1 rest
    shift
    rest=$(left)
    [ "$rest" -le 5 ] && return 125
    [ "$limit" -gt "$rest" ] && limit=$rest
    timeout "$limit" "$@" >"$WORK/out" 2>"$WORK/err"
}

# why RC: what to say of a command that failed
why() {
    case $1 in
    124) echo "it took too long" ;;
    125) echo "there was no time left" ;;
    *) grep -v '^$' "$WORK/err" | tail -n 3 | tr '\n' ' ' | cut -c1-200 ;;
    esac
}

# difference FILE TENSOR OTHER TENSOR [MASK_FILE]: the largest difference of two tensors in f32, where the attention mask is 1
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

(shape, found), (other, expected) = tensor(*sys.argv[1:3]), tensor(*sys.argv[3:5])
assert shape == other, f"shapes {shape} and {other}"
width = shape[-1]
mask = tensor(sys.argv[5], "attention_mask")[1] if len(sys.argv) > 5 else [1] * (len(found) // width)
seen = [(a, b) for i, (a, b) in enumerate(zip(found, expected)) if mask[i // width]]
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

check_devices() {
    if ! timed 120 "$REFT" devices --json; then
        report "reft devices" fail "$(why $?)"
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

# logits_case NAME MODEL INPUT ORACLE_FILE TENSOR MASK_FILE [ADAPTER]
WORST=0
CASES=0
logits_case() {
    local name=$1 found rc
    set -- "$2" "$3" "$4" "$5" "$6" ${7+"$7"}
    timed 60 "$REFT" logits --model "$1" --input "$2" --output "$WORK/logits" --device "$DEVICE" --kind f32 ${6+--adapter "$6"}
    rc=$?
    if [ $rc -ne 0 ]; then
        report "oracle: $name" fail "$(why $rc)"
        return
    fi
    if ! found=$(difference "$WORK/logits" logits "$3" "$4" "$5" 2>"$WORK/err"); then
        report "oracle: $name" fail "$(why 1)"
        return
    fi
    CASES=$((CASES + 1))
    WORST=$(python3 -c 'import sys; print(max(sys.argv[1:], key=float))' "$WORST" "$found")
    at_most "$found" 1e-4 || report "oracle: $name" fail "off by $found, allowed 1e-4"
}

check_oracles() {
    local before=$FAILED tiny=$ORACLE/tiny_llama io=$ORACLE/tiny_io.safetensors dir name
    FAILED=0
    logits_case tiny_llama $tiny "$WORK/tiny.json" $io base_logits $io
    for dir in $ORACLE/families/*/; do
        name=$(basename "$dir")
        input "$dir/io.safetensors" "$WORK/family.json"
        # stored in bf16, computed by the reference in bf16 too: another check's business
        [ "$name" = llama_bf16 ] || logits_case "$name" "$dir" "$WORK/family.json" "$dir/io.safetensors" logits "$dir/io.safetensors"
    done
    for name in lora_qv lora_all prefix; do
        logits_case $name $tiny "$WORK/tiny.json" $ORACLE/peft/$name.safetensors logits $io $ORACLE/peft/$name
    done
    for name in loreft direft noreft consreft lobireft nodireft; do
        timed 60 "$REFT" import --from pyreft $ORACLE/reft_saved/$name --positions f2+l2 --share-weights --model $tiny --output "$WORK/$name" ||
            timed 60 "$REFT" import --from pyreft $ORACLE/reft_saved/$name --positions f2+l2 --share-weights --output "$WORK/$name"
        logits_case $name $tiny "$WORK/tiny.json" $ORACLE/reft_saved/$name.logits.safetensors logits_before_save $io "$WORK/$name"
    done
    [ $FAILED -eq 0 ] && report "oracle logits, f32" pass "$CASES cases, off by $WORST at most"
    [ $before -eq 1 ] && FAILED=1
}

# Losses of ten steps are those of the CPU, whose whole trajectories the tests hold to the reference.
check_trajectories() {
    local method device run worst=0 found
    for method in loreft direft noreft consreft lobireft lora dora prefix prompt ia3; do
        for device in cpu "$DEVICE"; do
            run=$WORK/$method-there
            [ -e "$WORK/$method-cpu" ] || run=$WORK/$method-cpu
            if ! timed 60 "$REFT" train --model $ORACLE/tiny_llama --data "$WORK/tiny.jsonl" --output "$run" --method $method \
                --max-steps 10 --batch-size 3 --lr 5e-3 --device "$device" --threads 2; then
                report "10 steps of $method" fail "$(why $?)"
                return
            fi
        done
        # shellcheck disable=SC2046
        found=$(python3 -c 'import sys; v = list(map(float, sys.argv[1:])); n = len(v) // 2; print(f"{max(abs(a - b) for a, b in zip(v[:n], v[n:])):.2e}" if n == 10 else "inf")' \
            $(losses "$WORK/$method-cpu/metrics.jsonl") $(losses "$WORK/$method-there/metrics.jsonl"))
        worst=$(python3 -c 'import sys; print(max(sys.argv[1:], key=float))' "$worst" "$found")
    done
    if at_most "$worst" 1e-4; then
        report "10 steps as on the CPU" pass "10 methods, losses off by $worst at most"
    else
        report "10 steps as on the CPU" fail "losses are off by $worst, allowed 1e-4"
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
            report "demo in $kind" fail "$(why $?)"
            return
        fi
        last+=("$(losses "$WORK/demo-$1-$2/metrics.jsonl" | python3 -c 'v = list(map(float, input().split())); assert all(x == x for x in v); print(sum(v[-5:]) / len(v[-5:]))')")
    done
    # of a small loss 5 % is less than a step changes it: 0.05 of the loss at the start is allowed as well
    if python3 -c 'import sys; a, *rest = map(float, sys.argv[1:]); sys.exit(not all(x == x and abs(x - a) <= max(0.05 * a, 0.05) for x in rest))' "${last[@]}"; then
        report "demo in bf16, f16, int8" pass "mean of the last losses: f32 ${last[0]}, bf16 ${last[1]}, f16 ${last[2]}, bf16 on int8 ${last[3]}"
    else
        report "demo in bf16, f16, int8" fail "mean of the last losses: f32 ${last[0]}, bf16 ${last[1]}, f16 ${last[2]}, bf16 on int8 ${last[3]}"
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

# bench_case NAME LARGEST_RATIO LARGEST_GB FLAGS...: time and memory of a step beside the frozen floor's; - judges nothing
bench_case() {
    local name=$1 ratio=$2 memory=$3 told rc
    shift 3
    local prompt=248
    [ "$DEVICE" = cpu ] && prompt=48
    timed 110 "$REFT" bench --model-config "$SIZE" --random-weights --kind bf16 --methods floor,loreft --batch-size 4 --prompt-length $prompt \
        --response-length 8 --rank 8 --share-weights --steps 4 --rounds 1 --no-reuse --device "$DEVICE" --json "$@"
    rc=$?
    if [ $rc -ne 0 ]; then
        report "$name" fail "$(why $rc)"
        return
    fi
    told=$(python3 - "$WORK/out" "$ratio" "$memory" <<'PYTHON'
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

check_steps() {
    local shape ratio=1.05 bf16=- checkpointed=20 int8=- int4=9
    shape=$(basename "$SIZE" .json)
    # on a CPU a step is too short to be judged, and memory is the program's own
    [ "$DEVICE" = cpu ] && ratio=- checkpointed=- int4=-
    bench_case "$shape, f7+l7" $ratio $bf16 --positions f7+l7
    bench_case "$shape, f7+l7, checkpointing" $ratio $checkpointed --positions f7+l7 --checkpoint-activations
    bench_case "$shape, l1" $ratio $bf16 --positions l1
    bench_case "$shape, f7+l7, int4" $ratio $int4 --positions f7+l7 --weights int4
    bench_case "$shape, f7+l7, int8" $ratio $int8 --positions f7+l7 --weights int8
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
check_devices
check_oracles
check_trajectories
check_kinds
check_steps
check_memory_message
check_sanitizer

printf '\n%-34s %-5s %s\n' check result what
for i in "${!NAMES[@]}"; do
    printf '%-34s %-5s %s\n' "${NAMES[$i]}" "${RESULTS[$i]}" "${NOTES[$i]}"
done
printf '%s, %s, %d s\n' "$("$REFT" --version)" "$DEVICE" $SECONDS
exit $FAILED
