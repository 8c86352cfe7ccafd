"""Plays the page of a running `reft serve` in Chromium; cargo xtask serve-check runs it.

    browser.py URL MODEL PICTURES

The server has --allow-load and a directory of adapters with `trained` and `untrained`, which reply differently to the same prompt. Each line of
output is a check that passed; pictures of the page go into the folder PICTURES. Written for playwright 1.65.2 and Chromium of Debian.
"""

import json
import os
import shutil
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

NAME = "swapped"
PROMPT = "Tell me about the ocean."
TOKENS = 48


def passed(what, shown=""):
    print(f"ok  {what}{': ' if shown else ''}{shown}", flush=True)


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def load(url, version):
    post(url + "/v1/load_lora_adapter", {"lora_name": NAME, "lora_path": version, "load_inplace": True})


def reply_of(url, model):
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
    return post(url + "/v1/chat/completions", body)["choices"][0]["message"]["content"]


class Page:
    """The page, by what a reader sees of it."""

    def __init__(self, page):
        self.page = page

    def panel(self, place):
        return self.page.locator(".panel").nth(place)

    def reply(self, place):
        return self.panel(place).locator(".reply").inner_text()

    def run(self):
        self.page.locator("#run").click()
        self.wait()

    def wait(self):
        expect(self.page.locator("#run")).to_be_enabled(timeout=120_000)

    def summary(self, place):
        return self.panel(place).locator("details", has=self.page.locator(".tokens")).locator("summary")


def edits(page, shown):
    """Typing a prompt shows what the adapter edits of it."""
    page.locator("#prompt").fill(PROMPT)
    page.locator("#max_tokens").fill(str(TOKENS))
    page.locator("#max_tokens").press("Tab")
    expect(shown.summary(1)).to_contain_text(" of the hidden state", timeout=20_000)
    edited, all_tokens = shown.panel(1).locator(".tokens .edited"), shown.panel(1).locator(".tokens span")
    n, m = edited.count(), all_tokens.count()
    assert 0 < n <= m and PROMPT.split()[-1].strip(".") in shown.panel(1).locator(".tokens").inner_text()
    colour = edited.first.evaluate("token => getComputedStyle(token).backgroundColor")
    assert colour not in ("", "rgba(0, 0, 0, 0)"), colour
    passed("edits on the prompt's tokens", shown.summary(1).inner_text())


def streams(page, shown, base, trained):
    """Replies grow at the same time."""
    page.keyboard.press("Control+Enter")
    lengths = set()
    while page.locator("#run").is_disabled():
        lengths.add(len(shown.reply(0)))
        time.sleep(0.05)
    shown.wait()
    assert len(lengths) > 3, f"the reply did not grow: {lengths}"
    assert (shown.reply(0), shown.reply(1)) == (base, trained), (shown.reply(0), base, shown.reply(1), trained)
    expect(shown.panel(1).locator(".facts")).to_contain_text("tokens/s")
    passed("type and stream", f"{len(lengths)} lengths; {shown.panel(1).locator('.facts').inner_text()}")


def strengths(shown, base, trained):
    """The slider changes the reply, and at 0 it is the base model's."""
    slider = shown.panel(1).locator("input[type=range]")
    slider.fill("0")
    shown.run()
    assert shown.reply(1) == base, (shown.reply(1), base)
    slider.fill("1")
    shown.run()
    assert shown.reply(1) == trained
    passed("the slider changes the reply")


def subspaces(shown, base, trained):
    """Coordinates switched off take the edit away."""
    expect(shown.summary(1)).to_contain_text(" of the hidden state")
    shown.panel(1).locator("details", has_text="Subspace").locator("summary").first.click()
    boxes = shown.panel(1).locator(".coordinates input")
    n = boxes.count()
    assert n > 1, n
    whole = shown.summary(1).inner_text()
    for i in range(1, n):
        boxes.nth(i).click()
    expect(shown.summary(1)).not_to_have_text(whole)
    boxes.first.click()
    expect(shown.summary(1)).to_contain_text("Edits 0 of")
    shown.run()
    assert shown.reply(1) == base
    for i in range(n):
        boxes.nth(i).click()
    shown.run()
    assert shown.reply(1) == trained
    passed("switches of the subspace", f"{n} coordinates")


def swap(url, page, shown, trained, untrained):
    """An adapter swapped amid a stream: that reply is the old one's, the next the new one's."""
    page.locator("#run").click()
    expect(shown.panel(1).locator(".reply")).not_to_be_empty(timeout=20_000)
    load(url, "untrained")
    assert page.locator("#run").is_disabled(), "the stream had ended before the swap"
    shown.wait()
    assert shown.reply(1) == trained, (shown.reply(1), trained)
    shown.run()
    assert shown.reply(1) == untrained, (shown.reply(1), untrained)
    passed("an adapter swapped while streaming", repr(untrained))
    load(url, "trained")


def keys_and_turns(page, shown):
    """Escape stops; a conversation goes on, and stays when the page is loaded again."""
    page.locator("#max_tokens").fill("400")
    page.keyboard.press("Control+Enter")
    expect(shown.panel(0).locator(".reply")).not_to_be_empty(timeout=20_000)
    page.keyboard.press("Escape")
    expect(shown.panel(0).locator(".facts")).to_have_text("stopped")
    shown.wait()
    passed("Ctrl+Enter and Esc")
    page.locator("#max_tokens").fill("24")
    page.locator("#goes_on").check()
    shown.run()
    first = shown.reply(1)
    page.locator("#prompt").fill("Tell me more.")
    shown.run()
    turns = shown.panel(1).locator(".turns p")
    assert turns.all_inner_texts()[:2] == [PROMPT, first.strip()] or turns.nth(1).inner_text().strip() == first.strip()
    page.reload()
    expect(page.locator("#state")).to_contain_text("adapter")
    assert shown.panel(1).locator(".turns p").count() == 4
    assert page.locator("#prompt").input_value() == "Tell me more."
    passed("a conversation, kept in the address")
    page.locator("#anew").click()
    page.locator("#goes_on").uncheck()
    page.locator("#prompt").fill(PROMPT)
    page.locator("#max_tokens").fill(str(TOKENS))


def pictures(page, shown, folder):
    """At two widths, light and dark: nothing is wider than the window."""
    shown.run()
    for width, scheme in [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"the page is {wide} pixels wide in a window of {width}"
        page.screenshot(path=folder / f"page-{width}-{scheme}.png", full_page=True)
    passed("pictures", str(folder))


def main(url, model, folder):
    program = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    if program is None:
        sys.exit("there is no Chromium (Debian: apt install chromium)")
    load(url, "untrained")
    untrained = reply_of(url, NAME).strip()
    load(url, "trained")
    base, trained = reply_of(url, model).strip(), reply_of(url, NAME).strip()
    assert len({base, trained, untrained}) == 3, "the adapters reply alike"
    with sync_playwright() as player:
        # root has no sandbox
        browser = player.chromium.launch(executable_path=program, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        complaints = []
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: complaints.append(asked.url) if not asked.url.startswith(url) else None)
        page.goto(url)
        expect(page.locator("#state")).to_contain_text(model)
        shown = Page(page)
        assert shown.panel(1).locator("input").first.input_value() == NAME
        edits(page, shown)
        streams(page, shown, base, trained)
        strengths(shown, base, trained)
        subspaces(shown, base, trained)
        swap(url, page, shown, trained, untrained)
        keys_and_turns(page, shown)
        pictures(page, shown, folder)
        assert not complaints, complaints
        passed("nothing is loaded from elsewhere, and the browser complains of nothing")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
