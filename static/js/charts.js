/* The live curves of one job: a grid of uPlot charts, one for each metric.
 *
 * MOUNT CONTRACT. The page holds
 *
 *   <link rel="stylesheet" href="{% static 'vendor/uplot/uPlot.min.css' %}">
 *   <div id="charts" data-job-id="12" data-metrics-url="/api/v1/jobs/12/metrics" data-ws-url="/ws/jobs/12/"
 *        data-ended="false" data-step="local epoch">    data-ended="true": the job is over, no socket is opened
 *     <div class="charts-bar"><p class="charts-empty"></p><button class="charts-scale" aria-pressed="false">Log scale</button></div>
 *     <div class="chart-grid">
 *       <figure class="chart is-skeleton" data-room="train/loss">   the room of a chart to come, as high as it will be;
 *     </div>                                              .is-waiting once the history is there and the metric is not
 *   </div>
 *   <div id="log-lines" data-logs-url="/api/v1/jobs/12/logs"></div>      optional; it scrolls itself
 *   <span data-live-mark></span>                        optional, any number: text and data-state are kept up to date
 *   <script type="module" src="{% static 'js/charts.js' %}"></script>
 *
 * The list page holds <div id="job-list" data-ws-url="/ws/jobs/"> and <script type="module" src="{% static 'js/live.js' %}">.
 *
 * Events, for whoever listens (both are dispatched on document.body):
 *   live:state   detail {state: "connecting" | "live" | "reconnecting" | "ended"}
 *   job:changed  detail {jobs: [12], what: ["state", "rounds", "artifacts"]}, at most one in 300 ms;
 *                and job:state, job:rounds, job:artifacts with the same detail, for htmx: hx-trigger="job:rounds from:body"
 *
 * Inside .chart-grid this module makes, and the style sheet may dress (colours only through the variables below):
 *   figure.chart > figcaption + .chart-plot + .chart-legend (table with the latest values)
 * CSS variables read from #charts: --chart-text, --chart-grid, --chart-aggregate (each has a default for light and dark).
 *   Log lines: div.log-line[data-level] > time + span.log-source + span.log-text
 */

import { Chart } from "./chart.js";
import { Curves, byImportance } from "./curves.js";
import { Changes, JobFeed, Socket, showState, socketUrl } from "./live.js";
import { LogView } from "./logs.js";

const DRAW_MS = 100; // the eye sees no more frames of a curve, and a thousand lines take their time
const MOST_POINTS = 400_000; // of a page; many curves get fewer points each
const THIN_AGAIN = 6; // a curve that has grown to this many times its pixels is loaded anew, thinned
const LOG_LINES = 1_000;
const ENDED = new Set(["finished", "failed", "cancelled"]);

async function getJson(url) {
  const answer = await fetch(url, { headers: { Accept: "application/json" }, credentials: "same-origin" });
  if (!answer.ok) {
    const error = new Error(`${url} answered ${answer.status}`);
    error.isFinal = answer.status < 500; // signed out, or no longer of the team: asking again does not help
    throw error;
  }
  return answer.json();
}

class JobCharts {
  constructor(root) {
    this.root = root;
    this.metricsUrl = root.dataset.metricsUrl;
    this.jobUrl = this.metricsUrl.replace(/\/metrics$/, "");
    this.curves = new Curves();
    this.charts = new Map();
    this.dirty = new Set();
    this.isLog = false;
    this.build();
    const logs = document.getElementById("log-lines");
    this.logs = logs && new LogView(logs);
    this.logsUrl = logs?.dataset.logsUrl;
    this.changes = new Changes();
    this.feed = new JobFeed({ load: () => this.load(), sink: this });
    this.isEnded = root.dataset.ended === "true";
    if (this.isEnded) this.feed.resync().then(() => showState("ended"), () => showState("ended"));
    else this.listen();
  }

  listen() {
    this.socket = new Socket(socketUrl(this.root.dataset.wsUrl), {
      onReady: () => this.catchUp(),
      onMessage: (message) => this.feed.message(message),
      onState: showState,
    });
  }

  async catchUp() {
    try {
      await this.feed.resync();
      showState(this.isEnded ? "ended" : "live");
      if (this.wasLive) this.changes.add(Number(this.root.dataset.jobId), "state"); // what changed meanwhile is unknown
      this.wasLive = true;
    } catch {
      this.socket.close();
      showState("ended");
    }
  }

