// The region picker: one 2-D canvas with a picture and several regions, each a mask of the picture's own pixels.
// Runs as the js_on_load of a gr.HTML component, so `element`, `props`, `trigger`, `upload` and `watch` are given.
//
// props.value = {image: FileData, regions: [{size: [H, W], counts: [..]}], versions: [..]}, counts as in uncompressed COCO RLE.
// Masks are in COCO's order as well, column after column: the pixel (x, y) is at x * height + y.

const COLORS = props.colors, LIMITS = props.limits;
const TINY_SHARE = 0.0005, TINY_PIXELS = 64, MAX_UNDO = 60;
const TINT = 70;  // of 255, while a region is painted or its row is pointed at; else none, because the captions speak of colours
const ASK_AFTER = 700;  // ms without another stroke
const LAYER = [6e5, 2e6];  // pixels of what is drawn over the picture for each region: fine lines on small ones, memory on large ones

const find = (selector) => element.querySelector(selector);
document.documentElement.style.scrollPaddingBottom = "110px";  // what has the focus is not behind the bar with Describe
const stale = document.head.appendChild(document.createElement("style"));
const lit = document.head.appendChild(document.createElement("style"));
const canvas = find(".fc-canvas"), stage = find(".fc-stage"), context = canvas.getContext("2d");
let picture = null, file = null, width = 0, height = 0;
let regions = [], active = 0, hovered = null, filled = null, asking = null;
let undoStack = [], redoStack = [];
let tool = "brush", versions = 0, view = { scale: 1, x: 0, y: 0 }, isFitted = true;
let stroke = null, cursor = null, pinch = null, loads = 0, lastSent = null;
const pointers = new Map();

// --- regions -------------------------------------------------------------------------------------------------------

function newRegion() {
  const layer = document.createElement("canvas"), scale = Math.sqrt(Math.min(Math.max(width * height, LAYER[0]), LAYER[1]) / (width * height));
  layer.width = Math.ceil(width * scale); layer.height = Math.ceil(height * scale);
  return { mask: new Uint8Array(width * height), counts: [width * height], area: 0, box: [0, 0, 0, 0], version: ++versions, layer, points: [], candidates: [] };
}

function colorOf(index) { return COLORS[index % COLORS.length]; }
function inkOf(index) { return props.inks[index % COLORS.length]; }

/** Repaint a region's layer, or where its mask changed inside [x0, x1) x [y0, y1): a line around it with white around that, and a tint if it is the filled one. */
function refresh(index, part = null) {
  const { mask, layer } = regions[index], [red, green, blue] = colorOf(index), tint = regions[index] === filled ? TINT : 0;
  if (!part) layer.getContext("2d").clearRect(0, 0, layer.width, layer.height);
  let [x0, y0, x1, y1] = part ?? regions[index].box;
  if (x1 <= x0 || y1 <= y0) return;
  const across = width / layer.width, down = height / layer.height, line = Math.max(1, Math.round(Math.max(layer.width, layer.height) / 500));
  x0 = Math.max(0, Math.floor(x0 / across) - 2 * line); x1 = Math.min(layer.width, Math.ceil(x1 / across) + 2 * line);
  y0 = Math.max(0, Math.floor(y0 / down) - 2 * line); y1 = Math.min(layer.height, Math.ceil(y1 / down) + 2 * line);
  const isInside = (x, y) => x >= 0 && y >= 0 && x < layer.width && y < layer.height
    ? mask[Math.floor((x + 0.5) * across) * height + Math.floor((y + 0.5) * down)] : 0;
  const isNear = (x, y, from, to) => {
    for (let d = from; d <= to; d++) if (isInside(x - d, y) || isInside(x + d, y) || isInside(x, y - d) || isInside(x, y + d)) return true;
    return false;
  };
  const pixels = new ImageData(x1 - x0, y1 - y0);
  for (let y = y0, at = 0; y < y1; y++) {
    for (let x = x0; x < x1; x++, at += 4) {
      const inside = isInside(x, y);
      // Outside of the region, whose colours stay, however thin it is; but where it meets the picture's border.
      const isLine = inside ? x < line || y < line || x >= layer.width - line || y >= layer.height - line : isNear(x, y, 1, line);
      if (!inside && !isLine && !isNear(x, y, line + 1, 2 * line)) continue;
      const isColored = inside || isLine;
      pixels.data[at] = isColored ? red : 255; pixels.data[at + 1] = isColored ? green : 255; pixels.data[at + 2] = isColored ? blue : 255;
      pixels.data[at + 3] = isLine ? 255 : inside ? tint : 200;
    }
  }
  layer.getContext("2d").putImageData(pixels, x0, y0);
}

/** Fill one region, or none: the colours of a filled one are not those of the picture. */
function shade(region) {
  if (region === filled) return;
  const changes = [filled, region].map((it) => regions.indexOf(it)).filter((index) => index >= 0);
  filled = region;
  changes.forEach((index) => refresh(index));
  draw();
}

