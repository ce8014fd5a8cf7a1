"use strict";
// The page of a running training: the functions up to `validationPictures` are called by the files in data/, which grow.
const run = { names: [], titles: [], points: [], pictures: [], validations: [], validationTitles: {}, validationPictures: [], updated: 0, ended: false };
const view = { from: null, to: null, cursor: null, pictures: null, validationPictures: null, smooth: 0, log: false };
function begin(names, titles) { run.names = names; run.titles = titles; run.points = []; run.ended = false; }
function updated(time) { run.updated = time; } // in seconds since 1970
function ended() { run.ended = true; }
function point(...row) { run.points.push(row); }
function pictures(list) { run.pictures = list; }
function beginValidation(titles) { run.validations = []; run.validationTitles = titles; }
function validation(x, values) { run.validations.push({ x, values }); }
function validationPictures(list) { run.validationPictures = list; }

const FIXED = 3; // x in epochs, learning rate, seconds a step: the columns before the losses
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function shape(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

const format = (value) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(2).replace(/\.?0+e/, "e") : String(Number(value.toPrecision(4)));
};

// ---------------------------------------------------------------- curves

const validationNames = () => [...new Set(run.validations.flatMap((v) => Object.keys(v.values)))];

// One chart for every kind of loss. A series has a title, and a key: its name in the record.
function groups() {
  const found = new Map();
  run.names.forEach((name, index) => {
    const [chart, title] = run.titles[index];
    if (!found.has(chart)) found.set(chart, []);
    found.get(chart).push({ name, title: title === name ? "" : title, key: name, column: FIXED + index });
  });
  const list = [...found].map(([title, series]) => ({ title, series, zero: true }));
  for (const name of validationNames()) {
    const rows = run.validations.map((v) => [v.x, v.values[name] ?? null]);
    list.push({ title: `Validation: ${run.validationTitles[name] || name}`, series: [{ name, column: 1 }], rows, raw: true, dots: true });
  }
  list.push({ title: "Learning rate", series: [{ name: "learning rate", column: 1 }], zero: true, raw: true });
  list.push({ title: "Seconds a step", series: [{ name: "seconds", column: 2 }], zero: true });
  return list;
}

function smoothed(rows, column, raw) {
  if (!view.smooth || raw) return rows.map((row) => row[column]);
  let mean = null, weight = 0; // an exponential mean, corrected for its start
  return rows.map((row) => {
    if (row[column] === null) { mean = null; weight = 0; return null; }
    mean = view.smooth * (mean || 0) + (1 - view.smooth) * row[column];
    weight = view.smooth * weight + (1 - view.smooth);
    return mean / weight;
  });
}

function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const list = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) list.push(Number((k * step).toPrecision(12)));
  return list;
}

function logTicks(low, high) {
  const list = [], steps = high - low > 3 ? [1] : high - low > 1 ? [1, 3] : [1, 2, 5];
  for (let k = Math.floor(low); k <= high; k++) {
    for (const m of steps) {
      const t = Math.log10(m) + k;
      if (t >= low - 1e-9 && t <= high + 1e-9) list.push(Number((m * 10 ** k).toPrecision(12)));
    }
  }
  return list.length > 1 ? list : ticks(10 ** low, 10 ** high, 5).filter((v) => v > 0);
}

const W = 560, H = 246, LEFT = 54, RIGHT = 10, TOP = 8, BOTTOM = 36;

function range() {
  const last = run.points.length ? run.points[run.points.length - 1][0] : 1;
  return [view.from ?? 0, view.to ?? (last || 1)];
}

