/* The live stream of a page: one socket, its reconnection, and the numbering that lets nothing be lost or drawn twice.
 *
 * The table is the truth, the socket a hint. A JobFeed opens the socket first and holds its frames back while the history
 * loads; then it applies the frames above the history's number. Frames carry consecutive numbers: where one is missing for
 * GAP_MS, after every reconnection, and on `resync` (the server threw frames away for a socket that was too slow), the
 * history is loaded anew and replaces what is drawn.
 *
 * On the list page this module mounts itself on #job-list; on the job page charts.js uses it.
 */

const GAP_MS = 300; // two writers' frames may cross on their way
const SILENCE_MS = 45_000; // the server pings every 20 s
const CHANGED_MS = 300;
const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 15_000;
const SHUT = new Set([4401, 4404]); // sign in first; no such job, for you

/** Milliseconds to wait before try number `n` (from 0): doubling, with jitter so that a crowd does not return at once. */
export function backOff(n, random = Math.random) {
  return Math.min(LONGEST_RETRY_MS, FIRST_RETRY_MS * 2 ** n) * (0.5 + random() / 2);
}

/** Tells the page about its connection: "connecting", "live", "reconnecting" or "ended". */
export function showState(state) {
  const words = { connecting: "Connecting", live: "Live", reconnecting: "Reconnecting", ended: "Ended" };
  for (const mark of document.querySelectorAll("[data-live-mark]")) {
    mark.dataset.state = state;
    mark.textContent = words[state];
  }
  document.body.dispatchEvent(new CustomEvent("live:state", { detail: { state } }));
}

/** A websocket that comes back. Calls onReady at each (re)connection, onMessage with each parsed message. */
export class Socket {
  constructor(url, { onReady, onMessage, onState, WebSocketClass = WebSocket }) {
    Object.assign(this, { url, onReady, onMessage, onState, WebSocketClass });
    this.tries = 0;
    this.open();
  }

  open() {
    clearTimeout(this.timer);
    this.onState(this.tries ? "reconnecting" : "connecting");
    this.isReady = false;
    const socket = (this.socket = new this.WebSocketClass(this.url));
    socket.onmessage = (event) => {
      if (socket !== this.socket) return;
      this.listen();
      if (!this.isReady) {
        // The first message says that the socket is joined to its groups: from here on nothing passes unheard.
        this.isReady = true;
        this.tries = 0;
        this.onReady();
      }
      const message = JSON.parse(event.data);
      if (message.type !== "ping") this.onMessage(message);
    };
    socket.onclose = (event) => {
      if (socket === this.socket) this.lost(event.code);
    };
    this.listen();
  }

  /** Wait for the next message; a connection that is silent for too long is dead, though nobody closed it. */
  listen() {
    clearTimeout(this.silence);
    this.silence = setTimeout(() => this.lost(0), SILENCE_MS);
  }

  lost(code) {
    this.close();
    if (SHUT.has(code)) {
      this.onState("ended");
      return;
    }
    this.onState("reconnecting");
    this.timer = setTimeout(() => this.open(), backOff(this.tries++));
  }

  close() {
    clearTimeout(this.silence);
    clearTimeout(this.timer);
    const socket = this.socket;
    this.socket = null;
    if (socket) socket.close();
  }
}

/** Collects "something changed" messages and says them once in 300 ms, as events of the page's body. */
export class Changes {
  constructor(say = sayChanged) {
    this.say = say;
    this.jobs = new Set();
    this.what = new Set();
    this.timer = null;
  }

  add(job, what) {
    this.jobs.add(job);
    this.what.add(what);
    this.timer ??= setTimeout(() => {
      const detail = { jobs: [...this.jobs], what: [...this.what] };
      this.jobs.clear();
      this.what.clear();
      this.timer = null;
      this.say(detail);
    }, CHANGED_MS);
  }
}

function sayChanged(detail) {
  document.body.dispatchEvent(new CustomEvent("job:changed", { detail }));
  for (const what of detail.what) document.body.dispatchEvent(new CustomEvent(`job:${what}`, { detail }));
}

/** The numbered frames of one job, put in order behind its history.
 *
 * `load()` returns a promise of {metrics, logs}, both with their `seq`; `sink` has replace({metrics, logs}),
 * applyPoints(frame), applyLogs(lines) and applyChanged(message).
 */
export class JobFeed {
  constructor({ load, sink }) {
    Object.assign(this, { load, sink });
    this.seq = null; // the last number that is applied; null before the first history
    this.metricsSeq = 0;
    this.held = new Map(); // number -> frame
    this.loading = null;
    this.wanted = false;
  }

  /** Load the history anew and go on from there. A call while one is loading loads once more afterwards. */
  async resync() {
    clearTimeout(this.gap);
    this.gap = null;
    if (this.loading) {
      this.wanted = true;
      return this.loading;
    }
    this.loading = this.reload();
    try {
      await this.loading;
    } finally {
      this.loading = null;
    }
    if (this.wanted) {
      this.wanted = false;
      return this.resync();
    }
    this.drain();
  }

  async reload() {
    for (let n = 0; ; n++) {
      try {
        const { metrics, logs } = await this.load();
        this.sink.replace({ metrics, logs });
        this.metricsSeq = metrics.seq;
        // The two were read one after the other: frames between them are looked at once more, and what is known is left.
        this.seq = Math.min(metrics.seq, logs.seq);
        return;
      } catch (error) {
        if (error.isFinal) throw error;
        await new Promise((wake) => setTimeout(wake, backOff(n)));
      }
    }
  }

  message(message) {
    if (message.type === "resync") this.again();
    else if (message.type === "changed") this.sink.applyChanged(message);
    else {
      this.held.set(message.seq, message);
      if (!this.loading) this.drain();
    }
  }

  /** Apply the held frames that follow without a gap; where one is missing, wait a little, then load. */
  drain() {
    if (this.seq === null) return;
    for (const seq of [...this.held.keys()].sort((a, b) => a - b)) {
      if (seq > this.seq + 1) break;
      const frame = this.held.get(seq);
      this.held.delete(seq);
      if (seq === this.seq + 1) this.seq = seq;
      else continue; // it is in the history already
      if (frame.type === "points") {
        if (seq > this.metricsSeq) this.sink.applyPoints(frame);
      } else if (frame.skipped) this.again();
      else this.sink.applyLogs(frame.lines);
    }
    if (!this.held.size) {
      clearTimeout(this.gap);
      this.gap = null;
    } else this.gap ??= setTimeout(() => this.again(), GAP_MS);
  }

  /** Load anew, of the feed's own accord. Where the door is closed by now, the socket will be shut as well and say so. */
  again() {
    this.resync().catch(() => {});
  }
}

/** The ws:// or wss:// address of a path on this host. */
export function socketUrl(path) {
  return new URL(path, location.href.replace(/^http/, "ws")).href;
}

const list = globalThis.document?.getElementById("job-list");
if (list?.dataset.wsUrl) {
  const changes = new Changes();
  let isFirst = true;
  new Socket(socketUrl(list.dataset.wsUrl), {
    // What happened while the page was not connected is unknown: look at everything once.
    onReady: () => {
      if (!isFirst) changes.add(null, "state");
      isFirst = false;
      showState("live");
    },
    onMessage: (message) => {
      if (message.type === "changed") changes.add(message.job, message.what);
      else if (message.type === "resync") changes.add(null, "state");
    },
    onState: showState,
  });
}