/** What follows from a region's mask; a new version, unless it is an earlier mask that came back. */
function settle(region, version = ++versions) {
  const { mask } = region, counts = [];
  let area = 0, sumX = 0, sumY = 0, box = [width, height, 0, 0];
  for (let at = 0, value = 0; at < mask.length; value = 1 - value) {
    const next = mask.indexOf(1 - value, at), stop = next < 0 ? mask.length : next;
    counts.push(stop - at);
    for (let from = at; value && from < stop;) {  // the run's part in one column after the other
      const x = Math.floor(from / height), y = from - x * height, length = Math.min(stop - from, height - y);
      area += length; sumX += length * x; sumY += length * (y + (length - 1) / 2);
      box = [Math.min(box[0], x), Math.min(box[1], y), x + 1, Math.max(box[3], y + length)];
      from += length;
    }
    at = stop;
  }
  Object.assign(region, { counts, area, box, version, center: area ? [sumX / area + 0.5, sumY / area + 0.5] : null });
}

function encode({ counts }) { return { size: [height, width], counts }; }

/** Counts -> COCO's compressed text: each as its difference from the one before the last, five bits a letter. */
function compress(counts) {
  let text = "";
  counts.forEach((count, index) => {
    let rest = index > 2 ? count - counts[index - 2] : count, isMore = true;
    while (isMore) {
      let bits = rest & 31;
      rest >>= 5;
      isMore = bits & 16 ? rest !== -1 : rest !== 0;
      if (isMore) bits |= 32;
      text += String.fromCharCode(bits + 48);
    }
  });
  return text;
}

/** COCO's compressed text -> counts. */
function uncompress(text) {
  const counts = [];
  for (let at = 0; at < text.length;) {
    let number = 0, shift = 0, chunk;
    do {
      chunk = text.charCodeAt(at++) - 48;
      if (!(chunk >= 0 && chunk < 64) || shift > 30) throw Error("the RLE text is damaged");
      number |= (chunk & 31) << shift; shift += 5;
      if (!(chunk & 32) && (chunk & 16)) number |= -1 << shift;
    } while (chunk & 32);
    if (counts.length > 2) number += counts[counts.length - 2];
    counts.push(number);
  }
  return counts;
}

function decode(rle) {
  if (!rle || !Array.isArray(rle.size) || rle.counts === undefined) throw Error("needed is {\"size\": [H, W], \"counts\": ..}");
  checkSize(rle.size[0], rle.size[1]);
  const counts = typeof rle.counts === "string" ? uncompress(rle.counts) : rle.counts;
  const mask = new Uint8Array(width * height);
  let at = 0, value = 0;
  for (const run of counts) {
    if (!Number.isInteger(run) || run < 0 || at + run > mask.length) throw Error("the runs of the RLE do not fit its size");
    if (value) mask.fill(1, at, at + run);
    at += run; value = 1 - value;
  }
  if (at !== mask.length) throw Error("the runs of the RLE do not fill its size");
  return mask;
}

function checkSize(h, w) {
  if (h !== height || w !== width) throw Error(`the mask is ${w}x${h} but the picture is ${width}x${height}: give it at the picture's size`);
}

// --- undo ----------------------------------------------------------------------------------------------------------

function snapshot() {
  return { active, regions: regions.map(({ counts, version, points, candidates, candidate }) => ({ counts, version, points, candidates, candidate })) };
}

function restore(state) {
  const before = regions;
  regions = state.regions.map(({ counts, version, points, candidates, candidate }, index) => {
    if (before[index]?.version === version) return Object.assign(before[index], { points, candidates, candidate });
    const region = Object.assign(newRegion(), { points, candidates, candidate, mask: decode({ size: [height, width], counts }) });
    settle(region, version);
    return region;
  });
  active = state.active;
  regions.forEach((region, index) => { if (region !== before[index]) refresh(index); });
  changed();
  if (regions.length !== before.length) trigger("clear");
}

function remember() {
  undoStack.push(snapshot());
  if (undoStack.length > MAX_UNDO) undoStack.shift();
  redoStack = [];
}

function undo() { if (undoStack.length) { redoStack.push(snapshot()); restore(undoStack.pop()); say("Undone"); } }
function redo() { if (redoStack.length) { undoStack.push(snapshot()); restore(redoStack.pop()); say("Done again"); } }

// --- what the server gets --------------------------------------------------------------------------------------------

function changed() {
  const marked = regions.filter((region) => region.area);
  lastSent = file ? { image: file, regions: marked.map(encode), versions: marked.map((region) => region.version) } : null;
  props.value = lastSent;
  canvas.dataset.areas = regions.map((region) => region.area).join(",");
  // Answers about a mask that is no more are greyed.
  stale.textContent = `tr[data-version]${regions.map(({ version }) => `:not([data-version="${version}"])`).join("")} td { color: var(--body-text-color-subdued); font-style: italic; text-decoration: line-through; }`;
  listRegions(); draw();
  trigger("change");
}

function say(text, bad = false) {
  const status = find(".fc-status");
  status.textContent = text; status.classList.toggle("fc-bad", bad);
}

function isTiny(region) { return region.area && (region.area < TINY_PIXELS || region.area < TINY_SHARE * width * height); }

