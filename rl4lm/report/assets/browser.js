"use strict";
// The completions: filtered, sorted, a page at a time; a prompt's samples side by side.

const browser = { run: null, chosen: [], page: 0, order: { by: "step", up: true }, columns: [] };
const ROWS = 50;
const FILTERS = ["run", "text", "step-from", "step-to", "reward-from", "reward-to", "advantage", "truncated", "disagree"];

// A column of numbers, NaN where there is none; written out, since `from` takes ten times as long.
function numbers(values) {
  const made = new Float64Array(values.length);
  for (let row = 0; row < made.length; row++) made[row] = values[row] ?? NaN;
  return made;
}

function spanOf(part) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of part) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return { low, width: high - low };
}

// By how much the functions disagree: the widest gap between two, each on its own scale of 0 to 1.
function disagreements(parts, count) {
  const made = new Float64Array(count);
  const scaled = parts.map((part) => ({ part, ...spanOf(part) })).filter(({ width }) => width > 0);
  if (scaled.length < 2) return made;
  for (let row = 0; row < count; row++) {
    let least = Infinity;
    let most = -Infinity;
    for (const { part, low, width } of scaled) {
      const value = (part[row] - low) / width;
      if (value < least) least = value;
      if (value > most) most = value;
    }
    if (most > least) made[row] = most - least;
  }
  return made;
}

// What filtering and sorting read, made once for a run.
function prepare(run) {
  if (run.prepared) return run.prepared;
  performance.mark("prepare-begins");
  const { columns } = run.completions;
  const parts = Object.values(columns.parts).map(numbers);
  run.prepared = {
    orders: {},
    step: numbers(columns.step), reward: numbers(columns.reward), advantage: numbers(columns.advantage),
    logprob: numbers(columns.logprob), disagreement: disagreements(parts, columns.step.length),
    lowered: columns.text.map((text) => text.toLowerCase()),
    prompts: columns.prompts.map((text) => text.toLowerCase()),
  };
  performance.measure("prepare", "prepare-begins");
  return run.prepared;
}

const TABLE = [
  { name: "step", title: "step", of: (run, row) => String(run.completions.columns.step[row]) },
  { name: "prompt", title: "prompt", text: true, of: (run, row) => run.completions.columns.prompts[run.completions.columns.prompt[row]] },
  { name: "completion", title: "completion", text: true, of: (run, row) => run.completions.columns.text[row] },
  { name: "reward", title: "reward", of: (run, row) => asNumber(run.completions.columns.reward[row]) },
  { name: "advantage", title: "advantage", of: (run, row) => asNumber(run.completions.columns.advantage[row]) },
  { name: "logprob", title: "log-prob", of: (run, row) => asNumber(run.completions.columns.logprob[row]) },
  { name: "disagreement", title: "disagreement", of: (run, row) => asNumber(run.prepared.disagreement[row]) },
];

const SORTED = ["step", "reward", "advantage", "logprob", "disagreement"];

function limits(from, to) {
  const value = (id, none) => (byId(id).value === "" ? none : Number(byId(id).value));
  return [value(from, -Infinity), value(to, Infinity)];
}

function filter() {
  performance.mark("filter-begins");
  const run = browser.run;
  const ready = prepare(run);
  const { columns } = run.completions;
  const [stepLow, stepHigh] = limits("step-from", "step-to");
  const [rewardLow, rewardHigh] = limits("reward-from", "reward-to");
  const anyReward = rewardLow === -Infinity && rewardHigh === Infinity;
  const sign = byId("advantage").value;
  const words = byId("text").value.toLowerCase();
  const asked = words && ready.prompts.map((text) => text.includes(words));
  const cut = byId("truncated").checked;
  const disagree = byId("disagree").checked;
  const found = [];
  for (let row = 0; row < columns.step.length; row++) {
    if (ready.step[row] < stepLow || ready.step[row] > stepHigh) continue;
    if (!anyReward && !(ready.reward[row] >= rewardLow && ready.reward[row] <= rewardHigh)) continue;
    if (sign === "above" && !(ready.advantage[row] > 0)) continue;
    if (sign === "below" && !(ready.advantage[row] < 0)) continue;
    if (sign === "zero" && ready.advantage[row] !== 0) continue;
    if (cut && !columns.truncated[row]) continue;
    if (disagree && !(ready.disagreement[row] > 0.5)) continue;
    if (words && !asked[columns.prompt[row]] && !ready.lowered[row].includes(words)) continue;
    found.push(row);
  }
  browser.chosen = sorted(found, ready);
  browser.page = 0;
  remember();
  showPage();
  performance.measure("filter", "filter-begins");
}

