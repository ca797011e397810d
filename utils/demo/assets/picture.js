// The canvas: photo, tints and outlines, and a numbered button on each mask. Knows nothing of words.
//
// A mask is {number, color, ink, label, map, threshold, count, box, tint, line, points, hidden, pinned}; see masks.js and viewer.js.

const BADGE = 24; // its diameter in CSS pixels: the least that fingers and WCAG 2.2 ask for
const FADE = 140; // milliseconds in which others dim

function makePicture(figure, { onPoint, onFocus, onPin }) {
  const canvas = figure.querySelector("canvas"), context = canvas.getContext("2d");
  const badges = figure.querySelector(".px-badges");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let photo = null, masks = [], looks = {}, lit = null, dim = 0, frame = 0, asked = 0;
  let ground = null; // the photo at the size of the canvas; so are the layers of a mask, and drawing only copies

  // What can be seen, large ones first: small things would vanish below what they lie on.
  const drawn = () => masks.filter((mask) => !mask.hidden && mask.count).sort((one, other) => other.count - one.count);

  function draw() {
    if (!photo || !canvas.width) return;
    context.globalAlpha = 1;
    context.drawImage(ground, 0, 0);
    const order = drawn();
    for (const mask of order) if (mask.layers?.of !== ground) mask.layers = makeLayers(mask, ground, devicePixelRatio);
    if (dim) {
      context.fillStyle = `rgb(10 11 14 / ${0.55 * dim})`;
      context.fillRect(0, 0, canvas.width, canvas.height);
      for (const mask of order) if (mask.number === lit) put(mask.layers.spot, 1);
    }
    const share = (mask, least) => (mask.number === lit ? 1 : 1 - (1 - least) * dim);
    for (const mask of order) put(mask.layers.tint, looks.opacity * share(mask, 0.15));
    for (const mask of order) {
      if (looks.outline || mask.number === lit) put(mask.layers.line, share(mask, 0.2));
      putLeader(mask, share(mask, 0.2));
    }
    context.globalAlpha = 1;
  }

  function put({ picture, left, top }, alpha) {
    context.globalAlpha = alpha;
    context.drawImage(picture, left, top);
  }

  // From a number that stands beside a small thing to the thing.
  function putLeader(mask, alpha) {
    const badge = mask.badge;
    if (!badge?.isBeside) return;
    context.globalAlpha = alpha;
    for (const [width, color] of [[3.5, mask.ink], [1.5, css(mask.color)]]) {
      context.lineWidth = width * devicePixelRatio;
      context.strokeStyle = color;
      context.beginPath();
      context.moveTo(badge.x * devicePixelRatio, badge.y * devicePixelRatio);
      context.lineTo(badge.toX * devicePixelRatio, badge.toY * devicePixelRatio);
      context.stroke();
    }
  }

  function redraw() {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      draw();
    });
  }

  // Fade between the picture as it is and the one in which others are dim.
  function light(number) {
    const goal = drawn().some((mask) => mask.number === number) ? 1 : 0;
    if (goal) lit = number;
    badges.dataset.dims = goal;
    for (const badge of badges.children) badge.toggleAttribute("data-lit", +badge.dataset.target === number);
    cancelAnimationFrame(frame);
    let before = performance.now();
    const step = (now) => {
      const part = still.matches ? 1 : Math.max(0, now - before) / FADE;
      before = now;
      dim = goal ? Math.min(1, dim + part) : Math.max(0, dim - part);
      if (dim === 0 && !goal) lit = null;
      draw();
      if (dim !== goal) frame = requestAnimationFrame(step);
    };
    if (still.matches) step(before);
    else frame = requestAnimationFrame(step);
  }

  function resize() {
    const width = Math.round(figure.clientWidth * devicePixelRatio);
    const height = Math.round(figure.clientHeight * devicePixelRatio);
    if (!photo || !width || (ground && canvas.width === width && canvas.height === height)) return;
    canvas.width = width;
    canvas.height = height;
    ground = makeCanvas(width, height);
    ground.getContext("2d").drawImage(photo, 0, 0, width, height);
    placeBadges();
    draw();
  }

  function placeBadges() {
    const size = { width: figure.clientWidth, height: figure.clientHeight }, placed = [];
    const focused = badges.contains(document.activeElement) ? document.activeElement.dataset.target : null;
    for (const mask of drawn().reverse()) placed.push((mask.badge = placeOf(mask, size, placed)));
    const shown = drawn().sort((one, other) => one.number - other.number);
    while (badges.children.length > shown.length) badges.lastChild.remove();
    shown.forEach((mask, index) => {
      const badge = badges.children[index] ?? badges.appendChild(document.createElement("button"));
      badge.type = "button";
      badge.textContent = mask.number;
      badge.dataset.target = mask.number;
      badge.setAttribute("aria-label", mask.label);
      badge.setAttribute("aria-pressed", mask.pinned);
      badge.style.cssText =
        `left:${mask.badge.x}px;top:${mask.badge.y}px;--mask:${css(mask.color)};--ink:${mask.ink}`;
      badge.tabIndex = (focused === null ? index === 0 : badge.dataset.target === focused) ? 0 : -1;
    });
  }

  function maskAt(event) {
    const place = canvas.getBoundingClientRect();
    const right = (event.clientX - place.left) / place.width, down = (event.clientY - place.top) / place.height;
    const found = drawn().reverse().find(({ map, threshold }) => {
      const x = Math.floor(right * map.width), y = Math.floor(down * map.height);
      return x >= 0 && y >= 0 && x < map.width && y < map.height && map.gray[y * map.width + x] > 255 * threshold;
    });
    return found ? found.number : null;
  }

  canvas.addEventListener("pointermove", (event) => {
    const number = event.pointerType === "touch" ? null : maskAt(event);
    canvas.style.cursor = number === null ? "" : "pointer";
    onPoint(number);
  });
  canvas.addEventListener("pointerleave", () => onPoint(null));
  canvas.addEventListener("click", (event) => onPin(maskAt(event)));
  const targetOf = (event) => (event.target.dataset.target === undefined ? null : +event.target.dataset.target);
  badges.addEventListener("pointerover", (event) => event.pointerType !== "touch" && onPoint(targetOf(event)));
  badges.addEventListener("pointerout", () => onPoint(null));
  badges.addEventListener("focusin", (event) => onFocus(event.target.matches(":focus-visible") ? targetOf(event) : null));
  badges.addEventListener("focusout", () => onFocus(null));
  badges.addEventListener("click", (event) => targetOf(event) !== null && onPin(targetOf(event)));
  badges.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const all = [...badges.children], at = all.indexOf(event.target);
    if (!step || at < 0) return;
    event.preventDefault();
    const next = all[(at + step + all.length) % all.length];
    all.forEach((badge) => (badge.tabIndex = badge === next ? 0 : -1));
    next.focus();
  });
  new ResizeObserver(resize).observe(figure);

  return {
    setPhoto(image) {
      photo = image;
      const ratio = image ? image.naturalWidth / image.naturalHeight : 1;
      figure.style.setProperty("--ratio", ratio);
      ground = null;
      resize();
    },
    show(nextMasks, nextLooks) {
      masks = nextMasks;
      looks = nextLooks;
      placeBadges();
      redraw();
    },
    light,
    resize,
    draw,
  };
}

