// Probability maps and what is cut out of them. A map is {width, height, gray}: gray has 255 * probability, by rows.

async function readPicture(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

function makeCanvas(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round(height));
  return canvas;
}

// The map, and the box outside of which no threshold above 0.01 finds anything.
async function readMap(url) {
  const image = await readPicture(url);
  const width = image.naturalWidth, height = image.naturalHeight;
  const context = makeCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const colors = context.getImageData(0, 0, width, height).data;
  const gray = new Uint8Array(width * height);
  for (let at = 0; at < gray.length; at++) gray[at] = colors[4 * at];
  const map = { width, height, gray, box: { left: 0, top: 0, right: width, bottom: height } };
  map.box = cutOut(map, 0.01, [0, 0, 0]).box;
  return map;
}

// A pixel is in the mask where gray > 255 * threshold. Gives their count, their box, and the box as a picture.
function cutOut(map, threshold, color) {
  const { left, top, right, bottom } = map.box, level = 255 * threshold;
  const box = { left: right, top: bottom, right: left, bottom: top };
  let count = 0;
  for (let y = top; y < bottom; y++) {
    for (let x = left, at = y * map.width + left; x < right; x++, at++) {
      if (map.gray[at] <= level) continue;
      count++;
      if (x < box.left) box.left = x;
      if (x >= box.right) box.right = x + 1;
      if (y < box.top) box.top = y;
      box.bottom = y + 1;
    }
  }
  if (!count) return { count, box: { left: 0, top: 0, right: 0, bottom: 0 }, tint: null };
  return { count, box, tint: paint(map, level, box, color) };
}

function paint(map, level, box, [red, green, blue]) {
  const width = box.right - box.left, height = box.bottom - box.top;
  const pixels = new ImageData(width, height);
  const words = new Uint32Array(pixels.data.buffer);
  // The bytes of a word lie the other way around, on every machine that runs a browser.
  const word = ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0, at = (box.top + y) * map.width + box.left; x < width; x++, at++) {
      if (map.gray[at] > level) words[y * width + x] = word;
    }
  }
  const canvas = makeCanvas(width, height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// The line at which the map crosses the threshold, in pixels of the map (marching squares between pixel centers).
function outlineOf(map, threshold, box) {
  const level = 255 * threshold, path = new Path2D(), { width, height, gray } = map;
  const valueAt = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? 0 : gray[y * width + x]);
  const between = (one, other) => (level - one) / (other - one);
  for (let y = box.top - 1; y < box.bottom; y++) {
    let a = valueAt(box.left - 1, y), d = valueAt(box.left - 1, y + 1); // a b above d c are the corners of a square
    for (let x = box.left - 1; x < box.right; x++) {
      const b = valueAt(x + 1, y), c = valueAt(x + 1, y + 1);
      const sides = CROSSED[(a > level) | ((b > level) << 1) | ((c > level) << 2) | ((d > level) << 3)];
      for (let at = 0; at < sides.length; at++) {
        let right = x + 0.5, down = y + 0.5;
        if (sides[at] === TOP) right += between(a, b);
        else if (sides[at] === LEFT) down += between(a, d);
        else if (sides[at] === BOTTOM) (right += between(d, c)), (down += 1);
        else (right += 1), (down += between(b, c));
        if (at % 2) path.lineTo(right, down);
        else path.moveTo(right, down);
      }
      a = b;
      d = c;
    }
  }
  return path;
}

// Which sides of a square the line joins, two by two, by the corners inside: a 1, b 2, c 4, d 8.
const TOP = 0, RIGHT = 1, BOTTOM = 2, LEFT = 3;
const CROSSED = [
  [], [TOP, LEFT], [TOP, RIGHT], [LEFT, RIGHT], [RIGHT, BOTTOM], [TOP, LEFT, RIGHT, BOTTOM], [TOP, BOTTOM], [LEFT, BOTTOM],
  [LEFT, BOTTOM], [TOP, BOTTOM], [TOP, RIGHT, LEFT, BOTTOM], [RIGHT, BOTTOM], [LEFT, RIGHT], [TOP, RIGHT], [TOP, LEFT], [],
];

// Points inside a mask, those far from its edge first: [{x, y, depth}], in pixels of the map.
function innerPoints(map, threshold, box) {
  const level = 255 * threshold;
  const step = Math.max(1, Math.ceil(Math.max(box.right - box.left, box.bottom - box.top) / 80));
  const columns = Math.ceil((box.right - box.left) / step) + 2, rows = Math.ceil((box.bottom - box.top) / step) + 2;
  const depth = new Float32Array(columns * rows); // in cells, from the nearest outside; the rim is outside
  for (let row = 1; row < rows - 1; row++) {
    for (let column = 1; column < columns - 1; column++) {
      const x = box.left + (column - 1) * step, y = box.top + (row - 1) * step;
      if (map.gray[y * map.width + x] > level) depth[row * columns + column] = 1e6;
    }
  }
  const sweep = (at, back) => {
    const straight = Math.min(depth[at - back], depth[at - back * columns]) + 1;
    const aslant = Math.min(depth[at - back * (columns + 1)], depth[at - back * (columns - 1)]) + 1.4;
    depth[at] = Math.min(depth[at], straight, aslant);
  };
  for (let at = columns + 1; at < depth.length - columns - 1; at++) if (depth[at]) sweep(at, 1);
  for (let at = depth.length - columns - 2; at > columns; at--) if (depth[at]) sweep(at, -1);
  const deepest = depth.reduce((most, cells) => Math.max(most, cells), 0), points = [];
  depth.forEach((cells, at) => {
    if (!cells || cells < 0.4 * deepest) return;
    const x = box.left + ((at % columns) - 1) * step, y = box.top + (Math.floor(at / columns) - 1) * step;
    points.push({ x: x + 0.5, y: y + 0.5, depth: cells * step });
  });
  if (!points.length) points.push(firstPixel(map, level, box)); // thinner than a cell
  return points.sort((one, other) => other.depth - one.depth);
}

function firstPixel(map, level, box) {
  const start = box.top * map.width;
  const at = start + map.gray.subarray(start).findIndex((value) => value > level);
  return { x: (at % map.width) + 0.5, y: box.top + 0.5, depth: 1 };
}
