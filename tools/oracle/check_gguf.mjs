// Runs GGUF files with llama.cpp and compares greedy tokens with the recorded ones.
//
//     node check_gguf.mjs DIR CASES.json
//
// DIR is where node-llama-cpp 3.21.1 is installed: `NODE_LLAMA_CPP_SKIP_DOWNLOAD=true npm install node-llama-cpp@3.21.1`, whose prebuilt llama.cpp
// is used. CASES.json is a list of {file, rows: [{text, ids, reply}]}: `text`, if there is one, has to become `ids`, and the greedy reply to
// `ids` has to be `reply`. Exits 1 if one is another. What it prints of a file is how many of the tokens are the same up to the first other one.

import {readFileSync} from "node:fs";
import {pathToFileURL} from "node:url";
import {join} from "node:path";

const [directory, cases] = process.argv.slice(2);
const {getLlama} = await import(pathToFileURL(join(directory, "node_modules/node-llama-cpp/dist/index.js")));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
let failed = false;
for (const {file, rows, exact} of JSON.parse(readFileSync(cases, "utf8"))) {
    const model = await llama.loadModel({modelPath: file, gpuLayers: 0});
    const context = await model.createContext({contextSize: 256, threads: 1});
    let same = 0, all = 0, tokenised = true;
    for (const {text, ids, reply} of rows) {
        if (text != null) {
            const before = model.tokens.shouldPrependBosToken ? [model.tokens.bos] : [];
            const found = [...before, ...model.tokenize(text, true)];
            if (JSON.stringify(found) !== JSON.stringify(ids)) {
                console.log(`${JSON.stringify(text)} becomes ${found}, expected ${ids}`);
                tokenised = false;
            }
        }
        const sequence = context.getSequence();
        const found = [];
        for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
            found.push(token);
            if (found.length === reply.length)
                break;
        }
        const first = found.findIndex((token, i) => token !== reply[i]);
        same += first < 0 ? reply.length : first;
        all += reply.length;
        sequence.dispose();
    }
    console.log(`${file}: ${model.typeDescription}, ${same} of ${all} tokens${tokenised ? "" : ", other tokens of the texts"}`);
    failed ||= !tokenised || (exact && same < all);
    await context.dispose();
    await model.dispose();
}
process.exit(failed ? 1 : 0);
