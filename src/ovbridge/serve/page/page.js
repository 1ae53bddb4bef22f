// The page of `ovbridge serve`: one picture, names as chips, boxes drawn over it. Nothing is loaded from elsewhere.

const ASKED_THRESHOLD = 0.05; // Asked once at the slider's lower end; moving the slider then only filters.
const MAX_DETECTIONS = 300;
const SUGGESTIONS = 7;
const $ = (id) => document.getElementById(id);

const state = {
  file: null, fileName: "", names: [], found: null, asking: null, vocabulary: null, objectUrl: null,
};

// --- talking to the server -------------------------------------------------------------------------------------

async function api(path, options = {}) {
  const key = sessionStorage.getItem("ovbridge-key");
  const headers = key ? { "X-API-Key": key } : {};
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401 && (await askKey())) return api(path, options);
  const body = await response.json().catch(() => null);
  if (!response.ok) throw new Error(body?.error?.message ?? `The server answered ${response.status}.`);
  return body;
}

function askKey() {
  const dialog = $("key-dialog");
  return new Promise((resolve) => {
    $("key").value = "";
    $("key-form").onsubmit = () => { sessionStorage.setItem("ovbridge-key", $("key").value); resolve(true); };
    $("key-cancel").onclick = () => { dialog.close(); resolve(false); };
    dialog.oncancel = () => resolve(false);
    if (!dialog.open) dialog.showModal();
  });
}

// --- the picture -----------------------------------------------------------------------------------------------

async function show(file, name) {
  state.file = file;
  state.fileName = name;
  state.found = null;
  if (state.objectUrl) URL.revokeObjectURL(state.objectUrl);
  state.objectUrl = URL.createObjectURL(file);
  const picture = $("picture");
  picture.src = state.objectUrl;
  picture.alt = `Your picture, ${name}`;
  $("invite").hidden = true;
  $("figure").hidden = false;
  $("actions").hidden = false;
  $("drop").classList.add("filled");
  draw();
  const shown = await picture.decode().then(() => true, () => false);
  if (state.file !== file) return;
  if (shown) state.file = await withinLimits(picture, file);
  await detect();
}

// A phone's photograph may be larger than the server takes: a smaller copy is sent, boxes still fit by ratio.
async function withinLimits(picture, file) {
  const limits = state.vocabulary;
  const pixels = picture.naturalWidth * picture.naturalHeight;
  if (!limits || (file.size <= limits.max_body_bytes * 0.98 && pixels <= limits.max_pixels)) return file;
  const scale = Math.min(1, Math.sqrt(Math.min(limits.max_pixels, 12e6) / pixels));
  const canvas = document.createElement("canvas");
  canvas.width = Math.floor(picture.naturalWidth * scale);
  canvas.height = Math.floor(picture.naturalHeight * scale);
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(blob ?? file), "image/jpeg", 0.9));
}

async function detect() {
  if (!state.file) return;
  state.asking?.abort();
  const asking = (state.asking = new AbortController());
  const form = new FormData();
  form.append("image", state.file, "picture");
  for (const name of state.names) form.append("names", name);
  form.append("threshold", ASKED_THRESHOLD);
  form.append("max_detections", MAX_DETECTIONS);
  busy(true);
  problem("");
  try {
    state.found = await api("/v1/detect", { method: "POST", body: form, signal: asking.signal });
  } catch (error) {
    if (error.name === "AbortError") return;
    state.found = null;
    problem(error.message);
  }
  if (state.asking === asking) {
    busy(false);
    draw();
  }
}

const threshold = () => Number($("threshold").value);
const visible = () => (state.found?.detections ?? []).filter((d) => d.score > threshold());

// --- drawing ---------------------------------------------------------------------------------------------------

// The same name has the same colour in every picture: its hue comes from its letters.
function colour(name) {
  let hash = 2166136261;
  for (const letter of name) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619) >>> 0;
  return `hsl(${(hash % 360)} 68% ${hash % 360 > 40 && hash % 360 < 190 ? 29 : 41}%)`;
}

function draw() {
  const found = visible();
  const canSearch = Boolean(state.vocabulary?.search);
  $("boxes").replaceChildren(...(state.found ? found.map((d, i) => box(d, i, canSearch)).reverse() : []));
  $("rows").replaceChildren(...found.map((d, i) => row(d, i, canSearch)));
  $("found").hidden = found.length === 0;
  $("save-json").disabled = $("save-picture").disabled = !state.found;
  if (state.found) status(found);
}

