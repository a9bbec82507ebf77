"use strict";
// The figures: a curve per run and metric, raw and smoothed, with the values under the pointer.

const curves = { drawn: [], width: 5 };

function smooth(values, width) {
  // The mean of the last `width` values that are there.
  const kept = [];
  return values.map((value) => {
    if (value == null) return null;
    kept.push(value);
    if (kept.length > width) kept.shift();
    return kept.reduce((sum, each) => sum + each, 0) / kept.length;
  });
}

function withAlpha(hex, alpha) {
  return hex + Math.round(255 * alpha).toString(16).padStart(2, "0");
}

// All lines of a figure: [{label, steps, values, colour}]; evaluations are points, not smoothed.
function linesOf(figure) {
  const lines = [];
  for (const run of report.data.runs) {
    for (const metric of figure.metrics) {
      const source = run[figure.source];
      if (!source[metric]) continue;
      const several = figure.metrics.length > 1 ? metric.replace(/^rewards\/|\/mean$/g, "") : "";
      const named = report.data.runs.length > 1 ? run.name : "";
      const label = [named, several].filter(Boolean).join(", ") || "mean";
      const bounds = figure.source === "evaluations" && [source[metric + "_low"], source[metric + "_high"]];
      lines.push({ label, steps: source.step, values: source[metric], bounds });
    }
  }
  return lines;
}

function axis(form) {
  return {
    stroke: colour("--soft"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1 },
    size: 68,
    values: (plot, splits) => splits.map((value) => (value == null ? "" : written(form, value))),
  };
}

// A value under the pointer with the bounds of its interval, which stand in the two series after it.
function withBounds(form) {
  return (plot, shown, at, index) => {
    if (!isNumber(shown)) return "–";
    const [high, low] = [plot.data[at + 1][index], plot.data[at + 2][index]].map((bound) => written(form, bound));
    return `${written(form, shown)} (${low.replace(" %", "")} to ${high.replace(" %", "")})`;
  };
}

// A line that is clicked away takes its raw values, or its interval, with it.
function follow(plot, place, change) {
  if (place == null || change.show == null) return;
  (plot.series[place].companions || []).forEach((each) => plot.setSeries(each, { show: change.show }));
}

function seriesOf(lines, figure) {
  const tables = [];
  const series = [{ label: "step" }];
  const bands = [];
  const points = figure.source === "evaluations";
  lines.forEach((line, place) => {
    const stroke = colour("--series-" + (place % 8));
    const value = (plot, shown) => written(figure.form, shown);
    if (points) {
      tables.push([line.steps, line.values]);
      series.push({ label: line.label, stroke, width: 2, points: { show: true, size: 7 }, spanGaps: true, value });
      if (line.bounds && line.bounds[0] && line.bounds[1]) {
        const at = series.length;
        tables.push([line.steps, line.bounds[1]], [line.steps, line.bounds[0]]);
        const edge = { class: "companion", stroke: withAlpha(stroke, 0.4), points: { show: false }, spanGaps: true };
        series.push({ label: line.label + ", upper", ...edge }, { label: line.label + ", lower", ...edge });
        series[at - 1].companions = [at, at + 1];
        series[at - 1].value = withBounds(figure.form);
        bands.push({ series: [at, at + 1], fill: withAlpha(stroke, 0.15) });
      }
    } else {
      tables.push([line.steps, line.values], [line.steps, smooth(line.values, curves.width)]);
      const raw = curves.width > 1;
      const thin = { class: "companion", stroke: withAlpha(stroke, 0.35), points: { show: false } };
      series.push({ label: line.label + ", raw", show: raw, spanGaps: true, ...thin });
      const companions = raw ? [series.length - 1] : [];
      const few = line.values.filter(isNumber).length < 40;
      series.push({ label: line.label, stroke, width: 2, spanGaps: true, points: { show: few }, value, companions });
    }
  });
  return { data: uPlot.join(tables), series, bands };
}

function draw(item) {
  const { figure, holder } = item;
  if (item.plot) item.plot.destroy();
  const { data, series, bands } = item.make(figure);
  const xAxis = { ...axis("number"), size: 40 };
  const options = {
    width: Math.max(240, holder.clientWidth),
    height: 220,
    scales: { x: { time: false } },
    axes: [xAxis, axis(figure.form)],
    cursor: { sync: { key: "steps" }, focus: { prox: 24 } },
    legend: { live: true },
    hooks: { setSeries: [follow] },
    series,
    bands,
  };
  item.plot = new uPlot(options, data, holder);
  const canvas = holder.querySelector("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", item.told);
}

