/* The numbering of frames, without a browser: node --test (test_javascript.py runs it). */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Curves, align, byImportance, show } from "../../../static/js/curves.js";
import { JobFeed, Socket, backOff } from "../../../static/js/live.js";

const tick = (ms = 0) => new Promise((wake) => setTimeout(wake, ms));

/** A feed over a server whose history is set by hand. Everything that is drawn lands in `drawn`. */
function makeFeed(history) {
  const drawn = [];
  const server = { metrics: history, logs: history, loads: 0, hold: Promise.resolve() };
  const feed = new JobFeed({
    load: async () => {
      server.loads++;
      const seen = { metrics: { seq: server.metrics }, logs: { seq: server.logs, lines: [] } };
      await server.hold;
      return seen;
    },
    sink: {
      replace: ({ metrics }) => drawn.splice(0, Infinity, `history ${metrics.seq}`),
      applyPoints: (frame) => drawn.push(frame.seq),
      applyLogs: (lines) => drawn.push(...lines),
      applyChanged: (message) => drawn.push(message.what),
    },
  });
  return { feed, server, drawn };
}

const points = (seq) => ({ type: "points", seq, series: [] });

test("frames that come while the history loads wait for it", async () => {
  const { feed, server, drawn } = makeFeed(5);
  let loaded;
  server.hold = new Promise((resolve) => (loaded = resolve));
  const done = feed.resync();
  for (const seq of [4, 5, 6, 7]) feed.message(points(seq));
  assert.deepEqual(drawn, []);
  loaded();
  await done;
  assert.deepEqual(drawn, ["history 5", 6, 7]); // 4 and 5 are in the history: not drawn twice
});

test("frames that cross on the way are put in order", async () => {
  const { feed, server, drawn } = makeFeed(0);
  await feed.resync();
  for (const seq of [2, 1, 4, 3]) feed.message(points(seq));
  assert.deepEqual(drawn, ["history 0", 1, 2, 3, 4]);
  await tick(350);
  assert.equal(server.loads, 1);
});

test("a frame that stays away makes the page load anew, once", async () => {
  const { feed, server, drawn } = makeFeed(0);
  await feed.resync();
  feed.message(points(1));
  server.metrics = server.logs = 4;
  feed.message(points(3));
  feed.message(points(4));
  assert.deepEqual(drawn, ["history 0", 1]);
  await tick(350);
  assert.deepEqual(drawn, ["history 4"]);
  assert.equal(server.loads, 2);
  feed.message(points(5));
  assert.deepEqual(drawn, ["history 4", 5]);
});

test("a frame that comes twice is drawn once", async () => {
  const { feed, drawn } = makeFeed(0);
  await feed.resync();
  for (const seq of [1, 1, 2, 2, 1]) feed.message(points(seq));
  assert.deepEqual(drawn, ["history 0", 1, 2]);
});

test("curves and logs that were read at different numbers lose and double nothing", async () => {
  const { feed, server, drawn } = makeFeed(0);
  server.metrics = 7;
  server.logs = 5;
  const done = feed.resync();
  feed.message({ type: "logs", seq: 6, skipped: 0, lines: ["line of 6"] });
  feed.message(points(7));
  feed.message(points(8));
  await done;
  assert.deepEqual(drawn, ["history 7", "line of 6", 8]);
});

test("skipped lines and a socket that was too slow make the page load anew", async () => {
  const { feed, server } = makeFeed(0);
  await feed.resync();
  server.metrics = server.logs = 1;
  feed.message({ type: "logs", seq: 1, skipped: 9, lines: [] });
  await tick();
  assert.equal(server.loads, 2);
  feed.message({ type: "resync" });
  await tick();
  assert.equal(server.loads, 3);
});

