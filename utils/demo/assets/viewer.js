// Puts the parts together. gradio calls this with element, trigger, props, upload and watch once; its template has no
// value in it, so that the elements stay, and the value comes through watch.

const root = element.querySelector(".px"), $ = (selector) => root.querySelector(selector);
const copyOf = (name) => $(`template[data-of=${name}]`).content.firstElementChild.cloneNode(true);
const { palette, limits, examples, model } = props;
const EMPTY = { photo: null, turns: [], notice: null };

// What lives in the browser alone.
const looks = { opacity: limits.opacity ?? 0.3, threshold: limits.threshold ?? 0.5, outline: true };
let value = EMPTY, chosen = 0, pointed = null, focused = null;
let sent = null; // the question under way, given back if it is refused
let isStarting = false, problem = "", frame = 0;
const seen = []; // for each turn: {question, hidden, names, pinned, masks}; a mask is as picture.js says

const picture = makePicture($(".px-figure"), { onPoint: point, onFocus: focus, onPin: pin });
const photos = watchPhotos(root, { onPhoto: send, onProblem: tell });
const readAloud = makeReader($(".px-live"));

// --- What Python says ---

function update() {
  const next = props.value && typeof props.value === "object" ? props.value : EMPTY;
  const isNewPhoto = keyOf(next.photo) !== keyOf(value.photo), isNewTurn = next.turns.length > value.turns.length;
  if (isNewPhoto) seen.length = 0;
  if (isNewPhoto || next.notice) root.removeAttribute("data-reads");
  if (isNewPhoto || isNewTurn || next.notice) problem = "";
  value = next;
  seen.length = Math.min(seen.length, value.turns.length);
  value.turns.forEach((turn, index) => {
    if (seen[index]?.question !== turn.question) {
      seen[index] = { question: turn.question, hidden: new Set(), names: new Map(), pinned: null, masks: [] };
    }
  });
  if (isNewTurn || chosen >= value.turns.length) chosen = Math.max(0, value.turns.length - 1);
  if (isNewPhoto) showPhoto();
  render();
  readAloud(value.turns);
  if (isNewTurn && sent !== null) $(".px-turns").lastElementChild.scrollIntoView({ block: "nearest" });
  giveBack(isNewTurn);
}

const keyOf = (photo) => (photo ? (photo.id ?? photo.url) : null);

async function showPhoto() {
  const photo = value.photo;
  isStarting = false;
  if (!photo) return;
  const image = await readPicture(photo.url);
  if (photo !== value.photo && keyOf(photo) !== keyOf(value.photo)) return;
  picture.setPhoto(image);
  render();
  if (document.activeElement === document.body) focusField(); // what was pressed before is gone
}

// On a phone, this would open the keyboard over the picture.
function focusField() {
  if (matchMedia("(pointer: fine)").matches) $(".px-field textarea").focus({ preventScroll: true });
}

// A question that was refused is not lost.
function giveBack(isNewTurn) {
  if (isNewTurn) sent = null;
  if (sent === null || value.notice?.kind !== "error") return;
  if (!$(".px-field textarea").value) $(".px-field textarea").value = sent;
  sent = null;
  fitField();
}

// --- Masks: those of the chosen turn alone are in memory, and cut again for each threshold ---

const UNREAD = { url: null, map: null, threshold: null, count: 0, tint: null, line: null, points: [], layers: null };

function marksOf(index) {
  const turn = value.turns[index], kept = seen[index];
  return turn.targets.map((target, number) => {
    const [color, ink] = palette[number % palette.length];
    const mask = (kept.masks[number] ??= { number, color, ink, ...UNREAD });
    if (index !== chosen) Object.assign(mask, UNREAD);
    else if (mask.url !== target.map) read(mask, target.map);
    else if (mask.map && mask.threshold !== looks.threshold) cut(mask);
    mask.hidden = kept.hidden.has(number);
    mask.pinned = kept.pinned === number;
    mask.name = kept.names.get(number) ?? target.phrase;
    mask.phrase = target.phrase;
    mask.score = target.score;
    mask.share = mask.threshold === null ? target.area : mask.count / (mask.map.width * mask.map.height);
    mask.label = labelOf(target, mask);
    return mask;
  });
}

async function read(mask, url) {
  Object.assign(mask, UNREAD, { url });
  const map = await readMap(url);
  if (mask.url !== url) return;
  mask.map = map;
  renderSoon();
}

function cut(mask) {
  Object.assign(mask, cutOut(mask.map, looks.threshold, mask.color));
  mask.threshold = looks.threshold;
  mask.line = mask.count ? outlineOf(mask.map, looks.threshold, mask.box) : null;
  mask.points = mask.count ? innerPoints(mask.map, looks.threshold, mask.box) : [];
  mask.layers = null;
}

// --- What is shown ---