function listRegions() {
  const list = find(".fc-regions");
  list.replaceChildren(...regions.map((region, index) => {
    const chip = document.createElement("span");
    chip.className = "fc-chip" + (index === active ? " fc-active" : "");
    chip.dataset.version = region.version;
    chip.style.setProperty("--fc-color", `rgb(${colorOf(index)})`);
    const choose = document.createElement("button");
    choose.type = "button"; choose.setAttribute("aria-pressed", index === active);
    const dot = document.createElement("span");
    dot.className = "fc-dot"; dot.textContent = numberOf(index) ?? "·"; dot.style.color = inkOf(index);
    const text = document.createElement("span");
    const share = 100 * region.area / (width * height);
    text.textContent = region.area ? `${region.area.toLocaleString("en")} px, ${share < 0.1 ? share.toFixed(3) : share.toFixed(1)}%` : "empty";
    choose.append(dot, text);
    if (isTiny(region)) {
      const warning = document.createElement("span");
      warning.className = "fc-warn"; warning.textContent = "\u00a0⚠ tiny"; warning.title = "The model may see little of so small a region";
      choose.append(warning);
    }
    choose.onclick = () => { active = index; listRegions(); draw(); };
    const remove = document.createElement("button");
    remove.type = "button"; remove.textContent = "×"; remove.title = "Remove this region"; remove.setAttribute("aria-label", `Remove region ${index + 1}`);
    remove.onclick = () => removeRegion(index);
    chip.append(choose, remove);
    return chip;
  }));
  // What would do nothing is not offered.
  find('[data-do="refine"]').hidden = !props.segmenter || !regions[active]?.area;
  find('[data-do="nextCandidate"]').hidden = !props.segmenter || !(regions[active]?.candidates.length > 1);
  find('[data-do="undo"]').disabled = !undoStack.length;
  find('[data-do="redo"]').disabled = !redoStack.length;
}

/** Empty regions are not sent, so numbers count those that are not. */
function numberOf(index) {
  return regions[index].area ? regions.slice(0, index + 1).filter((region) => region.area).length : null;
}

function addRegion() {
  if (!picture) return say("First choose a picture", true);
  if (regions.length >= LIMITS.regions) return say(`At most ${LIMITS.regions} regions`, true);
  const empty = regions.findIndex((region) => !region.area);
  say(`Mark another thing: it becomes region ${regions.filter(({ area }) => area).length + 1}`);
  if (empty >= 0) { active = empty; listRegions(); draw(); return; }
  remember(); regions.push(newRegion()); active = regions.length - 1; changed();
}

function removeRegion(index) {
  remember(); regions.splice(index, 1);
  if (!regions.length) regions.push(newRegion());
  active = Math.min(active, regions.length - 1);
  regions.forEach((_, number) => refresh(number));
  changed();
  trigger("clear");
}

// --- drawing ---------------------------------------------------------------------------------------------------------

let isScheduled = false;
function draw() {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => { isScheduled = false; drawNow(); });
}

function drawNow() {
  const ratio = window.devicePixelRatio || 1, box = stage.getBoundingClientRect();
  const w = Math.max(1, Math.round(box.width * ratio)), h = Math.max(1, Math.round(box.height * ratio));
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; if (isFitted) fit(); }
  canvas.dataset.zoom = view.scale;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, w, h);
  if (!picture) return;
  context.setTransform(view.scale * ratio, 0, 0, view.scale * ratio, view.x * ratio, view.y * ratio);
  context.imageSmoothingEnabled = view.scale < 3;
  context.drawImage(picture, 0, 0, width, height);
  regions.forEach((region, index) => {
    context.globalAlpha = hovered === null ? (index === active ? 1 : 0.75) : index === hovered ? 1 : 0.2;
    context.drawImage(region.layer, 0, 0, width, height);
  });
  context.globalAlpha = 1;
  if (stroke && stroke.path.length > 1 && (tool === "lasso" || tool === "box")) {
    context.beginPath();
    outline(stroke).forEach(([x, y], index) => index ? context.lineTo(x, y) : context.moveTo(x, y));
    context.closePath();
    for (const [style, line] of [["white", 3], [`rgb(${colorOf(active)})`, 1.5]]) {
      context.strokeStyle = style; context.lineWidth = line / view.scale; context.stroke();
    }
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = "bold 12px sans-serif"; context.textAlign = "center"; context.textBaseline = "middle";
  regions.forEach((region, index) => {
    if (!region.area || !region.center) return;
    const x = region.center[0] * view.scale + view.x, y = region.center[1] * view.scale + view.y;
    context.beginPath(); context.arc(x, y, 11, 0, 7);
    context.fillStyle = `rgb(${colorOf(index)})`; context.fill();
    context.strokeStyle = "white"; context.lineWidth = 2; context.stroke();
    context.fillStyle = inkOf(index);
    context.fillText(numberOf(index), x, y + 0.5);
  });
  for (const [px, py, label] of awaited ?? regions[active]?.points ?? []) {
    const x = px * view.scale + view.x, y = py * view.scale + view.y;
    context.beginPath(); context.arc(x, y, 6, 0, 7); context.fillStyle = label ? "#1a7f37" : "#c62828"; context.fill();
    context.strokeStyle = "white"; context.lineWidth = 2; context.stroke();
    context.fillStyle = "white"; context.fillText(label ? "+" : "−", x, y);
  }
  placeFlip();
  if (cursor) {
    const x = cursor[0] * view.scale + view.x, y = cursor[1] * view.scale + view.y;
    const r = tool === "brush" || tool === "eraser" ? Math.max(3, radius() * view.scale) : 6;
    for (const [style, line] of [["white", 3], ["black", 1]]) {
      context.beginPath(); context.arc(x, y, r, 0, 7); context.strokeStyle = style; context.lineWidth = line; context.stroke();
    }
  }
}

