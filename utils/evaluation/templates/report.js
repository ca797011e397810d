"use strict";
// What strangers wrote reaches the page as text nodes alone.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const KINDS = {
    worst: ["Worst", "Lowest score first."],
    best: ["Best", "Highest score first."],
    random: ["Random", "Drawn by chance, the same ones at every writing of the page."],
    extra: ["Most extra masks", "Masks that no true mask is left for."],
    missed: ["Most missed masks", "True masks that no mask was given for."],
    better: ["Most gained", `This run above ${data.other}.`],
    worse: ["Most lost", `This run below ${data.other}.`],
  };
  const [ROW, SCORE, OTHER, QUESTION, ANSWER, GIVEN, ASKED, EXTRA, MISSED, LOWEST, GROUP, KIND, SAMPLE] = Array(13).keys();
  const PER_PAGE = 50;
  const byId = (id) => document.getElementById(id);

  function put(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== false && value !== null) node.setAttribute(name, value);
    }
    node.append(...children.flat().filter((child) => child !== null));
    return node;
  }
  const el = (tag, attributes = {}, ...children) => put(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) => put(document.createElementNS(SVG, tag), attributes, children);
  const percent = (share) => (share === null ? "–" : (100 * share).toFixed(1));
  const gainOf = (line) => (line[SCORE] === null || line[OTHER] === null ? null : line[SCORE] - line[OTHER]);
  const colorOf = (slot) => `c${slot % data.numColors}`;

  const extraOf = (answer) => answer.pairs.flatMap(([predicted, truth]) => (truth.length ? [] : predicted));
  const missedOf = (answer) => answer.pairs.flatMap(([predicted, truth]) => (predicted.length ? [] : truth));

  // ---- one question

  function drawn(picture, shapes, dashed, label) {
    const [width, height] = picture.size;
    const parts = [];
    if (picture.photo >= 0) parts.push(svg("image", { href: data.photos[picture.photo], width, height }));
    if (picture.ignored) parts.push(svg("path", { class: "ignored", d: picture.ignored }));
    for (const { number, slot, path } of shapes) {
      const classes = `shape ${colorOf(slot)}${dashed.includes(number) ? " dashed" : ""}`;
      parts.push(svg("g", { class: classes, "data-slot": slot },
        ...["area", "rim", "edge"].map((part) => svg("path", { class: part, d: path }))));
    }
    for (const { number, slot, badge } of shapes) {
      if (!badge) continue;
      const [x, y] = badge;
      parts.push(svg("g", { class: `badge ${colorOf(slot)}`, "data-slot": slot, transform: `translate(${x} ${y})` },
        svg("circle", { r: data.badge }), svg("text", {}, String(number))));
    }
    return svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label }, ...parts);
  }

  function figure(picture, shapes, dashed, caption, open) {
    const empty = shapes.filter((shape) => !shape.path).map((shape) => shape.number);
    const full = empty.length ? `${caption}; empty: ${empty.join(", ")}` : caption;
    const image = drawn(picture, shapes, dashed, full);
    const framed = open ? el("button", { type: "button", onclick: open, "aria-label": `${full}: enlarge` }, image) : image;
    return el("figure", {}, framed, el("figcaption", {}, full));
  }

  const numbered = (number, slot) => el("span", { class: `number ${colorOf(slot)}`, "data-slot": slot }, String(number));
  const marked = (text, slot) => el("mark", { class: colorOf(slot), "data-slot": slot }, text);

  function answerText(answer) {
    const words = answer.words.map(([text, target, isNumber]) => {
      if (target === null) return text;
      return isNumber ? numbered(text, answer.slots[target]) : marked(text, answer.slots[target]);
    });
    return el("p", { class: "answer", dir: "auto" }, ...(words.length ? words : [el("span", { class: "soft" }, "(no answer)")]));
  }

  function pairTable(picture, answer) {
    const named = (number, slot, name) => [numbered(number, slot), " ", name ? marked(name, slot) : null];
    const given = (number) => named(number, answer.slots[number], answer.phrases[number]);
    const asked = (number) => named(number, picture.slots[number], picture.names[number]);
    const several = (numbers, one, otherwise) => (numbers.length
      ? numbers.flatMap((number, at) => [at ? ", " : "", ...one(number)])
      : [el("span", { class: "flag" }, otherwise)]);
    const lines = answer.pairs.map(([predicted, truth, iou]) => el("tr", {},
      el("td", { dir: "auto" }, ...several(predicted, given, "missed")),
      el("td", { dir: "auto" }, ...several(truth, asked, "extra")),
      el("td", { class: "value" }, percent(iou))));
    if (!lines.length) return null;
    const head = ["mask given", "true mask", "IoU"].map((name) => el("th", { class: name === "IoU" ? "soft value" : "soft" }, name));
    return el("table", { class: "pairs" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...lines));
  }

  function seek(event) {
    const card = event.currentTarget;
    const slot = event.type === "mouseover" ? event.target.closest("[data-slot]")?.dataset.slot : undefined;
    card.classList.toggle("seeks", slot !== undefined);
    for (const node of card.querySelectorAll("[data-slot]")) node.classList.toggle("sought", node.dataset.slot === slot);
  }

  function card(place, open) {
    const line = data.questions[place];
    const picture = data.pictures[place];
    const gain = gainOf(line);
    const compared = line[OTHER] === null ? [] : [`; ${data.other}: ${percent(line[OTHER])}`, " ", difference(gain)];
    const parts = [el("header", {}, el("span", { class: "score" }, percent(line[SCORE])),
      el("span", { class: "meta" }, "score", ...compared, ` · ${data.rows[line[ROW]]} · ${line[SAMPLE]}`))];
    if (picture) parts.push(...pictured(picture, open));
    const question = el("p", { class: "question", dir: "auto" }, line[QUESTION]);
    if (!picture) {
      parts.push(question, el("p", { class: "answer", dir: "auto" }, line[ANSWER]),
        el("p", { class: "note" }, `${line[GIVEN]} masks given, ${line[ASKED]} asked for. This question has no picture in ` +
          "the page: the flag --pictures sets how many have one."));
      return el("article", { class: "sample", "data-place": place }, ...parts);
    }
    parts.push(question);
    for (const [index, answer] of picture.answers.entries()) {
      if (index) parts.push(el("h3", {}, data.other));
      parts.push(answerText(answer), pairTable(picture, answer));
      if (answer.reason) parts.push(el("p", { class: "note", dir: "auto" }, answer.reason));
    }
    return el("article", { class: "sample", "data-place": place, onmouseover: seek, onmouseleave: seek }, ...parts);
  }

  function pictured(picture, open) {
    const names = picture.answers.length > 1 ? ["this run", data.other] : ["predicted"];
    const figures = picture.answers.map((answer, at) => figure(picture, answer.shapes, extraOf(answer), names[at], open));
    figures.push(figure(picture, picture.truth, missedOf(picture.answers[0]), "true", open));
    return [picture.note ? el("p", { class: "error" }, picture.note) : null, el("div", { class: "pictures" }, ...figures)];
  }

  function difference(gain) {
    if (gain === null) return "–";
    const text = `${gain > 0 ? "+" : ""}${percent(gain)}`;
    return el("span", { class: gain > 0 ? "better" : gain < 0 ? "worse" : "soft" }, text);
  }

  let sequence = [];
  let position = 0;

  function show(places, at) {
    [sequence, position] = [places, at];
    byId("shown").replaceChildren(card(places[at], null));
    byId("place").textContent = `${(at + 1).toLocaleString("en")} of ${places.length.toLocaleString("en")}`;
    byId("before").disabled = at === 0;
    byId("after").disabled = at === places.length - 1;
    if (!byId("sample").open) byId("sample").showModal();
    byId("sample").scrollTop = 0;
  }

  function step(by) {
    const at = position + by;
    if (at >= 0 && at < sequence.length) show(sequence, at);
  }

  // ---- answers by kind

  let row = 0;
  let kind = "worst";

  const kindsOf = (lists) => Object.keys(KINDS).filter((name) => name in lists);

  function showCards() {
    const lists = data.lists[row];
    if (!(kind in lists)) kind = kindsOf(lists)[0] ?? "worst";
    const tabs = kindsOf(lists).map((name) => el("button", {
      type: "button", role: "tab", "data-kind": name, "aria-selected": String(name === kind), "aria-controls": "cards",
      tabindex: name === kind ? 0 : -1, onclick: () => select(name), onkeydown: moveTab,
    }, KINDS[name][0]));
    document.querySelector(".tabs").replaceChildren(...tabs);
    byId("kind").textContent = kind in lists ? KINDS[kind][1] : "No answer is shown with its picture.";
    const places = lists[kind] ?? [];
    byId("cards").replaceChildren(...places.map((place, at) => card(place, () => show(places, at))));
  }

  function select(name) {
    kind = name;
    showCards();
    document.querySelector(".tabs [aria-selected=true]").focus();
  }

  function moveTab(event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    const names = kindsOf(data.lists[row]);
    select(names[(names.indexOf(kind) + by + names.length) % names.length]);
  }

  function showFirst() {
    const places = (data.lists[row].worst ?? []).slice(0, 3);
    byId("first").replaceChildren(...places.map((place, at) => {
      const [line, picture] = [data.questions[place], data.pictures[place]];
      const [answer] = picture.answers;
      return el("button", { type: "button", "data-place": place, onclick: () => show(data.lists[row].worst, at) },
        drawn(picture, answer.shapes, extraOf(answer), "predicted"),
        el("span", {}, el("span", { class: "score" }, percent(line[SCORE])), el("span", { class: "soft" }, " score"),
          el("span", { class: "clipped", dir: "auto" }, line[QUESTION])));
    }));
    if (!places.length) byId("first").textContent = "No answer is shown with its picture.";
  }

  // ---- plots

  function chart(title, names, series, { isShare, counts }) {
    const [width, height, left, bottom, top] = [400, 210, 34, 34, 16];
    const highest = isShare ? 1 : Math.max(1, ...series.flat());
    const y = (value) => height - bottom - ((height - bottom - top) * value) / highest;
    const step = (width - left) / names.length;
    const parts = [0, 0.5, 1].map((share) => [
      svg("line", { class: "axis", x1: left, x2: width, y1: y(share * highest), y2: y(share * highest) }),
      svg("text", { class: "left", x: left - 5, y: y(share * highest) + 4 }, isShare ? String(100 * share) : Math.round(share * highest).toLocaleString("en")),
    ]);
    const room = step * (names.length > 12 ? 0.9 : 0.7);
    names.forEach((name, at) => {
      const start = left + at * step + (step - room) / 2;
      series.forEach((values, of) => {
        if (values[at] === null) return;
        const said = isShare ? percent(values[at]) : values[at].toLocaleString("en");
        const bar = { class: of ? "bar other" : "bar", x: start + (of * room) / series.length, y: y(values[at]), rx: 1.5 };
        parts.push(svg("rect", { ...bar, width: room / series.length, height: Math.max(0, height - bottom - y(values[at])) },
          svg("title", {}, `${name}: ${said}${counts ? ` (mean of ${counts[of][at].toLocaleString("en")})` : ""}`)));
        if (isShare && series.length === 1) {
          parts.push(svg("text", { class: "value", x: start + room / 2, y: y(values[at]) - 4 }, percent(values[at])));
        }
      });
      if (names.length <= 12 || at % 4 === 0) parts.push(svg("text", { x: names.length > 12 ? left + at * step : start + room / 2, y: height - bottom + 15 }, name));
      if (counts) parts.push(svg("text", { x: start + room / 2, y: height - bottom + 29 }, `n ${(counts[0][at] ?? 0).toLocaleString("en")}`));
    });
    if (names.length > 12) parts.push(svg("text", { class: "right", x: width, y: height - bottom + 15 }, "100"));
    const drawing = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, ...parts.flat());
    return el("figure", {}, el("h3", {}, title), drawing);
  }

  function grouped(title, runs) {
    const names = [...new Set(runs.flatMap((groups) => groups.map(([name]) => name)))];
    const order = runs.length > 1 ? names.sort((one, two) => data.order.indexOf(one) - data.order.indexOf(two)) : names;
    const values = (at) => runs.map((groups) => order.map((name) => groups.find((group) => group[0] === name)?.[at] ?? null));
    return chart(title, order, values(1), { isShare: true, counts: values(2) });
  }

  function showPlots() {
    const runs = data.plots[row].filter((plots) => plots !== null);
    const steps = runs[0].ious.map((_, at) => String((100 * at) / runs[0].ious.length));
    const charts = [
      chart("Pairs of masks by IoU", steps, runs.map((plots) => plots.ious), { isShare: false, counts: null }),
      grouped("Mean IoU by target size (share of the photo)", runs.map((plots) => plots.sizes)),
      grouped("Mean score by number of targets", runs.map((plots) => plots.targets)),
    ];
    const legend = runs.length < 2 ? [] : [el("p", { class: "note" }, el("span", { class: "legend" }), "this run",
      el("span", { class: "legend other" }), data.other)];
    byId("charts").replaceChildren(...charts, ...legend);
  }

  // ---- all questions

  const COLUMNS = [
    { name: "Score", value: (line) => line[SCORE], cell: (line) => percent(line[SCORE]), up: true },
    ...(data.other ? [
      { name: data.other, value: (line) => line[OTHER], cell: (line) => percent(line[OTHER]), up: true, optional: true },
      { name: "Difference", value: gainOf, cell: (line) => difference(gainOf(line)), up: true },
    ] : []),
    { name: "Question", value: (line) => line[QUESTION], cell: (line) => line[QUESTION], up: true, width: "text long" },
    { name: "Answer", value: (line) => line[ANSWER], cell: (line) => line[ANSWER], up: true, width: "text long", optional: true },
    { name: "Given", value: (line) => line[GIVEN], cell: (line) => line[GIVEN] },
    { name: "Asked", value: (line) => line[ASKED], cell: (line) => line[ASKED] },
    { name: "Extra", value: (line) => line[EXTRA], cell: (line) => line[EXTRA], optional: true },
    { name: "Missed", value: (line) => line[MISSED], cell: (line) => line[MISSED], optional: true },
    { name: "Lowest IoU", value: (line) => line[LOWEST], cell: (line) => percent(line[LOWEST]), up: true, optional: true },
    ...(data.rows.length > 1 ? [
      { name: "Row", value: (line) => data.rows[line[ROW]], cell: (line) => data.rows[line[ROW]], up: true, width: "text", optional: true },
    ] : []),
    { name: "Photo", value: (line) => line[SAMPLE], cell: (line) => line[SAMPLE], up: true, width: "text", optional: true },
  ];
  let column = 0;
  let isUp = true;
  let page = 0;
  let found = [];
  const repeated = new Set(data.repeated); // rows may share questions; among all rows each counts once
  let searched = null; // what the text filter looks into, made when it is first used

  function findLines() {
    const text = byId("text").value.trim().toLowerCase();
    const group = byId("group").value;
    const isPictured = byId("pictured").checked;
    if (text) searched ??= data.questions.map((line) => [line[QUESTION], line[ANSWER], line[SAMPLE]].join("\n").toLowerCase());
    const places = [];
    data.questions.forEach((line, place) => {
      if (row < data.rows.length ? line[ROW] !== row : repeated.has(place)) return;
      if (group && line[GROUP] !== group && line[KIND] !== group) return;
      if (isPictured && !(place in data.pictures)) return;
      if (text && !searched[place].includes(text)) return;
      places.push(place);
    });
    const values = new Map(places.map((place) => [place, COLUMNS[column].value(data.questions[place])]));
    const sign = isUp ? 1 : -1;
    found = places.sort((one, two) => {
      const [a, b] = [values.get(one), values.get(two)];
      if (a === b) return one - two;
      if (a === null || b === null) return a === null ? 1 : -1; // what has no value comes last
      return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
    });
    page = 0;
    showLines();
  }

  function showLines() {
    const first = page * PER_PAGE;
    const lines = found.slice(first, first + PER_PAGE).map((place, at) => tableLine(place, first + at));
    document.querySelector(".questions tbody").replaceChildren(...lines);
    const last = first + lines.length;
    byId("range").textContent = `${lines.length ? first + 1 : 0} to ${last} of ${found.length.toLocaleString("en")}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = last >= found.length;
    document.querySelectorAll(".questions th").forEach((head, at) => {
      if (at === column) head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
      head.firstChild.textContent = COLUMNS[at].name + (at === column ? (isUp ? " ▲" : " ▼") : "");
    });
  }

  function tableLine(place, at) {
    const line = data.questions[place];
    const cells = COLUMNS.map(({ name, cell, width = "figure", optional }) => {
      const isText = width !== "figure";
      const classes = `${width}${optional ? " optional" : ""}`;
      const content = isText ? el("span", { class: "clipped" }, cell(line)) : cell(line);
      return el("td", { class: classes, dir: isText ? "auto" : false }, name === "Question" ? el("button", { type: "button" }, content) : content);
    });
    return el("tr", { "data-place": place, onclick: () => show(found, at) }, ...cells);
  }

  function showHead() {
    const heads = COLUMNS.map(({ name, up, width = "figure", optional }, at) => el("th",
      { scope: "col", class: `${width}${optional ? " optional" : ""}` },
      el("button", { type: "button", onclick: () => {
        isUp = at === column ? !isUp : Boolean(up);
        column = at;
        findLines();
      } }, name)));
    document.querySelector(".questions thead tr").replaceChildren(...heads);
    const groups = new Set(data.questions.flatMap((line) => [line[GROUP], line[KIND]]));
    groups.delete("");
    byId("group").append(...[...groups].sort().map((name) => el("option", { value: name }, name)));
  }

  // ---- the page

  function showRow() {
    row = Number(byId("row").value);
    showFirst();
    showCards();
    showPlots();
    findLines();
  }

  for (const button of document.querySelectorAll(".groups")) {
    button.addEventListener("click", () => {
      const isShort = button.closest("tbody").classList.toggle("short");
      button.setAttribute("aria-expanded", String(!isShort));
    });
  }
  if (!byId("row")) return; // nothing was asked
  showHead();
  showRow();
  byId("row").addEventListener("change", showRow);
  for (const id of ["text", "group", "pictured"]) byId(id).addEventListener("input", findLines);
  byId("previous").addEventListener("click", () => { page -= 1; showLines(); });
  byId("next").addEventListener("click", () => { page += 1; showLines(); });
  byId("before").addEventListener("click", () => step(-1));
  byId("after").addEventListener("click", () => step(1));
  byId("sample").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) step(by);
  });
})();