function render() {
  const hasPhoto = Boolean(value.photo), turn = value.turns[chosen], last = value.turns.at(-1);
  const isBusy = Boolean(last && isRunning(last));
  root.dataset.shows = hasPhoto && !isStarting ? "photo" : "start";
  root.toggleAttribute("data-asked", value.turns.length > 0);
  $("[data-do=keep]").hidden = !hasPhoto;
  const notice = problem ? { kind: "error", text: problem } : value.notice;
  $(".px-notice").hidden = !notice;
  $(".px-notice").dataset.kind = notice?.kind ?? "";
  setText($(".px-notice"), notice?.text ?? "");
  if (hasPhoto) setText($(".px-file"), `${value.photo.name} · ${value.photo.width} × ${value.photo.height}`);
  setText($(".px-reading"), root.hasAttribute("data-reads") ? "Reading the photo" : "");
  renderTurns();
  const marks = turn ? marksOf(chosen) : [];
  picture.show(marks.filter(({ map }) => map), { ...looks });
  $("canvas").setAttribute("aria-label", describePicture(marks));
  $(".px-looks").hidden = $(".px-saves").hidden = !marks.length;
  root.querySelectorAll("[data-save]").forEach((button) => (button.disabled = isRunning(turn ?? {})));
  $("[data-do=clear]").hidden = !value.turns.length;
  $("[data-do=clear]").disabled = isBusy;
  $("[data-do=stop]").hidden = !isBusy;
  $("[type=submit]").hidden = isBusy;
  light();
  checkField();
}

// At most once a frame, however fast a slider moves.
function renderSoon() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    render();
  });
}

function describePicture(marks) {
  if (!value.photo) return "";
  const names = marks.filter((mask) => !mask.hidden && mask.share > 0).map((mask) => mask.name || `mask ${mask.number}`);
  return `${value.photo.name}${names.length ? `, marked in it: ${names.join(", ")}` : ""}`;
}

function renderTurns() {
  const list = $(".px-turns");
  while (list.children.length > value.turns.length) list.lastElementChild.remove();
  value.turns.forEach((turn, index) => {
    const item = list.children[index] ?? list.appendChild(copyOf("turn")), isChosen = index === chosen;
    const [question, answer, state, targets] = item.children, marks = marksOf(index);
    item.dataset.turn = index;
    item.toggleAttribute("data-chosen", isChosen);
    setText(question, turn.question);
    question.setAttribute("aria-current", isChosen);
    writeAnswer(answer, turn.pieces, marks, turn.status === "writing");
    setText(state, stateOf(turn));
    state.hidden = !state.textContent;
    state.dataset.status = turn.status;
    targets.hidden = !isChosen || !marks.length;
    if (isChosen) writeTargets(targets, marks, () => copyOf("target"));
  });
}

// The pointer goes before the keyboard, and both before what is pinned.
function light() {
  const number = pointed ?? focused ?? seen[chosen]?.pinned ?? null;
  picture.light(number);
  root.querySelectorAll(".px-turns [data-target]").forEach((part) => {
    const isOf = part.closest(".px-turn").hasAttribute("data-chosen");
    part.toggleAttribute("data-lit", isOf && number !== null && +part.dataset.target === number);
  });
  root.toggleAttribute("data-dims", number !== null);
}

function point(number) {
  if (number === pointed) return;
  pointed = number;
  light();
}

function focus(number) {
  focused = number;
  light();
}

function pin(number) {
  if (!seen[chosen]) return;
  seen[chosen].pinned = number === seen[chosen].pinned ? null : number;
  render();
}

function choose(index) {
  if (index === chosen) return;
  chosen = index;
  pointed = focused = null;
  render();
}

function tell(text) {
  problem = text;
  root.removeAttribute("data-reads");
  render();
}

// --- Photos and questions ---

async function send(file) {
  problem = "";
  const found = await problemOf(file, limits);
  if (found) return tell(found);
  root.toggleAttribute("data-reads", true);
  render();
  try {
    const { path } = await upload(file);
    trigger("upload", { path, name: file.name });
  } catch {
    tell(`${file.name} could not be sent. Is the server still there?`);
  }
}

function select(example) {
  problem = "";
  root.toggleAttribute("data-reads", true);
  render();
  trigger("select", { example });
}

function checkField() {
  const field = $(".px-field textarea"), kind = $("[name=px-kind]:checked").value, most = limits.question;
  const isLong = Boolean(most) && field.value.length > most;
  field.placeholder = kind === "ask" ? "What do you want to know?" : "the cat, a red cup";
  const how = kind === "ask" ? "Enter sends, Shift+Enter begins a line." : "Names, one per line or comma.";
  setText($("#px-hint"), isLong ? `${field.value.length} of ${most} characters: please shorten it.` : how);
  $("#px-hint").toggleAttribute("data-wrong", isLong);
  $("[type=submit]").disabled = isLong || !field.value.trim() || !value.photo || !$("[data-do=stop]").hidden;
  return !$("[type=submit]").disabled;
}

