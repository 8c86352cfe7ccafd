"""Plays OpenAI's own client, LiteLLM and the curl lines of docs/serving.md against a running `reft serve`; cargo xtask serve-check runs it.

    clients.py URL MODEL ADAPTER

Each line of output is a check that passed. Written for openai 3.57.0 and litellm 1.110.2.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the network what models cost

import litellm
import openai


def passed(what, shown=""):
    print(f"ok  {what}{': ' if shown else ''}{shown}", flush=True)


def refused(what, kind, ask, param=None):
    try:
        ask()
    except kind as error:
        found = getattr(error, "param", None)
        assert param is None or found == param, f"{what}: param is {found}, expected {param}"
        passed(what, f"{type(error).__name__} {error.status_code}")
        return
    raise AssertionError(f"{what}: not refused")


def documented(url):
    """The curl lines of docs/serving.md, at the address where the server listens."""
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text()
    blocks = [block.split("\n```")[0] for block in page.split("```sh\n")[1:]]
    lines = [block for block in blocks if block.startswith("curl ")]
    assert lines, "docs/serving.md has no curl line"
    for line in lines:
        assert "http://127.0.0.1:8000" in line, line
        quiet = line.replace("curl ", "curl -sS ", 1).replace("http://127.0.0.1:8000", url)
        told = subprocess.run(["sh", "-c", quiet], check=True, stdout=subprocess.PIPE).stdout
        reply = json.loads(told)
        assert "choices" in reply, told
        passed("curl, as documented", repr(reply["choices"][0]["message"]["content"]))


def main(url, model, adapter):
    base_url = url + "/v1"
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "Say hello."}]
    names = [listed.id for listed in client.models.list()]
    assert names[0] == model and adapter in names, names
    assert client.models.retrieve(adapter).id == adapter
    passed("models", ", ".join(names))

    def chat(**more):
        options = {"model": adapter, "messages": messages, "max_tokens": 16, "temperature": 0} | more
        return client.chat.completions.create(**options)

    whole = chat()
    text = whole.choices[0].message.content
    assert whole.choices[0].finish_reason in ("stop", "length") and whole.usage.completion_tokens > 0
    passed("chat", repr(text))
    assert chat(model=model).choices[0].message.content != text, "the adapter changes nothing"
    several = chat(model=model, extra_body={"reft": {"adapters": [{"name": adapter, "strength": 1}]}})
    assert several.choices[0].message.content == text
    passed("an adapter named by reft")

    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert streamed == text and chunks[-1].usage == whole.usage, (streamed, text)
    assert chunks[0].choices[0].delta.role == "assistant"
    passed("stream", f"{len(chunks)} parts")
    with client.chat.completions.stream(model=adapter, messages=messages, max_tokens=16, temperature=0) as stream:
        assert stream.get_final_completion().choices[0].message.content == text
    passed("stream helper")

    # the base model says letters: an emoji is several tokens, none of which is a text of its own
    reply = chat(model=model, logprobs=True, top_logprobs=3).choices[0]
    told = reply.logprobs.content
    assert "".join(token.token for token in told) == reply.message.content
    assert all(len(token.top_logprobs) == 3 for token in told)
    assert all(abs(token.logprob - token.top_logprobs[0].logprob) < 1e-6 for token in told), "greedy takes the likeliest"
    passed("logprobs", f"{len(told)} tokens")
    drawn = [chat(n=2, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    drawn = [[choice.message.content for choice in reply.choices] for reply in drawn]
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0][0] != drawn[0][1], drawn
    passed("n and seed")
    completion = client.completions.create(model=model, prompt="The ocean is", max_tokens=8, temperature=0, logprobs=2)
    assert completion.choices[0].logprobs.tokens and completion.usage.prompt_tokens > 0
    word = completion.choices[0].text.split()[1]
    cut = client.completions.create(model=model, prompt="The ocean is", max_tokens=8, temperature=0, stop=[word])
    assert word not in cut.choices[0].text and cut.choices[0].finish_reason == "stop"
    passed("completions and stop", repr(completion.choices[0].text))
    greedy = {"model": model, "prompt": "The ocean is", "max_tokens": 48, "temperature": 0}
    penalised, repeating = (
        client.completions.create(presence_penalty=x, frequency_penalty=x, **greedy).choices[0].text for x in (2, -2)
    )
    words = [len(set(text.split())) for text in (penalised, repeating)]
    assert words[0] > words[1], (penalised, repeating)
    passed("penalties", repr(penalised))

    documented(url)

    refused("unknown model", openai.NotFoundError, lambda: chat(model="nobody"), "model")
    refused("wrong value", openai.BadRequestError, lambda: chat(top_p=0), "top_p")
    refused("what is not supported", openai.BadRequestError, lambda: chat(logit_bias={"5": 1}), "logit_bias")
    refused("too long", openai.BadRequestError, lambda: chat(max_tokens=10_000_000))

    options = {"model": "openai/" + adapter, "api_base": base_url, "api_key": "none"}
    options |= {"messages": messages, "max_tokens": 16, "temperature": 0}
    assert litellm.completion(**options).choices[0].message.content == text
    parts = litellm.completion(stream=True, **options)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == text
    passed("litellm, whole and streamed")
    refused("litellm, unknown model", litellm.NotFoundError, lambda: litellm.completion(**options | {"model": "openai/nobody"}))
    print(f"openai {version('openai')}, litellm {version('litellm')}")


if __name__ == "__main__":
    main(*sys.argv[1:])
