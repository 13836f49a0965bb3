// Replaces the server's drawings with plots that zoom and show the values under the pointer. Without this script, the drawings remain.
const COLORS = { s0: "--link", s1: "--bad", s2: "--warn", old: "--dim", new: "--link" }; // by the styles of the server
const HEIGHT = 200; // pixels
const plots = new Map(); // by title: a page that is refreshed keeps its plots, and their zoom

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const precise = (value) => value.toLocaleString("en", { maximumSignificantDigits: 3 });
const units = {
  count: (value) => value.toLocaleString("en"),
  rate: precise,
  share: (value) => `${precise(100 * value)}%`,
  seconds(value) {
    const [unit, length] = [["h", 3600], ["m", 60], ["s", 0.9995]].find(([, length]) => value >= length) ?? ["ms", 0.001];
    return precise(unit === "s" ? value : value / length) + unit;
  },
};

function options({ unit, bins, series }, width) {
  const stroke = color("--dim");
  const grid = { stroke: color("--line"), width: 1 };
  const shown = (value) => (value === null || value === undefined ? "none" : units[unit](value));
  const shownAt = (plot, index) => index ?? plot.data[0].length - 1; // without a pointer, the newest value
  const time = (seconds) => new Date(1000 * seconds).toISOString().slice(0, 16).replace("T", " ");
  const tick = (seconds) => (seconds % 86400 ? time(seconds).slice(11) : time(seconds).slice(5, 10));
  const bars = (place) => uPlot.paths.bars({ size: [0.9 / series.length, 100], align: series.length > 1 ? 2 * place - 1 : 0 });
  return {
    width,
    height: HEIGHT,
    tzDate: (seconds) => uPlot.tzDate(new Date(1000 * seconds), "Etc/UTC"),
    cursor: { y: false },
    scales: {
      x: bins ? { time: false, range: (plot, least, most) => [least - 0.6, Math.min(most, plot.bins.length - 1) + 0.6] } : {},
      y: { range: (plot, least, most) => [0, most > 0 ? 1.05 * most : 1] },
    },
    axes: [
      {
        ...{ stroke, grid, ticks: grid, size: 30, ...(bins && { incrs: [1, 2, 4, 8] }) },
        values: (plot, places) => places.map((place) => (bins ? plot.bins[place] : tick(place))),
      },
      { stroke, grid, ticks: grid, size: 60, values: (plot, values) => values.map(shown) },
    ],
    series: [
      {
        label: bins ? "Below" : "From (UTC)",
        value: (plot, value, _, index) => (bins ? plot.bins[shownAt(plot, index)] : time(plot.data[0][shownAt(plot, index)])),
      },
      ...series.map(({ name, style }, place) => ({
        label: name,
        stroke: color(COLORS[style]),
        value: (plot, value, number, index) => shown(plot.data[number][shownAt(plot, index)]),
        ...(bins ? { paths: bars(place), fill: color(COLORS[style]), points: { show: false } } : { width: 1.5, points: { show: false, size: 4 } }),
      })),
    ],
    hooks: { init: [(plot) => Object.assign(plot, { bins, deploys: [] })], setSelect: [(plot) => (plot.reset.hidden = plot.select.width === 0)], draw: [mark] },
  };
}

// Puts a line with a name where each deploy began.
function mark(plot) {
  plot.marks.replaceChildren(
    ...plot.deploys.map(([at, name]) => {
      const line = document.createElement("span");
      line.append(Object.assign(document.createElement("b"), { textContent: name, title: `deploy ${name}` }));
      const left = plot.valToPos(at, "x");
      line.style.left = `${left}px`;
      line.classList.toggle("last", left > plot.over.clientWidth / 2); // its name is before the line
      return line;
    }),
  );
}

const widthOf = (figure) => figure.clientWidth - 26; // without its frame
const namesOf = ({ series }) => JSON.stringify(series.map(({ name }) => name));

function made(chart, figure) {
  const plot = new uPlot(options(chart, widthOf(figure)));
  plot.names = namesOf(chart);
  Object.assign(plot.root, { role: "img", ariaLabel: chart.title });
  plot.marks = plot.over.appendChild(Object.assign(document.createElement("div"), { className: "marks" }));
  plot.reset = Object.assign(document.createElement("button"), { type: "button", textContent: "Show all", hidden: true });
  plot.reset.addEventListener("click", () => show(plot, plot.data, true));
  plot.over.addEventListener("dblclick", () => show(plot, plot.data, true));
  return plot;
}

function show(plot, data, isWhole) {
  plot.reset.hidden = isWhole;
  plot.setData(data, isWhole);
  if (!isWhole) plot.redraw();
}

class LivePlot extends HTMLElement {
  static observedAttributes = ["data-plot"];

  attributeChangedCallback(name, old) {
    if (old !== null) this.connectedCallback();
  }

  connectedCallback() {
    const chart = JSON.parse(this.dataset.plot);
    const figure = this.querySelector("figure");
    let plot = plots.get(chart.title);
    if (plot?.names !== namesOf(chart)) {
      plot?.destroy();
      plots.set(chart.title, (plot = made(chart, figure)));
    }
    Object.assign(plot, { deploys: chart.deploys, bins: chart.bins });
    figure.querySelectorAll("svg, .key").forEach((each) => each.remove());
    figure.querySelector("figcaption").append(plot.reset);
    figure.append(plot.root);
    plot.syncRect(true); // it may be at another place
    show(plot, [chart.x, ...chart.series.map(({ values }) => values)], plot.reset.hidden);
  }
}
customElements.define("live-plot", LivePlot);

// The colours of a plot are those of the theme in which it was made.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  plots.forEach((plot) => plot.destroy());
  plots.clear();
  document.querySelectorAll("live-plot").forEach((each) => each.connectedCallback());
});
addEventListener("resize", () => plots.forEach((plot) => plot.setSize({ width: widthOf(plot.root.parentNode), height: HEIGHT })));
