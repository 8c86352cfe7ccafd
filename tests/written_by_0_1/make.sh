#!/usr/bin/env bash
# How the files in this folder were made, once, by version 0.1.0: REFT=path/to/reft ./make.sh
# Never run it with a later version: the files are there because later versions must read what this one wrote.
# Every path is relative to this folder, so that the files can be copied anywhere and used from there.
set -euo pipefail
cd "$(dirname "$0")"
reft=${REFT:-reft}
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
here=(--device cpu --threads 1)

python3 make_inputs.py
rm -rf adapters logits run comparison/done search/words search/heads search/network recipes/done

# Adapters: a few steps with a high rate, then the logits of one batch.
logits() { # adapter or nothing, output
    "$reft" logits --model model ${1:+--adapter "$1"} --input batch.json --output "$2" "${here[@]}" > logits.log
}
adapter() { # name, method, options of `reft train`
    local name=$1 method=$2 out=adapters/$1
    shift 2
    "$reft" train --model model --data rows.jsonl --output "$out" --batch-size 6 --max-steps 8 --lr 3e-2 \
        --method "$method" --seed 3 --checkpoint-every 0 "${here[@]}" "$@" > train.log
    rm -r "$out/checkpoint"
    logits "$out" "logits/$name.safetensors"
}
mkdir -p logits
logits "" logits/none.safetensors

adapter loreft loreft --rank 3 --positions f2+l1
adapter loreft-first loreft --rank 2 --positions f3 --layers '0;2'
adapter loreft-last loreft --rank 2 --positions l1 --layers 1
adapter loreft-tied loreft --rank 2 --positions f2+l2 --share-weights
adapter loreft-pyreft-rule loreft --rank 2 --positions f3+l3 --position-rule pyreft
adapter loreft-qr loreft --rank 3 --positions f1+l2 --orthonormal-map qr
adapter loreft-gelu loreft --rank 3 --positions f2+l2 --act-fn gelu
adapter loreft-reference loreft --rank 2 --positions f2+l2 --init reference
adapter loreft-dropout loreft --rank 4 --positions f2+l2 --dropout 0.2
adapter loreft-block-input loreft --rank 2 --positions f2+l2 --component block_input
adapter loreft-attention-output loreft --rank 2 --positions f2+l2 --component attention_output
adapter loreft-mlp-output loreft --rank 2 --positions f2+l2 --component mlp_output --rotation-lr-factor 0.5
adapter direft direft --rank 3 --positions f2+l1
adapter direft-orth direft-orth --rank 3 --positions f2+l1
adapter noreft noreft --rank 3 --positions f2+l1
adapter noreft-bias noreft --rank 3 --positions f2+l1 --add-bias
adapter consreft consreft --rank 3 --positions f2+l1
adapter lobireft lobireft --rank 3 --positions f2+l1 --share-weights
adapter lora lora --rank 3 --alpha 5
adapter lora-modules lora --rank 2 --target-modules q_proj,v_proj --layers '0;2' --dropout 0.1
adapter lora-pattern lora --rank 2 --target-modules '.*(o|down)_proj'
adapter rslora rslora --rank 4 --alpha 6
adapter dora dora --rank 3 --alpha 5
adapter prefix prefix --n-virtual-tokens 3
adapter prefix-tokens prefix --n-virtual-tokens 4 --init-tokens 5,9
adapter prefix-encoder prefix --n-virtual-tokens 3 --encoder-hidden-size 6
adapter prompt prompt --n-virtual-tokens 3
adapter prompt-random prompt --n-virtual-tokens 2 --init random
adapter prompt-text prompt --n-virtual-tokens 4 --init-text 'The dogs near'
adapter ia3 ia3
adapter ia3-modules ia3 --target-modules q_proj,up_proj,down_proj --feedforward-modules up_proj,down_proj
adapter red red
adapter red-components red --components mlp_output,block_output --layers '0;2'
adapter series-adapter series-adapter --bottleneck-size 3
adapter series-adapter-attention series-adapter --bottleneck-size 2 --act-fn gelu --components attention_output,mlp_output
adapter parallel-adapter parallel-adapter --bottleneck-size 3 --layers '1;2'
adapter full full
adapter loreft+lora loreft+lora --rank 2 --positions f2+l2
adapter prefix+loreft prefix+loreft --rank 2 --positions f2+l2 --n-virtual-tokens 2
adapter prompt+lora prompt+lora --rank 2 --n-virtual-tokens 2 --target-modules v_proj

# Training that was stopped, and the losses of its next steps as this version takes them when it is not stopped.
stopped() { # name, method, options of `reft train`
    local name=$1
    shift
    local options=(--model model --data rows.jsonl --method "$@" --max-steps 300 --batch-size 3 --lr 5e-3 --seed 5 "${here[@]}")
    "$reft" train "${options[@]}" --output "run/$name/whole" > train.log
    until [ ! -e "run/$name/stopped/reft_config.json" ] && [ ! -e "run/$name/stopped/adapter_config.json" ] &&
        [ ! -e "run/$name/stopped/combined.json" ] && [ -e "run/$name/stopped/checkpoint" ]; do
        rm -rf "run/$name/stopped"
        "$reft" train "${options[@]}" --output "run/$name/stopped" > train.log 2>&1 &
        until [ -e "run/$name/stopped/metrics.jsonl" ] && [ "$(wc -l < "run/$name/stopped/metrics.jsonl")" -gt 50 ]; do sleep 0.005; done
        kill -INT $! || true
        wait $! || true
    done
    # the rows of the next 20 steps
    mkdir "run/$name/next"
    local taken
    taken=$(grep -c '"loss"' "run/$name/stopped/metrics.jsonl")
    grep '"loss"' "run/$name/whole/metrics.jsonl" | sed -n "$((taken + 1)),$((taken + 20))p" > "run/$name/next/metrics.jsonl"
    mv "run/$name/stopped"/* "run/$name/"
    rm -r "run/$name/whole" "run/$name/stopped"
}
stopped loreft loreft --rank 3 --layers '0;2' --positions f2+l2
stopped lora lora --rank 2 --alpha 6 --schedule cosine
stopped accumulated loreft+lora --rank 2 --positions f2+l1 --grad-accum 2 --dropout 0.1 --validation 4 --eval-every 40 \
    --weight-decay 0.01 --warmup-ratio 0.1

# A training recipe that leaves options to their defaults, and the losses that it comes to.
"$reft" train --config recipes/train.toml --model model --data rows.jsonl --output recipes/done "${here[@]}" > train.log
mv recipes/done/metrics.jsonl recipes/metrics.jsonl
rm -r recipes/done/*
mv recipes/metrics.jsonl recipes/done/

# A comparison and three searches, finished. Their pages and plots are left out: they are written anew from the rest.
"$reft" compare --config comparison/compare.toml --model model --data comparison --output comparison/done "${here[@]}" > compare.log
rm comparison/done/report.{html,svg}
"$reft" das --task search/task.toml --model model --layers '0;2' --output search/words "${here[@]}" > das.log
"$reft" das --task search/task.toml --model model --layers 1 --positions last --sites attention_head --alignment boundless \
    --no-untrained-model --output search/heads "${here[@]}" > das.log
"$reft" das --task search/network.toml --output search/network "${here[@]}" > das.log
rm search/*/das.html
"$reft" steer --model model --layer 2 --das search/words/cells/block_output-2/subject/rank-1 --strength 3 \
    --prompt 'two dogs sees' --max-new-tokens 8 "${here[@]}" > search/steered.txt
rm ./*.log