  // --- what the feed asks for and brings ---

  async load() {
    const width = Math.max(200, Math.min(2_000, this.grid.clientWidth));
    const known = [...this.curves.metrics.values()].reduce((sum, sources) => sum + sources.size, 0);
    this.points = Math.max(16, Math.min(width, Math.floor(MOST_POINTS / Math.max(1, known))));
    const metrics = await getJson(`${this.metricsUrl}?points=${this.points}`);
    if (!this.logs) return { metrics, logs: { seq: metrics.seq, lines: [] } };
    return { metrics, logs: await getJson(`${this.logsUrl}?limit=${LOG_LINES}`) };
  }

  replace({ metrics, logs }) {
    this.curves.replace(metrics.series);
    for (const [name, room] of this.rooms) {
      room.classList.add("is-waiting");
      if (!this.isEnded || this.curves.metrics.has(name)) continue;
      room.remove(); // nothing is to come any more
      this.rooms.delete(name);
    }
    for (const [name, chart] of this.charts) {
      if (this.curves.metrics.has(name)) continue;
      chart.close();
      this.charts.delete(name);
    }
    this.mark(this.curves.metrics.keys());
    this.logs?.catchUp(logs.lines, LOG_LINES);
  }

  applyPoints(frame) {
    this.mark(this.curves.append(frame));
    if (this.curves.longest > THIN_AGAIN * this.points) this.feed.again();
  }

  applyLogs(lines) {
    this.logs?.append(lines);
  }

  async applyChanged(message) {
    this.changes.add(message.job, message.what);
    if (message.what !== "state") return;
    const job = await getJson(this.jobUrl).catch(() => null);
    if (!job || ENDED.has(job.state) === this.isEnded) return;
    this.isEnded = !this.isEnded;
    await this.feed.resync().catch(() => {});
    showState(this.isEnded ? "ended" : "live");
  }

  // --- drawing ---

  build() {
    this.grid = this.root.querySelector(".chart-grid");
    this.empty = this.root.querySelector(".charts-empty");
    this.rooms = new Map([...this.grid.querySelectorAll("[data-room]")].map((room) => [room.dataset.room, room]));
    const scale = this.root.querySelector(".charts-scale");
    scale.addEventListener("click", () => {
      this.isLog = !this.isLog;
      scale.setAttribute("aria-pressed", String(this.isLog));
      for (const chart of this.charts.values()) chart.setLog(this.isLog);
    });
    // Canvas colours come from the theme's variables and do not follow it by themselves.
    const redraw = () => this.charts.forEach((chart) => chart.redraw());
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-bs-theme"] });
  }

  /** Draw these metrics' charts soon: one drawing for all that comes meanwhile, and none while the tab is hidden. */
  mark(names) {
    for (const name of names) this.dirty.add(name);
    const none = this.isEnded ? "No metric came." : "Curves begin with the first report.";
    this.empty.textContent = this.curves.metrics.size ? "" : [none, this.root.dataset.none ?? ""].join(" ").trim();
    this.timer ??= setTimeout(() => requestAnimationFrame(() => this.draw()), DRAW_MS);
  }

  draw() {
    this.timer = null;
    for (const name of [...this.dirty].sort(byImportance)) {
      if (!this.curves.metrics.has(name)) continue;
      if (!this.charts.has(name)) this.addChart(name);
      this.charts.get(name).draw();
    }
    this.dirty.clear();
  }

  addChart(name) {
    const chart = new Chart(name, this.curves, this.root.dataset.step);
    chart.isLog = this.isLog;
    const room = this.rooms.get(name);
    if (room) {
      // Of its sources the first one may come alone.
      chart.element.style.minHeight = `${room.offsetHeight}px`;
      room.replaceWith(chart.element);
      this.rooms.delete(name);
    } else {
      const places = new Map([...this.rooms, ...[...this.charts].map(([other, { element }]) => [other, element])]);
      const next = [...places.keys()].sort(byImportance).find((other) => byImportance(name, other) < 0);
      this.grid.insertBefore(chart.element, next ? places.get(next) : null);
    }
    this.charts.set(name, chart);
  }
}

const root = document.getElementById("charts");
if (root) new JobCharts(root);
