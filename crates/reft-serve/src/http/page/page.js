"use strict";
const at = id => document.getElementById(id);
const made = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const most = 3;
const fields = ["prompt", "kind", "system", "temperature", "top_p", "max_tokens", "seed"];
const panels = [];
let base = "", names = [], running = null;

function headers() {
  const all = { "Content-Type": "application/json" };
  if (at("key").value) all.Authorization = "Bearer " + at("key").value;
  return all;
}

function state(text, isBad = false) {
  at("state").textContent = text;
  at("state").classList.toggle("bad", isBad);
}

async function refusal(answer) {
  const body = await answer.json().catch(() => null);
  return body?.error?.message ?? "the server answered " + answer.status;
}

async function connect() {
  try {
    const answer = await fetch("v1/models", { headers: headers() });
    if (answer.status === 401) {
      at("keys").hidden = false;
      state("the server wants an API key", true);
      return;
    }
    if (!answer.ok) return state(await refusal(answer), true);
    const models = (await answer.json()).data;
    base = models.find(model => model.parent === null).id;
    names = models.filter(model => model.parent !== null).map(model => model.id);
    at("adapters").replaceChildren(...names.map(value => made("option", { value })));
    state(base + ", " + names.length + (names.length === 1 ? " adapter" : " adapters"));
    if (panels.length === 0) {
      const kept = recall();
      (kept ?? [{}, ...names.slice(0, most).map(name => ({ name }))]).forEach(add);
    }
    panels[0].title.textContent = base + " (base)";
    buttons();
  } catch {
    state("the server does not answer", true);
  }
}

// What is on the page stands in its address, and nowhere else: prompt, settings, adapters, turns; never the key.
function remember() {
  const all = Object.fromEntries(fields.map(id => [id, at(id).value]));
  all.goes_on = at("goes_on").checked;
  all.panels = panels.map(panel => ({
    name: panel.name?.value, strength: panel.strength?.value, off: panel.off, turns: panel.turns,
  }));
  history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(all)));
}

function recall() {
  try {
    const all = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    fields.filter(id => typeof all[id] === "string").forEach(id => { at(id).value = all[id]; });
    at("goes_on").checked = all.goes_on === true;
    const [first, ...adapters] = all.panels;
    const isText = value => typeof value === "string";
    const isTurn = turn => isText(turn?.asked) && isText(turn?.told);
    const kept = [{ turns: first.turns }, ...adapters.filter(panel => isText(panel.name)).slice(0, most)];
    kept.forEach(panel => { panel.turns = (panel.turns ?? []).filter(isTurn); });
    return kept;
  } catch {
    return null;
  }
}

function add({ name, strength, off, turns }) {
  const panel = { name: null, strength: null, off: Array.isArray(off) ? off : [], turns: turns ?? [], asked: 0 };
  panel.title = made("h2");
  panel.told = made("div", { className: "turns" });
  panel.reply = made("div", { className: "reply", tabIndex: 0 });
  panel.facts = made("div", { className: "facts" });
  panel.reply.setAttribute("aria-label", "reply");
  const controls = made("div"), edits = made("div");
  if (name !== undefined) {
    panel.name = made("input", { value: name, autocomplete: "off" });
    panel.name.setAttribute("list", "adapters");
    panel.strength = made("input", { type: "range", min: "-1", max: "2", step: "0.05", value: strength ?? "1" });
    const shown = made("span", { textContent: panel.strength.value });
    panel.strength.addEventListener("input", () => { shown.textContent = panel.strength.value; });
    panel.strength.addEventListener("change", () => showEdits(panel));
    panel.name.addEventListener("change", () => { panel.off = []; showEdits(panel); });
    const remove = made("button", { type: "button", textContent: "Remove" });
    remove.addEventListener("click", () => {
      panels.splice(panels.indexOf(panel), 1);
      panel.root.remove();
      buttons();
      remember();
    });
    panel.title = made("div", { className: "head" }, made("label", {}, "Adapter", panel.name), remove);
    panel.coordinates = made("div", { className: "coordinates" });
    panel.subspace = made("details", { hidden: true }, made("summary", { textContent: "Subspace" }), panel.coordinates);
    controls.append(made("label", {}, made("span", {}, "Strength ", shown), panel.strength), panel.subspace);
    panel.tokens = made("div", { className: "tokens" });
    panel.largest = made("summary", { textContent: "Edits of the prompt" });
    edits.append(made("details", { open: true }, panel.largest, panel.tokens));
  }
  panel.root = made("section", { className: "panel" }, panel.title, controls, edits, panel.told, panel.reply, panel.facts);
  panels.push(panel);
  at("panels").append(panel.root);
  showTurns(panel);
  if (panel.name) showEdits(panel);
}

