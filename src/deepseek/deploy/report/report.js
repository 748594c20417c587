// What the report does beside being read: sort tables, show values under the pointer.
// Without scripts the page is complete: every chart has its numbers in words below it.
"use strict";
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);

  const nearest = (values, x) => {
    let low = 0, high = values.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] < x) low = middle; else high = middle;
    }
    return x - values[low] < values[high] - x ? low : high;
  };

  const line = (tag, words, name) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.textContent = words;
    return element;
  };

  const watch = (figure) => {
    const svg = figure.querySelector("svg");
    const cursor = svg.querySelector(".cursor");
    const chart = JSON.parse(figure.dataset.chart);
    const longest = chart.series.reduce((a, b) => (b.px.length > a.px.length ? b : a));
    let at = longest.px.length - 1;

    const show = (x) => {
      at = nearest(longest.px, x);
      const px = longest.px[at];
      cursor.setAttribute("x1", px);
      cursor.setAttribute("x2", px);
      cursor.setAttribute("visibility", "visible");
      tip.replaceChildren(line("strong", `${chart.x} ${longest.x[at]}`));
      chart.series.forEach((series, index) => {
        const near = nearest(series.px, px);
        const row = line("div", "");
        row.append(line("i", "", `swatch s${index % 6}`), ` ${series.name} `, line("b", series.y[near]));
        if (series.x[near] !== longest.x[at]) row.append(` at ${series.x[near]}`);
        tip.append(row);
      });
      tip.hidden = false;
      const box = svg.getBoundingClientRect();
      const left = box.left + (px / svg.viewBox.baseVal.width) * box.width;
      const flip = left + tip.offsetWidth + 20 > document.documentElement.clientWidth;
      tip.style.left = `${Math.max(4, flip ? left - tip.offsetWidth - 12 : left + 12)}px`;
      tip.style.top = `${Math.max(4, box.top + 8)}px`;
    };
    const hide = () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); };

    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      show(((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width);
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
      if (event.key === "Escape") hide();
      if (!move) return;
      event.preventDefault();
      show(longest.px[Math.min(Math.max(at + move, 0), longest.px.length - 1)]);
    });
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const key = (row, at) => {
      const words = row.cells[at].textContent.trim();
      const value = parseFloat(words.replace(/,/g, ""));
      return heads[at].classList.contains("num") && !Number.isNaN(value) ? value : words;
    };
    heads.forEach((head, at) => {
      head.querySelector("button").addEventListener("click", () => {
        const first = head.classList.contains("num") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        heads.forEach((each) => each.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const rows = [...body.rows].map((row) => [key(row, at), row]);
        rows.sort(([a], [b]) => sign * (typeof a === "number" && typeof b === "number"
          ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true })));
        body.append(...rows.map(([, row]) => row));
      });
    });
  };

  document.querySelectorAll("[data-chart]").forEach(watch);
  document.querySelectorAll("table[data-sortable]").forEach(sortable);
  // Folded parts would be missing on paper.
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((each) => { each.open = true; });
  });
  document.documentElement.dataset.report = "ready";
})();
