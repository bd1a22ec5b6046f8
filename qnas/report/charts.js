"use strict";

/* Unpacks Plotly and draws the charts in the page's colours, light or dark. */
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const chart = (name) => document.getElementById(`${name}-chart`);
  const charts = ["front", "search", "training"].filter(chart);
  if (!charts.length) return;

  async function unpack() {
    const packed = atob(document.getElementById("plotly").textContent.trim());
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    if (!window.Plotly) throw new Error("Plotly did not start");
  }

  /* Plotly reads a few tags in labels, so labels are escaped like HTML. */
  const escape = (text) => String(text).replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const narrow = () => window.innerWidth < 600;

  const metric = (name) => data.metrics.find((entry) => entry.name === name);
  const read = (entry, name) => name === "number" ? entry.number : entry.metrics[data.metrics.indexOf(metric(name))];
  const known = (entries, ...names) => entries.filter((entry) => names.every((name) => read(entry, name) !== null));
  const label = (name) => {
    if (name === "number") return "trial";
    return escape(metric(name).axis);
  };
  const format = (name, value) => {
    if (value === null) return "–";
    if (metric(name).fraction) return `${(100 * value).toFixed(2)}%`;
    return value.toLocaleString("en", { maximumSignificantDigits: Number.isInteger(value) ? 15 : 4 });
  };

  function hover(entry, title) {
    const lines = [`<b>${escape(entry.key)}</b> ${title}`];
    data.metrics.forEach(({ name, label: shown }, i) => lines.push(`${escape(shown)}: ${format(name, entry.metrics[i])}`));
    if (entry.error) lines.push(`standard error: ${(100 * entry.error).toFixed(2)}%`);
    if (entry.test != null) lines.push(`on the test split: ${(100 * entry.test).toFixed(2)}%`);
    if (entry.violation > 0) lines.push(`violates a constraint by ${entry.violation.toPrecision(3)}`);
    const knobs = data.labels.map((name, i) => [name, entry.sample[i]]).filter(([, value]) => value !== null);
    const shown = knobs.slice(0, 12).map(([name, value]) => escape(`${name}=${value}`));
    for (let i = 0; i < shown.length; i += 3) lines.push(`<span style="font-size:10px">${shown.slice(i, i + 3).join("  ")}</span>`);
    if (knobs.length > 12) lines.push(`<span style="font-size:10px">and ${knobs.length - 12} more knobs</span>`);
    return lines.join("<br>");
  }

  function axis(title, extra = {}) {
    const base = { gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: true };
    return { ...base, title: { text: title, standoff: 8 }, ...extra };
  }

  function layout(extra) {
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("ink"), family: getComputedStyle(document.body).fontFamily, size: narrow() ? 11 : 13 },
      margin: { l: 56, r: 16, t: 12, b: 48 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
      hoverlabel: { align: "left", bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("muted"), activecolor: colour("accent") },
      hovermode: "closest",
      ...extra,
    };
  }

  /* The buttons are named one by one, because Plotly's own choice may hold one that sends the chart to its cloud. */
  const buttons = [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];
  const options = { responsive: true, displaylogo: false, modeBarButtons: buttons, plotlyServerURL: "" };
  const draw = (name, traces, extra) => Plotly.react(chart(name), traces, layout(extra), options);

  function frontAxis(name, entries) {
    if (name === "number") return axis("trial");
    const values = entries.map((entry) => read(entry, name));
    const [low, high] = [Math.min(...values), Math.max(...values)];
    if (metric(name).fraction) return axis(label(name), { tickformat: ".1~%" });
    return axis(label(name), low > 0 && high > 5 * low ? { type: "log", tickformat: "~s", dtick: "D2" } : { tickformat: "~s" });
  }

  function frontTraces(x, y, shade) {
    const at = (entries) => ({ x: entries.map((e) => read(e, x)), y: entries.map((e) => read(e, y)), hoverinfo: "text" });
    const traces = [];
    const add = (name, entries, more) => {
      if (entries.length) traces.push({ ...at(entries), name, type: "scatter", mode: "markers", ...more });
    };
    const titled = (title) => (entry) => hover(entry, `${title}${entry.number ?? ""}`);
    const needed = shade ? [x, y, shade] : [x, y];
    const [fine, broken] = [false, true].map((bad) => known(data.trials, x, y).filter((t) => t.violation > 0 === bad));
    const faint = { color: colour("faint"), size: 6, opacity: 0.5, line: { width: 0 } };
    add("trials", fine, { marker: faint, hovertext: fine.map(titled("trial ")) });
    add("trials that violate a constraint", broken, { marker: { ...faint, symbol: "x-thin-open" }, hovertext: broken.map(titled("trial ")) });

    const points = known(data.points, ...needed).sort((a, b) => read(a, x) - read(b, x));
    const pair = data.objectives.map((o) => o.name);
    const joined = pair.length === 2 && pair.includes(x) && pair.includes(y);
    const ink = shade ? points.map((p) => read(p, shade)) : colour("accent");
    const beneath = narrow() ? { orientation: "h", y: -0.2, yanchor: "top" } : {};
    const bar = { title: { text: shade && label(shade), side: narrow() ? "bottom" : "right" }, thickness: 12, ...beneath, tickformat: shade && metric(shade)?.fraction ? ".1~%" : "~s" };
    const errors = { type: "data", array: points.map((p) => p.error), color: colour("accent"), thickness: 1.2, width: 3 };
    const scored = x === data.score ? { error_x: errors } : y === data.score ? { error_y: errors } : {};
    const marker = { color: ink, size: 9, ...(shade ? { line: { color: colour("muted"), width: 1 }, colorscale: "Viridis", showscale: true, colorbar: bar } : {}) };
    add("front ± standard error", points, {
      ...scored, mode: joined ? "lines+markers" : "markers", line: { color: colour("accent"), width: 1.5 }, marker,
      hovertext: points.map(titled("on the front, trial ")), customdata: points.map((p) => data.points.indexOf(p)),
    });
    const tested = points.filter((p) => p.test !== null);
    if (y === data.score) {
      add("front, test split", tested, {
        y: tested.map((p) => p.test), marker: { color: colour("accent"), symbol: "diamond-open", size: 7 },
        hovertext: tested.map(titled("test split, trial ")),
      });
    }
    const chosen = points.filter((p) => p.chosen);
    add("chosen", chosen, { marker: { color: "rgba(0,0,0,0)", size: 19, line: { color: colour("chosen"), width: 2.5 } }, hoverinfo: "skip" });
    return traces;
  }

  function limits(x, y, entries) {
    const shapes = [];
    for (const { metric: name, bound, text } of data.constraints) {
      const along = name === x ? "x" : name === y ? "y" : null;
      const values = along ? entries.map((entry) => read(entry, name)) : [];
      if (!values.length || bound > 2 * Math.max(...values) || bound < 0.5 * Math.min(...values)) continue;
      const line = { color: colour("bad"), width: 1.2, dash: "dash" };
      const anchors = along === "x" ? { xanchor: "right", yanchor: "top" } : { xanchor: "right", yanchor: "bottom" };
      const label = { text: escape(text), textposition: "end", textangle: 0, font: { color: colour("bad"), size: 11 }, ...anchors };
      const across = along === "x" ? "y" : "x";
      shapes.push({ type: "line", [`${along}0`]: bound, [`${along}1`]: bound, [`${across}0`]: 0, [`${across}1`]: 1, [`${across}ref`]: "paper", line, label });
    }
    return shapes;
  }

  const selects = Object.fromEntries([...document.querySelectorAll("#axes select")].map((s) => [s.dataset.axis, s]));
  function drawFront() {
    const [x, y, shade] = [selects.x.value, selects.y.value, selects.colour.value];
    const entries = known([...data.trials, ...data.points], x, y);
    const extra = { xaxis: frontAxis(x, entries), yaxis: frontAxis(y, entries), shapes: limits(x, y, entries), height: narrow() ? 430 : 480 };
    draw("front", frontTraces(x, y, shade), extra);
  }

  function drawSearch() {
    const traces = [];
    const several = data.progress.length > 1;
    const inks = ["accent", "chosen", "good", "bad"].map(colour);
    data.progress.forEach((run, i) => {
      const named = (text) => escape(several ? `${run.search}: ${text}` : text);
      const ink = inks[i % inks.length];
      const opacity = run.feasible.map((fine) => (fine ? 0.45 : 0.15));
      const dots = { color: several ? ink : colour("faint"), size: 5, opacity, line: { width: 0 } };
      const step = { type: "scatter", mode: "lines", x: run.number };
      traces.push({ name: named("trials"), x: run.number, y: run.score, type: "scatter", mode: "markers", marker: dots });
      traces.push({ ...step, name: named("best so far"), y: run.best, line: { color: ink, width: 2, shape: "hv" } });
      const dash = several ? ink : colour("chosen");
      traces.push({ ...step, name: named("points on the front"), y: run.front, yaxis: "y2", line: { color: dash, width: 1.3, dash: "dot", shape: "hv" } });
    });
    const right = axis("points on the front", { overlaying: "y", side: "right", showgrid: false, rangemode: "tozero", tickmode: "auto", nticks: 6, tickformat: "d" });
    const left = axis(label(data.score), metric(data.score)?.fraction ? { tickformat: ".1~%" } : {});
    draw("search", traces, { xaxis: axis("trial"), yaxis: left, yaxis2: right, height: 350, hovermode: "x unified" });
  }

  function drawTraining() {
    const { epoch, stages, ...curves } = data.training;
    const style = { largest: ["accent", "largest subnet"], random: ["faint", "random subnets, mean"], smallest: ["chosen", "smallest subnet"] };
    const mode = epoch.length > 60 ? "lines" : "lines+markers";
    const traces = Object.entries(style).filter(([key]) => curves[key].some((value) => value !== null)).map(([key, [ink, name]]) => (
      { x: epoch, y: curves[key], name, type: "scatter", mode, line: { color: colour(ink), width: 1.8 }, marker: { size: 4 } }));
    const starts = stages.map((stage) => stage.start - 0.5);
    const shapes = starts.slice(1).map((x) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: colour("muted"), width: 1, dash: "dot" } }));
    const annotations = stages.map((stage, i) => ({
      x: starts[i], y: 1, yref: "paper", yanchor: "top", xanchor: "left", xshift: 4, showarrow: false,
      text: escape(stage.name), font: { color: colour("muted"), size: 12 },
    }));
    const across = axis("epoch", { range: [0.5, epoch.length + 0.5] });
    draw("training", traces, { xaxis: across, yaxis: axis("loss"), shapes, annotations, height: 350, hovermode: "x unified" });
  }

  const drawings = { front: drawFront, search: drawSearch, training: drawTraining };
  const drawAll = () => charts.forEach((name) => drawings[name]());

  try {
    await unpack();
    if (chart("front")) {
      const [y, x, shade] = data.axes;
      Object.assign(selects.x, { value: x });
      Object.assign(selects.y, { value: y });
      Object.assign(selects.colour, { value: shade ?? "" });
      Object.values(selects).forEach((select) => select.addEventListener("change", drawFront));
    }
    drawAll();
  } catch (error) {
    for (const name of charts) {
      const note = Object.assign(document.createElement("p"), { className: "empty" });
      note.textContent = `This browser cannot draw the chart (${error.message}); the tables hold the same numbers.`;
      chart(name).replaceChildren(note);
    }
    return;
  }

  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  window.matchMedia("(max-width: 599px)").addEventListener("change", drawAll);
  const selector = document.getElementById("point");
  chart("front")?.on("plotly_click", ({ points: [hit] }) => {
    if (hit.customdata === undefined) return;
    selector.value = hit.customdata;
    selector.dispatchEvent(new Event("change"));
    const link = Object.assign(document.createElement("a"), { href: "#subnets", textContent: "see its layers" });
    document.getElementById("picked").replaceChildren(`Subnet ${data.points[hit.customdata].key}: `, link);
  });
})();
