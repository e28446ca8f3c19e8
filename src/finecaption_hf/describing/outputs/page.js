
"use strict";
// All texts reach the document through textContent: none of them can be markup.
const PER_PAGE = 24;
const find = (id) => document.getElementById(id);
const pictures = [...document.querySelectorAll('script[type="application/json"]')].flatMap((block) => {
  const found = JSON.parse(block.textContent);
  block.remove();
  return found;
});
let matching = [];
let start = 0;

function make(tag, text, parent, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  parent?.append(made);
  return made;
}

function choices(id, values) {
  if (values.size < (id === "question" ? 2 : 1)) return;
  for (const value of values) make("option", value, find(id)).value = value;
  find(id).parentElement.hidden = false;
}

function wanted(region, text, question, label, failed) {
  if (label && region.label !== label) return false;
  if (failed && !region.errors) return false;
  const has = (texts) => texts !== undefined && Object.hasOwn(texts, question);
  if (question && !has(region.answers) && !has(region.errors)) return false;
  if (!text) return true;
  const answers = !question ? Object.values(region.answers) : has(region.answers) ? [region.answers[question]] : [];
  return answers.some((answer) => answer.toLowerCase().includes(text));
}

function select() {
  const text = find("text").value.trim().toLowerCase();
  const [question, label, failed] = [find("question").value, find("label").value, find("failed").checked];
  matching = [];
  let regions = 0;
  for (const picture of pictures) {
    const kept = picture.regions.filter((region) => wanted(region, text, question, label, failed));
    if (kept.length) matching.push([picture, kept]);
    regions += kept.length;
  }
  start = 0;
  show(text, question, regions);
}

// The answer with what was looked for marked. Lower case may be of another length: then nothing is marked.
function marked(parent, answer, text) {
  const lower = answer.toLowerCase();
  if (!text || lower.length !== answer.length) {
    parent.append(answer);
    return;
  }
  let at = 0;
  for (let hit; (hit = lower.indexOf(text, at)) >= 0; at = hit + text.length) {
    parent.append(answer.slice(at, hit));
    make("mark", answer.slice(hit, hit + text.length), parent);
  }
  parent.append(answer.slice(at));
}

function card([picture, kept], text, question) {
  const article = document.createElement("article");
  const figure = make("figure", undefined, article);
  if (picture.source) {
    const image = make("img", undefined, figure);
    Object.assign(image, { loading: "lazy", width: picture.width, height: picture.height, src: picture.source });
    image.alt = `${picture.image}, with its regions outlined`;
  } else {
    make("p", `There is no picture: ${picture.missing}`, figure, "missing");
  }
  const hidden = picture.regions.length - kept.length;
  const name = picture.image ?? "a line without a picture";
  make("figcaption", hidden ? `${name}: ${kept.length} of ${picture.regions.length} regions` : name, figure).dir = "auto";
  const list = make("div", undefined, article, "regions");
  list.tabIndex = 0;  // it scrolls where it is longer than the screen
  for (const region of kept) {
    const section = make("section", undefined, list);
    const title = make("h2", undefined, section);
    const badge = make("b", region.number, title);
    if (region.color) Object.assign(badge.style, { backgroundColor: region.color, color: region.ink });
    if (region.label) make("span", region.label, title).dir = "auto";
    if (region.whole) make("small", "the whole picture", title);
    if (region.id !== undefined) make("small", `id ${region.id}`, title).dir = "auto";
    const answers = make("dl", undefined, section);
    for (const [asked, answer] of Object.entries(region.answers)) {
      if (question && asked !== question) continue;
      make("dt", asked, answers).dir = "auto";
      const place = make("dd", undefined, answers);
      place.dir = "auto";
      marked(place, answer, text);
    }
    for (const [asked, why] of Object.entries(region.errors ?? {})) {
      make("dt", asked, answers).dir = "auto";
      make("dd", why, answers, "error").dir = "auto";
    }
  }
  return article;
}

function show(text, question, regions) {
  const stop = Math.min(start + PER_PAGE, matching.length);
  const main = find("pictures");
  main.replaceChildren(...matching.slice(start, stop).map((found) => card(found, text, question)));
  if (!matching.length) make("p", pictures.length ? "No region matches." : "There are no regions.", main, "none");
  const range = stop - start < matching.length ? `${start + 1} to ${stop} of ` : "";
  const several = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  find("count").textContent = `${range}${several(matching.length, "picture")}, ${several(regions, "region")}`;
  find("back").hidden = find("on").hidden = matching.length <= PER_PAGE;
  find("back").disabled = start === 0;
  find("on").disabled = stop >= matching.length;
  find("back").onclick = () => turn(-PER_PAGE, text, question, regions);
  find("on").onclick = () => turn(PER_PAGE, text, question, regions);
}

function turn(by, text, question, regions) {
  start += by;
  show(text, question, regions);
  scrollTo(0, 0);
}

const questions = new Set();
const labels = new Set();
for (const { regions } of pictures) {
  for (const region of regions) {
    Object.keys(region.answers).forEach((name) => questions.add(name));
    if (region.label) labels.add(region.label);
    if (region.errors) find("failed").parentElement.hidden = false;
  }
}
choices("question", questions);
choices("label", [...labels].sort().reduce((sorted, label) => sorted.add(label), new Set()));
for (const id of ["question", "label", "failed"]) find(id).addEventListener("change", select);
find("text").addEventListener("input", select);
find("filter").addEventListener("submit", (event) => event.preventDefault());
select();
