"use strict";
// Before and after, what the doctor says, and the settings of the runs side by side.

// A value, and its interval, which goes below it where there is little room.
function valueCell(text) {
  const [value, interval] = (text ?? "–").split(" (");
  const bounds = interval && element("span", { class: "interval" }, ` (${interval}`);
  return element("td", { class: "number" }, value, bounds ?? null);
}

// Every metric that was evaluated, and each group of prompts, with its interval.
function beforeAndAfter(rows) {
  const shown = rows.some((row) => row.before != null) ? ["before", "after"] : ["after"];
  const lines = rows.map((row) =>
    element("tr", {}, element("th", { scope: "row" }, row.label), ...shown.map((when) => valueCell(row[when]))));
  const titles = shown.map((word) => element("th", { scope: "col", class: "number" }, shown[1] ? word : "so far"));
  const head = element("tr", {}, element("td"), ...titles);
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...lines));
}

function card(run) {
  const { headline, facts } = run;
  const made = element("article", { class: "card" }, element("h3", {}, run.name));
  if (headline) {
    const from = headline.before == null ? null : element("span", { class: "from" }, written(headline.form, headline.before) + " → ");
    made.append(element("p", { class: "big" }, from, element("span", {}, written(headline.form, headline.after))));
    made.append(element("p", { class: "soft" }, headline.said));
    made.append(beforeAndAfter(headline.rows));
  } else {
    made.append(element("p", {}, "No evaluation was logged."));
  }
  made.append(element("p", { class: "soft" }, facts));
  return made;
}

function finding(found, run, several) {
  const made = element("div", { class: "finding " + found.severity });
  const title = `${found.severity}: ${found.name.replaceAll("_", " ")}`;
  made.append(element("h3", {}, several ? `${run.name}, ${title}` : title));
  made.append(element("p", {}, found.seen), element("p", { class: "soft" }, "Why: " + found.why));
  found.remedies.forEach((remedy) => made.append(element("p", { class: "soft" }, "Try: " + remedy)));
  return made;
}

function showFindings(runs) {
  byId("findings").hidden = false;
  const list = byId("findings-list");
  for (const run of runs) {
    run.findings.forEach((found) => list.append(finding(found, run, runs.length > 1)));
    const named = runs.length > 1 ? run.name + ": " : "";
    if (!run.findings.length) list.append(element("p", {}, named + "nothing found"));
    run.damage.forEach((text) => list.append(element("p", { class: "soft" }, named + text)));
  }
  const checked = [...new Set(runs.flatMap((run) => run.checked))];
  const title = element("summary", {}, `What was looked at: ${checked.length} things`);
  list.append(element("details", { class: "soft" }, title, checked.join(", ") || "nothing"));
}

function showSettings(data) {
  const several = data.runs.length > 1;
  byId("settings").hidden = false;
  byId("differing-label").textContent = several ? "only what differs between the runs" : "only what differs from the defaults";
  const head = byId("options").querySelector("thead tr");
  const titles = ["option", ...data.runs.map((run) => run.name), ...(several ? [] : ["default"])];
  titles.forEach((title) => head.append(element("th", { scope: "col" }, title)));
  const body = byId("options").querySelector("tbody");
  const list = () => {
    body.replaceChildren();
    for (const option of data.options) {
      if (byId("differing").checked && !option.differs) continue;
      const shown = [...option.values, ...(several ? [] : [option.default])];
      const cells = shown.map((value) => element("td", { class: "text" }, value));
      body.append(element("tr", {}, element("th", { scope: "row" }, option.name), ...cells));
    }
    if (!body.children.length) body.append(element("tr", {}, element("td", { colspan: titles.length }, "nothing differs")));
  };
  byId("differing").addEventListener("change", list);
  list();
}

function showSummary(data) {
  byId("headline").hidden = false;
  data.runs.forEach((run) => byId("cards").append(card(run)));
  showFindings(data.runs);
  showSettings(data);
}