function buttons() {
  at("run").disabled = running !== null || !base;
  at("stop").disabled = running === null;
  at("add").disabled = panels.length > most || names.length === 0;
  at("anew").disabled = running !== null || panels.every(panel => panel.turns.length === 0);
}

function showTurns(panel) {
  const turn = ({ asked, told }) => [made("p", { className: "asked", textContent: asked }), made("p", { textContent: told })];
  panel.told.replaceChildren(...panel.turns.flatMap(turn));
}

// The adapter of a panel as the server knows it. With every coordinate of its subspace off it changes nothing.
function adapter(panel) {
  const size = panel.boxes?.length ?? 0;
  const on = [...Array(size).keys()].filter(i => !panel.off.includes(i));
  const strength = size > 0 && on.length === 0 ? 0 : Number(panel.strength.value);
  const subspace = on.length < size && on.length > 0 ? { subspace: on } : {};
  return { name: panel.name.value, strength, ...subspace };
}

function wanted(panel) {
  const number = id => Number(at(id).value);
  const body = {
    model: base, stream: true, stream_options: { include_usage: true },
    temperature: number("temperature"), top_p: number("top_p"), max_tokens: number("max_tokens"), seed: number("seed"),
  };
  if (panel.name) body.reft = { adapters: [adapter(panel)] };
  if (at("kind").value === "text") return ["v1/completions", { ...body, prompt: at("prompt").value }];
  const said = (role, content) => ({ role, content });
  const system = at("system").value ? [said("system", at("system").value)] : [];
  const turns = panel.turns.flatMap(({ asked, told }) => [said("user", asked), said("assistant", told)]);
  return ["v1/chat/completions", { ...body, messages: [...system, ...turns, said("user", at("prompt").value)] }];
}

// Shows on the prompt's tokens what an adapter changes, and switches for the coordinates of its subspace.
async function showEdits(panel) {
  const mine = ++panel.asked;
  remember();
  if (!at("prompt").value || !panel.name.value) return;
  let answer;
  try {
    answer = await fetch("v1/edits", { method: "POST", headers: headers(), body: JSON.stringify(wanted(panel)[1]) });
  } catch {
    return state("the server does not answer", true);
  }
  const told = answer.ok ? await answer.json() : { refused: await refusal(answer) };
  if (mine !== panel.asked) return; // there is a newer one
  if (told.refused) {
    panel.tokens.replaceChildren();
    panel.largest.textContent = "Edits of the prompt: " + told.refused;
    return;
  }
  const edited = told.tokens.filter(({ edit }) => edit > 0).map(({ edit }) => edit);
  panel.largest.textContent = "Edits " + edited.length + " of " + told.tokens.length + " tokens of the prompt"
    + (edited.length ? ", by up to " + Math.max(...edited).toFixed(2) + " of the hidden state" : "");
  panel.tokens.replaceChildren(...told.tokens.map(({ token, edit }) => {
    const shown = made("span", { textContent: token.replace(/\n/g, "↵\n") });
    if (edit > 0) {
      const share = (50 * Math.sqrt(Math.min(1, edit))).toFixed(0);
      shown.className = "edited";
      shown.title = "edited by " + edit.toPrecision(2) + " of the hidden state";
      shown.style.setProperty("background-color", "color-mix(in srgb, var(--mark) " + share + "%, transparent)");
    }
    return shown;
  }));
  switches(panel, told.adapters[0].subspace_size ?? 0);
}

