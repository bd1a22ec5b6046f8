"use strict";

/* Sorts, filters and downloads the trials; shows one subnet of the front at a time. All text goes through textContent. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const knobs = (entry) => data.labels.map((label, i) => [label, entry.sample[i]]).filter(([, value]) => value !== null);

  const point = document.getElementById("point");
  if (point) {
    const subnets = document.querySelectorAll(".subnet");
    const show = () => subnets.forEach((subnet, i) => { subnet.hidden = i !== Number(point.value); });
    point.addEventListener("change", show);
    show();
  }

  function save(name, type, content) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  const quote = (field) => {
    const plain = field === null || field === undefined ? "" : String(field);
    return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
  };
  const csv = (lines) => `${lines.map((line) => line.map(quote).join(",")).join("\r\n")}\r\n`;
  const names = data.metrics.map((metric) => metric.name);

  const front = () => data.points.map((p) => ({
    key: p.key, chosen: p.chosen, tied_with_chosen: p.tied,
    metrics: Object.fromEntries(names.map((name, i) => [name, p.metrics[i]])),
    standard_error: p.error, test: p.test, test_standard_error: p.test_error,
    sample: Object.fromEntries(knobs(p)),
  }));
  const savers = {
    json: () => save("front.json", "application/json", `${JSON.stringify(front(), null, 2)}\n`),
    csv: () => {
      const head = ["key", "chosen", "tied_with_chosen", ...names, "standard_error", "test", "test_standard_error", ...data.labels];
      const lines = data.points.map((p) => [p.key, p.chosen, p.tied, ...p.metrics, p.error, p.test, p.test_error, ...p.sample]);
      save("front.csv", "text/csv", csv([head, ...lines]));
    },
  };
  document.querySelectorAll("[data-save]").forEach((button) => button.addEventListener("click", savers[button.dataset.save]));

  const table = document.getElementById("trials");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const trial = (row) => data.trials[Number(row.dataset.i)];

  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.v === undefined) return cell.textContent;
    return cell.dataset.v === "" ? NaN : Number(cell.dataset.v);
  };
  const compare = (a, b) => {
    if (typeof a === "string") return a.localeCompare(b);
    return Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : a - b;
  };
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = header.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const falling = header.getAttribute("aria-sort") === "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", falling ? "descending" : "ascending");
      rows.sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        const missing = Number.isNaN(x) || Number.isNaN(y);
        return falling && !missing ? compare(y, x) : compare(x, y);
      });
      body.append(...rows);
    });
  });

  body.addEventListener("toggle", (event) => {
    const text = event.target.querySelector("p");
    if (!text || text.childElementCount) return;
    text.className = "knobs";
    for (const [label, choice] of knobs(trial(event.target.closest("tr")))) {
      const span = document.createElement("span");
      const name = document.createElement("b");
      name.textContent = label;
      span.append(name, ` ${choice}`);
      text.append(span);
    }
  }, true);

  const searchable = new Map();
  const text = (row) => {
    if (!searchable.has(row)) {
      const cells = [...row.cells].slice(0, -1).map((cell) => cell.textContent);
      const words = cells.concat(knobs(trial(row)).map(([label, choice]) => `${label}=${choice}`));
      searchable.set(row, words.join("\n").toLowerCase());
    }
    return searchable.get(row);
  };
  const filter = document.getElementById("filter");
  const matches = document.getElementById("matches");
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !words.every((word) => text(row).includes(word));
      shown += row.hidden ? 0 : 1;
    }
    matches.textContent = words.length ? `${shown} of ${rows.length} trials` : `${rows.length} trials`;
  });

  document.getElementById("csv").addEventListener("click", () => {
    const lines = [["number", "search", "key", ...names, "violation", "front", ...data.labels]];
    for (const row of rows.filter((row) => !row.hidden)) {
      const entry = trial(row);
      const { number, search, key, metrics, violation, front, sample } = entry;
      lines.push([number, search, key, ...metrics, violation, front, ...sample]);
    }
    save("trials.csv", "text/csv", csv(lines));
  });
})();
