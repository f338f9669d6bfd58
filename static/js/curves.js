/* The points of a job as the page holds them: by metric, by source. No DOM here. */

const PALETTE = ["#2f7fc1", "#d9642c", "#0c9a72", "#b95fa0", "#c98a00", "#4fa8dc", "#8367c7", "#7d8b00"];
const DASHES = [[], [6, 3], [2, 3], [8, 3, 2, 3]];

/** Sources that speak for the whole job: the mean over the clients, and what the server measures itself. They are bold. */
const WHOLE = ["aggregate", "server"];
export const isWhole = (source) => WHOLE.includes(source);

/** A number of the wire, where NaN and the infinities are words. */
export const numberOf = (value) => (typeof value === "string" ? Number(value) : value);

const natural = new Intl.Collator("en", { numeric: true });

/** Metrics in the order of the page: losses first, then by name; a metric's train and test stand together. */
export function byImportance(a, b) {
  const rank = (name) => (/(^|\/)loss$/.test(name) ? 0 : /(^|\/)(accuracy|r2)$/.test(name) ? 1 : 2);
  return rank(a) - rank(b) || natural.compare(a, b);
}

export class Curves {
  constructor() {
    this.metrics = new Map(); // name -> Map(source -> {attempt, steps, values})
    this.looks = new Map(); // source -> {color, dash}
  }

  /** Take a history of the server in place of all that is held. */
  replace(series) {
    this.metrics.clear();
    for (const curve of series) {
      const { name, source, attempt, steps } = curve;
      this.sourcesOf(name).set(source, { attempt, steps: [...steps], values: curve.values.map(numberOf) });
    }
    this.dress(series.map((curve) => curve.source));
  }

  /** Add a live frame's points. Returns the names of the metrics that changed. */
  append(frame) {
    const changed = new Set();
    for (const { name, source, steps, values } of frame.series) {
      const sources = this.sourcesOf(name);
      if (!sources.has(source)) sources.set(source, { attempt: frame.attempt, steps: [], values: [] });
      const curve = sources.get(source);
      if (frame.attempt > curve.attempt) {
        // A later attempt took up again at an earlier step: the older training from there on was thrown away.
        const end = curve.steps.findIndex((step) => step >= steps[0]);
        if (end >= 0) curve.steps.length = curve.values.length = end;
        curve.attempt = frame.attempt;
      } else if (frame.attempt < curve.attempt) continue;
      const isInOrder = !curve.steps.length || steps[0] >= curve.steps.at(-1);
      curve.steps.push(...steps);
      curve.values.push(...values.map(numberOf));
      if (!isInOrder) sort(curve);
      changed.add(name);
    }
    this.dress(frame.series.map((series) => series.source));
    return changed;
  }

  sourcesOf(name) {
    if (!this.metrics.has(name)) this.metrics.set(name, new Map());
    return this.metrics.get(name);
  }

  /** A source keeps its look across all charts, for as long as the page is open. A rank's is that of its number, always. */
  dress(sources) {
    for (const source of [...new Set(sources)].sort(natural.compare)) {
      if (isWhole(source) || this.looks.has(source)) continue;
      const n = Number(/^rank (\d+)$/.exec(source)?.[1] ?? this.looks.size);
      const dash = DASHES[Math.floor(n / PALETTE.length) % DASHES.length];
      this.looks.set(source, { color: PALETTE[n % PALETTE.length], dash });
    }
  }

  /** Names of a metric's sources in the order of the legend: the aggregate and the server first. */
  sourceNames(name) {
    return [...this.metrics.get(name).keys()].sort(
      (a, b) => isWhole(b) - isWhole(a) || natural.compare(a, b),
    );
  }

  /** The most points that one curve holds. */
  get longest() {
    let most = 0;
    for (const sources of this.metrics.values()) {
      for (const curve of sources.values()) most = Math.max(most, curve.steps.length);
    }
    return most;
  }
}

function sort(curve) {
  const order = curve.steps.map((_, i) => i).sort((a, b) => curve.steps[a] - curve.steps[b] || a - b);
  curve.steps = order.map((i) => curve.steps[i]);
  curve.values = order.map((i) => curve.values[i]);
}

/** uPlot's arrays [x, y, y, ...] of some curves: null is a gap (NaN, infinite), undefined a step that others have. */
export function align(curves, { isLog = false } = {}) {
  const x = [...new Set(curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
  const indexOf = new Map(x.map((step, i) => [step, i]));
  const data = [x];
  for (const curve of curves) {
    const y = new Array(x.length).fill(undefined);
    for (let i = 0; i < curve.steps.length; i++) {
      const value = curve.values[i];
      y[indexOf.get(curve.steps[i])] = Number.isFinite(value) && (!isLog || value > 0) ? value : null;
    }
    data.push(y);
  }
  return data;
}

const FORMAT = new Intl.NumberFormat("en", { maximumSignificantDigits: 5 });

/** A value for people: five significant digits, tiny and huge ones with an exponent. */
export function show(value) {
  if (value === null || value === undefined) return "";
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e7) ? value.toExponential(3) : FORMAT.format(value);
}