test("a socket comes back by itself, and stays away when it is shut", async () => {
  const made = [];
  class FakeWebSocket {
    constructor() {
      made.push(this);
    }
    close() {}
  }
  const states = [];
  let ready = 0;
  const socket = new Socket("ws://x/", {
    WebSocketClass: FakeWebSocket,
    onReady: () => ready++,
    onMessage: () => {},
    onState: (state) => states.push(state),
  });
  made[0].onmessage({ data: '{"type": "ping"}' });
  assert.equal(ready, 1);
  made[0].onclose({ code: 1006 });
  await tick(600);
  assert.equal(made.length, 2);
  made[0].onclose({ code: 1006 }); // the old one's last word is not heard
  made[1].onmessage({ data: '{"type": "ping"}' });
  assert.equal(ready, 2);
  made[1].onclose({ code: 4404 });
  await tick(600);
  assert.equal(made.length, 2);
  assert.deepEqual(states, ["connecting", "reconnecting", "reconnecting", "ended"]);
  socket.close();
});

test("tries get rarer, with jitter", () => {
  assert.equal(backOff(0, () => 0), 250);
  assert.equal(backOff(0, () => 1), 500);
  assert.equal(backOff(9, () => 1), 15_000);
});

const curve = (steps, values, extra = {}) => ({ name: "loss", source: "a", attempt: 1, steps, values, ...extra });
const frame = (attempt, steps, values, source = "a") => ({ attempt, series: [{ name: "loss", source, steps, values }] });

test("a later attempt cuts the older one's curve from where it took up", () => {
  const curves = new Curves();
  curves.replace([curve([0, 10, 20, 30], [4, 3, 2, 1])]);
  curves.append(frame(2, [15, 25], [9, 8]));
  curves.append(frame(1, [40], [0])); // a late frame of the older attempt
  const held = curves.metrics.get("loss").get("a");
  assert.deepEqual(held.steps, [0, 10, 15, 25]);
  assert.deepEqual(held.values, [4, 3, 9, 8]);
});

test("points out of order are sorted by step", () => {
  const curves = new Curves();
  curves.append(frame(1, [5, 7], [5, 7]));
  curves.append(frame(1, [6], ["NaN"]));
  assert.deepEqual(curves.metrics.get("loss").get("a"), { attempt: 1, steps: [5, 6, 7], values: [5, NaN, 7] });
});

test("a source keeps its look", () => {
  const curves = new Curves();
  curves.replace([curve([0], [0], { source: "rank 10" }), curve([0], [0], { source: "rank 2" })]);
  const first = curves.looks.get("rank 2");
  curves.append(frame(1, [0], [0], "rank 1"));
  curves.replace([curve([0], [0], { source: "rank 1" })]);
  assert.equal(curves.looks.get("rank 2"), first);
  assert.equal(new Set([...curves.looks.values()].map((look) => JSON.stringify(look))).size, 3); // a ninth has a dash
});

test("a rank's look is that of its number, whoever speaks first", () => {
  const [early, late] = [new Curves(), new Curves()];
  early.dress(["rank 0", "rank 1"]);
  late.dress(["rank 1"]);
  late.dress(["rank 0"]);
  assert.deepEqual(late.looks.get("rank 0"), early.looks.get("rank 0"));
  assert.deepEqual(late.looks.get("rank 1"), early.looks.get("rank 1"));
});

test("curves are aligned: null is a gap, undefined a step of others", () => {
  const data = align([{ steps: [0, 2], values: [1, NaN] }, { steps: [1, 2], values: [-1, 3] }], { isLog: true });
  assert.deepEqual(data, [[0, 1, 2], [1, undefined, null], [undefined, null, 3]]);
});

test("losses stand first, train and test together, numbers in natural order", () => {
  const names = ["layer 10/norm", "test/accuracy", "layer 9/norm", "test/loss", "train/loss"];
  assert.deepEqual(names.sort(byImportance), ["test/loss", "train/loss", "test/accuracy", "layer 9/norm", "layer 10/norm"]);
});

test("values are short and say what is no number", () => {
  assert.deepEqual([0.123456, 1234.5678, 1.5e-6, 0, NaN, Infinity, -Infinity, undefined].map(show), [
    "0.12346", "1,234.6", "1.500e-6", "0", "NaN", "∞", "−∞", "",
  ]);
});
