/* Keeps "3 min ago" true, and puts the exact time on hover in the viewer's own zone. The words are those of ui.py. */

const UNITS = [
  [86400, 86400, "d"],
  [3600, 3600, "h"],
  [60, 60, "min"],
  [0, 1, "s"],
];

export function duration(seconds) {
  if (seconds >= 3600 && seconds < 36000) return `${(seconds / 3600).toFixed(1).replace(".0", "")} h`;
  const [, unit, word] = UNITS.find(([least]) => seconds >= least);
  return `${Math.floor(seconds / unit)} ${word}`;
}

export function relative(seconds) {
  if (Math.abs(seconds) < 1) return "now";
  return seconds < 0 ? `in ${duration(-seconds)}` : `${duration(seconds)} ago`;
}

function refresh(root = document) {
  const now = Date.now();
  for (const element of root.querySelectorAll("time[data-relative]")) {
    const at = new Date(element.dateTime);
    const words = relative((now - at) / 1000);
    if (element.textContent !== words) element.textContent = words;
    if (!element.dataset.local) {
      element.dataset.local = "true";
      element.title = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "long" });
    }
  }
}

refresh();
setInterval(() => document.hidden || refresh(), 1000);
document.addEventListener("htmx:afterSettle", () => refresh());