function fit() {
  if (!picture) return;
  const box = stage.getBoundingClientRect();
  view.scale = Math.min(box.width / width, box.height / height);
  view.x = (box.width - width * view.scale) / 2; view.y = (box.height - height * view.scale) / 2;
  isFitted = true;
}

function zoom(factor, x, y) {
  if (!picture) return;
  const box = stage.getBoundingClientRect();
  x ??= box.width / 2; y ??= box.height / 2;
  const scale = Math.min(40, Math.max(0.02, view.scale * factor));
  view.x = x - (x - view.x) * scale / view.scale; view.y = y - (y - view.y) * scale / view.scale; view.scale = scale;
  isFitted = false; draw();
}

function radius() { return Number(find(".fc-radius").value) * Math.max(width, height) / 1000; }

// --- strokes: the same three steps for pointers and keys -------------------------------------------------------------

function begin(point, takesAway) {
  if (!picture) return;
  if (!regions.length) regions.push(newRegion());
  const region = regions[active], label = tool === "negative" || takesAway ? 0 : 1;
  clearTimeout(asking);
  const isInside = point[0] >= 0 && point[1] >= 0 && point[0] < width && point[1] < height;
  if (["spot", "positive", "negative"].includes(tool) && !isInside) return say("This is beside the picture", true);
  if (tool === "positive" || tool === "negative") return segment(region, [...region.wanted ?? region.points, [...point, label]]);
  if (tool === "spot") return regions.filter(({ area }) => area).length < LIMITS.regions ? segment(newRegion(), [[...point, 1]])
    : say(`At most ${LIMITS.regions} regions`, true);
  stroke = { path: [point], takesAway, before: snapshot() };
  shade(region);
  if (tool === "brush" || tool === "eraser") dab(point, point);
  draw();
}

function extend(point) {
  if (!stroke) return;
  const last = stroke.path[stroke.path.length - 1];
  stroke.path.push(point);
  if (tool === "brush" || tool === "eraser") dab(last, point);
  draw();
}

function finish() {
  if (!stroke) return;
  const done = stroke, region = regions[active];
  if (tool === "box" || tool === "lasso") fill(outline(done), done.takesAway ? 0 : 1);
  stroke = null;
  settle(region);
  shade(null);  // which draws the outline within the box that settling found
  undoStack.push(done.before); if (undoStack.length > MAX_UNDO) undoStack.shift();
  redoStack = [];
  changed();
  if (!region.area) return say("The region is empty: mark what you want to know of");
  const isAsked = askSoon(), which = `Region ${numberOf(active)}`;
  say((isTiny(region) ? `${which} is tiny (${region.area} px): the model may see little of it. ` : "")
    + (isAsked ? `${which} is asked about; go on to change it, or press + Region for another thing` : `${which} is marked. Press Describe, or Enter, to ask about it`));
}

/** Ask in a moment, if nothing else changes until then and the user wants that; whether they do. */
function askSoon() {
  clearTimeout(asking);
  if (find(".fc-at-once").checked) asking = setTimeout(() => trigger("submit"), ASK_AFTER);
  return find(".fc-at-once").checked;
}

function cancelStroke() {
  if (!stroke) return;
  const { before } = stroke;
  stroke = null; shade(null); regions[active].version = null;  // its mask is another one by now
  restore(before);
}

function outline({ path }) {
  if (tool !== "box") return path;
  const [x0, y0] = path[0], [x1, y1] = path[path.length - 1];
  return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
}

/** Set the pixels whose centres lie within the brush around the line from a to b. */
function dab([ax, ay], [bx, by]) {
  const value = tool === "eraser" ? 0 : 1, r = Math.max(radius(), 0.71), mask = regions[active].mask;
  const x0 = Math.max(0, Math.floor(Math.min(ax, bx) - r)), x1 = Math.min(width, Math.ceil(Math.max(ax, bx) + r));
  const y0 = Math.max(0, Math.floor(Math.min(ay, by) - r)), y1 = Math.min(height, Math.ceil(Math.max(ay, by) + r));
  const dx = bx - ax, dy = by - ay, length = dx * dx + dy * dy;
  for (let x = x0; x < x1; x++) {
    for (let y = y0; y < y1; y++) {
      const px = x + 0.5 - ax, py = y + 0.5 - ay;
      const t = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
      if ((px - t * dx) ** 2 + (py - t * dy) ** 2 <= r * r) mask[x * height + y] = value;
    }
  }
  refresh(active, [x0, y0, x1, y1]);
}

