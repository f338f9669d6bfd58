/* Behaviour of every page. Nothing here is needed to read a page or to send a form, only to do it comfortably. */

import { duration } from "./time.js";

// --- sidebar on small screens ---
const root = document.documentElement;
function showMenu(open) {
  root.classList.toggle("menu-open", open);
  document.querySelector("[data-menu]")?.setAttribute("aria-expanded", String(open));
}
document.addEventListener("click", (event) => {
  if (event.target.closest("[data-menu]")) showMenu(!root.classList.contains("menu-open"));
  else if (event.target.closest("[data-menu-close]")) showMenu(false);
});
document.addEventListener("keydown", (event) => event.key === "Escape" && showMenu(false));

// --- a dialog is opened by the button that names it; its form sends as any other ---
document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-dialog]");
  if (opener) document.getElementById(opener.dataset.dialog)?.showModal();
  if (event.target.closest("[data-dialog-close]")) event.target.closest("dialog").close();
  if (event.target.matches("dialog")) event.target.close(); // a click on the backdrop
});

// --- a form is sent once ---
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post") return;
  if (form.dataset.sent) {
    event.preventDefault();
    return;
  }
  form.dataset.sent = "true";
  // After this event, so that the pressed button's own value is still sent.
  setTimeout(() => {
    for (const button of form.querySelectorAll("button:not([type=button])")) button.disabled = true;
  });
});
addEventListener("pageshow", (event) => {
  if (!event.persisted) return; // back from the browser's cache: the form may be sent again
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
    for (const button of form.querySelectorAll("button:disabled")) button.disabled = false;
  }
});

// --- copying ---
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  const word = button.querySelector("[data-word]") ?? button;
  const before = word.textContent;
  try {
    await navigator.clipboard.writeText(source.textContent.trim());
    word.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(source); // no clipboard over plain HTTP: it is marked, Ctrl-C copies it
    word.textContent = "Press Ctrl-C";
  }
  setTimeout(() => (word.textContent = before), 1600);
});

// --- toasts: a good one leaves by itself, a bad one stays until it was read ---
document.addEventListener("click", (event) => event.target.closest("[data-toast-close]")?.closest(".toast-note").remove());
for (const toast of document.querySelectorAll(".toast-note:not(.error)")) setTimeout(() => toast.remove(), 6000);

// --- filters send themselves ---
document.addEventListener("change", (event) => event.target.closest("form[data-auto-send]")?.requestSubmit());

// --- parts that say when they want to be fetched anew: data-refresh-on="state rounds" ---
document.body.addEventListener("job:changed", (event) => {
  for (const part of document.querySelectorAll("[data-refresh-on]")) {
    if (event.detail.what.some((what) => part.dataset.refreshOn.split(" ").includes(what))) htmx.trigger(part, "refresh");
  }
});
// From here on nothing passes unheard; what happened between the drawing of the page and now, or in a gap, is fetched.
document.body.addEventListener("live:state", (event) => {
  if (event.detail.state !== "live") return;
  for (const part of document.querySelectorAll("[data-refresh-on]")) htmx.trigger(part, "refresh");
});

// An answer to what a form no longer says is not drawn over what was typed since; another one is on its way.
document.body.addEventListener("htmx:beforeSwap", (event) => {
  const { elt, formData } = event.detail.requestConfig;
  if (elt.id !== "job-form") return;
  const said = new URLSearchParams(new FormData(elt)).toString();
  if (said !== new URLSearchParams(formData).toString()) event.detail.shouldSwap = false;
});

// --- a form that was refused: the first wrong field is where one goes on ---
const wrong = document.querySelector("form[data-refused] [aria-invalid=true]");
(wrong?.querySelector("input:checked") ?? wrong)?.focus();

// --- the rounds of a job: which are opened, and how many are shown, goes along with every later fetch ---
function toggleWish(wish, name, value) {
  const input = wish.querySelector(`input[name="${name}"][value="${value}"]`);
  if (input) input.remove();
  else wish.append(Object.assign(document.createElement("input"), { type: "hidden", name, value }));
}
document.addEventListener("click", (event) => {
  const part = event.target.closest("#part-rounds");
  const twist = event.target.closest("[data-open-round]");
  const more = event.target.closest("[data-more-rounds]");
  if (!part || !(twist || more)) return;
  const wish = document.getElementById("rounds-wish");
  if (more) wish.querySelector("input[name=rounds]")?.remove();
  if (twist) toggleWish(wish, "open", twist.dataset.openRound);
  else toggleWish(wish, "rounds", more.dataset.moreRounds);
  htmx.trigger(part, "refresh");
});

// --- how long a job has been running ---
setInterval(() => {
  for (const element of document.querySelectorAll("[data-since]")) {
    element.textContent = duration(Math.max(0, (Date.now() - new Date(element.dataset.since)) / 1000));
  }
}, 1000);
