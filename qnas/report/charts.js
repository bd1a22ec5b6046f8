"use strict";

/* The charts of a run. */
(() => {
  const { data, place, escape, colour, narrow, ink, dash, axis, draw, drawings, clicked, afterwards } = Page;

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
    if (entry.tied) lines.push("tied with the chosen one within noise");
    if (entry.violation > 0) lines.push(`violates a constraint by ${entry.violation.toPrecision(3)}`);
    const knobs = data.labels.map((name, i) => [name, entry.sample[i]]).filter(([, value]) => value !== null);
    const shown = knobs.slice(0, 12).map(([name, value]) => escape(`${name}=${value}`));
    for (let i = 0; i < shown.length; i += 3) lines.push(`<span style="font-size:10px">${shown.slice(i, i + 3).join("  ")}</span>`);
    if (knobs.length > 12) lines.push(`<span style="font-size:10px">and ${knobs.length - 12} more knobs</span>`);
    return lines.join("<br>");
  }

  function netHover(net) {
    const lines = [`<b>${escape(net.key)}</b> trained again by itself, from ${escape(net.start)}`, `bits: ${escape(net.bits)}`, `image passes: ${escape(net.passes)}`];
    data.metrics.forEach(({ name, label: shown }, i) => lines.push(`${escape(shown)}: ${format(name, net.metrics[i])}`));
    if (net.test != null) lines.push(`on the test split: ${(100 * net.test).toFixed(2)}% ± ${(100 * (net.test_error ?? 0)).toFixed(2)}%`);
    lines.push(`searched as ${escape(net.from)}`);
    return lines.join("<br>");
  }

  function frontAxis(name, entries) {
    if (name === "number") return axis("trial");
    const values = entries.map((entry) => read(entry, name));
    const [low, high] = [Math.min(...values), Math.max(...values)];
    if (metric(name).fraction) return axis(label(name), { tickformat: ".1~%" });
    const tickformat = high < 1000 ? "~g" : "~s"; // no prefixes such as "m" before a unit of its own
    return axis(label(name), low > 0 && high > 5 * low ? { type: "log", tickformat, dtick: "D2" } : { tickformat });
  }

  function frontTraces(x, y, shade) {
    const at = (entries) => ({ x: entries.map((e) => read(e, x)), y: entries.map((e) => read(e, y)), hoverinfo: "text" });
    const traces = [];
    const add = (name, entries, more) => {
      if (entries.length) traces.push({ ...at(entries), name, type: "scatter", mode: "markers", ...more });
    };
    const titled = (title) => (entry) => hover(entry, `${title}${entry.number ?? ""}`);
    const needed = shade ? [x, y, shade] : [x, y];
    const trials = known(data.trials, x, y);
    const [fine, broken] = [false, true].map((bad) => trials.filter((t) => t.violation > 0 === bad));
    const faint = { color: colour("faint"), size: 6, opacity: 0.5, line: { width: 0 } };
    const own = fine.filter((t) => t.search === data.search);
    const others = fine.filter((t) => t.search !== data.search);
    const when = (entry) => hover(entry, `trial ${entry.number} of ${escape(entry.search)}`);
    add("trials", own, { marker: faint, hovertext: own.map(when) });
    add("trials of other searches", others, { marker: { ...faint, symbol: "circle-open", opacity: 0.6, line: { width: 1 } }, hovertext: others.map(when) });
    add("trials that violate a constraint", broken, { marker: { ...faint, symbol: "x-thin-open" }, hovertext: broken.map(when) });

    /* Between two points of a front, the cheaper one is the best there is: a staircase. */
    const pair = data.objectives.map((o) => o.name);
    const joined = pair.length === 2 && pair.includes(x) && pair.includes(y);
    const falls = (name) => data.objectives.find((o) => o.name === name)?.direction === "min";
    const stairs = falls(x) ? "hv" : "vh";
    data.others.forEach((front, i) => {
      const points = known(front.points, x, y).sort((a, b) => read(a, x) - read(b, x));
      const text = points.map((p) => hover(p, `on the front of ${escape(front.search)}, stage ${escape(front.stage)}`));
      const line = { color: ink(i + 3), width: 1.3, dash: "dot", shape: stairs };
      if (front.family) {
        const marker = { color: ink(i + 3), size: 7, symbol: "square" };
        add(escape(`front of stage ${front.stage}`), points, { mode: joined ? "lines+markers" : "markers", line: { ...line, dash: "solid", width: 1.6 }, marker, hovertext: text });
      } else if (joined) add(escape(`front of ${front.search}`), points, { mode: "lines", line, hovertext: text });
    });
    const points = known(data.points, ...needed).sort((a, b) => read(a, x) - read(b, x));
    const shades = points.map((p) => (shade ? read(p, shade) : colour(p.tied ? "card" : "accent")));
    const beneath = narrow() ? { orientation: "h", y: -0.2, yanchor: "top" } : {};
    const bar = { title: { text: shade && label(shade), side: narrow() ? "bottom" : "right" }, thickness: 12, ...beneath, tickformat: shade && metric(shade)?.fraction ? ".1~%" : "~s" };
    const errors = { type: "data", array: points.map((p) => p.error), color: colour("accent"), thickness: 1.2, width: 3 };
    const scored = x === data.score ? { error_x: errors } : y === data.score ? { error_y: errors } : {};
    const symbol = points.map((p) => (shade && p.tied ? "circle-open" : "circle"));
    const marker = { color: shades, size: 9, symbol, line: { color: colour("accent"), width: 2 }, ...(shade ? { line: { color: colour("muted"), width: 1 }, colorscale: "Viridis", showscale: true, colorbar: bar } : {}) };
    const own_stage = data.others.some((front) => front.family) ? ` of stage ${escape(data.stage)}` : "";
    add(`front${own_stage} ± standard error`, points, {
      ...scored, mode: joined ? "lines+markers" : "markers", line: { color: colour("accent"), width: 1.5, shape: stairs }, marker,
      hovertext: points.map(titled("on the front, trial ")), customdata: points.map((p) => data.points.indexOf(p)),
    });
    const tested = points.filter((p) => p.test !== null);
    if (y === data.score) {
      const bars = { type: "data", array: tested.map((p) => p.test_error), color: colour("good"), thickness: 1, width: 2 };
      add("front, test split", tested, {
        y: tested.map((p) => p.test), error_y: bars, marker: { color: colour("good"), symbol: "diamond", size: 6 },
        hovertext: tested.map(titled("test split, trial ")),
      });
    }
    const nets = known(data.retrained, x, y);
    const netBars = { type: "data", array: nets.map((n) => n.error), color: colour("chosen"), thickness: 1, width: 2 };
    add("trained again by themselves", nets, {
      ...(x === data.score ? { error_x: netBars } : y === data.score ? { error_y: netBars } : {}),
      marker: { color: colour("chosen"), symbol: "diamond-open", size: 10, line: { width: 2 } }, hovertext: nets.map(netHover),
    });
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
    const entries = known([...data.trials, ...data.points, ...data.retrained], x, y);
    const extra = { xaxis: frontAxis(x, entries), yaxis: frontAxis(y, entries), shapes: limits(x, y, entries), height: narrow() ? 430 : 480 };
    draw("front", frontTraces(x, y, shade), extra);
  }
  drawings.front = drawFront;
  afterwards.push(() => {
    if (!place("front")) return;
    const [y, x, shade] = data.axes;
    Object.assign(selects.x, { value: x });
    Object.assign(selects.y, { value: y });
    Object.assign(selects.colour, { value: shade ?? "" });
    Object.values(selects).forEach((select) => select.addEventListener("change", drawFront));
  });

  const several = data.progress.length > 1;
  const named = (run, text) => escape(several ? `${run.search}: ${text}` : text);

  drawings.search = () => {
    const traces = [];
    data.progress.forEach((run, i) => {
      const opacity = run.feasible.map((fine) => (fine ? 0.45 : 0.15));
      const marker = { color: several ? ink(i) : colour("faint"), size: 5, opacity, line: { width: 0 } };
      const line = { color: ink(i), width: 2, shape: "hv", dash: dash(i) };
      traces.push({ name: named(run, "trials"), x: run.number, y: run.score, type: "scatter", mode: "markers", marker });
      traces.push({ name: named(run, "best so far"), x: run.number, y: run.best, type: "scatter", mode: "lines", line });
    });
    const left = axis(label(data.score), metric(data.score)?.fraction ? { tickformat: ".1~%" } : {});
    draw("search", traces, { xaxis: axis("evaluations"), yaxis: left, height: 350 });
  };

  drawings.volume = () => {
    const traces = data.progress.map((run, i) => ({
      name: escape(run.search), x: run.number, y: run.volume, type: "scatter", mode: "lines",
      line: { color: ink(i), width: 2, shape: "hv", dash: dash(i) },
      hovertext: run.front.map((n, j) => `${run.number[j]} evaluations<br>${run.volume[j]?.toFixed(4)}, ${n} points on the front`), hoverinfo: "text+name",
    }));
    draw("volume", traces, { xaxis: axis("evaluations"), yaxis: axis("hypervolume", { rangemode: "tozero" }), height: 300 });
  };

  /* A row a point, the best at the top; a band for the mean and its interval. */
  drawings.gap = () => {
    const points = data.points.filter((p) => p.gap).reverse();
    const side = (p, i) => Math.abs(100 * (p.gap[i] - p.gap[0]));
    const rows = points.map((p) => `${escape(p.key.slice(0, 8))}${p.chosen ? " (chosen)" : ""}`);
    const bars = { type: "data", symmetric: false, array: points.map((p) => side(p, 2)), arrayminus: points.map((p) => side(p, 1)), color: colour("accent"), thickness: 1.2, width: 3 };
    const traces = [{
      name: "points of the front, 95% interval", type: "scatter", mode: "markers", x: points.map((p) => 100 * p.gap[0]), y: rows, error_x: bars,
      marker: { size: 8, color: points.map((p) => colour(p.chosen ? "chosen" : "accent")) },
      hovertext: points.map((p) => hover(p, "on the front")), hoverinfo: "text",
    }];
    const upright = (x, line) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", layer: "below", line });
    const shapes = [upright(0, { color: colour("muted"), width: 1.5 })];
    if (data.gap.value !== undefined) {
      const [value, low, high] = ["value", "low", "high"].map((name) => 100 * data.gap[name]);
      shapes.push({ type: "rect", x0: low, x1: high, y0: 0, y1: 1, yref: "paper", layer: "below", line: { width: 0 }, fillcolor: colour("chosen"), opacity: 0.13 });
      shapes.push(upright(value, { color: colour("chosen"), width: 1.5, dash: "dash" }));
      traces.push({ name: "mean gap, 95% interval", x: [null], y: [rows[0]], type: "scatter", mode: "lines", line: { color: colour("chosen"), dash: "dash" } });
    }
    const across = axis(narrow() ? "search minus test, points" : "search split minus test split, percentage points");
    draw("gap", traces, { xaxis: across, yaxis: axis("", { type: "category", tickfont: { size: 11 } }), shapes, height: 130 + 24 * rows.length });
  };

  drawings.training = () => {
    const { epoch, stages, ...curves } = data.training;
    const style = { largest: ["accent", "largest subnet"], random: ["faint", "random subnets, mean"], smallest: ["chosen", "smallest subnet"] };
    const mode = epoch.length > 60 ? "lines" : "lines+markers";
    const traces = Object.entries(style).filter(([key]) => curves[key].some((value) => value !== null)).map(([key, [shade, name]]) => (
      { x: epoch, y: curves[key], name, type: "scatter", mode, line: { color: colour(shade), width: 1.8 }, marker: { size: 4 } }));
    const starts = stages.map((stage) => stage.start - 0.5);
    const shapes = starts.slice(1).map((x) => ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: colour("muted"), width: 1, dash: "dot" } }));
    const annotations = stages.map((stage, i) => ({
      x: starts[i], y: 1, yref: "paper", yanchor: "top", xanchor: "left", xshift: 4, showarrow: false,
      text: escape(stage.name), font: { color: colour("muted"), size: 12 },
    }));
    const across = axis("epoch", { range: [0.5, epoch.length + 0.5], ...(epoch.length < 12 ? { dtick: 1 } : {}) });
    draw("training", traces, { xaxis: across, yaxis: axis("loss"), shapes, annotations, height: 350, hovermode: "x unified" });
  };

  data.ranks.forEach((configs, i) => {
    drawings[`rank-${i}`] = () => {
      const errors = { type: "data", array: configs.map((c) => c.error), color: colour("accent"), thickness: 1.2, width: 3 };
      const shown = configs.map((c) => `<b>${escape(c.key)}</b><br>supernet ${(100 * c.x).toFixed(2)}%<br>alone ${(100 * c.y).toFixed(2)}%`);
      const trace = { x: configs.map((c) => c.x), y: configs.map((c) => c.y), error_y: errors, type: "scatter", mode: "markers", marker: { size: 8, color: colour("accent") }, hovertext: shown, hoverinfo: "text" };
      const percent = { tickformat: ".1~%" };
      draw(`rank-${i}`, [trace], { xaxis: axis("in the supernet, search split", percent), yaxis: axis("trained alone, test split", percent), showlegend: false, height: 380 });
    };
  });

  const quantity = document.getElementById("quantity");
  function drawInside() {
    const { layers, values } = data.inside.quantities[quantity.value];
    const wide = /^(steps|gradient)/.test(quantity.value);
    const z = values.map((row) => row.map((v) => (v === null || (wide && v <= 0) ? null : wide ? Math.log10(v) : v)));
    const text = values.map((row) => row.map((v) => (v === null ? "not there" : Number(v.toPrecision(3)).toString())));
    const beneath = narrow() ? { orientation: "h", y: -0.1, yanchor: "top", thickness: 10 } : { thickness: 12 };
    const ruler = { ...beneath, nticks: 4, tickangle: 0, title: { text: wide ? "log10" : "", side: "top" }, tickformat: wide ? "~g" : /^clip/.test(quantity.value) ? "~%" : "~g" };
    const when = data.inside.when.map(escape);
    const trace = {
      type: "heatmap", x: when, y: layers.map(escape), z, text, hovertemplate: "%{y}<br>%{x}<br>%{text}<extra></extra>",
      colorscale: "Viridis", colorbar: ruler, hoverongaps: false, xgap: 1, ygap: 1,
    };
    const down = axis("", { autorange: "reversed", type: "category", tickfont: { size: narrow() ? 9 : 11 }, dtick: 1 });
    const most = narrow() ? 3 : 8;
    const ticks = when.filter((_, i) => i % Math.ceil(when.length / most) === 0);
    const across = axis("", { type: "category", tickvals: ticks, ticktext: ticks.map((t) => t.replace(", ", "<br>")), tickangle: 0, tickfont: { size: narrow() ? 9 : 12 } });
    draw("inside", [trace], { xaxis: across, yaxis: down, height: 130 + 17 * layers.length });
  }
  if (quantity?.options.length) {
    drawings.inside = drawInside;
    quantity.addEventListener("change", () => window.Plotly && drawInside());
  }

  const selector = document.getElementById("point");
  clicked.front = ({ points: [hit] }) => {
    if (hit.customdata === undefined) return;
    selector.value = hit.customdata;
    selector.dispatchEvent(new Event("change"));
    const link = Object.assign(document.createElement("a"), { href: "#subnets", textContent: "see its layers" });
    document.getElementById("picked").replaceChildren(`Subnet ${data.points[hit.customdata].key}: `, link);
  };
  Page.start();
})();