function switches(panel, size) {
  if (panel.boxes?.length === size) return;
  panel.subspace.hidden = size === 0;
  panel.boxes = [...Array(size).keys()].map(i => {
    const box = made("input", { type: "checkbox", checked: !panel.off.includes(i) });
    box.addEventListener("change", () => {
      panel.off = box.checked ? panel.off.filter(other => other !== i) : [...panel.off, i];
      showEdits(panel);
    });
    return made("label", { className: "switch" }, box, String(i));
  });
  panel.coordinates.replaceChildren(...panel.boxes);
  if (panel.off.length) showEdits(panel);
}

async function reply(panel, signal) {
  const begun = performance.now();
  let first = 0, text = "", isWhole = false;
  panel.reply.textContent = "";
  panel.reply.classList.remove("bad");
  panel.reply.setAttribute("aria-busy", "true");
  panel.facts.textContent = "…";
  const bad = message => {
    panel.reply.classList.add("bad");
    panel.reply.textContent = message;
    panel.facts.textContent = "";
  };
  const take = event => {
    if (event.error) throw new Error(event.error.message);
    const piece = event.choices[0]?.delta?.content ?? event.choices[0]?.text ?? "";
    if (piece && !first) first = performance.now();
    text += piece;
    panel.reply.textContent = text;
    const tokens = event.usage?.completion_tokens;
    if (tokens) {
      isWhole = true;
      const seconds = (performance.now() - (first || begun)) / 1000;
      const speed = tokens > 1 && seconds > 0 ? ", " + ((tokens - 1) / seconds).toFixed(1) + " tokens/s" : "";
      panel.facts.textContent = tokens + " tokens" + speed + ", first after " + Math.round((first || performance.now()) - begun) + " ms";
    }
  };
  const asked = at("prompt").value;
  try {
    const [path, body] = wanted(panel);
    const answer = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
    if (answer.status === 401) at("keys").hidden = false;
    if (!answer.ok) return bad(await refusal(answer));
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "";;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      lines.filter(line => line.startsWith("data: {")).forEach(line => take(JSON.parse(line.slice(6))));
    }
    if (isWhole && at("goes_on").checked && at("kind").value === "chat") panel.turns.push({ asked, told: text });
  } catch (error) {
    if (error.name === "AbortError") panel.facts.textContent = "stopped";
    else bad(error.message);
  } finally {
    panel.reply.setAttribute("aria-busy", "false");
  }
}

async function run() {
  if (running || !base) return;
  running = new AbortController();
  if (!at("goes_on").checked) forget();
  panels.forEach(showTurns); // the last reply is a turn now
  buttons();
  panels.filter(panel => panel.name).forEach(showEdits);
  await Promise.all(panels.map(panel => reply(panel, running.signal)));
  running = null;
  remember();
  buttons();
}

function forget() {
  panels.forEach(panel => {
    panel.turns = [];
    showTurns(panel);
  });
}

at("form").addEventListener("submit", event => { event.preventDefault(); run(); });
at("form").addEventListener("change", remember);
["prompt", "system", "kind"].forEach(id => at(id).addEventListener("change", () => panels.filter(panel => panel.name).forEach(showEdits)));
at("stop").addEventListener("click", () => running?.abort());
at("add").addEventListener("click", () => { add({ name: names[0] ?? "" }); buttons(); });
at("anew").addEventListener("click", () => {
  forget();
  panels.forEach(panel => { panel.reply.textContent = panel.facts.textContent = ""; });
  remember();
  buttons();
});
at("key").addEventListener("change", connect);
document.addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); at("form").requestSubmit(); }
  if (event.key === "Escape") running?.abort();
});
buttons();
connect();
