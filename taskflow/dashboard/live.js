// Keeps a page up to date while it is visible: decides when htmx fetches and morphs it. One of a browser's visible tabs listens for
// changes, and notifies the other tabs.
const INTERVAL = 2000; // milliseconds between two fetches
const AGAIN = 5000; // milliseconds until a refused stream is opened again
const main = document.getElementById("main");
const note = document.getElementById("live");
const { live, name } = main.dataset;
let seen = ""; // the state of the store that the page shows
let timer = 0;
let last = Date.now();
let stop = () => {};
let tell = () => {}; // notifies the other tabs

// A refresh must not discard what the user is typing or has selected. Returns what holds it back, or an empty string.
function hold() {
  const focus = document.activeElement;
  if (main.querySelector("input[type=checkbox]:checked")) return "paused: jobs are selected";
  if (main.contains(focus) && focus.matches("input:not([type=checkbox]), select, textarea")) return "paused: a field is in use";
  return getSelection().isCollapsed ? "" : "paused: text is selected";
}

function show(state) {
  note.textContent = state === "live" ? hold() || state : state;
}

main.addEventListener("change", ({ target }) => target.type === "checkbox" && /^(live|paused)/.test(note.textContent) && show("live"));

// What the user has opened stays open, and a chart takes its new values by itself.
Object.assign(Idiomorph.defaults.callbacks, {
  beforeAttributeUpdated: (attribute, element) => attribute !== "open" || !element.matches("details"),
  beforeNodeMorphed(old, next) {
    const isPlot = old.localName === "live-plot" && next.localName === "live-plot";
    if (isPlot) old.dataset.plot = next.dataset.plot;
    return !isPlot;
  },
});

main.addEventListener("htmx:configRequest", ({ detail }) => {
  timer = 0;
  last = Date.now();
  if (seen) detail.headers["If-None-Match"] = `"${seen}"`;
});
main.addEventListener("htmx:sendError", () => (note.textContent = "not live"));
main.addEventListener("htmx:beforeSwap", ({ detail }) => {
  const { status, responseURL } = detail.xhr;
  const isPage = status === 200 && responseURL === location.href.split("#")[0]; // and no redirect to a sign-in
  show(isPage || status === 304 ? "live" : "not live");
  detail.shouldSwap = isPage && !hold();
  if (detail.shouldSwap) tell((seen = (detail.xhr.getResponseHeader("ETag") ?? "").replaceAll('"', "")));
  else if (isPage) refreshSoon();
});

function refreshSoon() {
  timer ||= setTimeout(() => htmx.trigger(main, "refresh"), Math.max(0, last + INTERVAL - Date.now()));
}

function hear(state) {
  show(state === "away" ? "the store does not answer" : "live");
  if (state === "away") return;
  if (seen && state !== seen) refreshSoon();
  seen ||= state;
}

// Listens until the function that it returns is called.
function listen() {
  if (!live) {
    const poll = setInterval(refreshSoon, INTERVAL);
    return () => clearInterval(poll);
  }
  let source = null;
  let again = 0;
  let drops = 0; // since it was open; each stream ends after a while
  const on = (state) => (hear(state), tell(state));
  function open() {
    source = new EventSource(live);
    source.addEventListener("open", () => (drops = 0));
    source.addEventListener("state", (event) => on(event.lastEventId));
    source.addEventListener("away", () => on("away"));
    source.addEventListener("error", () => {
      if (++drops > 1 || source.readyState === EventSource.CLOSED) note.textContent = "not live";
      if (source.readyState === EventSource.CLOSED) again = setTimeout(open, AGAIN);
    });
  }
  open();
  return () => {
    source.close();
    clearTimeout(again);
  };
}

// Browsers open only a few connections to a server, so the streams of several tabs would block other requests.
function share() {
  const channel = new BroadcastChannel(`taskflow ${name}`);
  const ending = new AbortController();
  let isFirst = false;
  tell = (state) => isFirst && state && channel.postMessage(state);
  channel.onmessage = ({ data }) => (data === "?" ? tell(seen) : hear(data));
  channel.postMessage("?");
  const lead = () =>
    new Promise((done) => {
      isFirst = true;
      const end = listen();
      ending.signal.addEventListener("abort", () => (end(), done()));
    });
  navigator.locks.request(`taskflow ${name}`, { signal: ending.signal }, lead).catch(() => {});
  return () => {
    ending.abort();
    channel.close();
    tell = () => {};
  };
}

function watch() {
  stop();
  stop = () => {};
  clearTimeout(timer);
  timer = 0;
  note.textContent = "";
  if (document.hidden) return;
  stop = navigator.locks && globalThis.BroadcastChannel ? share() : listen();
}

document.addEventListener("visibilitychange", () => {
  watch();
  if (!document.hidden) refreshSoon();
});
watch();
