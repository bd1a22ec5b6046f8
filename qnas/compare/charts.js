"use strict";

/* The charts of a comparison: a colour a run. */
(() => {
  const { data, escape, narrow, ink, dash, axis, draw, drawings } = Page;
  const metric = (name) => data.metrics.find((entry) => entry.name === name);
  const percent = (value) => `${(100 * value).toFixed(2)}%`;
  const lines = data.objectives.length === 2 && data.objectives.some((o) => o.name === data.cost);
  const split = document.getElementById("split");
  const costs = data.runs.flatMap((run) => run.points.map((point) => point.metrics[data.cost])).filter((v) => v != null);
  const low = Math.min(...costs);
  const high = Math.max(...costs);
  const tickformat = high < 1000 ? "~g" : "~s"; // no prefixes such as "m" before a unit of its own
  const scale = low > 0 && high > 5 * low ? { type: "log", tickformat, dtick: "D2" } : { tickformat };
  const across = () => axis(escape(metric(data.cost).axis), scale);
  const up = (which) => axis(`${escape(metric(data.metric).label)} (${which} split)`, { tickformat: ".1~%" });

  function drawFronts() {
    const which = split.value;
    const side = (point) => (which === "search" ? { ...point.metrics, standard_error: point.standard_error } : point.test) ?? {};
    const traces = data.runs.map((run, i) => {
      const points = run.points.filter((p) => p.metrics[data.cost] != null && side(p)[data.metric] != null)
        .sort((a, b) => a.metrics[data.cost] - b.metrics[data.cost]);
      const text = points.map((p) => [
        `<b>${escape(p.key)}</b> of ${escape(run.name)}`,
        `${escape(metric(data.cost).label)}: ${p.metrics[data.cost].toLocaleString("en")}`,
        `search split: ${percent(p.metrics[data.metric])} ± ${percent(p.standard_error ?? 0)}`,
        p.test ? `test split: ${percent(p.test[data.metric])} ± ${percent(p.test.standard_error ?? 0)}` : "",
      ].filter(Boolean).join("<br>"));
      return {
        name: escape(run.name), type: "scatter", mode: lines ? "lines+markers" : "markers",
        x: points.map((p) => p.metrics[data.cost]), y: points.map((p) => side(p)[data.metric]),
        error_y: { type: "data", array: points.map((p) => side(p).standard_error), color: ink(i), thickness: 1.1, width: 3 },
        line: { color: ink(i), width: 1.6, dash: dash(i), shape: "hv" }, marker: { color: ink(i), size: 7 }, hovertext: text, hoverinfo: "text",
      };
    });
    draw("fronts", traces, { xaxis: across(), yaxis: up(which), height: narrow() ? 420 : 470 });
  }
  drawings.fronts = drawFronts;
  split.addEventListener("change", () => window.Plotly && drawFronts());

  /* Side by side within each budget, so that error bars do not cover one another. */
  drawings.budgets = () => {
    const ticks = data.budgets.map((budget) => `≤ ${new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(budget)}`);
    const traces = data.runs.map((run, i) => {
      const offers = data.at_budget[i];
      const shift = data.runs.length > 1 ? 0.5 * (i / (data.runs.length - 1) - 0.5) : 0;
      const text = offers.map((o) => (o.key ? `<b>${escape(o.key)}</b> of ${escape(run.name)}<br>test split: ${o.test === null ? "not measured" : percent(o.test)}` : ""));
      return {
        name: escape(run.name), type: "scatter", mode: "markers", x: ticks.map((_, j) => j + shift), y: offers.map((o) => o.test),
        error_y: { type: "data", array: offers.map((o) => o.test_error), color: ink(i), thickness: 1.3, width: 3 },
        marker: { color: ink(i), size: 8 }, hovertext: text, hoverinfo: "text",
      };
    });
    const name = escape(metric(data.cost).label);
    const across = axis(name, { tickvals: ticks.map((_, j) => j), ticktext: ticks, range: [-0.5, ticks.length - 0.5], showgrid: false });
    draw("budgets", traces, { xaxis: across, yaxis: up("test"), height: 360 });
  };

  Page.start();
})();
