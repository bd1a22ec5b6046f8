"use strict";

/* What good subnets prefer at each training stage: effects with intervals, and by part of the network. */
(() => {
  const { data, escape, colour, narrow, ink, axis, draw, drawings } = Page;
  const { stages, kinds, cost } = data.insights;
  const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`;
  const told = (effect, title) => `<b>${escape(title)}</b><br>${signed(effect.value)} points, 95% interval ${signed(effect.low)} to ${signed(effect.high)}<br>${effect.num_with} subnets have it`;
  /* One scale of colours for all kinds. */
  const most = Math.max(...kinds.flatMap(({ places }) => places.flatMap(({ effects }) => effects.flat().map((effect) => Math.abs(effect?.value ?? 0)))), 1e-6);

  /* A colour between two, for cells that text stands on. */
  function mixed(over, under, part) {
    const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
    const [a, b] = [channels(over), channels(under)];
    return `rgb(${a.map((value, i) => Math.round(part * value + (1 - part) * b[i])).join(",")})`;
  }

  function drawEffects(i, { kind, choices, whole }) {
    const traces = stages.map((stage, j) => {
      const shown = choices.map((choice, k) => ({ at: k + (j - (stages.length - 1) / 2) * Math.min(0.16, 0.7 / stages.length), choice, effect: whole[j][k] })).filter((p) => p.effect);
      const reach = (end) => shown.map((p) => Math.abs(p.effect[end] - p.effect.value));
      return {
        name: escape(stage), type: "scatter", mode: "markers", x: shown.map((p) => p.at), y: shown.map((p) => p.effect.value),
        error_y: { type: "data", symmetric: false, array: reach("high"), arrayminus: reach("low"), color: ink(j), thickness: 1.4, width: 3 },
        marker: { size: 9, color: ink(j), symbol: shown.map((p) => (p.effect.resolved ? "circle" : "circle-open")), line: { color: ink(j), width: 1.6 } },
        hovertext: shown.map((p) => told(p.effect, `${kind} ${p.choice}, ${stage}`)), hoverinfo: "text",
      };
    });
    const zero = { type: "line", x0: 0, x1: 1, xref: "paper", y0: 0, y1: 0, layer: "below", line: { color: colour("muted"), width: 1.2 } };
    const across = axis(escape(kind), { tickvals: choices.map((_, k) => k), ticktext: choices.map(escape), range: [-0.6, choices.length - 0.4], showgrid: false });
    draw(`insight-${i}`, traces, { xaxis: across, yaxis: axis(`points at equal ${escape(cost)}`), shapes: [zero], height: 330 });
  }

  function drawPlaces(i, { kind, choices, places }) {
    const columns = stages.flatMap((stage, j) => choices.map((choice, k) => ({ stage, choice, j, k })));
    const cells = places.map(({ effects }) => columns.map(({ j, k }) => effects[j][k]));
    const beneath = narrow() ? { orientation: "h", y: -0.25, yanchor: "top", thickness: 10 } : { thickness: 12 };
    const trace = {
      type: "heatmap", x: [columns.map((c) => escape(c.stage)), columns.map((c) => escape(c.choice))], y: places.map((p) => escape(p.name)),
      z: cells.map((row) => row.map((effect) => effect?.value ?? null)), zmin: -most, zmax: most, xgap: 2, ygap: 2, hoverongaps: false,
      colorscale: [[0, mixed(colour("chosen"), colour("card"), 0.6)], [0.5, colour("card")], [1, mixed(colour("accent"), colour("card"), 0.6)]],
      text: cells.map((row) => row.map((effect) => (!effect?.resolved ? "" : narrow() ? "●" : signed(effect.value)))), texttemplate: "%{text}", textfont: { color: colour("ink"), size: narrow() ? 9 : 12 },
      hovertext: cells.map((row, r) => row.map((effect, c) => (effect ? told(effect, `${kind} ${columns[c].choice} in ${places[r].name}, ${columns[c].stage}`) : ""))), hoverinfo: "text",
      colorbar: { title: { text: "points", side: "top" }, ...beneath },
    };
    const across = axis("", { type: "multicategory", showgrid: false, tickangle: 0, dividercolor: colour("line"), tickfont: { size: narrow() ? 9 : 12 } });
    const down = axis("", { type: "category", autorange: "reversed", showgrid: false });
    draw(`insight-place-${i}`, [trace], { xaxis: across, yaxis: down, height: (narrow() ? 190 : 150) + 30 * places.length });
  }

  kinds.forEach((part, i) => {
    drawings[`insight-${i}`] = () => drawEffects(i, part);
    if (part.places.length) drawings[`insight-place-${i}`] = () => drawPlaces(i, part);
  });
})();
