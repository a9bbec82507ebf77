"use strict";
// What every part of the page reads: the data, the theme, the address, small ways to make elements.

const report = { data: null, colours: [], redraw: [] };

const byId = (id) => document.getElementById(id);

// Texts are written as texts: nothing that a model wrote becomes markup.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

function asNumber(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

const asPercent = (value) => (isNumber(value) ? (100 * value).toFixed(1) + " %" : "–");

const written = (form, value) => (form === "percent" ? asPercent(value) : asNumber(value));

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// The part of the address after # says what is shown, so that a view can be kept and sent.
const address = {
  read: () => new URLSearchParams(location.hash.slice(1)),
  write(values) {
    const kept = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== ""));
    history.replaceState(null, "", "#" + kept.toString());
  },
};

function applyTheme() {
  const asked = byId("theme").value;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = asked === "auto" ? (dark ? "dark" : "light") : asked;
  try {
    localStorage.setItem("rl4lm-theme", asked);
  } catch {
    // A browser may forbid it; the choice then lasts as long as the page.
  }
  report.redraw.forEach((draw) => draw());
}

function startTheme() {
  try {
    byId("theme").value = localStorage.getItem("rl4lm-theme") || "auto";
  } catch {
    // As above.
  }
  byId("theme").addEventListener("change", applyTheme);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
  applyTheme();
}

function every(seconds) {
  // A run that goes on: read the page again, unless somebody is in the middle of something.
  setInterval(() => {
    const busy = byId("group").open || ["INPUT", "SELECT"].includes(document.activeElement.tagName);
    if (!busy) location.reload();
  }, 1000 * seconds);
}

addEventListener("DOMContentLoaded", async () => {
  performance.mark("load-begins");
  startTheme();
  if (typeof DecompressionStream === "undefined") {
    byId("loading").textContent =
      "This browser cannot unpack the data: Chromium 80, Firefox 113, Safari 16.4 or newer can.";
    return;
  }
  report.data = await unpack(byId("data").textContent);
  showSummary(report.data);
  startCurves(report.data);
  startBrowser(report.data);
  byId("loading").remove();
  if (report.data.refresh) every(report.data.refresh);
  performance.measure("load", "load-begins");
  document.documentElement.dataset.ready = "true";
});