// Rows in the order of a column: sorted once, since comparing is what takes time.
function orderOf(ready, by) {
  if (!ready.orders[by]) {
    const keys = ready[by];
    const present = [];
    const absent = []; // what has no value comes last, either way
    for (let row = 0; row < keys.length; row++) (Number.isNaN(keys[row]) ? absent : present).push(row);
    present.sort((a, b) => keys[a] - keys[b] || a - b);
    ready.orders[by] = { present, absent };
  }
  return ready.orders[by];
}

function sorted(rows, ready) {
  const { by, up } = browser.order;
  if (by === "step") return up ? rows : rows.reverse();
  const asked = new Uint8Array(ready.step.length);
  for (const row of rows) asked[row] = 1;
  const { present, absent } = orderOf(ready, by);
  const found = present.filter((row) => asked[row]);
  if (!up) found.reverse();
  return found.concat(absent.filter((row) => asked[row]));
}

function remember() {
  const values = {};
  for (const id of FILTERS) {
    const input = byId(id);
    values[id] = input.type === "checkbox" ? (input.checked ? "1" : "") : input.value;
  }
  if (values.run === "0") values.run = "";
  values.sort = browser.order.by === "step" && browser.order.up ? "" : (browser.order.up ? "" : "-") + browser.order.by;
  address.write(values);
}

function recall() {
  const values = address.read();
  for (const id of FILTERS) {
    if (!values.has(id)) continue;
    const input = byId(id);
    if (input.type === "checkbox") input.checked = values.get(id) === "1";
    else input.value = values.get(id);
  }
  const asked = (values.get("sort") || "").replace(/^-/, "");
  if (SORTED.includes(asked)) browser.order = { by: asked, up: !values.get("sort").startsWith("-") };
}

function showPage() {
  const { run } = browser;
  const { rows, steps, logged_steps: logged } = run.completions;
  const pages = Math.max(1, Math.ceil(browser.chosen.length / ROWS));
  browser.page = Math.min(Math.max(0, browser.page), pages - 1);
  const shown = browser.chosen.slice(browser.page * ROWS, (browser.page + 1) * ROWS);
  const body = byId("table").querySelector("tbody");
  body.replaceChildren(...shown.map((row) => tableRow(run, row)));
  const whole = steps === logged ? "" : ` of ${steps.toLocaleString("en")} of the ${logged.toLocaleString("en")} steps that were logged`;
  byId("shown").textContent = `${browser.chosen.length.toLocaleString("en")} of ${rows.toLocaleString("en")} completions${whole}`;
  byId("page").textContent = `page ${browser.page + 1} of ${pages}`;
  byId("previous").disabled = browser.page === 0;
  byId("next").disabled = browser.page === pages - 1;
  showOrder();
}

function tableRow(run, row) {
  const made = element("tr");
  for (const column of browser.columns) {
    if (column.text) made.append(element("td", { class: "text" }, element("span", {}, column.of(run, row))));
    else made.append(element("td", { class: "number" }, column.of(run, row)));
  }
  const label = `Samples of step ${run.completions.columns.step[row]}, row ${row + 1}`;
  const open = element("button", { type: "button", "aria-label": label }, "Samples");
  made.append(element("td", {}, open));
  made.addEventListener("click", () => showGroup(run, row));
  return made;
}

function showOrder() {
  byId("table").querySelectorAll("th[data-name]").forEach((head) => {
    const chosen = head.dataset.name === browser.order.by;
    head.setAttribute("aria-sort", chosen ? (browser.order.up ? "ascending" : "descending") : "none");
    const mark = head.querySelector("[aria-hidden]");
    if (mark) mark.textContent = chosen ? (browser.order.up ? " ↑" : " ↓") : "";
  });
}

function makeHead() {
  const head = byId("table").querySelector("thead tr");
  head.replaceChildren();
  for (const column of browser.columns) {
    if (!SORTED.includes(column.name)) {
      head.append(element("th", { scope: "col" }, column.title));
      continue;
    }
    const button = element("button", { type: "button" }, column.title, element("span", { "aria-hidden": "true" }));
    button.addEventListener("click", () => {
      const same = browser.order.by === column.name;
      browser.order = { by: column.name, up: same ? !browser.order.up : column.name === "step" };
      filter();
    });
    head.append(element("th", { scope: "col", class: "number", "data-name": column.name }, button));
  }
  head.append(element("th", { scope: "col" }, "of its prompt"));
}