const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;

// What is drawn of a mask, at the size of the canvas: tint, outline, and its part of the photo, to stand out from a dim one.
function makeLayers(mask, ground, ratio) {
  const { box, map } = mask, scale = ground.width / map.width, margin = Math.ceil(4 * ratio);
  const left = Math.floor(box.left * scale) - margin, top = Math.floor(box.top * scale) - margin;
  const width = (box.right - box.left) * scale + 2 * margin, height = (box.bottom - box.top) * scale + 2 * margin;
  const layer = (paint) => {
    const picture = makeCanvas(width, height), context = picture.getContext("2d");
    context.translate(-left, -top);
    paint(context);
    return { picture, left, top };
  };
  const place = [box.left * scale, box.top * scale, (box.right - box.left) * scale, (box.bottom - box.top) * scale];
  const tint = layer((context) => context.drawImage(mask.tint, ...place));
  const spot = layer((context) => {
    context.drawImage(tint.picture, left, top);
    context.globalCompositeOperation = "source-in";
    context.drawImage(ground, 0, 0);
  });
  return { of: ground, tint, spot, line: layer((context) => strokeLine(context, mask, scale, ratio)) };
}

// The outline in two tones, so that it shows on any ground: its color, between lines of the ink that is read on it.
function strokeLine(context, { box, line, color, ink }, scale, ratio) {
  context.scale(scale, scale);
  context.lineCap = context.lineJoin = "round";
  // A thick line would hide what is tiny.
  const thin = Math.min(box.right - box.left, box.bottom - box.top) * scale < 14 * ratio ? 0.6 : 1;
  for (const [width, tone] of [[4.2 * thin, ink], [2.2 * thin, css(color)]]) {
    context.lineWidth = (width * ratio) / scale;
    context.strokeStyle = tone;
    context.stroke(line);
  }
}

// Where a number stands, in CSS pixels: on its mask where that is widest, beside it where it would hide it.
function placeOf(mask, size, placed) {
  const across = size.width / mask.map.width, down = size.height / mask.map.height, half = BADGE / 2;
  const isFree = ({ x, y }) => placed.every((other) => Math.hypot(other.x - x, other.y - y) > BADGE + 2);
  const inside = ({ x, y }) => ({
    x: Math.min(Math.max(x, half), size.width - half), y: Math.min(Math.max(y, half), size.height - half),
  });
  const [widest] = mask.points, onPicture = ({ x, y }) => ({ x: x * across, y: y * down });
  const heart = onPicture(widest);
  if (widest.depth * across >= 0.9 * half) {
    const stride = Math.max(1, Math.floor(mask.points.length / 200));
    for (let at = 0; at < mask.points.length; at += stride) {
      const place = inside(onPicture(mask.points[at]));
      if (isFree(place)) return place;
    }
    return inside(heart);
  }
  for (const far of [1, 2, 3]) {
    for (let turn = 0; turn < 12; turn++) {
      const angle = -Math.PI / 4 + (turn * Math.PI) / 6, reach = widest.depth * across + far * (half + 6);
      const place = { x: heart.x + reach * Math.cos(angle), y: heart.y + reach * Math.sin(angle) };
      const kept = inside(place);
      if (kept.x === place.x && kept.y === place.y && isFree(place)) {
        return { ...place, isBeside: true, toX: heart.x, toY: heart.y };
      }
    }
  }
  return inside(heart);
}
