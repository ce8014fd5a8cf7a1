"use strict";
// The viewer of one case. `page` (in the document) says what there is; the files in data/ call `volume` with the voxels.
const byId = (id) => document.getElementById(id);
const [DEPTH, ROWS, COLUMNS] = page.shape; // along S, P and L: patient order
const STRIDES = [ROWS * COLUMNS, COLUMNS, 1];
const volumes = {};
const state = { at: page.shape.map((n) => n >> 1), level: 0, width: 1, spread: page.difference ? page.difference.spread : 0, reach: page.uncertainty ? page.uncertainty.reach : 0, bright: 1 };

let arrived;
function volume(id, text) { arrived = { id, text }; }

// Voxels are 16-bit numbers, all low bytes before all high ones, compressed (gzip) and in base64.
async function unpack(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = binary.charCodeAt(k);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer()), count = raw.length / 2;
  const voxels = new Int16Array(count);
  for (let k = 0; k < count; k++) voxels[k] = raw[k] | (raw[k + count] << 8);
  return voxels;
}

function loadScript(source) {
  return new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = source;
    script.onload = () => { script.remove(); done(); };
    script.onerror = () => failed(new Error(`${decodeURIComponent(source)} is missing: keep the whole folder together`));
    document.head.append(script);
  });
}

// ---------------------------------------------------------------- drawing

const packed = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
const grays = Array.from({ length: 256 }, (_, k) => packed([k, k, k]));
const heat = (page.uncertainty ? page.uncertainty.colours : []).map(packed);

// What is black and what is white, or the ends of the colours, of a volume at present.
function rangeOf(info) {
  if (info.kind === "CT") return [state.level - state.width / 2, state.level + state.width / 2];
  if (info.kind === "uncertainty") return [0, state.reach];
  return [info.low, info.low + (info.high - info.low) / state.bright];
}

// Colour of every 16-bit number under the present window, as a table.
function colourTable(info) {
  const table = new Uint32Array(65536), [low, high] = rangeOf(info), scale = info.kind === "uncertainty" ? heat : grays;
  for (let k = -32768; k < 32768; k++)
    table[k & 65535] = scale[Math.max(0, Math.min(255, Math.round(((k * info.scale - low) / (high - low)) * 255)))];
  return table;
}

let tables = {};
function makeTables() {
  tables = {};
  for (const info of page.volumes) tables[info.id] = colourTable(info);
}

const colours = (page.difference ? page.difference.colours : []).map(packed);
const colourOf = (hu) => colours[Math.max(0, Math.min(255, Math.round(((hu / state.spread + 1) / 2) * 255)))];

function drawView(view) {
  const { plane, canvas } = view;
  const [rowAxis, columnAxis] = plane.axes, height = page.shape[rowAxis], width = page.shape[columnAxis];
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const start = state.at[plane.axis] * STRIDES[plane.axis], step = STRIDES[columnAxis];
  const isDifference = view.id === "difference";
  const voxels = volumes[isDifference ? page.difference.of : view.id], other = isDifference ? volumes[page.difference.minus] : null;
  const table = isDifference ? null : tables[view.id];
  for (let row = 0, out = 0; row < height; row++) {
    let k = start + (plane.flipped ? height - 1 - row : row) * STRIDES[rowAxis];
    for (let column = 0; column < width; column++, k += step)
      pixels[out++] = other ? colourOf((voxels[k] - other[k]) * page.hu) : table[voxels[k] & 65535];
  }
  context.putImageData(image, 0, 0);
  const row = plane.flipped ? height - 1 - state.at[rowAxis] : state.at[rowAxis];
  view.across.style.top = `${((row + 0.5) / height) * 100}%`;
  view.down.style.left = `${((state.at[columnAxis] + 0.5) / width) * 100}%`;
}

function position() {
  return page.affine.map((row) => row[3] + state.at.reduce((sum, index, axis) => sum + row[axis] * index, 0));
}

const side = (mm, plus, minus) => `${mm >= 0 ? plus : minus} ${Math.abs(mm).toFixed(0)}`;