// The samples of a row's prompt: its neighbours of the same step and prompt.
function groupOf(columns, row) {
  const same = (other) => columns.step[other] === columns.step[row] && columns.key[other] === columns.key[row];
  let first = row;
  let last = row;
  while (first > 0 && same(first - 1)) first--;
  while (last + 1 < columns.step.length && same(last + 1)) last++;
  return Array.from({ length: last - first + 1 }, (_, place) => first + place);
}

// A completion with each token shaded by how unlikely it was when it was drawn.
function tokensOf(run, row) {
  const { columns, vocabulary } = run.completions;
  const [start, end] = [columns.starts[row], columns.starts[row + 1]];
  const made = element("div", { class: "tokens" });
  if (start === end) {
    made.append(columns.text[row]);
    return made;
  }
  for (let at = start; at < end; at++) {
    const nats = columns.hundredths[at] / 100;
    const piece = vocabulary[columns.tokens[at]] ?? ` ${columns.tokens[at]} `;
    const unlikely = Math.min(0.6, 1 - Math.exp(nats));
    const title = `log π = ${nats.toFixed(2)}, π = ${(100 * Math.exp(nats)).toFixed(1)} %`;
    made.append(element("span", { title, style: `background: rgba(var(--shade), ${unlikely.toFixed(2)})` }, piece));
  }
  return made;
}

function sampleCard(run, row, chosen) {
  const { columns } = run.completions;
  const made = element("article", { class: "card" + (row === chosen ? " chosen" : "") });
  made.append(element("h3", {}, `Sample ${columns.sample[row]}`), tokensOf(run, row));
  const said = [`reward ${asNumber(columns.reward[row])}`, `advantage ${asNumber(columns.advantage[row])}`];
  said.push(`log-prob ${asNumber(columns.logprob[row])}`);
  if (columns.truncated[row]) said.push("truncated");
  made.append(element("p", { class: "soft" }, said.join(", ")));
  const parts = Object.entries(columns.parts);
  if (parts.length > 1) {
    const each = parts.map(([name, values]) => `${name} ${asNumber(values[row])}`);
    made.append(element("p", { class: "soft" }, each.join(", ")));
  }
  if (columns.detail[row]) made.append(element("p", { class: "soft" }, columns.detail[row]));
  return made;
}

function showGroup(run, row) {
  const { columns } = run.completions;
  const step = columns.step[row];
  byId("group-title").textContent = `Step ${step}, ${columns.key[row]}`;
  const cards = element("div", { id: "samples" });
  groupOf(columns, row).forEach((each) => cards.append(sampleCard(run, each, row)));
  const command = `rl4lm replay ${run.quoted} --step ${step}`;
  const copy = element("button", { type: "button" }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(command);
    copy.textContent = "Copied";
  });
  const note = "Shaded by how unlikely each token was when it was drawn. To do this step again:";
  byId("group-body").replaceChildren(
    element("pre", {}, columns.prompts[columns.prompt[row]]), cards,
    element("p", { class: "soft" }, note), element("p", { class: "controls" }, element("code", {}, command), copy));
  byId("group").showModal();
}

function chooseRun() {
  browser.run = report.data.runs[Number(byId("run").value) || 0];
  const several = Object.keys(browser.run.completions.columns.parts).length > 1;
  byId("disagree-label").hidden = !several;
  if (!several) byId("disagree").checked = false;
  browser.columns = TABLE.filter((column) => several || column.name !== "disagreement");
  if (!browser.columns.some((column) => column.name === browser.order.by)) browser.order = { by: "step", up: true };
  makeHead();
  prepare(browser.run);
  filter();
  prepareTheRest();
}

// While nobody waits: the orders of the columns, and the other runs.
function prepareTheRest() {
  const idle = window.requestIdleCallback || setTimeout;
  const ready = browser.run.prepared;
  SORTED.slice(1).forEach((by) => idle(() => orderOf(ready, by)));
  report.data.runs.filter((run) => run.completions.rows).forEach((run) => idle(() => prepare(run)));
}

function startBrowser(data) {
  if (!data.runs.some((run) => run.completions.rows)) return;
  byId("completions").hidden = false;
  data.runs.forEach((run, place) => byId("run").append(element("option", { value: String(place) }, run.name)));
  byId("run").closest("label").hidden = data.runs.length === 1;
  recall();
  if (!byId("run").value) byId("run").value = "0";
  chooseRun();
  let waiting = 0;
  byId("filters").addEventListener("input", (event) => {
    clearTimeout(waiting);
    if (event.target.id === "run") chooseRun();
    else waiting = setTimeout(filter, event.target.type === "checkbox" ? 0 : 80);
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => setTimeout(chooseRun));
  byId("previous").addEventListener("click", () => { browser.page--; showPage(); });
  byId("next").addEventListener("click", () => { browser.page++; showPage(); });
}