// What a figure says in words, for those who cannot see it.
function tell(figure, lines) {
  const said = lines.map((line) => {
    const present = line.values.filter(isNumber);
    if (!present.length) return line.label + ": no values";
    const [first, last] = [present[0], present[present.length - 1]];
    const range = [Math.min(...present), Math.max(...present)].map((v) => written(figure.form, v));
    return `${line.label}: from ${written(figure.form, first)} to ${written(figure.form, last)}, between ${range.join(" and ")}`;
  });
  return `${figure.title} over the steps. ${said.join("; ")}.`;
}

function valuesTable(figure, lines) {
  const details = element("details", {}, element("summary", {}, "Values"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.querySelector("table")) return;
    const head = element("tr", {}, element("th", { class: "number", scope: "col" }, "step"));
    lines.forEach((line) => head.append(element("th", { class: "number", scope: "col" }, line.label)));
    const body = element("tbody");
    const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
    const every = Math.max(1, Math.ceil(steps.length / 25));
    const chosen = steps.filter((step, place) => place % every === 0 || place === steps.length - 1);
    for (const step of chosen) {
      const row = element("tr", {}, element("td", { class: "number" }, String(step)));
      for (const line of lines) {
        const value = line.values[line.steps.indexOf(step)];
        row.append(element("td", { class: "number" }, written(figure.form, value)));
      }
      body.append(row);
    }
    const table = element("table", {}, element("thead", {}, head), body);
    details.append(element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": figure.title + ", values" }, table));
  });
  return details;
}

function addFigure(figure, lines, make) {
  const holder = element("div");
  const note = element("span", { class: "soft" }, figure.note);
  const caption = element("figcaption", {}, element("h3", {}, figure.title), note);
  byId("figures").append(element("figure", {}, caption, holder, valuesTable(figure, lines)));
  const item = { figure, holder, make, told: tell(figure, lines), plot: null };
  curves.drawn.push(item);
  return item;
}

// Where the seconds of a step go, one above the other, of one run.
function stackOf(run, parts) {
  const series = [{ label: "step" }];
  const bands = [];
  const totals = [];
  let below = run.steps.step.map(() => 0);
  parts.forEach((part) => {
    const smoothed = smooth(run.steps[`time/${part}_s`], Math.max(5, curves.width));
    below = below.map((sum, place) => sum + (smoothed[place] || 0));
    totals.push(below);
  });
  parts.forEach((part, place) => {
    const stroke = colour("--series-" + (place % 8));
    const own = (plot, shown, at, index) => {
      if (index == null) return "–";
      return asNumber(totals[place][index] - (place ? totals[place - 1][index] : 0)) + " s";
    };
    series.push({ label: part, stroke, width: 1, fill: withAlpha(stroke, place ? 0 : 0.3), points: { show: false }, value: own });
    if (place) bands.push({ series: [place + 1, place], fill: withAlpha(stroke, 0.3) });
  });
  return { data: [run.steps.step, ...totals], series, bands };
}

function startCurves(data) {
  if (!data.runs.some((run) => (run.steps.step || []).length)) return;
  byId("curves").hidden = false;
  for (const figure of data.figures) {
    const lines = linesOf(figure);
    addFigure(figure, lines, (shown) => seriesOf(linesOf(shown), shown));
  }
  for (const run of data.runs) {
    const parts = data.seconds.filter((part) => run.steps[`time/${part}_s`]);
    if (!parts.length) continue;
    const named = data.runs.length > 1 ? `Time of a step, ${run.name}` : "Time of a step";
    const figure = { title: named, note: "seconds of its parts, on the main process", form: "number", source: "steps" };
    const lines = parts.map((part) => ({ label: part, steps: run.steps.step, values: run.steps[`time/${part}_s`] }));
    addFigure(figure, lines, () => stackOf(run, parts));
  }
  const drawAll = () => curves.drawn.forEach(draw);
  report.redraw.push(drawAll);
  byId("smoothing").addEventListener("input", () => {
    curves.width = Number(byId("smoothing").value);
    byId("smoothing-value").textContent = byId("smoothing").value;
    drawAll();
  });
  let width = 0;
  new ResizeObserver(() => {
    if (width !== byId("figures").clientWidth) {
      width = byId("figures").clientWidth;
      drawAll();
    }
  }).observe(byId("figures"));
}