function drawReadout() {
  const k = state.at.reduce((sum, index, axis) => sum + index * STRIDES[axis], 0), [l, p, s] = position();
  const parts = [["Position", `${side(l, "L", "R")}, ${side(p, "P", "A")}, ${side(s, "H", "F")} mm`]];
  for (const info of page.volumes) {
    const value = volumes[info.id][k] * info.scale;
    const texts = { CT: `${Math.round(value)} HU`, uncertainty: `${value.toFixed(1)} HU`, MR: Number(value.toPrecision(3)).toString() };
    parts.push([info.title, texts[info.kind]]);
  }
  if (page.difference) parts.push([page.difference.title, `${(volumes[page.difference.of][k] - volumes[page.difference.minus][k]) * page.hu} HU`]);
  byId("readout").replaceChildren(...parts.map(([name, value]) => {
    const span = document.createElement("span"), bold = document.createElement("b");
    bold.textContent = value;
    span.append(`${name} `, bold);
    return span;
  }));
}

function drawScales() {
  const low = state.level - state.width / 2, high = state.level + state.width / 2;
  paintScale("ct-scale", (k) => [k, k, k]);
  byId("ct-low").textContent = `${low} HU`; byId("ct-high").textContent = `${high} HU`;
  drawTicks("ct-ticks", low, high);
  if (page.difference) {
    drawTicks("difference-ticks", -state.spread, state.spread);
    paintScale("difference-scale", (k) => page.difference.colours[k]);
    byId("difference-low").textContent = `−${state.spread} HU`; byId("difference-high").textContent = `+${state.spread} HU`;
  }
  if (page.uncertainty) {
    drawTicks("uncertainty-ticks", 0, state.reach);
    paintScale("uncertainty-scale", (k) => page.uncertainty.colours[k]);
    byId("uncertainty-low").textContent = "0 HU"; byId("uncertainty-high").textContent = `${state.reach} HU`;
  }
}

// Round values between the ends of a scale, below its colours.
function drawTicks(id, low, high) {
  const raw = (high - low) / 4, unit = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= raw * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) {
    const tick = document.createElement("span");
    tick.textContent = String(Number((k * step).toPrecision(6))).replace("-", "−");
    tick.style.left = `${((k * step - low) / (high - low)) * 100}%`;
    ticks.push(tick);
  }
  byId(id).replaceChildren(...ticks);
}

function paintScale(id, colour) {
  const context = byId(id).getContext("2d"), image = context.createImageData(256, 1);
  for (let k = 0; k < 256; k++) image.data.set([...colour(k), 255], 4 * k);
  context.putImageData(image, 0, 0);
}

// ---------------------------------------------------------------- views

const views = [];
for (const node of document.querySelectorAll(".view")) {
  const plane = page.planes.find((p) => p.name === node.dataset.plane);
  const canvas = node.querySelector("canvas");
  canvas.height = page.shape[plane.axes[0]]; canvas.width = page.shape[plane.axes[1]];
  const view = { id: node.dataset.volume, plane, node, canvas, across: node.querySelector(".across"), down: node.querySelector(".down") };
  views.push(view);
  const point = (event) => {
    const box = node.getBoundingClientRect(), [rowAxis, columnAxis] = plane.axes;
    const inside = (share, n) => Math.max(0, Math.min(n - 1, Math.floor(share * n)));
    const row = inside((event.clientY - box.top) / box.height, page.shape[rowAxis]);
    state.at[rowAxis] = plane.flipped ? page.shape[rowAxis] - 1 - row : row;
    state.at[columnAxis] = inside((event.clientX - box.left) / box.width, page.shape[columnAxis]);
    draw();
  };
  node.addEventListener("pointerdown", (event) => { node.setPointerCapture(event.pointerId); point(event); sliderOf(plane).focus({ preventScroll: true }); event.preventDefault(); });
  node.addEventListener("pointermove", (event) => { if (event.buttons & 1) point(event); });
  node.addEventListener("wheel", (event) => {
    if (document.activeElement !== sliderOf(plane)) return; // a page that scrolls past is not to change slices
    event.preventDefault();
    moveTo(plane.axis, state.at[plane.axis] + (event.deltaY > 0 ? -1 : 1));
  }, { passive: false });
}