function drawChart(figure, group) {
  const svg = figure.querySelector("svg");
  svg.replaceChildren();
  const [from, to] = range();
  const log = view.log && !group.raw, rows = group.rows || run.points;
  const curves = group.series.map((s) => ({ ...s, values: smoothed(rows, s.column, group.raw) }));
  const seen = [];
  rows.forEach((row, k) => {
    if (row[0] >= from - 1e-9 && row[0] <= to + 1e-9) curves.forEach((c) => seen.push(c.values[k]));
  });
  const usable = seen.filter((v) => v !== null && Number.isFinite(v) && (!log || v > 0));
  let low = Math.min(...usable), high = Math.max(...usable);
  if (!usable.length) { low = 0; high = 1; }
  if (log) { low = Math.log10(low); high = Math.log10(high); } else if (group.zero && low >= 0) low = 0;
  if (high - low < 1e-12) high = low + (Math.abs(low) || 1) * 0.1;
  if (!log) high += (high - low) * 0.04;
  const x = (v) => LEFT + ((v - from) / (to - from || 1)) * (W - LEFT - RIGHT);
  const y = (v) => H - BOTTOM - (((log ? Math.log10(v) : v) - low) / (high - low)) * (H - TOP - BOTTOM);
  for (const t of ticks(from, to, 6)) {
    svg.append(shape("line", { class: "grid", x1: x(t), x2: x(t), y1: TOP, y2: H - BOTTOM }));
    svg.append(shape("text", { x: x(t), y: H - BOTTOM + 16, "text-anchor": "middle", class: "faint" }, format(t)));
  }
  for (const value of log ? logTicks(low, high) : ticks(low, high, 5)) {
    const place = y(value);
    svg.append(shape("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: place, y2: place }));
    svg.append(shape("text", { x: LEFT - 6, y: place + 4, "text-anchor": "end", class: "faint" }, format(value)));
  }
  svg.append(shape("text", { x: W - RIGHT, y: H - 5, "text-anchor": "end", class: "faint" }, "epoch"));
  const clip = `clip-${figure.id}`;
  const box = shape("clipPath", { id: clip });
  box.append(shape("rect", { x: LEFT, y: TOP - 2, width: W - LEFT - RIGHT, height: H - TOP - BOTTOM + 4 }));
  svg.append(box);
  const single = rows.length > 0 && curves.every((curve) => curve.values.filter((value) => value !== null).length <= 1);
  if (single) svg.append(shape("text", { x: (LEFT + W - RIGHT) / 2, y: (H - BOTTOM) / 2, "text-anchor": "middle", class: "faint" }, "one record so far"));
  curves.forEach((curve, c) => {
    let path = "", pen = "M";
    rows.forEach((row, k) => {
      const value = curve.values[k];
      if (value === null || (log && value <= 0)) { pen = "M"; return; }
      path += `${pen}${x(row[0]).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = "L";
    });
    svg.append(shape("path", { d: path || "M0 0", class: `line ${"abc"[c % 3]}`, "clip-path": `url(#${clip})`, "data-name": curve.name }));
    // A line needs two points: of one record the marker is all there is to see, at the axis' end.
    if (group.dots || single) rows.forEach((row, k) => {
      const value = curve.values[k], within = single ? {} : { "clip-path": `url(#${clip})` };
      if (value !== null && !(log && value <= 0))
        svg.append(shape("circle", { class: `dot ${"abc"[c % 3]}`, cx: x(row[0]), cy: y(value), r: single ? 4 : 2.5, ...within }));
    });
  });
  svg.append(shape("path", { class: "axis", d: `M${LEFT} ${TOP}V${H - BOTTOM}H${W - RIGHT}` }));
  const k = cursorIndex(rows);
  if (view.cursor !== null && k !== null && rows[k][0] >= from && rows[k][0] <= to)
    svg.append(shape("line", { class: "cursor", x1: x(rows[k][0]), x2: x(rows[k][0]), y1: TOP, y2: H - BOTTOM }));
  svg.append(shape("rect", { class: "selection", x: 0, y: TOP, width: 0, height: H - TOP - BOTTOM }));
  const readout = figure.querySelector(".readout");
  readout.replaceChildren();
  curves.forEach((curve, c) => {
    const value = k === null ? null : curve.values[k];
    if (k !== null && value === null) return; // a loss that this part of the run does not have
    const words = [curve.title ?? curve.name, curve.key && element("small", { class: "key" }, curve.key), element("b", {}, format(value))];
    readout.append(element("span", { class: `swatch ${"abc"[c % 3]}` }), ...words.filter(Boolean).flatMap((word) => [word, " "]));
  });
}

// The point under the cursor, or the last one.
function cursorIndex(rows) {
  if (!rows.length) return null;
  if (view.cursor === null) return rows.length - 1;
  let best = 0;
  rows.forEach((row, k) => { if (Math.abs(row[0] - view.cursor) < Math.abs(rows[best][0] - view.cursor)) best = k; });
  return best;
}

function epochAt(svg, event) {
  const box = svg.getBoundingClientRect(), [from, to] = range();
  const place = ((event.clientX - box.left) / box.width) * W;
  return Math.min(to, Math.max(from, from + ((place - LEFT) / (W - LEFT - RIGHT)) * (to - from)));
}

function zoom(from, to) {
  const last = run.points.length ? run.points[run.points.length - 1][0] : 1;
  from = Math.max(0, from); to = Math.min(last, to);
  if (to - from < 1e-6) return;
  [view.from, view.to] = from <= 0 && to >= last ? [null, null] : [from, to];
  drawCharts();
}

function onChartKey(event) {
  const [from, to] = range(), width = to - from, k = cursorIndex(run.points);
  const actions = {
    "+": () => zoom((from + to) / 2 - width / 4, (from + to) / 2 + width / 4),
    "-": () => zoom(from - width / 2, to + width / 2),
    0: () => { view.from = view.to = null; drawCharts(); },
    Escape: () => { view.from = view.to = view.cursor = null; drawCharts(); },
    ArrowLeft: () => { if (k !== null) { view.cursor = run.points[Math.max(0, k - 1)][0]; drawCharts(); } },
    ArrowRight: () => { if (k !== null) { view.cursor = run.points[Math.min(run.points.length - 1, k + 1)][0]; drawCharts(); } },
  };
  const action = actions[event.key === "=" ? "+" : event.key];
  if (action) { action(); event.preventDefault(); }
}

function makeChart(group, index) {
  const svg = shape("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${group.title} over epochs` });
  const figure = element("figure", { class: "chart", id: `chart-${index}`, tabindex: "0" }, element("figcaption", {}, element("b", {}, group.title)), svg, element("div", { class: "readout" }));
  let start = null;
  svg.addEventListener("pointerdown", (event) => { start = event.clientX; svg.setPointerCapture(event.pointerId); });
  svg.addEventListener("pointermove", (event) => {
    if (start === null) { view.cursor = epochAt(svg, event); drawCharts(); return; }
    const box = svg.getBoundingClientRect(), scale = W / box.width;
    const a = (Math.min(start, event.clientX) - box.left) * scale, b = (Math.max(start, event.clientX) - box.left) * scale;
    const selection = svg.querySelector(".selection");
    selection.setAttribute("x", a); selection.setAttribute("width", b - a);
  });
  svg.addEventListener("pointerup", (event) => {
    const began = start;
    start = null;
    if (began === null) return;
    if (Math.abs(event.clientX - began) < 5) { drawCharts(); return; }
    const ends = [epochAt(svg, { clientX: began }), epochAt(svg, event)].sort((p, q) => p - q);
    zoom(...ends);
  });
  svg.addEventListener("pointerleave", () => { if (start === null) { view.cursor = null; drawCharts(); } });
  svg.addEventListener("dblclick", () => { view.from = view.to = null; drawCharts(); });
  figure.addEventListener("keydown", onChartKey);
  return figure;
}

let scheduled = false;
function drawCharts() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const box = byId("charts"), list = groups(), key = JSON.stringify([run.names, validationNames()]);
    if (box.dataset.key !== key) {
      box.dataset.key = key;
      box.replaceChildren(...list.map(makeChart));
    }
    list.forEach((group, k) => drawChart(box.children[k], group));
    byId("whole").disabled = view.from === null && view.to === null;
  });
}

// ---------------------------------------------------------------- pictures

const place = (p) => `epoch ${p.epoch}, iteration ${p.iteration}`;

// A gallery: the name of its list, and what the names of its elements begin with.
const GALLERIES = { pictures: "", validationPictures: "validation-" };

function drawPictures(gallery) {
  const prefix = GALLERIES[gallery], all = run[gallery], newestFirst = [...all].reverse();
  byId(`${prefix}pictures`).hidden = !newestFirst.length;
  if (!newestFirst.length) return;
  if (!newestFirst.some((p) => p.file === view[gallery])) view[gallery] = null; // null follows the newest
  const shown = newestFirst.find((p) => p.file === view[gallery]) || newestFirst[0];
  const time = byId(`${prefix}time`);
  time.max = newestFirst.length - 1;
  time.value = all.indexOf(shown);
  time.setAttribute("aria-valuetext", place(shown));
  const image = byId(`${prefix}sheet`);
  const source = `images/${encodeURIComponent(shown.file)}`;
  if (image.getAttribute("src") !== source) image.setAttribute("src", source);
  image.alt = `Images of ${place(shown)}`;
  byId(`${prefix}where`).textContent = place(shown) + (shown === newestFirst[0] ? " (newest)" : "");
  const list = byId(`${prefix}earlier`), files = newestFirst.map((p) => p.file).join();
  if (list.dataset.files !== files) {
    list.dataset.files = files;
    list.replaceChildren(...newestFirst.map((p) => {
      const picture = element("img", { src: `images/${encodeURIComponent(p.file)}`, alt: "", loading: "lazy" });
      const button = element("button", { type: "button", "data-file": p.file }, picture, element("span", {}, place(p)));
      button.addEventListener("click", () => { view[gallery] = p === newestFirst[0] ? null : p.file; drawPictures(gallery); });
      return element("li", {}, button);
    }));
  }
  for (const button of list.querySelectorAll("button"))
    button.setAttribute("aria-pressed", String(button.dataset.file === shown.file));
}

// ---------------------------------------------------------------- status and refreshing

// A training that has written nothing for so long may be dead, or validate: how much time is left is not known then.
const QUIET_S = 900;

// Nothing more comes; of a run that was stopped it does, once it is resumed.
function isOver() {
  const last = run.points[run.points.length - 1], length = document.body.dataset;
  return run.ended && (!("epochs" in length) || last?.[0] >= Number(length.epochs));
}

function drawStatus() {
  byId("refreshing").hidden = isOver();
  const last = run.points[run.points.length - 1], length = document.body.dataset, total = Number(length.epochs);
  if (!last) { byId("status").textContent = "No losses yet."; return; }
  const epoch = Math.floor(last[0] - 1e-9) + 1;
  const clock = !("epochs" in length), age = Date.now() / 1000 - run.updated;
  let remaining = clock ? `trains for ${duration(Number(length.seconds))} in all` : `about ${duration(Math.max(0, total - last[0]) * Number(length.steps) * last[2])} left`;
  if (isOver()) remaining = clock ? "ended" : "finished";
  else if (run.ended) remaining = "stopped";
  else if (age > QUIET_S) remaining = `last heard of ${duration(age)} ago`;
  const of = clock ? "" : ` of ${total}`;
  byId("status").textContent = `epoch ${clock ? epoch : Math.min(total, epoch)}${of} · ${format(last[2])} s a step · ${remaining}`;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

function load(file) {
  return new Promise((done) => {
    const script = element("script", { src: `data/${file}?${Date.now()}` });
    script.onload = script.onerror = () => { script.remove(); done(); };
    document.head.append(script);
  });
}

async function refresh() {
  for (const file of ["curves.js", "validation.js", "pictures.js", "validationPictures.js"]) await load(file);
  drawStatus();
  drawCharts();
  Object.keys(GALLERIES).forEach(drawPictures);
  document.body.dataset.ready = "true";
}

byId("smooth").addEventListener("input", (event) => { view.smooth = Number(event.target.value); drawCharts(); });
byId("log").addEventListener("change", (event) => { view.log = event.target.checked; drawCharts(); });
byId("whole").addEventListener("click", () => { view.from = view.to = null; drawCharts(); });
for (const [gallery, prefix] of Object.entries(GALLERIES))
  byId(`${prefix}time`).addEventListener("input", (event) => {
    const index = Number(event.target.value), all = run[gallery];
    view[gallery] = index === all.length - 1 ? null : all[index].file;
    drawPictures(gallery);
  });
function look() { if (byId("refresh").checked && !isOver() && !document.hidden) refresh(); }
setInterval(look, 30000);
refresh();
