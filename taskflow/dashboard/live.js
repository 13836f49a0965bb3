// Keeps a page up to date. It listens for changes while the page is visible, and then fetches its content again.
const INTERVAL = 2000; // milliseconds between two fetches
const main = document.getElementById("main");
const note = document.getElementById("live");
let source = null;
let timer = 0;
let last = Date.now();

// A person who is typing or has selected jobs must not lose that.
function isBusy() {
  const focus = document.activeElement;
  const isTyping = main.contains(focus) && focus.matches("input:not([type=checkbox]), select, textarea");
  return isTyping || main.querySelector("input[type=checkbox]:checked") !== null || !getSelection().isCollapsed;
}

function nameOf(element) {
  return ["href", "name", "value", "aria-label"].map((name) => element.getAttribute(name) ?? "").join(" ") + element.tagName;
}

function replace(text) {
  const open = [...main.querySelectorAll("details")].map((details) => details.open);
  const focus = main.contains(document.activeElement) ? nameOf(document.activeElement) : null;
  const scrolled = [...main.querySelectorAll(".scroll")].map((region) => region.scrollLeft);
  main.replaceChildren(...new DOMParser().parseFromString(text, "text/html").body.childNodes);
  const details = [...main.querySelectorAll("details")];
  if (details.length === open.length) details.forEach((each, place) => (each.open = open[place]));
  [...main.querySelectorAll(".scroll")].forEach((region, place) => (region.scrollLeft = scrolled[place] ?? 0));
  if (focus !== null) [...main.querySelectorAll("*")].find((each) => nameOf(each) === focus)?.focus({ preventScroll: true });
}

async function refresh() {
  last = Date.now();
  try {
    const answer = await fetch(location.href, { headers: { "X-Taskflow-Fragment": "1" } });
    if (!answer.ok) throw new Error(answer.status);
    const text = await answer.text();
    if (isBusy()) return void (timer = setTimeout(refresh, INTERVAL));
    replace(text);
    timer = 0;
    note.textContent = "live";
  } catch {
    timer = 0;
    note.textContent = "not live";
  }
}

function refreshSoon() {
  timer ||= setTimeout(refresh, Math.max(0, last + INTERVAL - Date.now()));
}

function watch() {
  source?.close();
  source = null;
  clearTimeout(timer);
  timer = 0;
  note.textContent = "";
  if (document.hidden) return;
  source = new EventSource(main.dataset.live);
  source.addEventListener("seen", () => (note.textContent = "live"));
  source.addEventListener("change", refreshSoon);
  source.addEventListener("error", () => (note.textContent = source.readyState === EventSource.CLOSED ? "not live" : note.textContent));
}

document.addEventListener("visibilitychange", () => {
  watch();
  if (!document.hidden) refreshSoon();
});
watch();