const sliderOf = (plane) => byId(`slice-${plane.name}`);

function moveTo(axis, index) {
  state.at[axis] = Math.max(0, Math.min(page.shape[axis] - 1, index));
  draw();
}

let scheduled = false;
function draw() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    if (Object.keys(volumes).length < page.volumes.length) return;
    const mm = position();
    for (const plane of page.planes) {
      const index = state.at[plane.axis], slider = sliderOf(plane);
      slider.value = index;
      const place = { 0: side(mm[2], "H", "F"), 1: side(mm[1], "P", "A"), 2: side(mm[0], "L", "R") }[plane.axis];
      const text = `slice ${index + 1} of ${page.shape[plane.axis]}, ${place} mm`;
      byId(`place-${plane.name}`).textContent = text;
      slider.setAttribute("aria-valuetext", text);
    }
    views.forEach((view) => { if (!view.node.closest(".plane").hidden) drawView(view); });
    drawReadout();
    drawScales();
    document.body.dataset.drawn = String(Number(document.body.dataset.drawn || 0) + 1);
  });
}

function choose(buttons, chosen) {
  for (const button of buttons) button.setAttribute("aria-pressed", String(button === chosen));
}

function setWindow(level, width) {
  state.level = level; state.width = Math.max(1, width);
  byId("level").value = level; byId("width").value = state.width;
  const buttons = [...document.querySelectorAll("button[data-level]")];
  choose(buttons, buttons.find((b) => Number(b.dataset.level) === level && Number(b.dataset.width) === state.width));
  makeTables();
  draw();
}

for (const button of document.querySelectorAll("button[data-level]"))
  button.addEventListener("click", () => setWindow(Number(button.dataset.level), Number(button.dataset.width)));
for (const id of ["level", "width"])
  byId(id).addEventListener("change", () => setWindow(Number(byId("level").value), Number(byId("width").value)));
const planeButtons = [...document.querySelectorAll("button[data-planes]")];
for (const button of planeButtons)
  button.addEventListener("click", () => {
    choose(planeButtons, button);
    const only = button.dataset.planes;
    for (const plane of page.planes) byId(`plane-${plane.name}`).hidden = only !== "all" && only !== plane.name;
    byId("planes").style.setProperty("--tall", only === "all" ? "26rem" : "82vh");
    draw();
  });
byId("bright").addEventListener("input", (event) => { state.bright = 2 ** Number(event.target.value); makeTables(); draw(); });
byId("cross").addEventListener("change", (event) => byId("planes").classList.toggle("no-cross", !event.target.checked));
if (page.difference) byId("spread").addEventListener("change", (event) => { state.spread = Number(event.target.value); draw(); });
if (page.uncertainty) byId("reach").addEventListener("change", (event) => { state.reach = Number(event.target.value); makeTables(); draw(); });
for (const plane of page.planes)
  sliderOf(plane).addEventListener("input", (event) => moveTo(plane.axis, Number(event.target.value)));

(async () => {
  const status = byId("loading");
  try {
    for (const info of page.volumes) {
      status.textContent = `Loading ${info.title} …`;
      await loadScript(info.file);
      volumes[info.id] = await unpack(arrived.text);
      arrived = null;
    }
    status.hidden = true;
    const first = document.querySelector("button[data-level]");
    setWindow(Number(first.dataset.level), Number(first.dataset.width));
    requestAnimationFrame(() => { document.body.dataset.ready = "true"; });
  } catch (error) {
    status.className = "warning";
    status.textContent = typeof DecompressionStream === "undefined" ? "This browser is too old to show the volumes; use one from 2023 or later." : `The volumes cannot be shown: ${error.message}`;
  }
})();
