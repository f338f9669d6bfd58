/* The log lines of a job: appended as they come, never twice, the newest in sight unless the reader has scrolled up. */

const MOST_LINES = 2_000; // older ones leave the page; the API has them all
const NEAR_END = 40; // pixels

export class LogView {
  constructor(element) {
    this.element = element;
    this.lastId = 0;
    element.setAttribute("role", "log");
    element.tabIndex = 0; // scrolls from the keyboard
  }

  /** Take the newest lines of the job, at most `limit`; where they do not reach back to what stands here, start anew. */
  catchUp(lines, limit) {
    if (this.lastId && lines.length === limit && lines[0].id > this.lastId) this.element.replaceChildren();
    this.append(lines);
  }

  /** Append lines (oldest first), leaving out those that stand there already. */
  append(lines) {
    const fresh = lines.filter((line) => line.id > this.lastId);
    if (!fresh.length) return;
    this.lastId = fresh.at(-1).id;
    const box = this.element;
    const follows = box.scrollHeight - box.scrollTop - box.clientHeight < NEAR_END;
    box.append(...fresh.map(lineNode));
    while (box.childElementCount > MOST_LINES) box.firstElementChild.remove();
    if (follows) box.scrollTop = box.scrollHeight;
  }
}

function lineNode(line) {
  const at = new Date(line.time * 1000);
  const time = document.createElement("time");
  time.dateTime = at.toISOString();
  time.title = at.toLocaleString();
  time.textContent = at.toLocaleTimeString("en-GB");
  const source = document.createElement("span");
  source.className = "log-source";
  source.textContent = line.source;
  const text = document.createElement("span");
  text.className = "log-text";
  text.textContent = line.text;
  const row = document.createElement("div");
  row.className = "log-line";
  row.dataset.level = line.level;
  row.append(time, source, text);
  return row;
}
