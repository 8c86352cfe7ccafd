for (const frame of document.querySelectorAll(".attention")) {
  const queries = JSON.parse(frame.dataset.queries), keys = JSON.parse(frame.dataset.keys);
  const heads = [...frame.querySelectorAll("button[data-weights]")];
  const large = frame.querySelector(".attention-large"), canvas = large.querySelector("canvas");
  const said = large.querySelector("output"), caption = large.querySelector("b");
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const read = head => {
    const hex = head.dataset.weights, n = hex.length / 3, weights = new Float32Array(n);
    for (let i = 0; i < n; i++) weights[i] = parseInt(hex.substr(3 * i, 3), 16) / 4095;
    return weights;
  };
  const fill = (context, weights, left, top, cell) => {
    context.fillStyle = colour("--c0");
    for (let q = 0; q < queries.length; q++) for (let k = 0; k < keys.length; k++) {
      // the root makes small weights visible
      context.globalAlpha = Math.sqrt(weights[q * keys.length + k]);
      context.fillRect(left + k * cell, top + q * cell, cell, cell);
    }
    context.globalAlpha = 1;
  };
  const small = head => {
    const own = head.querySelector("canvas"), cell = Math.max(1, Math.ceil(96 / keys.length));
    own.width = cell * keys.length;
    own.height = cell * queries.length;
    fill(own.getContext("2d"), read(head), 0, 0, cell);
  };
  const seen = new IntersectionObserver(entries => entries.filter(e => e.isIntersecting).forEach(e => {
    small(e.target);
    seen.unobserve(e.target);
  }), { rootMargin: "300px" });
  let chosen = 0, at = [queries.length - 1, 0], weights = null, place = null;
  const short = text => {
    const shown = text.replace(/\s/g, "·");
    return shown.length > 10 ? shown.slice(0, 9) + "…" : shown;
  };
  const draw = () => {
    const ratio = window.devicePixelRatio || 1, context = canvas.getContext("2d");
    const font = "12px system-ui,sans-serif", letters = t => Math.max(...t.map(x => short(x).length), 1);
    const left = 8 + 7 * letters(queries), top = 8 + 7 * letters(keys);
    const room = Math.min(760, large.clientWidth - 26 - left);
    const cell = Math.max(16, Math.min(40, Math.floor(room / keys.length)));
    const [width, height] = [left + cell * keys.length + 2, top + cell * queries.length + 2];
    canvas.style.width = width + "px";
    canvas.style.height = height + "px";
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    context.scale(ratio, ratio);
    context.clearRect(0, 0, width, height);
    context.font = font;
    fill(context, weights, left, top, cell);
    context.strokeStyle = colour("--line");
    context.strokeRect(left - .5, top - .5, cell * keys.length + 1, cell * queries.length + 1);
    context.textBaseline = "middle";
    queries.forEach((text, q) => {
      context.fillStyle = colour(q === at[0] ? "--c1" : "--fg");
      context.textAlign = "right";
      context.fillText(short(text), left - 5, top + cell * (q + .5));
    });
    keys.forEach((text, k) => {
      context.save();
      context.translate(left + cell * (k + .5), top - 5);
      context.rotate(-Math.PI / 2);
      context.fillStyle = colour(k === at[1] ? "--c1" : "--fg");
      context.textAlign = "left";
      context.fillText(short(text), 0, 0);
      context.restore();
    });
    context.strokeStyle = colour("--c1");
    context.lineWidth = 2;
    context.strokeRect(left + cell * at[1] + 1, top + cell * at[0] + 1, cell - 2, cell - 2);
    const weight = 100 * weights[at[0] * keys.length + at[1]];
    said.textContent = `${at[0]} “${queries[at[0]]}” to ${at[1]} “${keys[at[1]]}”: ${weight.toFixed(1)} %`;
    place = { left, top, cell };
  };
  const choose = i => {
    chosen = i;
    heads.forEach((head, j) => head.setAttribute("aria-pressed", j === i));
    weights = read(heads[i]);
    large.hidden = false;
    caption.textContent = heads[i].title;
    canvas.setAttribute("aria-label", heads[i].title);
    draw();
  };
  heads.forEach((head, i) => {
    seen.observe(head);
    head.addEventListener("click", () => choose(i));
    head.addEventListener("focus", () => choose(i));
    head.addEventListener("keydown", event => {
      const row = heads.filter(other => other.dataset.layer === head.dataset.layer).length;
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row }[event.key];
      if (!step || !heads[i + step]) return;
      event.preventDefault();
      heads[i + step].focus();
    });
  });
  canvas.addEventListener("keydown", event => {
    const [q, k] = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key] ?? [0, 0];
    if (!q && !k) return;
    event.preventDefault();
    at = [Math.min(queries.length - 1, Math.max(0, at[0] + q)), Math.min(keys.length - 1, Math.max(0, at[1] + k))];
    draw();
  });
  const point = event => {
    const box = canvas.getBoundingClientRect(), { left, top, cell } = place;
    const q = Math.floor((event.clientY - box.top - top) / cell), k = Math.floor((event.clientX - box.left - left) / cell);
    if (q < 0 || k < 0 || q >= queries.length || k >= keys.length) return;
    at = [q, k];
    draw();
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  window.addEventListener("resize", () => weights && draw());
  matchMedia("(prefers-color-scheme:dark)").addEventListener("change", () => { heads.forEach(small); if (weights) draw(); });
  if (heads.length) choose(0);
}