/** Set the pixels whose centres lie inside a polygon (even-odd rule). */
function fill(points, value) {
  const mask = regions[active].mask, [xs, ys] = [0, 1].map((axis) => points.map((point) => point[axis]));
  const low = Math.max(0, Math.floor(Math.min(...xs))), high = Math.min(width, Math.ceil(Math.max(...xs)));
  for (let x = low; x < high; x++) {
    const crossings = [];
    points.forEach(([x0, y0], index) => {
      const [x1, y1] = points[(index + 1) % points.length];
      if ((x0 <= x + 0.5) !== (x1 <= x + 0.5)) crossings.push(y0 + (x + 0.5 - x0) * (y1 - y0) / (x1 - x0));
    });
    crossings.sort((a, b) => a - b);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const start = Math.max(0, Math.ceil(crossings[i] - 0.5)), stop = Math.min(height, Math.ceil(crossings[i + 1] - 0.5));
      if (stop > start) mask.fill(value, x * height + start, x * height + stop);
    }
  }
  refresh(active, [low, Math.max(0, Math.floor(Math.min(...ys))), high, Math.min(height, Math.ceil(Math.max(...ys)))]);
}

// --- points, where the server has a segmenter ------------------------------------------------------------------------

let awaited = null;  // points that are marked before the server has answered

/** Give a region, which may not be in the list yet, the mask of its points and box. */
async function segment(region, points, box_xyxy = null) {
  const asked = file, isNew = !regions.includes(region);
  if (!points.some((point) => point[2]) && !box_xyxy) return say("Begin with a point in the region", true);
  region.wanted = awaited = points; draw();
  say("Finding the region…");
  let found;
  try {
    found = await server.segment({ path: file.path, points: points.map(([x, y]) => [x, y]), labels: points.map((point) => point[2]), box_xyxy });
  } catch (error) { found = { error: "the server did not answer" }; }
  if (awaited === points) { awaited = null; draw(); }
  if (file !== asked || region.wanted !== points || (!isNew && !regions.includes(region))) return;
  region.wanted = null;
  if (found.error || !found.candidates.length) return say(`No region was found: ${found.error ?? "try another point"}`, true);
  remember();
  if (isNew) { regions = [...regions.filter((other) => other.area), region]; active = regions.length - 1; }
  Object.assign(region, { points, candidates: found.candidates });
  showCandidate(region, 0);
  if (points.length && find(".fc-at-once").checked) trigger("submit");
}

function showCandidate(region, number) {
  region.candidate = number;
  region.mask = decode(region.candidates[number].segmentation);
  settle(region); refresh(regions.indexOf(region));
  const many = region.candidates.length, found = `Outline ${number + 1} of ${many}, found by ${props.segmenter}`;
  say(isTiny(region) ? `${found}. It is tiny: try another outline or point, or draw a box and fit it to the outline`
    : many > 1 ? `${found}. Not what you mean? Other outline shows the next` : found);
  changed();
}

/** Beside the last point of the chosen region: which of its masks it has, and the way to the others. */
function placeFlip() {
  const box = find(".fc-flip"), region = regions[active], at = region?.points.at(-1);
  box.hidden = Boolean(!at || awaited || stroke || region.candidates.length < 2);
  if (box.hidden) return;
  find(".fc-flip span").textContent = `${(region.candidate ?? 0) + 1} of ${region.candidates.length}`;
  const x = at[0] * view.scale + view.x + 14, y = at[1] * view.scale + view.y + 14;
  box.style.left = `${Math.max(0, Math.min(x, stage.clientWidth - box.offsetWidth))}px`;
  box.style.top = `${Math.max(0, y + box.offsetHeight > stage.clientHeight ? y - 28 - box.offsetHeight : y)}px`;
}

function nextCandidate() { flip(1); }

function flip(step) {
  const region = regions[active];
  if (!region || region.candidates.length < 2) return say("There is no other outline; set a point first", true);
  remember(); showCandidate(region, ((region.candidate ?? 0) + step + region.candidates.length) % region.candidates.length);
  askSoon();  // not about those that one flips past
}
element.querySelectorAll("[data-flip]").forEach((button) => { button.onclick = () => flip(Number(button.dataset.flip)); });

function refine() {
  const region = chosen();
  if (!region) return;
  segment(region, region.points, region.box);
}

element.querySelectorAll("[data-points]").forEach((part) => { part.hidden = !props.segmenter; });

// --- pointers and keys -----------------------------------------------------------------------------------------------

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function toPicture([x, y]) { return [(x - view.x) / view.scale, (y - view.y) / view.scale]; }

canvas.addEventListener("pointerdown", (event) => {
  if (!picture) return;
  canvas.setPointerCapture(event.pointerId); canvas.focus({ preventScroll: true });
  pointers.set(event.pointerId, place(event));
  if (pointers.size === 2) {
    cancelStroke();
    const [a, b] = [...pointers.values()];
    pinch = { distance: Math.hypot(a[0] - b[0], a[1] - b[1]), center: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2] };
  } else if (pointers.size === 1) {
    cursor = null;
    if (tool !== "hand" && event.button === 0) begin(toPicture(place(event)), event.altKey);
  }
});

canvas.addEventListener("click", () => { if (!picture) find(".fc-file").click(); });