function box(detection, index, canSearch) {
  const { width, height } = state.found;
  const [x1, y1, x2, y2] = detection.box_xyxy;
  const element = document.createElement("button");
  element.type = "button";
  element.className = canSearch ? "box searches" : "box";
  element.dataset.index = index;
  element.style.setProperty("--colour", colour(detection.name));
  element.style.left = `${(100 * x1) / width}%`;
  element.style.top = `${(100 * y1) / height}%`;
  element.style.width = `${(100 * (x2 - x1)) / width}%`;
  element.style.height = `${(100 * (y2 - y1)) / height}%`;
  const percent = Math.round(detection.score * 100);
  element.setAttribute("aria-label", `${detection.name}, ${percent} percent${canSearch ? ": find similar regions" : ""}`);
  const tag = document.createElement("span");
  tag.className = "tag";
  tag.classList.toggle("inside", y1 / height < 0.06);
  tag.classList.toggle("left", x1 / width > 0.75);
  tag.textContent = detection.name;
  const score = document.createElement("b");
  score.textContent = detection.score.toFixed(2);
  tag.append(score);
  element.append(tag);
  element.addEventListener("click", () => (canSearch ? similar(detection) : light(index, true)));
  follow(element, index);
  return element;
}

function row(detection, index, canSearch) {
  const line = document.createElement("tr");
  line.dataset.index = index;
  const name = document.createElement("td");
  const dot = document.createElement("span");
  dot.className = "dot";
  dot.style.setProperty("--colour", colour(detection.name));
  name.append(dot, detection.name);
  const where = cell(detection.box_xyxy.slice(0, 2).map(Math.round).join(", ") + " – " + detection.box_xyxy.slice(2).map(Math.round).join(", "));
  where.className = "where";
  const more = cell("");
  if (canSearch) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Similar";
    button.setAttribute("aria-label", `Regions similar to ${detection.name} ${index + 1}`);
    button.addEventListener("click", () => similar(detection));
    more.append(button);
  }
  line.append(name, cell(detection.score.toFixed(2)), where, more);
  follow(line, index);
  return line;
}

function cell(text) {
  const element = document.createElement("td");
  element.textContent = text;
  return element;
}

function follow(element, index) {
  for (const [event, on] of [["pointerenter", true], ["pointerleave", false], ["focusin", true], ["focusout", false]])
    element.addEventListener(event, () => light(index, on));
}

function light(index, on) {
  for (const element of document.querySelectorAll(`[data-index="${index}"]`)) element.classList.toggle("lit", on);
}

function status(found) {
  const counts = new Map();
  for (const d of found) counts.set(d.name, (counts.get(d.name) ?? 0) + 1);
  const hidden = state.found.detections.length - found.length;
  const below = hidden ? `${hidden} more below ${threshold().toFixed(2)}` : "";
  const things = `${found.length} ${found.length === 1 ? "thing" : "things"}`;
  $("status").textContent = found.length ? [things, below].filter(Boolean).join(", ") : `Nothing above ${threshold().toFixed(2)}${below ? `, ${below}` : ""}`;
}

function busy(on) {
  $("drop").classList.toggle("busy", on);
  $("drop").setAttribute("aria-busy", String(on));
  if (on) $("status").textContent = "Looking …";
}

function problem(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
  if (text) $("status").textContent = "";
}

// --- names -----------------------------------------------------------------------------------------------------

function setNames(names) {
  state.names = [...new Set(names.map((name) => name.trim()).filter(Boolean))].slice(0, state.vocabulary?.max_names ?? 1000);
  $("chips").replaceChildren(...state.names.map(chip));
  $("name").placeholder = state.names.length ? "" : "everything it knows";
  suggest();
  clearTimeout(setNames.timer);
  if (state.file) setNames.timer = setTimeout(detect, 250);
}

function chip(name) {
  const element = document.createElement("li");
  element.className = "chip";
  element.append(name);
  const remove = document.createElement("button");
  remove.type = "button";
  remove.textContent = "×";
  remove.setAttribute("aria-label", `Remove ${name}`);
  remove.addEventListener("click", () => {
    setNames(state.names.filter((other) => other !== name));
    $("name").focus();
  });
  element.append(remove);
  return element;
}

function takeTyped() {
  const typed = $("name").value.split(/[,\n]/).filter((name) => name.trim());
  $("name").value = "";
  if (typed.length) setNames([...state.names, ...typed]);
}

function suggest() {
  const known = state.vocabulary?.names ?? [];
  const novel = known.filter((n) => n.role === "novel").map((n) => n.name);
  const pool = (novel.length ? novel : known.map((n) => n.name)).filter((name) => !state.names.includes(name));
  const buttons = pool.slice(0, SUGGESTIONS).map((name) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.setAttribute("aria-label", `Look for ${name}`);
    button.addEventListener("click", () => setNames([...state.names, name]));
    return button;
  });
  $("suggest").replaceChildren(...(buttons.length ? [novel.length ? "Never had a box in training:" : "It knows:", ...buttons] : []));
}

// --- similar regions -------------------------------------------------------------------------------------------

async function similar(detection) {
  const form = new FormData();
  form.append("image", state.file, "picture");
  form.append("box", detection.box_xyxy.map((v) => Math.max(0, v).toFixed(2)).join(","));
  form.append("top", 12);
  form.append("thumbnails", "true");
  await regions(`Regions like this ${detection.name}`, "/v1/search", { method: "POST", body: form });
}

