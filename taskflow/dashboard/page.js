// Keyboard shortcuts for links and forms, and the browser's time zone.
const main = document.getElementById("main");
const help = document.getElementById("keys");

function move(step) {
  const rows = [...main.querySelectorAll("tbody tr, article")].filter((row) => row.querySelector("a[href]"));
  const here = rows.findIndex((row) => row.contains(document.activeElement));
  const next = rows[here < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(Math.max(here + step, 0), rows.length - 1)];
  next?.querySelector("a[href]").focus();
}

const keys = {
  "/": () => main.querySelector(".filters input:not([type=hidden])")?.focus(),
  "?": () => help.showModal(),
  j: () => move(1),
  k: () => move(-1),
  x: () => document.activeElement.closest("tr")?.querySelector("input[type=checkbox]")?.click(),
};

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input:not([type=checkbox]), select, textarea");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || help?.open !== false) return;
  if (!Object.hasOwn(keys, event.key)) return;
  event.preventDefault();
  keys[event.key]();
});

const button = document.getElementById("help");
button?.removeAttribute("hidden");
button?.addEventListener("click", keys["?"]);

const zone = main.querySelector("input[data-zone]");
if (zone) zone.value = Intl.DateTimeFormat().resolvedOptions().timeZone;