canvas.addEventListener("pointermove", (event) => {
  const now = place(event), before = pointers.get(event.pointerId);
  if (!before) { if (picture && event.pointerType === "mouse") { cursor = toPicture(now); lightUp(regionAt(cursor)); draw(); } return; }
  pointers.set(event.pointerId, now);
  if (pinch && pointers.size === 2) {
    const [a, b] = [...pointers.values()];
    const distance = Math.hypot(a[0] - b[0], a[1] - b[1]), center = [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
    view.x += center[0] - pinch.center[0]; view.y += center[1] - pinch.center[1];
    if (pinch.distance > 0) zoom(distance / pinch.distance, ...center);
    pinch = { distance, center };
  } else if (stroke) {
    const events = event.getCoalescedEvents?.() ?? [];
    for (const part of events.length ? events : [event]) extend(toPicture(place(part)));
  } else if (tool === "hand" || event.buttons === 4) {
    view.x += now[0] - before[0]; view.y += now[1] - before[1]; isFitted = false; draw();
  }
});

function release(event) {
  pointers.delete(event.pointerId);
  if (pointers.size < 2) pinch = null;
  if (event.type === "pointercancel") cancelStroke(); else finish();
}
canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", release);
canvas.addEventListener("pointerleave", () => { if (!stroke) { cursor = null; lightUp(null); draw(); } });
canvas.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.metaKey) return;
  event.preventDefault(); zoom(Math.exp(-event.deltaY / 300), ...place(event));
}, { passive: false });

const KEYS = { b: "brush", r: "box", l: "lasso", e: "eraser", h: "hand", ...(props.segmenter ? { w: "spot", p: "positive", n: "negative" } : {}) };
canvas.addEventListener("keydown", (event) => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const isCommand = event.ctrlKey || event.metaKey;
  const step = (event.shiftKey ? 10 : 1) * Math.max(1, Math.max(width, height) / 250);
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (isCommand && key === "z") event.shiftKey ? redo() : undo();
  else if (isCommand && key === "y") redo();
  else if (isCommand) return;
  else if (KEYS[key]) choose(KEYS[key]);
  else if (key === "a") addRegion();
  else if (key === "+" || key === "=") zoom(1.25);
  else if (key === "-") zoom(0.8);
  else if (key === "0") { fit(); draw(); }
  else if (key === "," || key === ".") flip(key === "." ? 1 : -1);
  else if (key === "[" || key === "]") find(".fc-radius").value = Number(find(".fc-radius").value) + (key === "]" ? 3 : -3);
  else if (key === "Escape") cancelStroke();
  else if (key === "Delete" || key === "Backspace") { if (picture) removeRegion(active); }
  else if (moves[key] && picture) {
    cursor ??= [width / 2, height / 2];
    cursor = [Math.min(width, Math.max(0, cursor[0] + moves[key][0])), Math.min(height, Math.max(0, cursor[1] + moves[key][1]))];
    if (stroke) extend(cursor); else draw();
  } else if (key === "Enter" && !picture) find(".fc-file").click();
  else if (key === "Enter" && picture && !stroke) trigger("submit");
  else if ((key === " " || key === "Enter") && picture) {
    cursor ??= [width / 2, height / 2];
    if (stroke) finish(); else begin(cursor, event.altKey);
    if (stroke) say("Arrow keys draw, space ends the stroke");
  } else return;
  event.preventDefault();
});

function choose(name) {
  cancelStroke(); tool = name;
  element.querySelectorAll("[data-tool]").forEach((button) => {
    button.setAttribute("role", "radio"); button.setAttribute("aria-checked", button.dataset.tool === name);
    button.tabIndex = button.dataset.tool === name ? 0 : -1;  // one stop for Tab; arrow keys choose among them
  });
  canvas.style.cursor = name === "hand" ? "grab" : "crosshair";
  find(".fc-size").hidden = name !== "brush" && name !== "eraser";
}
element.querySelectorAll("[data-tool]").forEach((button) => { button.onclick = () => choose(button.dataset.tool); });
find('[role="radiogroup"]').addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  const shown = [...element.querySelectorAll("[data-tool]:not([hidden])")];
  const next = shown[(shown.findIndex((button) => button.dataset.tool === tool) + step + shown.length) % shown.length];
  choose(next.dataset.tool); next.focus();
  event.preventDefault();
});

// --- pictures --------------------------------------------------------------------------------------------------------

async function openPicture(source) {
  if (!source) return;
  const turn = ++loads;
  try {
    if (source.size > LIMITS.bytes) throw Error(`it has ${source.size} bytes; at most ${LIMITS.bytes} are taken`);
    say("Reading the picture…");
    const shown = await readPicture(URL.createObjectURL(source));
    if (turn !== loads) return;
    const stored = await upload(source);
    if (turn !== loads) return;
    show(shown, { path: stored.path, url: stored.url, orig_name: source.name || "picture.png", meta: { _type: "gradio.FileData" } });
    say(`${width} x ${height} pixels. ${props.segmenter ? "Click on what you want to know of, or mark" : "Mark"} it with brush, box or lasso; without a region it is the whole picture`);
  } catch (error) { if (turn === loads) say(`This picture cannot be used: ${error.message ?? error}`, true); }
}

