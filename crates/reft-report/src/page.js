
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") === "descending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => {
      const text = row.cells[column].dataset.value ?? row.cells[column].textContent;
      return text === "" ? null : isNaN(text) ? text.toLowerCase() : Number(text);
    };
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
    });
    table.tBodies[0].append(...rows);
  }));
}
for (const slider of document.querySelectorAll("input[data-slider]")) {
  const slides = [...document.querySelectorAll(`[data-slide="${slider.dataset.slider}"]`)];
  const frame = slider.closest(".slider");
  const show = () => {
    slides.forEach((slide, i) => { slide.hidden = i !== Number(slider.value); });
    const name = slides[slider.value].dataset.name;
    frame.querySelector("output").textContent = name;
    slider.setAttribute("aria-valuetext", name);
  };
  frame.hidden = slides.length < 2;
  slider.addEventListener("input", show);
  if (slides.length > 1) show();
}
