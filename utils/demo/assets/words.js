// Questions and answers as elements. Everything that people or models wrote goes through textContent or an attribute.

const percent = (share) => {
  const value = 100 * share;
  return `${value > 0 && value < 0.1 ? "< 0.1" : value < 10 ? value.toFixed(1) : Math.round(value)} %`;
};

// What a screen reader says of a target.
function labelOf(target, { number, name, share, hidden }) {
  const words = [name || target.phrase || "no name", `mask ${number}`];
  words.push(share === 0 ? "empty at this threshold" : `${percent(share)} of the picture`);
  words.push(`score ${target.score.toFixed(2)}`);
  if (hidden) words.push("hidden");
  return words.join(", ");
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Bring the pieces of an answer up to date; elements that are right stay, and with them the focus.
function writeAnswer(paragraph, pieces, marks, isWriting) {
  const named = new Set(pieces.filter(([, , isNumber]) => !isNumber).map(([, target]) => target));
  pieces.forEach(([text, target, isNumber], index) => {
    const mark = target === null ? null : marks[target];
    // A number is a button of its own only where no phrase is.
    const tag = !mark || (isNumber && named.has(target)) ? "SPAN" : "BUTTON";
    let element = paragraph.children[index];
    if (element?.tagName !== tag) {
      const made = document.createElement(tag);
      if (element) element.replaceWith(made);
      else paragraph.append(made);
      element = made;
    }
    // The tokens of a target leave a blank before the comma behind it.
    setText(element, pieces[index - 1]?.[2] ? text.replace(/^ (?=[,.;:!?])/, "") : text);
    if (!mark) {
      element.removeAttribute("class");
      element.removeAttribute("data-target");
      return;
    }
    element.className = isNumber ? "px-number" : "px-phrase";
    element.dataset.target = target;
    element.style.cssText = `--mask:${css(mark.color)};--ink:${mark.ink}`;
    element.toggleAttribute("data-hidden", mark.hidden);
    if (tag === "SPAN") return;
    element.type = "button";
    element.setAttribute("aria-label", mark.label);
    element.setAttribute("aria-pressed", mark.pinned);
  });
  while (paragraph.children.length > pieces.length) paragraph.lastElementChild.remove();
  paragraph.toggleAttribute("data-writing", isWriting);
}

const isRunning = (turn) => turn.status === "waiting" || turn.status === "writing";

// What is said of a turn below its answer, or nothing.
function stateOf(turn) {
  if (turn.status === "waiting") {
    if (turn.position === 1) return "You are next";
    return turn.position ? `Number ${turn.position} in the queue` : "Looking at the photo";
  }
  const notes = [];
  if (turn.status === "stopped") notes.push("Stopped");
  if (turn.status === "failed") notes.push("This went wrong");
  if (turn.note) notes.push(turn.note);
  return notes.join(". ");
}

// The panel: a row for each target, which stays while its numbers change.
function writeTargets(list, marks, makeRow) {
  while (list.children.length > marks.length) list.lastElementChild.remove();
  marks.forEach((mark, number) => {
    const row = list.children[number] ?? list.appendChild(makeRow());
    row.dataset.target = number;
    row.style.cssText = `--mask:${css(mark.color)};--ink:${mark.ink}`;
    row.toggleAttribute("data-hidden", mark.hidden);
    row.toggleAttribute("data-pinned", mark.pinned);
    const [pin, name, numbers, eye] = row.children;
    setText(pin, String(number));
    pin.setAttribute("aria-label", mark.label);
    pin.setAttribute("aria-pressed", mark.pinned);
    name.setAttribute("aria-label", `Name of mask ${number}`);
    name.placeholder = mark.phrase || "no name";
    if (document.activeElement !== name) name.value = mark.name;
    setText(numbers, mark.share === 0 ? "empty at this threshold" : `${percent(mark.share)} · score ${mark.score.toFixed(2)}`);
    eye.setAttribute("aria-label", `Hide mask ${number}`);
    eye.setAttribute("aria-pressed", mark.hidden);
    eye.querySelector("use").setAttribute("href", mark.hidden ? "#px-unseen" : "#px-seen");
  });
}

// Say an answer aloud a sentence at a time: word by word, nobody could follow.
function makeReader(region) {
  const said = [];
  const say = (text) => {
    if (!text.trim()) return;
    const line = document.createElement("div");
    line.textContent = text.trim();
    region.append(line);
    while (region.children.length > 6) region.firstElementChild.remove();
  };
  const read = (known, turn) => {
    const text = turn.pieces.filter(([, , isNumber]) => !isNumber).map(([words]) => words).join("");
    const isOver = !isRunning(turn), rest = text.slice(known.length);
    const end = isOver ? rest.length : Math.max(...[". ", "! ", "? "].map((mark) => rest.lastIndexOf(mark) + 1));
    if (end > 0) {
      say(rest.slice(0, end));
      known.length += end;
    }
    const state = stateOf(turn);
    if (state !== known.state) say(state);
    known.state = state;
  };
  return (turns) => {
    said.length = Math.min(said.length, turns.length);
    turns.forEach((turn, index) => read((said[index] ??= { length: 0, state: "" }), turn));
  };
}