function readPicture(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => image.naturalWidth * image.naturalHeight > LIMITS.pixels
      ? reject(Error(`it has ${image.naturalWidth} x ${image.naturalHeight} pixels; at most ${LIMITS.pixels} are taken`)) : resolve(image);
    image.onerror = () => reject(Error("it is no picture that this browser can show; give a PNG, JPEG or WebP"));
    image.src = url;
  });
}

function show(image, stored, masks = []) {
  awaited = null;
  picture = image; file = stored; width = image.naturalWidth; height = image.naturalHeight;
  clearTimeout(asking);
  undoStack = []; redoStack = []; stroke = null; hovered = filled = null; active = 0;
  regions = masks.map((rle) => Object.assign(newRegion(), { mask: decode(rle) }));
  if (!regions.length) regions.push(newRegion());
  regions.forEach((region, index) => { settle(region); refresh(index); });
  find(".fc-empty").hidden = true; find(".fc-picker").classList.remove("fc-without");
  canvas.dataset.size = `${width}x${height}`;
  canvas.setAttribute("aria-label", `${stored.orig_name}, ${width} by ${height} pixels`);
  stage.style.aspectRatio = `${width} / ${height}`;
  fit(); changed();
  trigger("clear");  // answers about another picture, or under other numbers, would mislead
}

/** A value from the server: an example, or nothing. */
async function receive() {
  const value = props.value;
  if (!value || !value.image || value === lastSent || JSON.stringify(value) === JSON.stringify(lastSent)) return;
  const turn = ++loads;
  try {
    const image = await readPicture(value.image.url);
    if (turn === loads) { show(image, value.image, value.regions ?? []); say("An example, which is asked about: choose other questions, or mark other regions"); trigger("submit"); for (const part of [find(".fc-said"), stage]) part.scrollIntoView({ block: "nearest" }); }
  } catch (error) { say(`The example cannot be shown: ${error.message ?? error}`, true); }
}
watch("value", receive);

