"use strict";

/* Unpacks Plotly and keeps what all charts share. A page adds its drawings to Page and starts it once. */
const Page = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const drawings = {};
  const clicked = {};
  const afterwards = [];
  const place = (name) => document.getElementById(`${name}-chart`);

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
  const inks = () => ["accent", "chosen", "good", "fourth", "fifth", "bad", "seventh", "muted"].map(colour);
  const ink = (i) => inks()[i % 8];
  const dashes = ["solid", "dash", "dot", "dashdot"];
  const dash = (i) => dashes[Math.floor(i / 8) % 4];

  function axis(title, extra = {}) {
    const base = { gridcolor: colour("line"), linecolor: colour("line"), zeroline: false, automargin: true };
    return { ...base, title: { text: title, standoff: 8 }, ...extra };
  }

  function layout(extra) {
    return {
      paper_bgcolor: colour("card"),
      plot_bgcolor: colour("card"),
      font: { color: colour("ink"), family: getComputedStyle(document.body).fontFamily, size: narrow() ? 11 : 13 },
      margin: { l: 56, r: 16, t: 12, b: 48 },
      showlegend: true,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
      hoverlabel: { align: "left", bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
      dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger scrolls the page
      hovermode: "closest",
      ...extra,
    };
  }

  /* Plotly's own buttons are off: they cover legends, and one of them may send the chart to its cloud. */
  const options = { displaylogo: false, displayModeBar: false, plotlyServerURL: "" };

  /* Buttons below a chart that save it as a picture, in the colours it is shown in. */
  function addTools(name) {
    const tools = Object.assign(document.createElement("div"), { className: "tools" });
    const add = (text, title, click) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: text, title });
      button.addEventListener("click", click);
      tools.append(button);
    };
    for (const [kind, scale] of [["png", 2], ["svg", 1]]) {
      const size = () => ({ width: place(name).clientWidth, height: place(name).clientHeight });
      const save = () => Plotly.downloadImage(place(name), { format: kind, filename: name, scale, ...size() });
      add(kind.toUpperCase(), `Save this chart as ${kind.toUpperCase()}`, save);
    }
    add("Reset", "Show the whole chart again; dragging zooms in", () => drawings[name]());
    place(name).after(tools);
  }

  /* At once, before the page is painted; Plotly's own answer to a resize waits. */
  const watcher = new ResizeObserver((changed) => changed.forEach(({ target }) => {
    if (target._fullLayout && target._fullLayout.width !== target.clientWidth) Plotly.relayout(target, { autosize: true });
  }));
  function draw(name, traces, extra) {
    const fresh = !place(name)._fullLayout;
    place(name).style.minHeight = 0; // the drawing has a height of its own
    Plotly.react(place(name), traces, layout(extra), options);
    if (fresh) clicked[name] && place(name).on("plotly_click", clicked[name]);
    if (place(name).dataset.tools) return;
    place(name).dataset.tools = "yes";
    addTools(name);
    watcher.observe(place(name));
  }
  /* From scratch: Plotly leaves parts behind when a colour bar turns around. */
  const drawAll = () => Object.entries(drawings).forEach(([name, drawing]) => {
    if (!place(name)) return;
    Plotly.purge(place(name));
    drawing();
  });

  async function start() {
    const names = Object.keys(drawings).filter(place);
    if (!names.length) return;
    try {
      await unpack();
      afterwards.forEach((prepare) => prepare());
      drawAll();
    } catch (error) {
      for (const name of names) {
        const note = Object.assign(document.createElement("p"), { className: "empty" });
        note.textContent = `This browser cannot draw the chart (${error.message}); the tables hold the same numbers.`;
        place(name).replaceChildren(note);
      }
      return;
    }
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    window.matchMedia("(max-width: 599px)").addEventListener("change", drawAll);
  }

  return { data, place, escape, colour, narrow, ink, dash, axis, draw, drawings, clicked, afterwards, start };
})();
