/* The live curves of one job: a grid of uPlot charts, one for each metric.
 *
 * MOUNT CONTRACT. The page holds
 *
 *   <link rel="stylesheet" href="{% static 'vendor/uplot/uPlot.min.css' %}">
 *   <div id="charts" data-job-id="12" data-metrics-url="/api/v1/jobs/12/metrics" data-ws-url="/ws/jobs/12/"
 *        data-ended="false"></div>                      data-ended="true": the job is over, no socket is opened
 *   <div id="log-lines" data-logs-url="/api/v1/jobs/12/logs"></div>      optional; it scrolls itself
 *   <span data-live-mark></span>                        optional, any number: text and data-state are kept up to date
 *   <script type="module" src="{% static 'js/charts.js' %}"></script>
 *
 * The list page holds <div id="job-list" data-ws-url="/ws/jobs/"> and <script type="module" src="{% static 'js/live.js' %}">.
 *
 * Events, for whoever listens (both are dispatched on document.body):
 *   live:state   detail {state: "connecting" | "live" | "reconnecting" | "ended"}
 *   job:changed  detail {jobs: [12], what: ["state", "rounds", "artifacts"]}, at most one in 300 ms; for htmx:
 *                hx-trigger="job:changed[detail.what.includes('rounds')] from:body"
 *
 * Inside #charts this module makes, and the style sheet may dress (colours only through the variables below):
 *   .charts-bar > button.charts-scale[aria-pressed]          linear / log
 *   .chart-grid > figure.chart > figcaption + .chart-plot + .chart-legend (table with the latest values)
 *   .chart.is-skeleton while history loads, .charts-empty (a sentence) when there is no point yet
 * CSS variables read from #charts: --chart-text, --chart-grid, --chart-aggregate (each has a default for light and dark).
 *   Log lines: div.log-line[data-level] > time + span.log-source + span.log-text
 */