find(".fc-file").onchange = (event) => { openPicture(event.target.files[0]); event.target.value = ""; };
for (const name of ["dragenter", "dragover"]) stage.addEventListener(name, (event) => { event.preventDefault(); stage.classList.add("fc-over"); });
for (const name of ["dragleave", "drop"]) stage.addEventListener(name, (event) => { event.preventDefault(); stage.classList.remove("fc-over"); });
stage.addEventListener("drop", (event) => openPicture([...event.dataTransfer.files].find((it) => it.type.startsWith("image/"))));
document.addEventListener("paste", (event) => {
  if (event.target.closest?.("input, textarea")) return;
  const pasted = [...(event.clipboardData?.items ?? [])].find((item) => item.type.startsWith("image/"));
  if (pasted) return openPicture(pasted.getAsFile());
  const text = event.clipboardData?.getData("text") ?? "";
  if (picture && /^\s*([[{]|H4sI)/.test(text)) importMask(text);
});

// --- masks in and out ------------------------------------------------------------------------------------------------

async function importMask(source) {
  if (!picture) return say("First choose a picture", true);
  try {
    const masks = await readMasks(source);
    for (const mask of masks) if (!mask.includes(1)) throw Error("the mask is empty");
    const kept = regions.filter((region) => region.area);
    if (kept.length + masks.length > LIMITS.regions) throw Error(`at most ${LIMITS.regions} regions are taken`);
    remember();
    regions = kept.concat(masks.map((mask) => Object.assign(newRegion(), { mask })));
    active = regions.length - 1;
    regions.forEach((region, index) => { settle(region); refresh(index); });
    changed();
    say(`${masks.length} region${masks.length > 1 ? "s" : ""} imported, and ${askSoon() ? "asked about" : "to be asked about: press Describe, or Enter"}`);
  } catch (error) { say(`This mask cannot be used: ${error.message ?? error}`, true); }
}

async function readMasks(source) {
  if (typeof source !== "string") {
    if (source.size > LIMITS.bytes) throw Error(`it has ${source.size} bytes; at most ${LIMITS.bytes} are taken`);
    if (source.type.startsWith("image/")) return [await pictureMask(source)];
    source = await source.text();
  }
  const text = source.trim();
  if (text.startsWith("H4sI")) return [await blobMask(text)];
  let given;
  try { given = JSON.parse(text); } catch { throw Error("it is no PNG, no JSON of COCO RLE and no CompositionCap blob"); }
  given = given.regions ?? given;
  return (Array.isArray(given) ? given : [given]).map((entry) => decode(entry.segmentation ?? entry.rle ?? entry));
}

/** A mask whose pixels are told by their places in rows. */
function columns(isInside) {
  const mask = new Uint8Array(width * height);
  for (let x = 0, at = 0; x < width; x++) for (let y = 0; y < height; y++, at++) mask[at] = isInside(y * width + x) ? 1 : 0;
  return mask;
}

/** A mask row after row. */
function rows({ mask }) {
  const turned = new Uint8Array(mask.length);
  for (let y = 0, at = 0; y < height; y++) for (let x = 0; x < width; x++, at++) turned[at] = mask[x * height + y];
  return turned;
}

async function pictureMask(source) {
  const image = await readPicture(URL.createObjectURL(source));
  checkSize(image.naturalHeight, image.naturalWidth);
  const board = document.createElement("canvas");
  board.width = width; board.height = height;
  const pen = board.getContext("2d");
  pen.drawImage(image, 0, 0);
  const { data } = pen.getImageData(0, 0, width, height);
  // {0, 1} and {0, 255} both mean outside and inside.
  return columns((at) => data[4 * at + 3] > 127 && data[4 * at] > 0);
}

async function blobMask(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")).getReader();
  const pixels = new Uint8Array(width * height);
  let at = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (at + value.length > pixels.length) { reader.cancel(); throw Error("the blob holds more pixels than the picture"); }
    pixels.set(value, at); at += value.length;
  }
  if (at !== pixels.length) throw Error(`the blob holds ${at} pixels, the picture ${pixels.length}`);
  return columns((place) => pixels[place]);
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob); link.download = name; link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function chosen() {
  const region = regions[active];
  if (!region || !region.area) { say("The chosen region is empty", true); return null; }
  return region;
}

async function exportPng() {
  const region = chosen();
  if (!region) return;
  const board = document.createElement("canvas");
  board.width = width; board.height = height;
  const pixels = new ImageData(width, height);
  rows(region).forEach((inside, at) => { pixels.data.fill(255 * inside, 4 * at, 4 * at + 3); pixels.data[4 * at + 3] = 255; });
  board.getContext("2d").putImageData(pixels, 0, 0);
  board.toBlob((blob) => save(blob, `region-${numberOf(active)}.png`));
}

function exportRle() {
  const marked = regions.filter((region) => region.area).map(({ counts }) => ({ size: [height, width], counts: compress(counts) }));
  if (!marked.length) return say("There is no region yet", true);
  save(new Blob([JSON.stringify(marked)], { type: "application/json" }), "regions.json");
}

async function exportBlob() {
  const region = chosen();
  if (!region) return;
  const packed = new Uint8Array(await new Response(new Blob([rows(region)]).stream().pipeThrough(new CompressionStream("gzip"))).arrayBuffer());
  let text = "";
  packed.forEach((byte) => { text += String.fromCharCode(byte); });
  save(new Blob([btoa(text)], { type: "text/plain" }), `region-${numberOf(active)}.txt`);
}

async function pasteMask() {
  const text = window.prompt("COCO RLE as JSON, or a CompositionCap blob");
  if (text) importMask(text);
}

find(".fc-mask").onchange = (event) => { importMask(event.target.files[0]); event.target.value = ""; };

const ACTIONS = {
  undo, redo, addRegion, exportPng, exportRle, exportBlob, pasteMask, refine, nextCandidate,
  zoomIn: () => zoom(1.4), zoomOut: () => zoom(1 / 1.4), zoomFit: () => { fit(); draw(); },
};
element.querySelectorAll("[data-do]").forEach((button) => { button.onclick = ACTIONS[button.dataset.do]; });

// --- captions light their regions ------------------------------------------------------------------------------------

function light(event) {
  const row = event.target.closest?.("[data-version]");
  const index = row ? regions.findIndex((region) => region.version === Number(row.dataset.version)) : -1;
  if (event.target === canvas) return;  // which lights what is under the pointer
  lightUp(index < 0 ? null : index);
  if (!stroke) shade(row && index >= 0 ? regions[index] : null);
}

/** A region in the picture, and its rows and its chip. */
function lightUp(next) {
  if (next === hovered) return;
  hovered = next;
  canvas.dataset.lit = next === null ? "" : numberOf(next);
  lit.textContent = next === null ? "" : `tr[data-version="${regions[next].version}"] { background: var(--background-fill-secondary); box-shadow: inset 3px 0 rgb(${colorOf(next)}); }`;
  draw();
}

/** The smallest region at a point of the picture, or none. */
function regionAt([x, y]) {
  const at = Math.floor(x) * height + Math.floor(y);
  if (x < 0 || y < 0 || x >= width || y >= height) return null;
  return regions.reduce((best, { mask, area }, index) => mask[at] && (best === null || area < regions[best].area) ? index : best, null);
}

/** The answers about the chosen region stand below the picture too: the table may be out of sight. */
function showSaid() {
  const region = regions[active], isMarked = regions.some(({ area }) => area);
  const rows = document.querySelectorAll(`.fc-answers tbody tr${isMarked ? `[data-version="${region.version}"]` : ":not([data-version])"}`);
  const text = [...rows].map((row) => [...row.cells].slice(2).map((cell) => cell.textContent).filter(Boolean).join(" | ")).filter(Boolean).join(" · ");
  const [dot, said] = find(".fc-said").children;
  dot.hidden = !text || !isMarked;
  if (said.textContent === text) return;  // this is called at every change of the page
  said.textContent = text; dot.textContent = isMarked ? numberOf(active) : ""; dot.style.background = `rgb(${colorOf(active)})`; dot.style.color = inkOf(active);
}
new MutationObserver(showSaid).observe(document.body, { childList: true, characterData: true, subtree: true });

document.addEventListener("mouseover", light);
document.addEventListener("focusin", light);

new ResizeObserver(draw).observe(stage);
choose(props.segmenter ? "spot" : "brush"); listRegions(); draw(); receive();