async function regions(title, path, options) {
  $("similar-title").textContent = "Searching …";
  try {
    const answer = await api(path, options);
    $("similar-title").textContent = answer.regions.length ? title : "The store has no such region";
    $("regions").replaceChildren(...answer.regions.map(region));
    $("similar-title").focus({ preventScroll: true });
    $("similar").scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  } catch (error) {
    $("similar-title").textContent = "Similar regions";
    problem(error.message);
  }
}

function region(found) {
  const element = document.createElement("li");
  const thumb = document.createElement("div");
  thumb.className = "thumb";
  if (found.thumbnail) {
    const picture = document.createElement("img");
    picture.src = found.thumbnail;
    picture.alt = `Region of ${found.image}, similarity ${found.similarity.toFixed(2)}`;
    thumb.append(picture);
  }
  const text = document.createElement("p");
  const score = document.createElement("b");
  score.textContent = found.similarity.toFixed(2);
  text.append(score, ` ${found.image.split("/").pop()}`);
  text.title = found.image;
  element.append(thumb, text);
  return element;
}

// --- downloads -------------------------------------------------------------------------------------------------

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

const stem = () => state.fileName.replace(/\.[^.]*$/, "") || "picture";

function saveJson() {
  const { width, height, names } = state.found;
  const record = { image: state.fileName, width, height, names, threshold: threshold(), detections: visible() };
  save(new Blob([JSON.stringify(record, null, 2)], { type: "application/json" }), `${stem()}.json`);
}

function savePicture() {
  const picture = $("picture");
  const canvas = document.createElement("canvas");
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  const pen = canvas.getContext("2d");
  pen.drawImage(picture, 0, 0);
  const scale = canvas.width / state.found.width;
  const unit = Math.max(canvas.width, canvas.height) / 640;
  pen.font = `600 ${15 * unit}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  for (const { name, score, box_xyxy } of visible().reverse()) {
    const [x1, y1, x2, y2] = box_xyxy.map((v) => v * scale);
    const text = `${name} ${score.toFixed(2)}`;
    const width = pen.measureText(text).width + 10 * unit;
    const height = 22 * unit;
    pen.lineWidth = 3 * unit;
    pen.strokeStyle = pen.fillStyle = colour(name);
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
    const left = Math.max(0, Math.min(x1 - 1.5 * unit, canvas.width - width));
    const top = y1 - height >= 0 ? y1 - height : y1;
    pen.fillRect(left, top, width, height);
    pen.fillStyle = "#fff";
    pen.fillText(text, left + 5 * unit, top + height / 2);
  }
  canvas.toBlob((blob) => blob && save(blob, `${stem()}-found.png`), "image/png");
}

// --- wiring ----------------------------------------------------------------------------------------------------

function pressSample(button) {
  for (const other of document.querySelectorAll("[data-sample]")) other.setAttribute("aria-pressed", String(other === button));
}

function takeFile(file) {
  if (!file) return;
  pressSample(null);
  show(file, file.name || "pasted picture");
}

$("file").addEventListener("change", (event) => { takeFile(event.target.files[0]); event.target.value = ""; });
for (const kind of ["dragenter", "dragover"])
  addEventListener(kind, (event) => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  takeFile([...event.dataTransfer.files][0]);
});
addEventListener("paste", (event) => takeFile([...event.clipboardData.files].find((file) => file.type.startsWith("image/"))));

for (const button of document.querySelectorAll("[data-sample]"))
  button.addEventListener("click", async () => {
    pressSample(button);
    const blob = await (await fetch(`/page/samples/${button.dataset.sample}.jpg`)).blob();
    show(blob, `${button.dataset.sample}.jpg`);
  });

$("chips-box").addEventListener("click", (event) => { if (event.target === event.currentTarget) $("name").focus(); });
$("name").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === ",") { event.preventDefault(); takeTyped(); }
  else if (event.key === "Backspace" && !event.target.value && state.names.length) setNames(state.names.slice(0, -1));
});
$("name").addEventListener("change", takeTyped);
$("threshold").addEventListener("input", () => {
  $("threshold-value").textContent = threshold().toFixed(2);
  draw();
});
$("save-json").addEventListener("click", saveJson);
$("save-picture").addEventListener("click", savePicture);
$("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("search-text").value.trim();
  if (text) regions(`Regions like “${text}”`, `/v1/search?top=12&thumbnails=true&text=${encodeURIComponent(text)}`);
});

try {
  state.vocabulary = await api("/v1/vocabulary");
  const { names, checkpoint, stage, text_encoder, search } = state.vocabulary;
  $("known").replaceChildren(...names.slice(0, 2000).map(({ name }) => Object.assign(document.createElement("option"), { value: name })));
  $("names-help").textContent = `Type a name and press Enter. Without names it looks for all ${names.length} that it knows.`;
  $("facts").textContent = `Checkpoint ${checkpoint}, stage ${stage}, ${names.length} stored names, text encoder ${text_encoder}.`;
  $("similar").hidden = !search;
} catch (error) {
  problem(error.message);
}
setNames([]);