function fitField() {
  const field = $(".px-field textarea");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, 180)}px`;
  checkField();
}

function ask() {
  if (!checkField()) return;
  const field = $(".px-field textarea"), question = field.value.trim();
  sent = field.value;
  field.value = "";
  problem = "";
  trigger("submit", { question, kind: $("[name=px-kind]:checked").value });
  fitField();
}

function save(what) {
  const { hidden, names } = seen[chosen];
  trigger("download", {
    what, turn: chosen, hidden: [...hidden], names: Object.fromEntries(names), ...looks,
  });
}

function saveFile() {
  const file = props.file;
  if (!file?.url) return;
  const link = document.createElement("a");
  link.href = file.url;
  link.download = file.name;
  root.append(link);
  link.click();
  link.remove();
}

async function copy() {
  const text = asPython({ model, photo: value.photo, turns: value.turns, chosen, threshold: looks.threshold });
  const button = $("[data-do=copy]");
  try {
    await navigator.clipboard.writeText(text);
    setText(button, "Copied");
    setTimeout(() => setText(button, "Copy as Python"), 1500);
  } catch {
    $("dialog.px-copy textarea").value = text;
    $("dialog.px-copy").showModal();
    $("dialog.px-copy textarea").select();
  }
}

// --- What people do ---

const actions = {
  ...photos,
  other: () => ((isStarting = true), render()),
  keep: () => ((isStarting = false), render()),
  clear: () => trigger("clear", {}),
  stop: () => (trigger("stop", {}), focusField()),
  close: () => $("dialog.px-copy").close(),
  copy,
  pin: (row) => pin(+row.dataset.target),
  hide(row) {
    const { hidden } = seen[chosen], number = +row.dataset.target;
    if (!hidden.delete(number)) hidden.add(number);
    render();
  },
};

root.addEventListener("click", (event) => {
  const button = event.target.closest("button, [data-target]");
  if (!button) return;
  const turn = button.closest(".px-turn");
  if (button.dataset.do) actions[button.dataset.do](button.closest("[data-target]"));
  else if (button.dataset.save) save(button.dataset.save);
  else if (button.dataset.example) select(+button.dataset.example);
  else if (turn) {
    choose(+turn.dataset.turn);
    if (button.closest(".px-answer") && button.dataset.target !== undefined) pin(+button.dataset.target);
  }
});

const partOf = (event) => event.target.closest?.(".px-turn[data-chosen] [data-target]");
const turnList = $(".px-turns");
turnList.addEventListener("pointerover", (event) => {
  if (event.pointerType !== "touch") point(partOf(event) ? +partOf(event).dataset.target : null);
});
turnList.addEventListener("pointerleave", () => point(null));
turnList.addEventListener("focusin", (event) => {
  focus(partOf(event) && event.target.matches(":focus-visible") ? +partOf(event).dataset.target : null);
});
turnList.addEventListener("focusout", () => focus(null));
turnList.addEventListener("input", (event) => {
  const number = +partOf(event).dataset.target, name = event.target.value.trim();
  if (name) seen[chosen].names.set(number, name);
  else seen[chosen].names.delete(number);
  render();
});
turnList.addEventListener("keydown", (event) => {
  if (!event.target.matches(".px-name")) return;
  if (event.key === "Escape") seen[chosen].names.delete(+partOf(event).dataset.target);
  if (event.key === "Escape" || event.key === "Enter") {
    event.target.blur();
    render();
  }
});

root.addEventListener("input", ({ target }) => {
  if (target.dataset.look) {
    looks[target.dataset.look] = target.type === "checkbox" ? target.checked : +target.value;
    showLooks();
    renderSoon();
  } else if (target.closest(".px-ask")) fitField();
});
$(".px-field textarea").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
});
$(".px-ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
root.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && seen[chosen]?.pinned != null && !event.target.matches(".px-name")) pin(null);
});

function showLooks() {
  root.querySelectorAll("[data-look]").forEach((input) => {
    if (input.type === "checkbox") input.checked = looks[input.dataset.look];
    else input.value = looks[input.dataset.look];
    const output = input.parentElement.querySelector("output");
    if (output) setText(output, input.dataset.look === "opacity" ? `${Math.round(100 * input.value)} %` : (+input.value).toFixed(2));
  });
}

examples.forEach(({ url, question }, index) => {
  const item = copyOf("example"), button = item.firstElementChild;
  button.dataset.example = index;
  button.querySelector("img").src = url;
  setText(button.querySelector("span"), question);
  $(".px-examples ul").append(item);
});
$(".px-examples").hidden = !examples.length;
setText($("[data-limits]"), limitsInWords(limits));
showLooks();
watch("value", update);
watch("file", saveFile);
update();
