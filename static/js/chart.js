/* One chart: a figure with a uPlot canvas and a table of the latest values, which is also its legend. */

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { align, isWhole, show } from "./curves.js";

const HEIGHT = 220; // pixels; charts.css keeps as much for a chart to come
const LEGEND_ROWS = 12; // of more sources the first ones stand below; all are drawn
const sync = uPlot.sync("job");

function node(name, { text, ...attributes } = {}, children = []) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

export class Chart {
  /** `step` is what the x axis counts, such as "local epoch". */
  constructor(name, curves, step) {
    this.name = name;
    this.step = step;
    this.curves = curves;
    this.isLog = false;
    this.sources = [];
    this.plot = null;
    this.place = node("div", { class: "chart-plot" });
    this.place.style.height = `${HEIGHT}px`;
    this.when = node("span", { class: "chart-when" });
    this.rows = node("tbody");
    this.more = node("p", { class: "chart-more", hidden: "" });
    const head = node("tr", {}, [node("th", { scope: "col", text: "Source" }), node("th", { scope: "col", text: "Value" })]);
    this.element = node("figure", { class: "chart", "data-metric": name }, [
      node("figcaption", {}, [node("span", { class: "chart-name", text: name }), this.when]),
      this.place,
      node("table", { class: "chart-legend" }, [
        node("caption", { class: "visually-hidden", text: `Latest values of ${name}` }),
        node("thead", { class: "visually-hidden" }, [head]),
        this.rows,
      ]),
      this.more,
    ]);
    this.sizes = new ResizeObserver(() => this.plot?.setSize({ width: this.place.clientWidth, height: HEIGHT }));
    this.sizes.observe(this.place);
  }

  /** Draw what the curves hold now. */
  draw() {
    const sources = this.curves.sourceNames(this.name);
    const held = sources.map((source) => this.curves.metrics.get(this.name).get(source));
    this.data = align(held, { isLog: this.isLog });
    if (!this.plot || sources.join("\n") !== this.sources.join("\n")) this.build(sources);
    else this.plot.setData(this.data);
    this.latest = held.map((curve) => ({ step: curve.steps.at(-1), value: curve.values.at(-1) }));
    this.fillLegend(this.plot.cursor.idx ?? null);
  }

  /** Linear or logarithmic heights. What is not above 0 has no logarithm and leaves a gap. */
  setLog(isLog) {
    this.isLog = isLog;
    this.remove();
    this.draw();
  }

  build(sources) {
    this.remove();
    this.sources = sources;
    const color = (variable) => () => getComputedStyle(this.place).getPropertyValue(variable).trim() || "#808080";
    const axis = { stroke: color("--chart-text"), grid: { stroke: color("--chart-grid"), width: 1 }, ticks: { show: false } };
    const options = {
      width: this.place.clientWidth,
      height: HEIGHT,
      padding: [8, 16, 0, 0], // the last step is written under the right edge, half beyond it
      legend: { show: false },
      cursor: { sync: { key: sync.key, setSeries: false }, focus: { prox: 24 }, points: { size: 6 } },
      focus: { alpha: 0.25 },
      scales: { x: { time: false }, y: { distr: this.isLog ? 3 : 1 } },
      axes: [
        { ...axis, space: 60, size: 30, values: (_, splits) => splits.map((step) => (Number.isInteger(step) ? step.toLocaleString("en") : "")) },
        { ...axis, size: 50, values: (_, splits) => splits.map((value) => show(value)) },
      ],
      series: [{}, ...sources.map((source) => this.line(source, color))],
      hooks: { setCursor: [(plot) => this.latest && this.fillLegend(plot.cursor.idx ?? null)] },
    };
    this.plot = new uPlot(options, this.data, this.place);
    this.rows.replaceChildren(...sources.slice(0, LEGEND_ROWS).map((source, i) => this.legendRow(source, i)));
    this.more.hidden = sources.length <= LEGEND_ROWS;
    this.more.textContent = `and ${sources.length - LEGEND_ROWS} more`;
  }

  line(source, color) {
    const points = { show: (plot) => plot.data[0].length < 2, size: 6 };
    if (isWhole(source)) return { label: source, stroke: color("--chart-aggregate"), width: 2.5, points };
    const { color: stroke, dash } = this.curves.looks.get(source);
    return { label: source, stroke, dash, width: 1.25, points };
  }

  legendRow(source, i) {
    const swatch = node("span", { class: "chart-swatch", "aria-hidden": "true" });
    swatch.style.background = isWhole(source) ? "var(--chart-aggregate)" : this.curves.looks.get(source).color;
    const row = node("tr", { "data-source": source }, [
      node("th", { scope: "row" }, [swatch, node("span", { text: source })]),
      node("td", { class: "chart-value" }),
    ]);
    row.addEventListener("pointerenter", () => this.plot?.setSeries(i + 1, { focus: true }));
    row.addEventListener("pointerleave", () => this.plot?.setSeries(null, { focus: true }));
    return row;
  }

  /** Show the values at the crosshair, or the latest ones where there is none. */
  fillLegend(idx) {
    this.when.textContent = idx === null ? `by ${this.step}` : `${this.step} ${this.data[0][idx].toLocaleString("en")}`;
    for (const [i, row] of [...this.rows.rows].entries()) {
      const value = idx === null ? this.latest[i].value : this.data[i + 1][idx];
      const text = show(value);
      if (row.cells[1].textContent !== text) row.cells[1].textContent = text;
    }
  }

  redraw() {
    this.plot?.redraw(false);
  }

  remove() {
    this.plot?.destroy();
    this.plot = null;
  }

  close() {
    this.sizes.disconnect();
    this.remove();
    this.element.remove();
  }
}
