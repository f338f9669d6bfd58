/* Filters the log panel: by text, source and level. logs.js fills it. */

const lines = document.getElementById("log-lines");
const text = document.getElementById("log-text");
const source = document.getElementById("log-source");
const level = document.getElementById("log-level");
const none = document.querySelector(".log-none");
const LEVELS = { warning: ["warning", "error"], error: ["error"] };
const sources = new Set();

const sourceOf = (line) => line.querySelector(".log-source")?.textContent.trim() ?? "";

function fits(line) {
  if (level.value && !LEVELS[level.value].includes(line.dataset.level)) return false;
  if (source.value && sourceOf(line) !== source.value) return false;
  return !text.value || line.textContent.toLowerCase().includes(text.value.toLowerCase());
}

function take(line) {
  const from = sourceOf(line);
  if (from && !sources.has(from)) {
    sources.add(from);
    source.add(new Option(from, from));
  }
  line.hidden = !fits(line);
}

const all = () => lines.querySelectorAll(".log-line");

function tellNone() {
  none.hidden = !lines.childElementCount || [...lines.children].some((line) => !line.hidden);
}

new MutationObserver((changes) => {
  for (const { addedNodes } of changes) {
    for (const node of addedNodes) if (node instanceof HTMLElement && node.matches(".log-line")) take(node);
  }
  tellNone();
}).observe(lines, { childList: true });
function takeAll() {
  all().forEach(take);
  tellNone();
}
for (const control of [text, source, level]) control.addEventListener("input", takeAll);
takeAll();
